/** A study on the screen: the scan with one painted layer, the pseudo-healthy image, and what links them. */

import { BANDS, scaleOf, type Scale } from "./colours";
import { Buttons } from "./buttons";
import { ColourBar } from "./colour_bar";
import { Divider } from "./divider";
import { apply } from "./geometry";
import { filledOutside } from "./healthy_image";
import { readImage, valueAt, windowOf, type Image } from "./image_source";
import type { Look, Paint } from "./overlay_painter";
import { placesFor } from "./places";
import { Readout } from "./readout";
import { Side } from "./side";
import type {
  Compare, Convention, Layer, Layout, OnMove, Study, Vec3, Viewer, ViewerState,
} from "./types";

/** An older load that a newer one overtook; nothing for the reader. */
export class Superseded extends Error {
  override name = "Superseded";
}

const START_TURN: [number, number, number] = [110, 10, 1];
const LOST =
  "The graphics card took the picture away (its memory ran out, or its driver started again). It comes back by itself " +
  "when the card is ready; if it does not, close other tabs and open the study again.";

export class StudyViewer implements Viewer {
  private readonly root = element("div", "av");
  private readonly stage = element("div", "av-stage");
  private readonly message = element("div", "av-message");
  private readonly captions = { scan: element("div", "av-caption"), healthy: element("div", "av-caption") };
  private readonly readout = new Readout();
  private readonly bar = new ColourBar();
  private readonly buttons = new Buttons({
    convention: () => this.setConvention(this.convention === "radiological" ? "neurological" : "radiological"),
    smooth: () => this.setInterpolation(!this.smooth),
    reset: () => this.resetView(),
  });
  private readonly divider = new Divider((share) => this.swiped(share));
  private readonly watch = new ResizeObserver(() => this.resize());
  private scanSide: Side;
  private healthySide: Side | null = null;
  private readonly healthyPanel = element("div", "av-panel av-healthy");

  private study: Study | null = null;
  private loading: AbortController | null = null;
  private scan: Image | null = null;
  private map: Image | null = null;
  private brain: Image | null = null;
  private healthy: Image | null = null;
  private spread: Image | null = null;

  private scale: Scale = scaleOf([]);
  private threshold = 0;
  private opacity = 0.65;
  private window: [number, number] = [0, 1];
  private layout: Layout = "planes";
  private compare: Compare = "off";
  private layer: Layer = "map";
  private convention: Convention = "radiological";
  private smooth = true;
  private destroyed = false;
  private readonly moves: OnMove[] = [];
  private readonly windows: ((lo: number, hi: number) => void)[] = [];
  private readonly troubles: ((sentence: string) => void)[] = [];

  constructor(host: HTMLElement) {
    this.root.tabIndex = -1;
    this.root.setAttribute("role", "group");
    this.root.setAttribute("aria-label", "Image viewer");
    const panel = element("div", "av-panel av-scan");
    this.healthyPanel.hidden = true;
    this.divider.element.hidden = true;
    this.message.hidden = true;
    this.message.setAttribute("role", "status");
    this.captions.scan.textContent = "Scan";
    this.captions.healthy.textContent = "Pseudo-healthy (outside the brain: the scan, darkened)";
    panel.append(this.captions.scan);
    this.healthyPanel.append(this.captions.healthy);
    this.stage.append(panel, this.healthyPanel, this.divider.element, this.message);
    const foot = element("div", "av-foot");
    foot.append(this.readout.element, this.buttons.element, this.bar.element);
    this.buttons.update(this.convention, this.smooth);
    this.root.append(this.stage, foot);
    host.append(this.root);
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.scanSide = this.newSide(panel);
    this.watch.observe(this.stage);
    this.captions.scan.hidden = true;
    this.bar.update({ layer: "none", scale: this.scale, threshold: 0, bands: BANDS });
  }

  async load(study: Study): Promise<void> {
    this.loading?.abort();
    const loading = new AbortController();
    this.loading = loading;
    const before = { study: this.study, scan: this.scan, at: this.scan ? this.scanSide.view.crosshair : null };
    const same = before.scan !== null && before.study?.scan === study.scan && before.study.name === study.name;
    if (!same) this.forget();
    this.study = study;
    const fetch = (url: string | undefined, what: string): Promise<Image | null> =>
      !url ? Promise.resolve(null) : readImage(url, what, study.headers ?? {}, loading.signal);
    try {
      await this.started(this.scanSide);
      const [scan, map, brain] = await Promise.all([
        same ? before.scan : fetch(study.scan, "The scan"),
        fetch(study.map, "The anomaly map"),
        fetch(study.brain, "The brain mask"),
      ]);
      if (loading.signal.aborted || this.destroyed) throw new Superseded("another study was opened");
      this.scan = scan;
      this.map = map;
      this.brain = brain;
      this.healthy = this.spread = null;
    } catch (error) {
      if (loading.signal.aborted || this.destroyed) throw new Superseded("another study was opened");
      this.forget();
      throw error;
    }
    this.scale = scaleOf(study.edges ?? []);
    this.threshold = study.threshold ?? this.scale.edges[0];
    if (!same) this.window = study.window ?? windowOf(this.scan!);
    this.say(null);
    this.present(same ? before.at : null);
    if (this.compare !== "off") await this.compared();
    if (this.layer === "uncertainty") await this.spreadShown();
  }

  setThreshold(value: number): void {
    if (!Number.isFinite(value)) return;
    this.threshold = value;
    this.look();
  }

  setOpacity(value: number): void {
    this.opacity = Math.min(Math.max(value, 0), 1);
    this.look();
  }

  setLayout(layout: Layout): void {
    this.layout = layout;
    this.arrange();
  }

  setCompare(compare: Compare): void {
    if (compare === this.compare) return;
    this.compare = compare;
    void this.compared();
  }

  setLayer(layer: Layer, on: boolean): void {
    if (on) this.layer = layer;
    else if (this.layer === layer || layer === "none") this.layer = layer === "none" ? "map" : "none";
    if (this.layer === "uncertainty") void this.spreadShown();
    else this.look();
  }

  setConvention(convention: Convention): void {
    this.convention = convention;
    for (const side of this.sides()) side.view.setConvention(convention === "radiological");
    this.buttons.update(this.convention, this.smooth);
  }

  setInterpolation(smooth: boolean): void {
    this.smooth = smooth;
    for (const side of this.sides()) side.view.setInterpolation(smooth);
    this.buttons.update(this.convention, this.smooth);
  }

  setWindow(lo: number, hi: number): void {
    if (!(hi > lo)) return;
    this.window = [lo, hi];
    for (const side of this.sides()) side.view.setWindow(lo, hi);
  }

  setSwipe(share: number): void {
    this.divider.set(share);
  }

  resetView(): void {
    for (const side of this.sides()) {
      side.view.pan = [0, 0, 0, 1];
      side.view.turn = START_TURN;
    }
    if (this.study && this.scan) {
      this.setWindow(...(this.study.window ?? windowOf(this.scan!)));
      this.windows.forEach((told) => told(...this.window));
    }
  }

  goTo(ras_mm: Vec3): void {
    for (const side of this.sides()) side.view.crosshair = ras_mm;
    this.moved();
  }

  onMove(callback: OnMove): void {
    this.moves.push(callback);
  }

  onWindow(callback: (lo: number, hi: number) => void): void {
    this.windows.push(callback);
  }

  onTrouble(callback: (sentence: string) => void): void {
    this.troubles.push(callback);
  }

  state(): ViewerState {
    const { view } = this.scanSide;
    const other = this.healthySide?.view;
    return {
      ready: this.scan !== null,
      ras_mm: view.crosshair,
      voxel: this.voxel(),
      threshold: this.threshold,
      opacity: this.opacity,
      window: [...this.window],
      layout: this.layout,
      compare: this.compare,
      layer: this.layer,
      convention: this.convention,
      swipe: this.divider.value,
      zoom: view.pan[3]!,
      tiles: { scan: view.tiles(), healthy: other?.tiles() ?? [] },
      crosshair: { scan: view.crosshair, healthy: other?.crosshair ?? [0, 0, 0] },
    };
  }

  focus(): void {
    this.root.focus();
  }

  resize(): void {
    if (this.destroyed) return;
    const { clientWidth, clientHeight } = this.stage;
    this.root.toggleAttribute("data-tall", clientHeight > clientWidth * 1.1);
    for (const side of this.sides()) side.view.resize();
    this.arrange();
  }

  destroy(): void {
    this.destroyed = true;
    this.loading?.abort();
    this.watch.disconnect();
    for (const side of this.sides()) side.destroy();
    this.scan = this.map = this.brain = this.healthy = this.spread = null;
    this.root.remove();
  }

  // Below: how it is done.

  private newSide(panel: HTMLElement): Side {
    return new Side(panel, {
      crosshair: (ras_mm) => this.goTo(this.onVoxel(ras_mm)),
      scroll: (axis, steps) => this.toSlice(axis, (at) => at + steps),
      slice: (axis, share) => this.toSlice(axis, (_, n) => Math.round(share * (n - 1))),
      pan: (pan) => this.sides().forEach((s) => (s.view.pan = [...pan])),
      turn: (turn) => this.sides().forEach((s) => (s.view.turn = turn)),
      window: (level, width) => this.windowed(level, width),
      drawn: (side) => this.lettered(side),
      lost: () => this.say(LOST),
      restored: (side) => void this.restored(side),
    });
  }

  private sides(): Side[] {
    return this.healthySide ? [this.scanSide, this.healthySide] : [this.scanSide];
  }

  private async started(side: Side): Promise<void> {
    if (side.view.started) return;
    await side.view.start(this.convention === "radiological");
  }

  /** All of the study at hand onto the canvas; `at` and the view are kept where the scan is the one before. */
  private present(at: Vec3 | null): void {
    if (!this.scan) return;
    const { view } = this.scanSide;
    const { pan, turn } = view;
    view.show(this.scan, this.brain, this.painted(), this.lookOf(), this.window);
    view.setInterpolation(this.smooth);
    view.pan = at ? pan : [0, 0, 0, 1];
    view.turn = at ? turn : START_TURN;
    this.arrange();
    this.look();
    this.goTo(at ?? apply(this.scan.affine, this.scan.dims.map((n) => Math.floor(n / 2))));
  }

  private painted(): Image | null {
    if (this.layer === "none") return null;
    return this.layer === "uncertainty" ? this.spread : this.map;
  }

  private lookOf(): Look {
    const paint: Paint = this.layer === "bands" || this.layer === "uncertainty" ? this.layer : "map";
    return { paint, scale: this.scale, threshold: this.threshold, opacity: this.opacity, bands: this.bands().map((b) => b.colour) };
  }

  private bands(): { name: string; colour: [number, number, number] }[] {
    return this.study?.bands?.length === 3 ? this.study.bands : BANDS;
  }

  private look(): void {
    this.scanSide.view.setLook(this.painted(), this.lookOf());
    const layer = this.painted() === null ? "none" : this.layer;
    this.bar.update({ layer, scale: this.scale, threshold: this.threshold, bands: this.bands() });
    this.read();
  }

  private arrange(): void {
    if (!this.scan) return;
    for (const side of this.sides()) {
      const { clientWidth, clientHeight } = side.panel;
      if (clientWidth > 0) side.view.setPlaces(placesFor(this.layout, this.scanSide.view.grid, clientWidth, clientHeight));
    }
  }

  private async compared(): Promise<void> {
    const { study, scan } = this;
    if (study && scan && this.compare !== "off" && !this.healthy) {
      await this.later(study.reconstruction, "The pseudo-healthy image", "This model makes no pseudo-healthy image.", (image) => {
        this.healthy = filledOutside(image, scan, this.brain, study.window?.[0] ?? this.window[0]);
      });
      if (this.study !== study || this.destroyed) return;
      if (!this.healthy) this.compare = "off";
    }
    const on = this.compare !== "off" && this.healthy !== null;
    this.root.dataset.compare = on ? this.compare : "off";
    this.healthyPanel.hidden = this.captions.scan.hidden = !on;
    this.divider.element.hidden = !on || this.compare !== "swipe";
    this.swiped(this.divider.value);
    if (!on) {
      this.healthySide?.destroy();
      this.healthySide = null;
    } else {
      this.healthySide ??= this.newSide(this.healthyPanel);
      await this.started(this.healthySide);
      if (this.study !== study || !this.healthySide || !this.healthy) return;
      const [{ view }, first] = [this.healthySide, this.scanSide.view];
      view.show(this.healthy, this.brain, null, this.lookOf(), this.window);
      view.setInterpolation(this.smooth);
      view.setConvention(this.convention === "radiological");
      view.pan = first.pan;
      view.turn = first.turn;
      view.crosshair = first.crosshair;
    }
    this.resize();
    this.read();
  }

  private async spreadShown(): Promise<void> {
    if (this.scan && !this.spread) {
      const none = "The analysis was made without uncertainty, so there is no spread to show.";
      await this.later(this.study?.uncertainty, "The uncertainty map", none, (image) => (this.spread = image));
    }
    this.look();
  }

  /** Fetch what is only needed when asked for; what is wrong with it is said, the rest stays usable. */
  private async later(url: string | undefined, what: string, none: string, take: (image: Image) => void): Promise<void> {
    const { study, loading } = this;
    if (!study || !loading) return;
    if (!url) {
      this.say(none);
      return;
    }
    this.wait(`Loading: ${what.toLowerCase()} …`);
    try {
      const image = await readImage(url, what, study.headers ?? {}, loading.signal);
      if (this.study !== study) return;
      take(image);
      this.wait(null);
    } catch (error) {
      this.wait(null);
      if (!loading.signal.aborted) this.say(error instanceof Error ? error.message : String(error));
    }
  }

  private swiped(share: number): void {
    this.healthyPanel.style.clipPath = this.compare === "swipe" ? `inset(0 0 0 ${100 * share}%)` : "";
  }

  private windowed(level: number, width: number): void {
    const [lo, hi] = this.window;
    const span = hi - lo;
    const wide = Math.max(span * (1 + width), Number.EPSILON * 16 * Math.max(Math.abs(lo), Math.abs(hi), 1));
    const middle = (lo + hi) / 2 + level * span;
    this.setWindow(middle - wide / 2, middle + wide / 2);
    this.windows.forEach((told) => told(...this.window));
  }

  /** The centre of the voxel that a point lies in. */
  private onVoxel(ras_mm: Vec3): Vec3 {
    if (!this.scan) return ras_mm;
    const { inverse, affine, dims } = this.scan;
    const voxel = apply(inverse, ras_mm).map((v, k) => Math.min(Math.max(Math.round(v), 0), dims[k]! - 1));
    return apply(affine, voxel);
  }

  /** Leafing through the largest plane without a mouse. */
  private key(event: KeyboardEvent): void {
    const steps = { PageUp: 1, PageDown: -1 }[event.key];
    const plane = this.scanSide.view.tiles()[0]?.plane;
    if (!steps || !plane || plane === "3d") return;
    event.preventDefault();
    this.toSlice({ axial: 2, coronal: 1, sagittal: 0 }[plane], (at) => at + steps);
  }

  private toSlice(axis: number, choose: (at: number, count: number) => number): void {
    const { view } = this.scanSide;
    if (!this.scan) return;
    const share = Array.from(view.engine.scene.crosshairPos) as Vec3;
    const n = view.grid.dims[axis]!;
    const at = choose(Math.min(Math.floor(share[axis]! * n), n - 1), n);
    share[axis] = (Math.min(Math.max(at, 0), n - 1) + 0.5) / n;
    this.goTo(view.millimetres(share));
  }

  private voxel(): Vec3 {
    return this.scan ? (apply(this.scan.inverse, this.scanSide.view.crosshair).map(Math.round) as Vec3) : [0, 0, 0];
  }

  private moved(): void {
    const { view } = this.scanSide;
    if (!this.scan) return;
    this.read();
    const ras_mm = view.crosshair;
    const value = valueAt(this.scan, this.voxel());
    for (const told of this.moves) told(ras_mm, this.voxel(), value, this.at(this.map, ras_mm));
  }

  private read(): void {
    if (!this.scan) return;
    const ras_mm = this.scanSide.view.crosshair;
    this.readout.update({
      ras_mm,
      voxel: this.voxel(),
      scan: valueAt(this.scan, this.voxel()),
      map: this.at(this.map, ras_mm),
      healthy: this.compare === "off" ? null : this.at(this.healthy, ras_mm),
      spread: this.at(this.spread, ras_mm),
    });
  }

  private at(image: Image | null, ras_mm: Vec3): number | null {
    return image ? valueAt(image, apply(image.inverse, ras_mm)) : null;
  }

  private lettered(side: Side): void {
    const { view } = this.scanSide;
    if (!this.scan) return;
    const { dims } = view.grid;
    const voxel = Array.from(view.engine.scene.crosshairPos).map((f, k) => Math.min(Math.floor(f * dims[k]!), dims[k]! - 1));
    side.letter(this.convention, voxel as Vec3, dims, this.compare === "swipe");
  }

  /** A card that is ready again knows nothing: a new canvas, the same study. */
  private async restored(side: Side): Promise<void> {
    if (this.destroyed || !this.scan) return;
    const at = this.scanSide.view.crosshair;
    side.destroy();
    if (side === this.healthySide) this.healthySide = null;
    else {
      this.scanSide = this.newSide(side.panel);
      await this.started(this.scanSide);
      this.present(at);
    }
    this.say(null);
    await this.compared();
    this.goTo(at);
  }

  private forget(): void {
    for (const side of this.sides()) side.clear();
    this.scan = this.map = this.brain = this.healthy = this.spread = null;
    this.study = null;
    this.readout.clear();
    this.bar.update({ layer: "none", scale: this.scale, threshold: 0, bands: BANDS });
  }

  /** Trouble goes to whoever listens; nobody does: it stands in the viewer. */
  private say(sentence: string | null): void {
    this.troubles.forEach((told) => told(sentence ?? ""));
    if (this.troubles.length === 0) this.write(sentence, "trouble");
  }

  private wait(sentence: string | null): void {
    this.write(sentence, "wait");
  }

  private write(sentence: string | null, kind: "trouble" | "wait"): void {
    this.message.hidden = sentence === null;
    this.message.dataset.kind = kind;
    this.message.textContent = sentence ?? "";
  }
}

function element(tag: string, name: string): HTMLElement {
  const made = document.createElement(tag);
  made.className = name;
  return made;
}

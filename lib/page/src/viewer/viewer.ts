/** A study on the screen: the scan with one painted layer, the pseudo-healthy image, and what links them. */

import { CanvasView } from "./canvas_view";
import { BANDS, scaleOf, type Scale } from "./colours";
import { ColourBar } from "./colour_bar";
import { Divider } from "./divider";
import { apply } from "./geometry";
import { filledOutside } from "./healthy_image";
import { readImage, valueAt, type Image } from "./image_source";
import { Letters } from "./letters";
import type { Look, Paint } from "./overlay_painter";
import { placesFor } from "./places";
import { Pointer, type Gestures } from "./pointer";
import { Readout } from "./readout";
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

class Side {
  view: CanvasView;
  letters: Letters;
  pointer: Pointer;

  constructor(readonly panel: HTMLElement, gestures: Gestures) {
    this.view = new CanvasView(panel);
    this.letters = new Letters(this.view);
    this.pointer = new Pointer(this.view, gestures);
  }

  destroy(): void {
    this.pointer.destroy();
    this.letters.clear();
    this.view.destroy();
    this.panel.querySelector(".av-letters")?.remove();
  }
}

export class StudyViewer implements Viewer {
  private readonly root = element("div", "av");
  private readonly stage = element("div", "av-stage");
  private readonly message = element("div", "av-message");
  private readonly caption = element("div", "av-caption");
  private readonly readout = new Readout();
  private readonly bar = new ColourBar();
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
    this.message.setAttribute("role", "alert");
    this.healthyPanel.append(this.caption);
    this.stage.append(panel, this.healthyPanel, this.divider.element, this.message);
    const foot = element("div", "av-foot");
    foot.append(this.readout.element, this.bar.element);
    this.root.append(this.stage, foot);
    host.append(this.root);
    this.scanSide = this.newSide(panel);
    this.watch.observe(this.stage);
    this.bar.update({ layer: "none", scale: this.scale, threshold: 0, bands: BANDS });
  }

  async load(study: Study): Promise<void> {
    this.loading?.abort(new Superseded("another study was opened"));
    const loading = new AbortController();
    this.loading = loading;
    this.forget();
    this.study = study;
    this.say("Loading the images …", "wait");
    const fetch = (url: string | undefined, what: string): Promise<Image | null> =>
      url === undefined ? Promise.resolve(null) : readImage(url, what, study.headers ?? {}, loading.signal);
    try {
      await this.started(this.scanSide);
      const [scan, map, brain] = await Promise.all([
        fetch(study.scan, "The scan"), fetch(study.map, "The anomaly map"), fetch(study.brain, "The brain mask"),
      ]);
      if (loading.signal.aborted || this.destroyed) throw new Superseded("another study was opened");
      this.scan = scan;
      this.map = map;
      this.brain = brain;
    } catch (error) {
      if (loading.signal.aborted) throw new Superseded("another study was opened");
      const sentence = error instanceof Error ? error.message : String(error);
      this.say(sentence, "error");
      throw error;
    }
    this.scale = scaleOf(study.edges);
    this.threshold = study.threshold;
    this.window = [...study.window];
    this.say(null);
    this.present();
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
  }

  setInterpolation(smooth: boolean): void {
    this.smooth = smooth;
    for (const side of this.sides()) side.view.setInterpolation(smooth);
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
    if (this.study) {
      this.setWindow(...this.study.window);
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
    this.loading?.abort(new Superseded("the viewer was closed"));
    this.watch.disconnect();
    for (const side of this.sides()) side.destroy();
    this.scan = this.map = this.brain = this.healthy = this.spread = null;
    this.root.remove();
  }

  // Below: how it is done.

  private newSide(panel: HTMLElement): Side {
    const side = new Side(panel, {
      crosshair: (ras_mm) => this.goTo(this.onVoxel(ras_mm)),
      scroll: (axis, steps) => this.scroll(axis, steps),
      pan: (pan) => this.sides().forEach((s) => (s.view.pan = [...pan])),
      turn: (turn) => this.sides().forEach((s) => (s.view.turn = turn)),
      window: (level, width) => this.windowed(level, width),
    });
    side.view.onDrawn = () => this.lettered(side);
    side.view.canvas.addEventListener("webglcontextlost", (event) => {
      event.preventDefault();
      if (this.destroyed) return;
      this.say(LOST, "error");
      this.troubles.forEach((told) => told(LOST));
    });
    side.view.canvas.addEventListener("webglcontextrestored", () => void this.restored(side));
    return side;
  }

  private sides(): Side[] {
    return this.healthySide ? [this.scanSide, this.healthySide] : [this.scanSide];
  }

  private async started(side: Side): Promise<void> {
    if (side.view.started) return;
    try {
      await side.view.start(this.convention === "radiological");
    } catch (error) {
      const sentence = error instanceof Error ? error.message : String(error);
      this.troubles.forEach((told) => told(sentence));
      throw error;
    }
  }

  /** All of the study at hand onto the canvases. */
  private present(): void {
    if (!this.scan) return;
    const { view } = this.scanSide;
    view.show(this.scan, this.painted(), this.lookOf());
    view.setInterpolation(this.smooth);
    view.setWindow(...this.window);
    view.pan = [0, 0, 0, 1];
    view.turn = START_TURN;
    this.arrange();
    this.look();
    const { dims } = this.scan;
    this.goTo(apply(this.scan.affine, dims.map((n) => Math.floor(n / 2))));
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
    const on = this.compare !== "off" && this.study !== null;
    const study = this.study;
    if (on && !this.healthy) {
      if (!study?.reconstruction) {
        this.compare = "off";
        this.note("This model makes no pseudo-healthy image.");
      } else {
        await this.later(study.reconstruction, "The pseudo-healthy image", (image) => {
          this.healthy = this.scan ? filledOutside(image, this.scan, this.brain, study.window[0]) : null;
        });
        if (!this.healthy) this.compare = "off";
      }
    }
    if (this.study !== study || this.destroyed) return;
    this.root.dataset.compare = this.compare;
    this.healthyPanel.hidden = this.compare === "off";
    this.divider.element.hidden = this.compare !== "swipe";
    this.caption.textContent = "Pseudo-healthy image (outside the brain: the scan, darkened)";
    if (this.compare === "off" || !this.healthy) {
      this.healthySide?.destroy();
      this.healthySide = null;
      this.healthyPanel.style.clipPath = "";
      this.resize();
      return;
    }
    this.healthySide ??= this.newSide(this.healthyPanel);
    const { view } = this.healthySide;
    await this.started(this.healthySide);
    if (this.study !== study || !this.healthy) return;
    view.show(this.healthy, null, this.lookOf());
    view.setInterpolation(this.smooth);
    view.setConvention(this.convention === "radiological");
    view.setWindow(...this.window);
    view.pan = this.scanSide.view.pan;
    view.turn = this.scanSide.view.turn;
    view.crosshair = this.scanSide.view.crosshair;
    this.swiped(this.divider.value);
    this.resize();
    this.read();
  }

  private async spreadShown(): Promise<void> {
    if (!this.spread) {
      const address = this.study?.uncertainty;
      if (!address) {
        this.note("The analysis was made without uncertainty, so there is no spread to show.");
      } else {
        await this.later(address, "The uncertainty map", (image) => (this.spread = image));
      }
    }
    this.look();
  }

  /** Fetch what is only needed when asked for; trouble is said in the viewer. */
  private async later(url: string, what: string, take: (image: Image) => void): Promise<void> {
    const study = this.study;
    const loading = this.loading;
    if (!study || !loading) return;
    this.say(`Loading: ${what.toLowerCase()} …`, "wait");
    try {
      const image = await readImage(url, what, study.headers ?? {}, loading.signal);
      if (this.study !== study) return;
      take(image);
      this.say(null);
    } catch (error) {
      if (!loading.signal.aborted) this.note(error instanceof Error ? error.message : String(error));
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

  private scroll(axis: number, steps: number): void {
    const { view } = this.scanSide;
    if (!this.scan) return;
    const share = Array.from(view.engine.scene.crosshairPos) as Vec3;
    const n = view.grid.dims[axis]!;
    const at = Math.min(Math.max(Math.floor(share[axis]! * n) + steps, 0), n - 1);
    share[axis] = (at + 0.5) / n;
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
    side.letters.update(this.convention, voxel as Vec3, dims);
  }

  /** A card that is ready again knows nothing: new canvases, the same study. */
  private async restored(side: Side): Promise<void> {
    if (this.destroyed || !this.scan) return;
    const at = this.scanSide.view.crosshair;
    if (side === this.healthySide) {
      this.healthySide.destroy();
      this.healthySide = null;
    } else {
      this.scanSide.destroy();
      this.scanSide = this.newSide(side.panel);
      await this.started(this.scanSide);
      this.present();
    }
    this.say(null);
    await this.compared();
    this.goTo(at);
  }

  private forget(): void {
    for (const side of this.sides()) {
      side.view.clear();
      side.letters.clear();
    }
    this.scan = this.map = this.brain = this.healthy = this.spread = null;
    this.study = null;
    this.readout.clear();
    this.bar.update({ layer: "none", scale: this.scale, threshold: 0, bands: BANDS });
  }

  private say(sentence: string | null, kind: "wait" | "error" | "note" = "wait"): void {
    this.message.hidden = sentence === null;
    this.message.dataset.kind = kind;
    this.message.textContent = sentence ?? "";
  }

  private note(sentence: string): void {
    this.say(sentence, "note");
    this.troubles.forEach((told) => told(sentence));
    window.setTimeout(() => {
      if (this.message.textContent === sentence) this.say(null);
    }, 8000);
  }
}

function element(tag: string, name: string): HTMLElement {
  const made = document.createElement(tag);
  made.className = name;
  return made;
}

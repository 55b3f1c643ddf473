/** A study on the screen: the scan with one painted layer, the pseudo-healthy image, and what links them. */

import { BANDS, scaleOf, type Scale } from "./colours";
import { Frame } from "./frame";
import { filledOutside } from "./healthy_image";
import { readImage, windowOf, type Image } from "./image_source";
import type { Look, Paint } from "./overlay_painter";
import { placesFor } from "./places";
import { Side } from "./side";
import { StudyImages } from "./study_images";
import type { Compare, Convention, Layer, Layout, OnMove, Study, Vec3, Viewer, ViewerState } from "./types";

/** An older load that a newer one overtook; nothing for the reader. */
export class Superseded extends Error {
  override name = "Superseded";
}

const AXIS_OF = { axial: 2, coronal: 1, sagittal: 0 } as const;
const START_PAN = [0, 0, 0, 1];
const START_TURN: [number, number, number] = [110, 10, 1];
const LOST =
  "The graphics card took the picture away (its memory ran out, or its driver started again). It comes back by itself " +
  "when the card is ready; if it does not, close other tabs and open the study again.";

export class StudyViewer implements Viewer {
  private readonly frame: Frame;
  private readonly images = new StudyImages();
  private readonly watch = new ResizeObserver(() => this.resize());
  private scanSide: Side;
  private healthySide: Side | null = null;
  private study: Study | null = null;
  private loading: AbortController | null = null;
  /** Changes of comparing come one after the other: each may fetch, and starts or closes a canvas. */
  private comparing: Promise<void> = Promise.resolve();

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
  private waits = 0;
  private readonly moves: OnMove[] = [];
  private readonly windows: ((lo: number, hi: number) => void)[] = [];
  private readonly troubles: ((sentence: string) => void)[] = [];

  constructor(host: HTMLElement) {
    this.frame = new Frame(host, {
      convention: () => this.setConvention(this.convention === "radiological" ? "neurological" : "radiological"),
      smooth: () => this.setInterpolation(!this.smooth),
      reset: () => this.resetView(),
    });
    this.frame.buttons.update(this.convention, this.smooth);
    this.frame.root.addEventListener("keydown", (event) => this.key(event));
    this.scanSide = this.newSide(this.frame.scanPanel);
    this.watch.observe(this.frame.stage);
    this.barred("none");
  }

  async load(study: Study): Promise<void> {
    this.loading?.abort();
    const loading = new AbortController();
    this.loading = loading;
    const { images } = this;
    const kept = images.scan && this.study?.scan === study.scan && this.study.name === study.name && this.study.version === study.version ? images.scan : null;
    const at = kept ? this.scanSide.view.crosshair : null;
    if (!kept) this.forget();
    this.study = study;
    const fetch = (url: string | undefined, what: string): Promise<Image | null> =>
      !url ? Promise.resolve(null) : readImage(url, what, study.headers ?? {}, loading.signal);
    try {
      await this.scanSide.view.start(this.convention === "radiological");
      const [scan, map, brain] = await Promise.all([
        kept ?? readImage(study.scan, "The scan", study.headers ?? {}, loading.signal),
        fetch(study.map, "The anomaly map"),
        fetch(study.brain, "The brain mask"),
      ]);
      // Another canvas, where the graphics card was lost meanwhile.
      await this.scanSide.view.start(this.convention === "radiological");
      if (loading.signal.aborted || this.destroyed) throw new Superseded("another study was opened");
      images.clear();
      Object.assign(images, { scan, map, brain });
      if (!kept) this.window = study.window ?? windowOf(scan);
    } catch (error) {
      if (loading.signal.aborted || this.destroyed) throw new Superseded("another study was opened");
      this.forget();
      throw error;
    }
    this.scale = scaleOf(study.edges ?? []);
    this.threshold = study.threshold ?? this.scale.edges[0];
    this.say(null);
    this.present(at);
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
    this.frame.buttons.update(this.convention, this.smooth);
  }

  setInterpolation(smooth: boolean): void {
    this.smooth = smooth;
    for (const side of this.sides()) side.view.setInterpolation(smooth);
    this.frame.buttons.update(this.convention, this.smooth);
  }

  setWindow(lo: number, hi: number): void {
    if (!(hi > lo)) return;
    this.window = [lo, hi];
    for (const side of this.sides()) side.view.setWindow(lo, hi);
  }

  setSwipe(share: number): void {
    this.frame.divider.set(share);
  }

  resetView(): void {
    for (const side of this.sides()) {
      side.view.pan = START_PAN;
      side.view.turn = START_TURN;
    }
    if (this.study && this.images.scan) {
      this.setWindow(...(this.study.window ?? windowOf(this.images.scan)));
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
      ready: this.images.scan !== null,
      ras_mm: view.crosshair,
      voxel: this.images.voxel(view.crosshair),
      threshold: this.threshold,
      opacity: this.opacity,
      window: [...this.window],
      layout: this.layout,
      compare: this.compare,
      layer: this.layer,
      convention: this.convention,
      swipe: this.frame.divider.value,
      zoom: view.pan[3]!,
      tiles: { scan: view.tiles(), healthy: other?.tiles() ?? [] },
      crosshair: { scan: view.crosshair, healthy: other?.crosshair ?? [0, 0, 0] },
    };
  }

  focus(): void {
    this.frame.root.focus();
  }

  resize(): void {
    if (this.destroyed) return;
    this.frame.measure();
    for (const side of this.sides()) side.view.resize();
    this.arrange();
  }

  destroy(): void {
    this.destroyed = true;
    this.loading?.abort();
    this.watch.disconnect();
    for (const side of this.sides()) side.destroy();
    this.images.clear();
    this.frame.root.remove();
  }

  // Below: how it is done.

  private newSide(panel: HTMLElement): Side {
    return new Side(panel, {
      crosshair: (ras_mm) => this.goTo(this.images.centreOf(this.images.voxel(ras_mm))),
      scroll: (axis, steps) => this.toSlice(axis, (at) => at + steps),
      slice: (axis, share) => this.toSlice(axis, (_, n) => Math.round(share * (n - 1))),
      pan: (pan) => this.sides().forEach((s) => (s.view.pan = [...pan])),
      turn: (turn) => this.sides().forEach((s) => (s.view.turn = turn)),
      window: (level, width) => this.windowed(level, width),
      drawn: (side) => this.lettered(side),
      lost: () => this.say(LOST),
      restored: (side) => void this.restored(side).catch((error: unknown) => this.destroyed || this.say(wordsOf(error))),
    });
  }

  private sides(): Side[] {
    return this.healthySide ? [this.scanSide, this.healthySide] : [this.scanSide];
  }

  /** All of the study at hand onto the canvas; `at` and the view are kept where the scan is the one before. */
  private present(at: Vec3 | null): void {
    const { scan, brain } = this.images;
    if (!scan) return;
    const { view } = this.scanSide;
    view.show(scan, brain, this.painted(), this.lookOf(), this.window);
    view.setInterpolation(this.smooth);
    if (!at) {
      view.pan = START_PAN;
      view.turn = START_TURN;
    }
    this.arrange();
    this.look();
    this.goTo(at ?? this.images.centreOf(scan.dims.map((n) => Math.floor(n / 2)) as Vec3));
  }

  private painted(): Image | null {
    if (this.layer === "none") return null;
    return this.layer === "uncertainty" ? this.images.spread : this.images.map;
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
    this.barred(this.painted() === null ? "none" : this.layer);
    this.read();
  }

  private barred(layer: Layer): void {
    this.frame.bar.update({ layer, scale: this.scale, threshold: this.threshold, bands: this.bands() });
  }

  private arrange(): void {
    if (!this.images.scan) return;
    for (const side of this.sides()) {
      const { clientWidth, clientHeight } = side.panel;
      if (clientWidth > 0) side.view.setPlaces(placesFor(this.layout, this.scanSide.view.grid, clientWidth, clientHeight));
    }
  }

  private compared(): Promise<void> {
    this.comparing = this.comparing.then(() => this.compareNow()).catch((error: unknown) => {
      this.compare = "off";
      this.frame.arrange("off");
      if (!this.destroyed) this.say(wordsOf(error));
    });
    return this.comparing;
  }

  private async compareNow(): Promise<void> {
    const { study, images } = this;
    const { scan } = images;
    if (study && scan && this.compare !== "off" && !images.healthy) {
      const none = "This model makes no pseudo-healthy image.";
      await this.later(study.reconstruction, "The pseudo-healthy image", none, (image) => {
        images.healthy = filledOutside(image, scan, images.brain, study.window?.[0] ?? this.window[0]);
      });
      if (this.study !== study || images.scan !== scan || this.destroyed) return;
      if (!images.healthy) this.compare = "off";
    }
    const on = this.compare !== "off" && images.healthy !== null;
    this.frame.arrange(on ? this.compare : "off");
    if (!on) {
      this.healthySide?.destroy();
      this.healthySide = null;
    } else {
      this.healthySide ??= this.newSide(this.frame.healthyPanel);
      const [{ view }, first] = [this.healthySide, this.scanSide.view];
      await view.start(this.convention === "radiological");
      if (this.study !== study || !images.healthy) return;
      view.show(images.healthy, images.brain, null, this.lookOf(), this.window);
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
    const { images } = this;
    if (images.scan && !images.spread) {
      const none = "The analysis was made without uncertainty, so there is no spread to show.";
      await this.later(this.study?.uncertainty, "The uncertainty map", none, (image) => (images.spread = image));
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
    this.frame.write(`Loading: ${what.toLowerCase()} …`);
    const turn = ++this.waits;
    // The message of something that is asked for since stays.
    const over = () => turn === this.waits && this.frame.write(null);
    try {
      const image = await readImage(url, what, study.headers ?? {}, loading.signal);
      over();
      if (this.study !== study || loading.signal.aborted) return;
      take(image);
    } catch (error) {
      over();
      if (!loading.signal.aborted) this.say(wordsOf(error));
    }
  }

  private windowed(level: number, width: number): void {
    const [lo, hi] = this.window;
    const span = hi - lo;
    const wide = Math.max(span * (1 + width), Number.EPSILON * 16 * Math.max(Math.abs(lo), Math.abs(hi), 1));
    const middle = (lo + hi) / 2 + level * span;
    this.setWindow(middle - wide / 2, middle + wide / 2);
    this.windows.forEach((told) => told(...this.window));
  }

  /** Leafing through the largest plane without a mouse. */
  private key(event: KeyboardEvent): void {
    const steps = { PageUp: 1, PageDown: -1 }[event.key];
    const plane = this.scanSide.view.tiles()[0]?.plane;
    if (!steps || !plane || plane === "3d") return;
    event.preventDefault();
    this.toSlice(AXIS_OF[plane], (at) => at + steps);
  }

  private toSlice(axis: number, choose: (at: number, count: number) => number): void {
    const { view } = this.scanSide;
    if (this.images.scan) this.goTo(view.atSlice(axis, choose(view.slices[axis]!, view.grid.dims[axis]!)));
  }

  private moved(): void {
    const { images } = this;
    if (!images.scan) return;
    this.read();
    const at = this.scanSide.view.crosshair;
    for (const told of this.moves) told(at, images.voxel(at), images.value("scan", at), images.value("map", at));
  }

  private read(): void {
    const { images } = this;
    if (!images.scan) return;
    const ras_mm = this.scanSide.view.crosshair;
    this.frame.readout.update({
      ras_mm,
      voxel: images.voxel(ras_mm),
      scan: images.value("scan", ras_mm),
      map: images.value("map", ras_mm),
      healthy: this.compare === "off" ? null : images.value("healthy", ras_mm),
      spread: images.value("spread", ras_mm),
    });
  }

  private lettered(side: Side): void {
    const { view } = this.scanSide;
    if (this.images.scan) side.letter(this.convention, view.slices, view.grid.dims, this.compare === "swipe");
  }

  /** A card that is ready again knows nothing: a new canvas, the same study. */
  private async restored(side: Side): Promise<void> {
    if (this.destroyed) return;
    const at = this.scanSide.view.crosshair;
    side.destroy();
    if (side === this.healthySide) this.healthySide = null;
    else {
      this.scanSide = this.newSide(side.panel);
      await this.scanSide.view.start(this.convention === "radiological");
      if (this.destroyed) return;
      this.present(at);
    }
    this.say(null);
    if (!this.images.scan) return;
    await this.compared();
    this.goTo(at);
  }

  private forget(): void {
    for (const side of this.sides()) side.clear();
    this.images.clear();
    this.study = null;
    this.frame.readout.clear();
    this.barred("none");
  }

  /** Trouble goes to whoever listens; nobody does: it stands in the viewer. */
  private say(sentence: string | null): void {
    this.troubles.forEach((told) => told(sentence ?? ""));
    if (this.troubles.length === 0) this.frame.write(sentence, "trouble");
  }
}

function wordsOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** One NiiVue canvas: a scan, at most one painted layer, and the places of its tiles. */

import { SLICE_TYPE, type Niivue } from "@niivue/niivue";

import { Engine } from "./engine";
import type { Image } from "./image_source";
import type { Look } from "./overlay_painter";
import type { Tile, Vec3 } from "./types";

const PLANES = ["axial", "coronal", "sagittal", "3d", "3d"] as const;
export type Plane = Tile["plane"];
const SLICE_OF: Record<Plane, SLICE_TYPE> = {
  axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL, "3d": SLICE_TYPE.RENDER,
};

/** A tile's plane and its share of the canvas: left, top, width, height in 0..1. */
export interface Place {
  plane: Plane;
  box: [number, number, number, number];
}

export class CanvasView {
  readonly canvas = document.createElement("canvas");
  private nv: Engine | null = null;
  private scan: Image | null = null;
  private waiting = 0;
  private lost = false;
  private destroyed = false;
  private starting: Promise<void> | null = null;
  private places: Place[] = [];
  onDrawn: () => void = () => {};

  constructor(readonly host: HTMLElement) {
    this.canvas.className = "av-canvas";
    host.append(this.canvas);
    // What the context held died with it: there is nothing left to free.
    this.canvas.addEventListener("webglcontextlost", () => (this.lost = true));
  }

  /** Once, however often it is asked for. Raises an Error in words where WebGL 2 cannot start. */
  start(radiological: boolean): Promise<void> {
    this.starting ??= this.startNow(radiological).catch((error: unknown) => {
      // A card that is busy now may have room later.
      this.starting = null;
      throw error;
    });
    return this.starting;
  }

  private async startNow(radiological: boolean): Promise<void> {
    const nv = new Engine({
      isRadiologicalConvention: radiological,
      sagittalNoseLeft: true,
      isOrientationTextVisible: false,
      isColorbar: false,
      isSliceMM: false,
      interactive: false,
      dragAndDropEnabled: false,
      isResizeCanvas: false,
      show3Dcrosshair: true,
      loadingText: "",
      logLevel: "error",
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.35, 0.85, 1, 0.75],
      crosshairWidth: 0.4,
      crosshairWidthUnit: "mm",
      crosshairGap: 8,
    });
    try {
      await nv.attachToCanvas(this.canvas, true);
    } catch {
      throw new Error(
        "This browser shows no 3-D graphics (WebGL 2), which the viewer needs. Turn on hardware acceleration, or use " +
          "a current Firefox, Chrome, Edge or Safari.",
      );
    }
    // Shading by the direction of surfaces, for the 3-D view.
    await nv.setVolumeRenderIllumination(0.7);
    nv.useOwnSlices();
    if (this.destroyed) {
      this.end(nv);
      throw new Error("the canvas was closed while it started");
    }
    this.nv = nv;
    this.resize();
  }

  get started(): boolean {
    return this.nv !== null;
  }

  get engine(): Engine {
    if (!this.nv) throw new Error("the canvas has not started");
    return this.nv;
  }

  /** Show a scan with a layer (or none) in place of what was there. brain: what the 3-D view shows of it. */
  show(scan: Image, brain: Image | null, layer: Image | null, look: Look, range: [number, number]): void {
    const nv = this.nv!;
    nv.forget();
    this.scan = scan;
    nv.scan = scan;
    nv.brain = brain;
    nv.range = range;
    nv.back = scan.nv;
    this.setLayers(layer, look);
    nv.updateGLVolume();
  }

  /** Another look, or another layer of the same study, without sending the scan to the card again. */
  setLook(layer: Image | null, look: Look): void {
    const nv = this.nv;
    if (!nv || !this.scan) return;
    this.setLayers(layer, look);
    nv.lookChanged();
    this.draw();
  }

  setWindow(lo: number, hi: number): void {
    if (!this.nv || !this.scan) return;
    this.nv.range = [lo, hi];
    this.draw();
  }

  private setLayers(layer: Image | null, look: Look): void {
    const nv = this.nv!;
    nv.layer = layer;
    nv.look = look;
    nv.volumes = layer ? [this.scan!.nv, layer.nv] : [this.scan!.nv];
    nv.overlays = layer ? [layer.nv] : [];
  }

  setPlaces(places: Place[]): void {
    this.places = places;
    if (!this.nv) return;
    this.nv.customLayout = places.map(({ plane, box }) => ({ sliceType: SLICE_OF[plane], position: box }));
    this.nv.opts.sliceType = SLICE_TYPE.MULTIPLANAR;
    this.draw();
  }

  setConvention(radiological: boolean): void {
    if (!this.nv) return;
    this.nv.opts.isRadiologicalConvention = radiological;
    this.draw();
  }

  setInterpolation(smooth: boolean): void {
    if (!this.nv) return;
    this.nv.opts.isNearestInterpolation = !smooth;
    this.draw();
  }

  get crosshair(): Vec3 {
    if (!this.nv || !this.scan) return [0, 0, 0];
    return Array.from(this.nv.frac2mm(this.nv.scene.crosshairPos, 0, true)).slice(0, 3) as Vec3;
  }

  set crosshair(ras_mm: Vec3) {
    if (!this.nv || !this.scan) return;
    const frac = this.nv.mm2frac(ras_mm, 0, true);
    for (let k = 0; k < 3; k++) frac[k] = Math.min(Math.max(frac[k]!, 0), 1);
    this.nv.scene.crosshairPos = frac;
    this.draw();
  }

  get pan(): number[] {
    return this.nv ? Array.from(this.nv.scene.pan2Dxyzmm) : [0, 0, 0, 1];
  }

  set pan(pan: number[]) {
    if (!this.nv) return;
    this.nv.scene.pan2Dxyzmm = pan as unknown as Niivue["scene"]["pan2Dxyzmm"];
    this.draw();
  }

  get turn(): [number, number, number] {
    const scene = this.nv?.scene;
    return scene ? [scene.renderAzimuth, scene.renderElevation, scene.volScaleMultiplier] : [110, 10, 1];
  }

  set turn([azimuth, elevation, scale]: [number, number, number]) {
    if (!this.nv) return;
    this.nv.scene.renderAzimuth = azimuth;
    this.nv.scene.renderElevation = elevation;
    this.nv.scene.volScaleMultiplier = scale;
    this.draw();
  }

  /** Size of the scan's grid in the order right-left, back-front, foot-head, and its voxel sizes in mm. */
  get grid(): { dims: Vec3; spacing: Vec3 } {
    const nv = this.scan?.nv;
    if (!nv?.dimsRAS || !nv.pixDimsRAS) return { dims: [1, 1, 1], spacing: [1, 1, 1] };
    return { dims: nv.dimsRAS.slice(1, 4) as Vec3, spacing: nv.pixDimsRAS.slice(1, 4).map(Math.abs) as Vec3 };
  }

  /** The slices shown, counted right, front, up from 0. */
  get slices(): Vec3 {
    const { dims } = this.grid;
    if (!this.nv) return [0, 0, 0];
    return Array.from(this.nv.scene.crosshairPos).map((f, k) => Math.min(Math.floor(f * dims[k]!), dims[k]! - 1)) as Vec3;
  }

  /** The crosshair moved to another slice of an axis (0 right, 1 front, 2 up), the nearest there is. */
  atSlice(axis: number, slice: number): Vec3 {
    const share = Array.from(this.engine.scene.crosshairPos) as Vec3;
    const n = this.grid.dims[axis]!;
    share[axis] = (Math.min(Math.max(slice, 0), n - 1) + 0.5) / n;
    return this.millimetres(share);
  }

  tiles(): Tile[] {
    if (!this.nv || !this.scan) return [];
    const ratio = this.ratio;
    return this.nv.screenSlices.map((tile) => {
      const [left, top, width, height] = tile.leftTopWidthHeight.map((v) => v / ratio) as [number, number, number, number];
      return { plane: PLANES[tile.axCorSag]!, left, top, width, height };
    });
  }

  /** The index of the tile under a point in CSS pixels, or -1. */
  tileAt(x: number, y: number): number {
    return this.tiles().findIndex((t) => x >= t.left && y >= t.top && x < t.left + t.width && y < t.top + t.height);
  }

  /** Where in the scan (shares of its box) a point of a tile lies; null outside the scan. */
  shareAt(x: number, y: number, tile: number): Vec3 | null {
    if (!this.nv || tile < 0) return null;
    const share = this.nv.screenXY2TextureFrac(x * this.ratio, y * this.ratio, tile, false);
    return share[0]! < -0.5 && share[1]! < -0.5 ? null : (Array.from(share) as Vec3);
  }

  millimetres(share: Vec3): Vec3 {
    return Array.from(this.engine.frac2mm(share, 0, true)).slice(0, 3) as Vec3;
  }

  get ratio(): number {
    return this.canvas.clientWidth > 0 ? this.canvas.width / this.canvas.clientWidth : 1;
  }

  resize(): void {
    const { clientWidth, clientHeight } = this.host;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const [width, height] = [Math.max(1, Math.round(clientWidth * ratio)), Math.max(1, Math.round(clientHeight * ratio))];
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    if (this.nv) this.nv.uiData.dpr = 1;
    this.draw();
  }

  /** At most once per picture of the screen, however often it is asked for. */
  draw(): void {
    if (!this.nv || this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.drawNow();
    });
  }

  drawNow(): void {
    if (!this.nv || !this.scan || this.lost || this.canvas.width < 2 || !this.places.length) return;
    this.hairline();
    this.nv.drawScene();
    this.onDrawn();
  }

  /** Forget the study, keep the canvas. */
  clear(): void {
    if (!this.nv) return;
    this.nv.forget();
    this.scan = null;
    const { gl } = this.nv;
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.clearColor(0, 0, 0, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
  }

  /** The crosshair as thin as the screen can show it, at any zoom: NiiVue counts its width in mm. */
  private hairline(): void {
    const nv = this.nv!;
    const { dims, spacing } = this.grid;
    const largest = Math.max(...dims.map((n, k) => n * spacing[k]!));
    const tile = Math.max(...this.places.map(({ box }) => Math.max(box[2] * this.canvas.width, box[3] * this.canvas.height)));
    const width = (1.5 * largest) / tile / nv.scene.pan2Dxyzmm[3]!;
    if (Math.abs(width - nv.opts.crosshairWidth) < 0.02 * width) return;
    nv.opts.crosshairWidth = width;
    if (nv.crosshairs3D?.mm) nv.crosshairs3D.mm[0] = NaN;
  }

  destroy(): void {
    if (this.waiting) cancelAnimationFrame(this.waiting);
    this.waiting = 0;
    this.destroyed = true;
    if (this.nv) this.end(this.nv);
    this.nv = null;
    this.scan = null;
    this.canvas.remove();
  }

  private end(nv: Engine): void {
    if (this.lost) return nv.cleanup();
    const lose = nv.gl.getExtension("WEBGL_lose_context");
    nv.close();
    lose?.loseContext();
  }
}


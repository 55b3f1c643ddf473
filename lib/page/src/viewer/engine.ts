/** NiiVue with its volumes coloured by us; no telemetry, no fonts or pictures from `data:` addresses. */

import { Niivue } from "@niivue/niivue";

import { apply, fromColumns, multiply, voxelToTexture, type Mat4 } from "./geometry";
import type { Image } from "./image_source";
import { ColourTable, OverlayPainter, type Look } from "./overlay_painter";
import { litBall, ScanPainter } from "./scan_painter";
import { setSliceLook, SLICE_FRAGMENT } from "./slice_shader";
import type { Vec3 } from "./types";
import { UNITS, ValueTextures } from "./volume_pass";

const BALL_UNIT = 5;
/** The smallest texture there is, where NiiVue wants one. */
const LEAST = [3, 2, 2, 2];
/** The brain in 3-D lets a lesion inside it shine through. */
const BRAIN_OPACITY = 0.6;

/**
 * Where this differs from NiiVue: slices are coloured from the values by a program of ours, `draw3D` shows the brain
 * alone, and what NiiVue would load from `data:` addresses (letters, a ball of light) is made here or is HTML, so that
 * the page's content security policy need not let such addresses in.
 */
export class Engine extends Niivue {
  scan: Image | null = null;
  layer: Image | null = null;
  brain: Image | null = null;
  look: Look | null = null;
  range: [number, number] = [0, 1];
  private values: ValueTextures | null = null;
  private overlayPainter: OverlayPainter | null = null;
  private scanPainter: ScanPainter | null = null;
  private table: ColourTable | null = null;
  private solid: WebGLTexture | null = null;
  private solidFor = "";
  private mist: WebGLTexture | null = null;
  private mistStale = true;
  /** The middle of the brain and how far it reaches, in mm: what the 3-D view turns about and shows whole. */
  private ball: { middle: Vec3; reach: number } | null = null;

  override async loadDefaultFont(): Promise<void> {}
  override async loadDefaultMatCap(): Promise<WebGLTexture | null> {
    this.matCapTexture = litBall(this.gl, BALL_UNIT);
    return this.matCapTexture;
  }
  override drawLoadingText(): void {}

  override refreshLayers(item: Parameters<Niivue["refreshLayers"]>[0], layer: number): void {
    this.mistStale = true;
    if (layer > 0) return;
    super.refreshLayers(item, 0);
    // NiiVue's grey texture and the slopes of the whole head, neither of which is looked at here.
    this.volumeTexture = this.rgbaTex(this.volumeTexture, this.gl.TEXTURE0, LEAST, true);
    this.dropGradient();
  }

  /** Slices are coloured by a program of ours. */
  useOwnSlices(): void {
    this.setCustomSliceShader(SLICE_FRAGMENT);
  }

  /** The window, the layer or its look are others; nothing is sent to the card again. */
  lookChanged(): void {
    this.mistStale = true;
  }

  override drawScene(): string | void {
    const { scan, layer, look, customSliceShader } = this;
    if (scan && this.back?.frac2mm && customSliceShader) {
      const smooth = !this.opts.isNearestInterpolation;
      const values = this.textures();
      values.bind(UNITS.scan, scan, smooth);
      values.bind(UNITS.layer, layer ?? scan, smooth);
      if (look) this.colourTable().bind(UNITS.colours, look);
      setSliceLook(this.gl, customSliceShader.program, {
        scan, layer, look, range: this.range, byHand: smooth && !values.linear,
        toScan: this.toTexture(scan), toLayer: this.toTexture(layer ?? scan),
      });
    }
    return super.drawScene();
  }

  override draw3D(...given: Parameters<Niivue["draw3D"]>): string | undefined {
    this.paintSolid();
    this.paintMist();
    const [whole, flat] = [this.volumeTexture, this.overlayTexture];
    this.show(this.solid ?? whole, (this.layer && this.mist) || flat);
    this.renderShader!.use(this.gl);
    this.gl.uniform1f(this.renderShader!.uniforms.backOpacity!, BRAIN_OPACITY);
    this.gl.uniform1f(this.renderShader!.uniforms.overlays!, this.layer ? 1 : 0);
    try {
      return super.draw3D(...given);
    } finally {
      this.show(whole, flat);
    }
  }

  override setPivot3D(): void {
    super.setPivot3D();
    if (!this.scan) return;
    this.ball ??= ballOf(this.brain ?? this.scan, this.brain !== null);
    this.pivot3D = [...this.ball.middle];
    this.furthestFromPivot = this.ball.reach;
  }

  /** Free what belongs to images that are no longer shown. */
  keepOnly(images: readonly (Image | null)[]): void {
    this.values?.keepOnly(images);
  }

  forget(): void {
    this.scan = this.layer = this.brain = null;
    this.ball = null;
    this.volumes = [];
    this.overlays = [];
    this.back = null;
    this.screenSlices = [];
    this.keepOnly([]);
    this.dropSolid();
    this.dropGradient();
  }

  close(): void {
    this.forget();
    this.overlayPainter?.destroy();
    this.scanPainter?.destroy();
    this.table?.destroy();
    this.cleanup();
  }

  private paintSolid(): void {
    const size = this.size();
    const name = `${size?.join()} ${this.range.join()} ${this.brain === null}`;
    if (!size || !this.scan || name === this.solidFor) return;
    if (!this.solid) this.solid = this.rgbaTex(null, this.gl.TEXTURE9, [3, ...size]);
    const mask = this.brain ? { image: this.brain, toMask: this.toTexture(this.brain) } : null;
    this.painting(() => {
      this.scanPainter ??= new ScanPainter(this.gl, this.textures());
      this.scanPainter.paint(this.solid!, size, this.scan!, this.toTexture(this.scan!), this.range, mask);
    });
    const whole = this.volumeTexture;
    this.volumeTexture = this.solid;
    this.gradientGL(this.back!.hdr!);
    this.volumeTexture = whole;
    this.solidFor = name;
    this.gl.viewport(0, 0, this.gl.drawingBufferWidth, this.gl.drawingBufferHeight);
  }

  private paintMist(): void {
    const size = this.size();
    const { layer, look } = this;
    if (!size || !layer || !look || !this.mistStale) return;
    this.mist ??= this.rgbaTex(null, this.gl.TEXTURE9, [3, ...size]);
    this.overlayPainter ??= new OverlayPainter(this.gl, this.textures(), this.colourTable());
    this.painting(() => this.overlayPainter!.paint(this.mist!, size, layer, this.toTexture(layer), look));
    this.mistStale = false;
  }

  private colourTable(): ColourTable {
    this.table ??= new ColourTable(this.gl);
    return this.table;
  }

  private show(volume: WebGLTexture | null, overlay: WebGLTexture | null): void {
    const { gl } = this;
    this.volumeTexture = volume;
    this.overlayTexture = overlay;
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_3D, volume);
    gl.activeTexture(gl.TEXTURE2);
    gl.bindTexture(gl.TEXTURE_3D, overlay);
  }

  private dropGradient(): void {
    if (this.gradientTexture) this.gl.deleteTexture(this.gradientTexture);
    this.gradientTexture = null;
  }

  private dropSolid(): void {
    for (const texture of [this.solid, this.mist]) if (texture) this.gl.deleteTexture(texture);
    this.solid = this.mist = null;
    this.solidFor = "";
    this.mistStale = true;
  }

  private painting(work: () => void): void {
    this.gl.bindVertexArray(this.genericVAO);
    work();
    this.gl.bindVertexArray(this.unusedVAO);
  }

  private textures(): ValueTextures {
    this.values ??= new ValueTextures(this.gl);
    return this.values;
  }

  /** Voxels of the textures, in the order right, front, up. */
  private size(): number[] | null {
    return this.back?.dims?.slice(1, 4) ?? null;
  }

  /** Texture coordinates of the canvas's volume to those of an image, through millimetres. */
  private toTexture(image: Image): Mat4 {
    return multiply(voxelToTexture(image.dims), multiply(image.inverse, fromColumns(this.back!.frac2mm!)));
  }

}

/** Centre and reach of what is there (marked: of the voxels that are set), looked at on every third voxel. */
function ballOf(image: Image, marked: boolean): { middle: Vec3; reach: number } {
  const [x, y, z] = image.dims;
  const least: Vec3 = [Infinity, Infinity, Infinity];
  const most: Vec3 = [-Infinity, -Infinity, -Infinity];
  for (let k = 0; k < z; k += 3)
    for (let j = 0; j < y; j += 3)
      for (let i = 0; i < x; i += 3) {
        if (marked && !image.data[i + x * (j + y * k)]) continue;
        const at = apply(image.affine, [i, j, k]);
        for (let c = 0; c < 3; c++) {
          least[c] = Math.min(least[c]!, at[c]!);
          most[c] = Math.max(most[c]!, at[c]!);
        }
      }
  if (!Number.isFinite(least[0])) return marked ? ballOf(image, false) : { middle: [0, 0, 0], reach: 100 };
  const middle = least.map((v, c) => (v + most[c]!) / 2) as Vec3;
  return { middle, reach: 0.5 * Math.hypot(...most.map((v, c) => v - least[c]!)) };
}

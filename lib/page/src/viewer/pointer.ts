/** Mouse, wheel, pen and fingers on one canvas. */

import type { CanvasView } from "./canvas_view";
import { STRIP_END, STRIP_WIDTH } from "./letters";
import type { Vec3 } from "./types";

/** What gestures ask for; all of it is applied to both canvases by the viewer, so they stay linked. */
export interface Gestures {
  crosshair(ras_mm: Vec3): void;
  /** Steps along a voxel axis (0 right, 1 front, 2 up). */
  scroll(axis: number, steps: number): void;
  /** To a share 0..1 of a voxel axis. */
  slice(axis: number, share: number): void;
  pan(pan: number[]): void;
  turn(turn: [number, number, number]): void;
  /** Shares of the window's width: brightness and contrast. */
  window(level: number, width: number): void;
}

const AXIS_OF = { axial: 2, coronal: 1, sagittal: 0 } as const;
const WHEEL_STEP = 40;
const MOST_ZOOM = 12;

type Mode = "scrub" | "crosshair" | "pan" | "window" | "turn" | "pinch";

export class Pointer {
  private readonly down = new Map<number, { x: number; y: number }>();
  private mode: Mode | null = null;
  private tile = -1;
  private wheel = 0;
  private readonly off = new AbortController();

  constructor(private readonly view: CanvasView, private readonly gestures: Gestures) {
    const { signal } = this.off;
    const target = view.host;
    target.addEventListener("pointerdown", (e) => this.start(e), { signal });
    target.addEventListener("pointermove", (e) => this.move(e), { signal });
    target.addEventListener("pointerup", (e) => this.end(e), { signal });
    target.addEventListener("pointercancel", (e) => this.end(e), { signal });
    target.addEventListener("contextmenu", (e) => e.preventDefault(), { signal });
    target.addEventListener("wheel", (e) => this.roll(e), { signal, passive: false });
  }

  destroy(): void {
    this.off.abort();
  }

  private place(event: { clientX: number; clientY: number }): { x: number; y: number } {
    const box = this.view.canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  private start(event: PointerEvent): void {
    if (!this.view.started || (event.target instanceof HTMLElement && event.target.closest("input, button"))) return;
    const at = this.place(event);
    this.down.set(event.pointerId, at);
    this.view.host.setPointerCapture(event.pointerId);
    if (this.down.size === 2) {
      this.mode = "pinch";
      return;
    }
    if (this.down.size > 2) return;
    this.tile = this.view.tileAt(at.x, at.y);
    if (this.tile < 0) return;
    const solid = this.view.tiles()[this.tile]?.plane === "3d";
    if (event.button === 2) this.mode = "window";
    else if (event.button === 1 || event.shiftKey) this.mode = solid ? "turn" : "pan";
    else if (!solid && this.onStrip(event, at)) this.mode = "scrub";
    else this.mode = solid ? "turn" : "crosshair";
    if (this.mode === "crosshair") this.point(at);
    if (this.mode === "scrub") this.scrub(at);
    if (event.button === 1) event.preventDefault();
  }

  private move(event: PointerEvent): void {
    const before = this.down.get(event.pointerId);
    if (!before || !this.mode) return;
    const at = this.place(event);
    const [dx, dy] = [at.x - before.x, at.y - before.y];
    if (this.mode === "pinch") this.pinch(event.pointerId, before, at);
    this.down.set(event.pointerId, at);
    if (this.mode === "crosshair") this.point(at);
    if (this.mode === "scrub") this.scrub(at);
    if (this.mode === "pan") this.shift(dx, dy);
    if (this.mode === "window") this.gestures.window(dy / 300, dx / 300);
    if (this.mode === "turn") {
      const [azimuth, elevation, scale] = this.view.turn;
      const up = Math.min(Math.max(elevation + dy * 0.5, -90), 90);
      this.gestures.turn([azimuth - dx * 0.5, up, scale]);
    }
  }

  private end(event: PointerEvent): void {
    this.down.delete(event.pointerId);
    // After a pinch the finger that stays must not move the crosshair.
    if (this.down.size === 0) this.mode = null;
  }

  private onStrip(event: PointerEvent, at: { x: number }): boolean {
    const tile = this.view.tiles()[this.tile];
    const width = STRIP_WIDTH[event.pointerType === "touch" ? "touch" : "mouse"];
    return tile !== undefined && tile.plane !== "3d" && at.x > tile.left + tile.width - width
      && this.view.grid.dims[AXIS_OF[tile.plane]]! > 1;
  }

  private scrub(at: { y: number }): void {
    const tile = this.view.tiles()[this.tile];
    if (!tile || tile.plane === "3d") return;
    const share = 1 - (at.y - tile.top - STRIP_END) / Math.max(tile.height - 2 * STRIP_END, 1);
    this.gestures.slice(AXIS_OF[tile.plane], Math.min(Math.max(share, 0), 1));
  }

  private point(at: { x: number; y: number }): void {
    const share = this.view.shareAt(at.x, at.y, this.tile);
    if (share) this.gestures.crosshair(this.view.millimetres(share));
  }

  private shift(dx: number, dy: number): void {
    const tile = this.view.engine.screenSlices[this.tile];
    if (!tile) return;
    const [, , width, height] = tile.leftTopWidthHeight as [number, number, number, number];
    const pan = this.view.pan;
    const ratio = this.view.ratio;
    const across = (dx * ratio * tile.fovMM[0]! * pan[3]!) / width;
    const up = (-dy * ratio * tile.fovMM[1]! * pan[3]!) / height;
    const [a, b] = [[0, 1], [0, 2], [1, 2]][tile.axCorSag] ?? [0, 1];
    pan[a!]! += across;
    pan[b!]! += up;
    this.gestures.pan(pan);
  }

  private pinch(id: number, before: { x: number; y: number }, at: { x: number; y: number }): void {
    const other = [...this.down].find(([key]) => key !== id)?.[1];
    if (!other) return;
    const was = Math.hypot(before.x - other.x, before.y - other.y);
    const is = Math.hypot(at.x - other.x, at.y - other.y);
    const middle = { x: (at.x + other.x) / 2, y: (at.y + other.y) / 2 };
    if (was > 4 && is > 4) this.zoom(is / was, middle);
    // Both fingers give their half of a common shift.
    if (this.view.tiles()[this.tile]?.plane !== "3d") this.shift((at.x - before.x) / 2, (at.y - before.y) / 2);
  }

  private zoom(factor: number, at: { x: number; y: number }): void {
    const tile = this.tile >= 0 ? this.tile : this.view.tileAt(at.x, at.y);
    if (this.view.tiles()[tile]?.plane === "3d") {
      const [azimuth, elevation, scale] = this.view.turn;
      this.gestures.turn([azimuth, elevation, Math.min(Math.max(scale * factor, 0.5), 5)]);
      return;
    }
    const share = this.view.shareAt(at.x, at.y, tile);
    if (!share) return;
    const pan = this.view.pan;
    const zoom = Math.min(Math.max(pan[3]! * factor, 1), MOST_ZOOM);
    if (zoom === 1) {
      this.gestures.pan([0, 0, 0, 1]);
      return;
    }
    // The point under the hand stays where it is. NiiVue counts pan in mm along the voxel axes.
    const fixed = this.view.engine.frac2mm(share, 0, false);
    for (let k = 0; k < 3; k++) pan[k] = pan[k]! + fixed[k]! * (pan[3]! - zoom);
    pan[3] = zoom;
    this.gestures.pan(pan);
  }

  private roll(event: WheelEvent): void {
    const at = this.place(event);
    const tile = this.view.tileAt(at.x, at.y);
    if (tile < 0) return;
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 20 : 1;
    const delta = (event.deltaY || event.deltaX) * lines;
    const plane = this.view.tiles()[tile]!.plane;
    this.tile = tile;
    if (plane === "3d" || event.ctrlKey || event.metaKey) {
      this.zoom(Math.exp(-Math.min(Math.max(delta, -100), 100) * 0.003), at);
      return;
    }
    this.wheel = Math.sign(delta) === Math.sign(this.wheel) ? this.wheel + delta : delta;
    // A notch of a mouse wheel is one slice; a track pad's small steps add up.
    const steps = Math.abs(delta) >= WHEEL_STEP ? Math.sign(delta) : Math.trunc(this.wheel / WHEEL_STEP);
    if (steps === 0) return;
    this.wheel = 0;
    // Down the wheel is down the body, to the back, to the left.
    this.gestures.scroll(AXIS_OF[plane], -steps);
  }
}

/** Orientation letters, plane names and slice numbers over one canvas, as text that stays sharp and can be read aloud. */

import type { CanvasView } from "./canvas_view";
import type { Convention, Vec3 } from "./types";

const NAMES = { axial: "Axial", coronal: "Coronal", sagittal: "Sagittal", "3d": "3-D" } as const;
const AXIS_OF = { axial: 2, coronal: 1, sagittal: 0 } as const;
/** Room a letter needs, in CSS pixels. */
const ROOM = 18;
/** Narrower tiles are named without the slice's number. */
const ROOM_FOR_NUMBER = 260;

/** The strip of slices along a tile's right side: how far from its ends, and how wide for a mouse and for a finger. */
export const STRIP_END = 24;
export const STRIP_WIDTH = { mouse: 12, touch: 28 } as const;

export class Letters {
  private readonly box = document.createElement("div");
  private shown = "";

  constructor(private readonly view: CanvasView) {
    this.box.className = "av-letters";
    view.host.append(this.box);
  }

  /** voxel: the crosshair's, counted right, front, up from 0. shifted: keep the middle free. */
  update(convention: Convention, voxel: Vec3, dims: Vec3, shifted: boolean): void {
    const tiles = this.view.tiles();
    const numbers = tiles.map((t) => (t.plane === "3d" ? "" : `${voxel[AXIS_OF[t.plane]] + 1} / ${dims[AXIS_OF[t.plane]]}`));
    const name = JSON.stringify([tiles, convention, numbers, shifted]);
    if (name === this.shown) return;
    this.shown = name;
    // In swipe the divider starts in the middle, where the letters would be.
    const aside = shifted ? 24 : 0;
    const [width, height] = [this.view.host.clientWidth, this.view.host.clientHeight];
    this.box.replaceChildren();
    tiles.forEach((tile, k) => {
      const right = Math.min(tile.left + tile.width, width);
      const bottom = Math.min(tile.top + tile.height, height);
      const middle = { x: (tile.left + right) / 2, y: (tile.top + bottom) / 2 };
      const number = tile.width > ROOM_FOR_NUMBER ? numbers[k] : "";
      this.write("av-plane", [NAMES[tile.plane], number].filter(Boolean).join("  "), tile.left + 6, tile.top + 5);
      if (tile.plane === "3d") return;
      this.track(tile.plane, right, tile.top, bottom, voxel, dims);
      const flipped = convention === "radiological";
      const sides = tile.plane === "sagittal" ? ["A", "P"] : flipped ? ["R", "L"] : ["L", "R"];
      const ends = tile.plane === "axial" ? ["A", "P"] : ["S", "I"];
      this.write("av-letter", sides[0]!, tile.left + ROOM / 2, middle.y);
      this.write("av-letter", sides[1]!, right - ROOM, middle.y);
      this.write("av-letter", ends[0]!, middle.x + aside, tile.top + ROOM / 2 + 2);
      this.write("av-letter", ends[1]!, middle.x + aside, bottom - ROOM / 2 - 2);
    });
  }

  clear(): void {
    this.shown = "";
    this.box.replaceChildren();
  }

  remove(): void {
    this.box.remove();
  }

  /** Where in the stack the slice is; dragged by `Pointer`, which knows the same strip. */
  private track(plane: "axial" | "coronal" | "sagittal", right: number, top: number, bottom: number, voxel: Vec3, dims: Vec3): void {
    const axis = AXIS_OF[plane];
    if (dims[axis]! < 2) return;
    const track = document.createElement("div");
    track.className = "av-slices";
    track.style.left = `${right - 6}px`;
    track.style.top = `${top + STRIP_END}px`;
    track.style.height = `${Math.max(bottom - top - 2 * STRIP_END, 0)}px`;
    const thumb = document.createElement("i");
    thumb.style.top = `${100 * (1 - voxel[axis]! / (dims[axis]! - 1))}%`;
    track.append(thumb);
    this.box.append(track);
  }

  private write(kind: string, text: string, x: number, y: number): void {
    const span = document.createElement("span");
    span.className = kind;
    span.textContent = text;
    span.style.left = `${x}px`;
    span.style.top = `${y}px`;
    this.box.append(span);
  }
}

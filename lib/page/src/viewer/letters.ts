/** Orientation letters, plane names and slice numbers over one canvas, as text that stays sharp and can be read aloud. */

import type { CanvasView } from "./canvas_view";
import type { Convention, Vec3 } from "./types";

const NAMES = { axial: "Axial", coronal: "Coronal", sagittal: "Sagittal", "3d": "3-D" } as const;
const AXIS_OF = { axial: 2, coronal: 1, sagittal: 0 } as const;
/** Room a letter needs, in CSS pixels. */
const ROOM = 18;

export class Letters {
  private readonly box = document.createElement("div");
  private shown = "";

  constructor(private readonly view: CanvasView) {
    this.box.className = "av-letters";
    view.host.append(this.box);
  }

  /** share: the crosshair's place in the grid, 0..1 per axis. */
  update(convention: Convention, voxel: Vec3, dims: Vec3): void {
    const tiles = this.view.tiles();
    const numbers = tiles.map((t) => (t.plane === "3d" ? "" : `${voxel[AXIS_OF[t.plane]] + 1} / ${dims[AXIS_OF[t.plane]]}`));
    const name = JSON.stringify([tiles, convention, numbers]);
    if (name === this.shown) return;
    this.shown = name;
    const [width, height] = [this.view.host.clientWidth, this.view.host.clientHeight];
    this.box.replaceChildren();
    tiles.forEach((tile, k) => {
      const right = Math.min(tile.left + tile.width, width);
      const bottom = Math.min(tile.top + tile.height, height);
      const middle = { x: (tile.left + right) / 2, y: (tile.top + bottom) / 2 };
      this.write("av-plane", [NAMES[tile.plane], numbers[k]].filter(Boolean).join("  "), tile.left + 6, tile.top + 5);
      if (tile.plane === "3d") return;
      const flipped = convention === "radiological";
      const sides = tile.plane === "sagittal" ? ["A", "P"] : flipped ? ["R", "L"] : ["L", "R"];
      const ends = tile.plane === "axial" ? ["A", "P"] : ["S", "I"];
      this.write("av-letter", sides[0]!, tile.left + ROOM / 2, middle.y);
      this.write("av-letter", sides[1]!, right - ROOM / 2, middle.y);
      this.write("av-letter", ends[0]!, middle.x, tile.top + ROOM / 2 + 2);
      this.write("av-letter", ends[1]!, middle.x, bottom - ROOM / 2 - 2);
    });
  }

  clear(): void {
    this.shown = "";
    this.box.replaceChildren();
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

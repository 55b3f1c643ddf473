/** Where the planes go: of several arrangements the one that shows the images largest in the room there is. */

import type { Place, Plane } from "./canvas_view";
import type { Layout, Vec3 } from "./types";

type Box = [number, number, number, number];

/** Arrangements as boxes for 3 or 4 tiles; the first tile is the one to look at most. */
const THREE: Box[][] = [
  thirds((k) => [k / 3, 0, 1 / 3, 1]),
  thirds((k) => [0, k / 3, 1, 1 / 3]),
  ...[0.5, 0.56, 0.62].map((w): Box[] => [[0, 0, w, 1], [w, 0, 1 - w, 0.5], [w, 0.5, 1 - w, 0.5]]),
  ...[0.5, 0.56, 0.62].map((h): Box[] => [[0, 0, 1, h], [0, h, 0.5, 1 - h], [0.5, h, 0.5, 1 - h]]),
];
const FOUR: Box[][] = [
  [[0, 0, 0.5, 0.5], [0.5, 0, 0.5, 0.5], [0, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]],
  [[0, 0, 0.25, 1], [0.25, 0, 0.25, 1], [0.5, 0, 0.25, 1], [0.75, 0, 0.25, 1]],
  [[0, 0, 1, 0.25], [0, 0.25, 1, 0.25], [0, 0.5, 1, 0.25], [0, 0.75, 1, 0.25]],
  [[0, 0, 0.6, 1], [0.6, 0, 0.4, 1 / 3], [0.6, 1 / 3, 0.4, 1 / 3], [0.6, 2 / 3, 0.4, 1 / 3]],
];

/** Two by two is what readers know; another arrangement of four must be clearly larger. */
const SQUARE_BONUS = 2;

function thirds(box: (k: number) => Box): Box[] {
  return [0, 1, 2].map(box);
}

/** A volume one voxel thick along an axis has one plane worth a look. */
export function onlyPlane(dims: Vec3): Plane | null {
  const thin = dims.findIndex((n) => n === 1);
  return thin < 0 ? null : (["sagittal", "coronal", "axial"] as const)[thin]!;
}

export function placesFor(layout: Layout, grid: { dims: Vec3; spacing: Vec3 }, width: number, height: number): Place[] {
  const only = onlyPlane(grid.dims);
  if (only !== null) return [{ plane: only, box: [0, 0, 1, 1] }];
  if (layout !== "planes" && layout !== "all") return [{ plane: layout, box: [0, 0, 1, 1] }];
  const planes: Plane[] = layout === "all" ? ["axial", "coronal", "sagittal", "3d"] : ["axial", "coronal", "sagittal"];
  const sizes = planes.map((plane) => sizeOf(plane, grid));
  let best: Box[] = [];
  let most = -1;
  for (const boxes of layout === "all" ? FOUR : THREE) {
    // The product of the magnifications: none is made tiny for the sake of another.
    const shown = boxes.reduce((product, [, , w, h], k) => {
      const [a, b] = sizes[k]!;
      return product * Math.min((w * width) / a, (h * height) / b) ** (k === 0 ? 1.4 : 1);
    }, layout === "all" && boxes === FOUR[0] ? SQUARE_BONUS : 1);
    if (shown > most) [most, best] = [shown, boxes];
  }
  return planes.map((plane, k) => ({ plane, box: best[k]! }));
}

function sizeOf(plane: Plane, { dims, spacing }: { dims: Vec3; spacing: Vec3 }): [number, number] {
  const [x, y, z] = [0, 1, 2].map((k) => dims[k]! * spacing[k]!) as Vec3;
  if (plane === "axial") return [x, y];
  if (plane === "coronal") return [x, z];
  if (plane === "sagittal") return [y, z];
  return [Math.max(x, y), z];
}

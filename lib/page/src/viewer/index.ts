/** The viewer of scans, anomaly maps and pseudo-healthy images. See `types.ts` for what it offers. */

import "./viewer.css";

import type { Viewer } from "./types";
import { StudyViewer } from "./viewer";

export type { Band, Compare, Convention, Layer, Layout, OnMove, Study, Tile, Vec3, Viewer, ViewerState } from "./types";
export { Superseded } from "./viewer";

/** Build a viewer inside `host`, which gives it its size. */
export function createViewer(host: HTMLElement): Viewer {
  return new StudyViewer(host);
}

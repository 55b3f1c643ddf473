/** The pseudo-healthy image as it is looked at: the model knows the brain only, the rest of the head is the scan's. */

import { sameGrid } from "./geometry";
import type { Image } from "./image_source";

/** How bright the scan is outside the brain: there to find one's way, too dark to be taken for a reconstruction. */
const OUTSIDE = 0.35;

/**
 * Outside the brain the reconstruction is 0, which would show as a black hole around it. There the scan goes on,
 * darkened. Works in place; leaves the image alone where the grids differ. black: the grey value shown as black.
 */
export function filledOutside(healthy: Image, scan: Image, brain: Image | null, black: number): Image {
  if (!sameGrid(healthy, scan) || (brain && !sameGrid(brain, scan))) return healthy;
  const data = new Float32Array(healthy.data.length);
  for (let k = 0; k < data.length; k++) {
    const value = healthy.data[k]! * healthy.slope + healthy.intercept;
    const inside = brain ? brain.data[k]! > 0 : value !== 0;
    const around = scan.data[k]! * scan.slope + scan.intercept;
    data[k] = inside ? value : black + (around - black) * OUTSIDE;
  }
  const hdr = healthy.nv.hdr!;
  hdr.datatypeCode = 16;
  hdr.numBitsPerVoxel = 32;
  hdr.scl_slope = 1;
  hdr.scl_inter = 0;
  healthy.nv.img = data;
  return { ...healthy, data, slope: 1, intercept: 0 };
}

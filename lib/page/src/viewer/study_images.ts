/** The images of the study that is open, and what they say about a place. */

import { apply } from "./geometry";
import { valueAt, type Image } from "./image_source";
import type { Vec3 } from "./types";

export class StudyImages {
  scan: Image | null = null;
  map: Image | null = null;
  brain: Image | null = null;
  healthy: Image | null = null;
  spread: Image | null = null;

  clear(): void {
    this.scan = this.map = this.brain = this.healthy = this.spread = null;
  }

  value(of: "scan" | "map" | "healthy" | "spread", ras_mm: Vec3): number | null {
    const image = this[of];
    return image ? valueAt(image, apply(image.inverse, ras_mm)) : null;
  }

  /** The scan's voxel that a point lies in, the nearest one for a point outside. */
  voxel(ras_mm: Vec3): Vec3 {
    if (!this.scan) return [0, 0, 0];
    const { inverse, dims } = this.scan;
    return apply(inverse, ras_mm).map((v, k) => Math.min(Math.max(Math.round(v), 0), dims[k]! - 1)) as Vec3;
  }

  centreOf(voxel: Vec3): Vec3 {
    return this.scan ? apply(this.scan.affine, voxel) : voxel;
  }
}

/** The line under the images: where the crosshair is and what lies there. */

import type { Vec3 } from "./types";

export interface Reading {
  ras_mm: Vec3;
  voxel: Vec3;
  scan: number | null;
  map: number | null;
  healthy: number | null;
  spread: number | null;
}

const DIRECTIONS = [["R", "L"], ["A", "P"], ["S", "I"]] as const;

export class Readout {
  readonly element = document.createElement("div");
  private readonly parts = new Map<string, HTMLElement>();

  constructor() {
    this.element.className = "av-readout";
    for (const name of ["position", "voxel", "grey", "healthy", "deviation", "spread"]) {
      const span = document.createElement("span");
      this.parts.set(name, span);
      this.element.append(span);
    }
  }

  update({ ras_mm, voxel, scan, map, healthy, spread }: Reading): void {
    const place = ras_mm.map((v, k) => `${DIRECTIONS[k]![v >= 0 ? 0 : 1]} ${Math.abs(v).toFixed(1)}`).join("  ");
    this.write("position", place, "mm");
    this.write("voxel", voxel.join(", "), "", "voxel ");
    this.write("grey", scan === null ? "" : short(scan), "", "grey value ");
    this.write("healthy", healthy === null ? "" : short(healthy), "", "pseudo-healthy ");
    this.write("deviation", map === null ? "" : map.toFixed(2), "healthy SD", "deviation ");
    this.write("spread", spread === null ? "" : spread.toFixed(2), "SD", "spread ");
  }

  clear(): void {
    for (const span of this.parts.values()) span.replaceChildren();
  }

  private write(name: string, value: string, unit: string, before = ""): void {
    const span = this.parts.get(name)!;
    span.hidden = value === "";
    const strong = document.createElement("b");
    strong.textContent = value;
    span.replaceChildren(before, strong, unit ? ` ${unit}` : "");
  }
}

function short(value: number): string {
  return Math.abs(value) >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toPrecision(3);
}

/** Affine geometry: 4x4 matrices as 16 numbers, row by row; voxel centres at whole indices. */

import type { Vec3 } from "./types";

export type Mat4 = number[];

export function fromRows(rows: ArrayLike<ArrayLike<number>>): Mat4 {
  const out: Mat4 = [];
  for (let r = 0; r < 4; r++) for (let c = 0; c < 4; c++) out.push(rows[r]![c]!);
  return out;
}

/** From the column order of WebGL and gl-matrix. */
export function fromColumns(m: ArrayLike<number>): Mat4 {
  const out: Mat4 = [];
  for (let r = 0; r < 4; r++) for (let c = 0; c < 4; c++) out.push(m[c * 4 + r]!);
  return out;
}

export function toColumns(m: Mat4): Float32Array {
  const out = new Float32Array(16);
  for (let r = 0; r < 4; r++) for (let c = 0; c < 4; c++) out[c * 4 + r] = m[r * 4 + c]!;
  return out;
}

export function multiply(a: Mat4, b: Mat4): Mat4 {
  const out: Mat4 = [];
  for (let r = 0; r < 4; r++)
    for (let c = 0; c < 4; c++) {
      let sum = 0;
      for (let k = 0; k < 4; k++) sum += a[r * 4 + k]! * b[k * 4 + c]!;
      out.push(sum);
    }
  return out;
}

/** Inverse of an affine matrix (last row 0 0 0 1). Null for one that is not invertible. */
export function invert(m: Mat4): Mat4 | null {
  const [a, b, c, x, d, e, f, y, g, h, i, z] = m as [
    number, number, number, number, number, number, number, number, number, number, number, number,
  ];
  const A = e * i - f * h;
  const B = f * g - d * i;
  const C = d * h - e * g;
  const det = a * A + b * B + c * C;
  if (!Number.isFinite(det) || Math.abs(det) < 1e-12) return null;
  const r = [A, c * h - b * i, b * f - c * e, B, a * i - c * g, c * d - a * f, C, b * g - a * h, a * e - b * d].map(
    (v) => v / det,
  ) as [number, number, number, number, number, number, number, number, number];
  return [
    r[0], r[1], r[2], -(r[0] * x + r[1] * y + r[2] * z),
    r[3], r[4], r[5], -(r[3] * x + r[4] * y + r[5] * z),
    r[6], r[7], r[8], -(r[6] * x + r[7] * y + r[8] * z),
    0, 0, 0, 1,
  ];
}

export function apply(m: Mat4, p: ArrayLike<number>): Vec3 {
  const row = (r: number): number => m[r * 4]! * p[0]! + m[r * 4 + 1]! * p[1]! + m[r * 4 + 2]! * p[2]! + m[r * 4 + 3]!;
  return [row(0), row(1), row(2)];
}

/** Voxel indices to texture coordinates 0..1 of a volume of these sizes. */
export function voxelToTexture(dims: Vec3): Mat4 {
  const [x, y, z] = dims;
  return [1 / x, 0, 0, 0.5 / x, 0, 1 / y, 0, 0.5 / y, 0, 0, 1 / z, 0.5 / z, 0, 0, 0, 1];
}

export function sameGrid(a: { dims: Vec3; affine: Mat4 }, b: { dims: Vec3; affine: Mat4 }): boolean {
  const step = Math.max(...a.affine.slice(0, 3).map(Math.abs), 1e-3);
  return a.dims.every((n, k) => n === b.dims[k]) && a.affine.every((v, k) => Math.abs(v - b.affine[k]!) < 1e-3 * step);
}

/** Which of the address's settings go to the server, and which only change the picture. */

import type { Lesion, Params, Result, Vector } from "../types";

const SERVER = ["operating_point", "threshold", "score", "smoothing", "min_lesion_volume", "calibration", "uncertainty", "seed"];
/** The map changes with these only: a moved threshold needs no new picture. */
const OF_MAP = ["score", "smoothing", "calibration", "uncertainty", "seed"];

function pick(params: Params, keys: string[]): Params {
  return Object.fromEntries(keys.filter((key) => params[key]).map((key) => [key, params[key]!]));
}

export const serverParams = (params: Params): Params => pick(params, SERVER);
export const mapParams = (params: Params): Params => pick(params, OF_MAP);
/** What an analysis is started with: where the threshold lies is no part of it. */
export const runParams = (params: Params): Params => pick(params, ["score", "uncertainty", "seed", "calibration"]);

export function peakKey(lesion: Pick<Lesion, "index" | "centroid_voxel"> & { peak_voxel?: Vector }): string {
  return (lesion.peak_voxel ?? lesion.centroid_voxel.map(Math.round)).join(",");
}

/** RAS mm of the lesion's highest value: unlike the centroid it lies inside. */
export function place(lesion: Lesion, result: Result): Vector {
  return (lesion.peak_voxel && placeOf(lesion.peak_voxel, result)) ?? lesion.centroid_ras_mm;
}

/** RAS mm of a voxel; null where the server does not tell the grid. */
export function placeOf(peak: Vector, { affine }: Result): Vector | null {
  if (!affine) return null;
  const row = (r: number) => affine[r]![0]! * peak[0] + affine[r]![1]! * peak[1] + affine[r]![2]! * peak[2] + affine[r]![3]!;
  return [row(0), row(1), row(2)];
}

/** Share of healthy brain voxels above `value`, between the measured ones on a logarithmic scale. */
export function healthyShare(value: number, tails: Result["calibration"]["tails"] | null | undefined): number | null {
  if (!tails || tails.shares.length < 2) return null;
  const known = tails.values.map((at, i) => ({ at, share: tails.shares[i]! })).filter((one) => one.share > 0).sort((a, b) => a.at - b.at);
  const first = known[0];
  const last = known[known.length - 1];
  if (!first || !last || value < first.at) return null;
  if (value >= last.at) return last.share;
  const above = known.findIndex((one) => one.at > value);
  const [low, high] = [known[above - 1]!, known[above]!];
  const part = (value - low.at) / (high.at - low.at || 1);
  return Math.exp(Math.log(low.share) + part * (Math.log(high.share) - Math.log(low.share)));
}

/** Whether `value` lies beyond what the healthy scans can tell a share for. */
export function beyondTails(value: number, tails: Result["calibration"]["tails"] | null | undefined): boolean {
  return !!tails?.values.length && value > Math.max(...tails.values);
}

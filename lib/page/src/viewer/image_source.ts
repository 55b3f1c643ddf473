/** Images from addresses: what they are is read off their bytes, since the API's addresses need not tell. */

import { NVImage } from "@niivue/niivue";

import { fromRows, invert, type Mat4 } from "./geometry";
import type { Vec3 } from "./types";

/** A volume in the voxel order of its file, values as they are meant (slope and intercept applied on reading out). */
export interface Image {
  nv: NVImage;
  data: ArrayLike<number>;
  dims: Vec3;
  /** Voxel index to RAS mm. */
  affine: Mat4;
  inverse: Mat4;
  slope: number;
  intercept: number;
}

export function valueAt(image: Image, voxel: Vec3): number | null {
  const [i, j, k] = voxel.map(Math.round) as Vec3;
  const [x, y, z] = image.dims;
  if (i < 0 || j < 0 || k < 0 || i >= x || j >= y || k >= z) return null;
  const raw = image.data[i + x * (j + y * k)];
  return raw === undefined ? null : raw * image.slope + image.intercept;
}

/** Grey values to show as black and white where nobody knows the brain: the darkest and brightest 0.5 % are cut. */
export function windowOf(image: Image): [number, number] {
  const step = Math.max(1, Math.floor(image.data.length / 200_000));
  const seen: number[] = [];
  for (let k = 0; k < image.data.length; k += step) {
    const value = image.data[k]! * image.slope + image.intercept;
    if (Number.isFinite(value)) seen.push(value);
  }
  seen.sort((a, b) => a - b);
  const lo = seen[Math.floor(0.005 * seen.length)] ?? 0;
  const hi = seen[Math.floor(0.995 * seen.length)] ?? 1;
  return hi > lo ? [lo, hi] : [lo, lo + 1];
}

/** Raises an Error with a sentence for the reader. `what` is such as "the scan". */
export async function readImage(
  url: string,
  what: string,
  headers: Record<string, string>,
  signal: AbortSignal,
): Promise<Image> {
  const bytes = await fetched(url, what, headers, signal);
  return await parsed(bytes, what);
}

async function fetched(
  url: string,
  what: string,
  headers: Record<string, string>,
  signal: AbortSignal,
): Promise<ArrayBuffer> {
  let response: Response;
  try {
    response = await fetch(url, { headers, signal, credentials: "same-origin" });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Error(`${what} could not be fetched: the server does not answer. Check that it runs, then try again.`);
  }
  if (!response.ok) {
    const said = await sentenceOf(response);
    throw new Error(`${what} could not be fetched: the server answered ${response.status}${said ? `, ${said}` : ""}`);
  }
  try {
    return await response.arrayBuffer();
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Error(`${what} arrived incomplete: the connection broke. Try again.`);
  }
}

async function sentenceOf(response: Response): Promise<string> {
  try {
    const text = (await response.text()).slice(0, 2000);
    if (!(response.headers.get("content-type") ?? "").includes("json")) return "";
    const body = JSON.parse(text) as { detail?: unknown };
    return typeof body.detail === "string" ? body.detail : "";
  } catch {
    return "";
  }
}

async function parsed(bytes: ArrayBuffer, what: string): Promise<Image> {
  const plain = await unzipped(bytes, what);
  const kind = kindOf(plain);
  if (kind === null) {
    throw new Error(`${what} is neither NIfTI nor NRRD, so it cannot be shown.`);
  }
  let nv: NVImage | undefined;
  try {
    // No range is given away to the reader of the file: colours come from the study, never from the image's extremes.
    nv = await NVImage.loadFromUrl({ url: plain, name: `image.${kind}`, colormap: "gray", cal_min: 0, cal_max: 1 });
  } catch (error) {
    throw new Error(`${what} cannot be read: ${error instanceof Error ? error.message : String(error)}`);
  }
  if (!nv?.hdr || !nv.img) throw new Error(`${what} cannot be read: the file is damaged.`);
  const { hdr } = nv;
  const dims = [1, 2, 3].map((k) => Math.max(1, hdr.dims[k] ?? 1)) as Vec3;
  const count = dims[0] * dims[1] * dims[2];
  if (![1, 3, 4].includes(nv.img.length / count) && nv.img.length < count) {
    throw new Error(`${what} is cut off: ${nv.img.length} of ${count} voxels are there.`);
  }
  if (hdr.datatypeCode === 128 || hdr.datatypeCode === 2304) {
    throw new Error(`${what} is a colour picture; a scan of grey values is expected.`);
  }
  const affine = fromRows(hdr.affine);
  const inverse = invert(affine);
  if (inverse === null) throw new Error(`${what} has no usable orientation in its header, so left and right are unknown.`);
  const slope = Number.isFinite(hdr.scl_slope) && hdr.scl_slope !== 0 ? hdr.scl_slope : 1;
  const intercept = Number.isFinite(hdr.scl_inter) ? hdr.scl_inter : 0;
  return { nv, data: nv.img as ArrayLike<number>, dims, affine, inverse, slope, intercept };
}

async function unzipped(bytes: ArrayBuffer, what: string): Promise<ArrayBuffer> {
  const head = new Uint8Array(bytes, 0, Math.min(2, bytes.byteLength));
  if (head[0] !== 0x1f || head[1] !== 0x8b) return bytes;
  try {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return await new Response(stream).arrayBuffer();
  } catch {
    throw new Error(`${what} is damaged: its compression ends too early or is wrong.`);
  }
}

function kindOf(bytes: ArrayBuffer): "nii" | "nrrd" | null {
  if (bytes.byteLength < 64) return null;
  const view = new DataView(bytes);
  const text = (from: number, count: number): string =>
    String.fromCharCode(...new Uint8Array(bytes, from, Math.min(count, bytes.byteLength - from)));
  if (text(0, 4) === "NRRD") return "nrrd";
  const size = [view.getInt32(0, true), view.getInt32(0, false)];
  return size.includes(348) || size.includes(540) ? "nii" : null;
}

/**
 * One colour for one rarity, on every scan: the map's values are coloured by the share of healthy voxels above them,
 * never by what the scan at hand contains. A scan without lesions stays grey.
 */

export type Rgb = [number, number, number];

/** The shares of healthy voxels that `edges` stand for. */
export const SHARES = [0.01, 0.001, 0.0001] as const;

export const BANDS: { name: string; colour: Rgb }[] = [
  { name: "low suspicion", colour: [203, 65, 73] },
  { name: "medium suspicion", colour: [249, 142, 9] },
  { name: "high suspicion", colour: [252, 243, 120] },
];

/**
 * Violet, red, orange, yellow: lightness rises evenly, so order is seen also by readers with colour blindness, and
 * no stop is grey. Stops of the "inferno" map (S. van der Walt, N. Smith, CC0) from 0.28 on, where it leaves black.
 */
const STOPS: Rgb[] = [
  [81, 18, 124], [106, 23, 110], [130, 32, 105], [154, 40, 97], [178, 50, 87], [199, 62, 76], [219, 80, 59],
  [236, 104, 38], [246, 134, 15], [251, 165, 10], [250, 196, 40], [243, 228, 92], [252, 255, 164],
];

/** Violet-free blues to white for the spread of the map, so that the two scales are never taken for one another. */
const SPREAD_STOPS: Rgb[] = [[8, 64, 129], [8, 104, 172], [43, 140, 190], [78, 179, 211], [168, 221, 181], [240, 249, 232]];

const TEXELS = 512;

/** The fixed scale of a model: edges as positions, and where it ends. */
export interface Scale {
  edges: [number, number, number];
  /** Value of the brightest colour: one more decade beyond 0.01 %, as steep as the last two. */
  top: number;
  /** False where the model has no healthy tails: the scale then only counts healthy standard deviations. */
  known: boolean;
}

/** Without healthy tails (calibrations of earlier versions) a plain scale in healthy SD takes their place. */
export function scaleOf(edges: readonly number[]): Scale {
  const [a, b, c] = edges;
  if (edges.length === 3 && [a, b, c].every(Number.isFinite) && a! > 0 && a! <= b! && b! <= c! && c! > a!) {
    return { edges: [a!, b!, c!], top: c! + (c! - a!) / 2, known: true };
  }
  return { edges: [2, 4, 6], top: 8, known: false };
}

/** Where a value lies on the colours, 0..1: linear between the edges, which stand a third of the scale apart. */
export function position(value: number, scale: Scale): number {
  const at = [0, ...scale.edges, scale.top];
  const to = [0, 0.1, 0.4, 0.7, 1];
  if (!(value > 0)) return 0;
  for (let k = 1; k < at.length; k++) {
    if (value <= at[k]!) {
      const width = at[k]! - at[k - 1]!;
      return width > 0 ? to[k - 1]! + ((value - at[k - 1]!) / width) * (to[k]! - to[k - 1]!) : to[k]!;
    }
  }
  return 1;
}

export function ramp(stops: Rgb[], share: number): Rgb {
  const x = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const k = Math.min(Math.floor(x), stops.length - 2);
  const [a, b] = [stops[k]!, stops[k + 1]!];
  return [0, 1, 2].map((c) => Math.round(a[c]! + (b[c]! - a[c]!) * (x - k))) as Rgb;
}

export function mapColour(value: number, scale: Scale): Rgb {
  return ramp(STOPS, position(value, scale));
}

/** The spread's scale ends where it is as large as the value that 1 % of healthy voxels exceed. */
export function spreadTop(scale: Scale): number {
  return scale.edges[0];
}

export function spreadColour(value: number, scale: Scale): Rgb {
  return ramp(SPREAD_STOPS, value / spreadTop(scale));
}

/** Colours for values 0..top in equal steps, RGBA. */
export function mapTable(scale: Scale): Uint8Array {
  return table((share) => mapColour(share * scale.top, scale));
}

export function spreadTable(): Uint8Array {
  return table((share) => ramp(SPREAD_STOPS, share));
}

function table(colour: (share: number) => Rgb): Uint8Array {
  const out = new Uint8Array(TEXELS * 4);
  for (let k = 0; k < TEXELS; k++) out.set([...colour(k / (TEXELS - 1)), 255], k * 4);
  return out;
}

export function shareInWords(share: number): string {
  return `${String(+(share * 100).toPrecision(3))} %`;
}

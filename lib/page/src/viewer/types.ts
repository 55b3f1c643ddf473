/** What the page gives to the viewer and what it gets back. Positions are RAS millimetres, values healthy SD. */

export type Vec3 = [number, number, number];
export type Layout = "planes" | "axial" | "coronal" | "sagittal" | "3d" | "all";
export type Compare = "off" | "side" | "swipe";
export type Layer = "map" | "bands" | "uncertainty" | "none";
export type Convention = "radiological" | "neurological";

/** One band of suspicion as `/anomaly/results` lists it; colour in 0..255. */
export interface Band {
  name: string;
  share: number;
  value: number;
  colour: [number, number, number];
}

export interface Study {
  /** Address of the scan: NIfTI or NRRD, gzipped or not; recognised by its bytes, so any address will do. */
  scan: string;
  /** For messages only. */
  name: string;
  /** Which file the scan is: under the same address there may be another one later. */
  version?: string;
  map?: string;
  reconstruction?: string;
  uncertainty?: string;
  brain?: string;
  /** Grey values shown as black and as white; taken from the scan itself where none are given. */
  window?: [number, number];
  /** The values that 1 %, 0.1 % and 0.01 % of healthy voxels exceed; empty for a model without healthy tails. */
  edges?: number[];
  threshold?: number;
  /** Names and colours of the bands; defaults are used without. */
  bands?: Band[];
  /** Sent with every request, such as a bearer token. */
  headers?: Record<string, string>;
}

export type OnMove = (ras_mm: Vec3, voxel: Vec3, value: number | null, mapValue: number | null) => void;

/** What is on the screen, for tests and for a page that keeps its state. */
export interface ViewerState {
  ready: boolean;
  ras_mm: Vec3;
  voxel: Vec3;
  threshold: number;
  opacity: number;
  window: [number, number];
  layout: Layout;
  compare: Compare;
  layer: Layer;
  convention: Convention;
  /** Where the divider of the swipe stands, share of the width from the left. */
  swipe: number;
  zoom: number;
  /** Tiles of every canvas in CSS pixels of that canvas. */
  tiles: Record<"scan" | "healthy", Tile[]>;
  crosshair: Record<"scan" | "healthy", Vec3>;
}

export interface Tile {
  plane: "axial" | "coronal" | "sagittal" | "3d";
  left: number;
  top: number;
  width: number;
  height: number;
}

export interface Viewer {
  /**
   * Rejects with a sentence for the reader; an older load that a newer one overtook rejects with `Superseded`. The
   * same scan with another map keeps crosshair, zoom and window, and is not fetched again. Reconstruction and
   * uncertainty are fetched when they are first asked for.
   */
  load(study: Study): Promise<void>;
  setThreshold(value: number): void;
  setOpacity(value: number): void;
  setLayout(layout: Layout): void;
  setCompare(compare: Compare): void;
  /** One layer is painted at a time: two colour scales over one another cannot be read. */
  setLayer(layer: Layer, on: boolean): void;
  setConvention(convention: Convention): void;
  setInterpolation(smooth: boolean): void;
  setWindow(lo: number, hi: number): void;
  setSwipe(share: number): void;
  resetView(): void;
  goTo(ras_mm: Vec3): void;
  onMove(callback: OnMove): void;
  /** Told when the window is changed by dragging. */
  onWindow(callback: (lo: number, hi: number) => void): void;
  /**
   * Told, in a sentence, when WebGL is lost or cannot start or an image asked for later cannot be had; "" when that
   * is over. Where nobody listens the sentence stands in the viewer.
   */
  onTrouble(callback: (sentence: string) => void): void;
  state(): ViewerState;
  focus(): void;
  resize(): void;
  destroy(): void;
}

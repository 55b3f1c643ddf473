/** What the server's addresses under /anomaly/ answer; see docs/rest.md for the meaning of each field. */

export type State = "new" | "queued" | "running" | "analysed" | "failed" | "reviewed";
export type Order = "most_anomalous" | "borderline" | "random" | "name" | "newest";
export type Vector = [number, number, number];
export type Params = Record<string, string>;

export interface PageInfo {
  version: string;
  datastore: "folder" | "dicomweb";
  uploads: boolean;
  extensions: string[];
  /** Who signed in; null where nobody is asked. */
  user: { name: string; role: string } | null;
}

export interface Lease {
  reader: string;
  until: string;
  /** Whether this account has it; null where the reader's name tells. */
  yours?: boolean | null;
}

export interface StudyRecord {
  model?: string;
  score?: number | null;
  p_value?: number | null;
  volume_ml?: number | null;
  lesions?: number | null;
  time?: string | number | null;
  [key: string]: unknown;
}

export interface Replaced {
  time?: number | null;
  kept_in?: string | null;
}

export interface Study {
  image: string;
  sequence: string | null;
  state: State;
  model: string | null;
  score: number | null;
  p_value: number | null;
  volume_ml: number | null;
  lesions: number | null;
  error: string | null;
  gate: Gate | boolean | string | null;
  drift: Drift | boolean | string | null;
  results: Record<string, StudyRecord>;
  review: Review | null;
  lease: Lease | null;
  healthy: boolean | null;
  time?: string | null;
  /** The scan's file was copied over by hand: when (seconds since 1970), and where lies what was said of the former. */
  replaced_by_hand?: Replaced | null;
  dicom: Record<string, string> | null;
}

export interface StudyList {
  studies: Study[];
  total: number;
  counts: Partial<Record<State, number>>;
  default_models: Record<string, string>;
}

export interface Lesion {
  index: number;
  volume_ml: number;
  centroid_voxel: Vector;
  centroid_ras_mm: Vector;
  peak_voxel?: Vector;
  mean_score: number;
  peak_score: number;
  region: string;
  uncertainty: Record<string, unknown> | null;
}

export interface Gate {
  score: number | null;
  p_value: number | null;
  threshold: number | null;
  passed: boolean;
  reasons: string[];
}

export interface Drift {
  distance: number | null;
  p_value: number | null;
  healthy_median: number | null;
  healthy_largest: number | null;
  drifted: boolean;
  /** Scans from elsewhere: by how much their background was brought back. */
  background?: { ratio?: number | null; divided_by?: number | null } | null;
}

export interface Finding {
  anomaly_score: number | null;
  p_value: number | null;
  threshold: number;
  lesion_count: number;
  anomaly_volume_ml: number;
  lesions: Lesion[];
  model: { id: string; hash: string };
  analysed: Record<string, unknown> | null;
  settings: Record<string, unknown>;
  seconds: Record<string, number>;
  warnings: string[];
  gate: Gate | null;
  uncertainty: Record<string, unknown> | null;
  calibration: {
    kind?: string;
    id?: string;
    healthy_scans?: number;
    data?: string;
    healthy_rate?: number | null;
    false_volume_ml?: number | null;
    false_volume_level?: number | null;
    false_volume_of?: string;
  } | null;
  drift: Drift | null;
}

export interface Band {
  name: string;
  share: number;
  value: number;
  colour: [number, number, number];
}

export interface Calibration {
  score: string;
  smoothing: string;
  points: Record<string, number>;
  tails: { shares: number[]; values: number[] };
  scan_scores: number[];
  id: string;
}

export type Decision = "accept" | "reject" | "undecided";

export interface LesionDecision {
  peak_voxel: Vector;
  decision: Decision;
  comment?: string;
}

export interface Review {
  model?: string | null;
  scan?: string;
  params?: Params;
  reader?: string;
  comment?: string;
  final?: boolean;
  lesions?: LesionDecision[];
  rest?: Decision;
  time?: string | null;
  signed?: { reader?: string; time?: string; model?: string } | null;
  warnings?: string[];
}

export interface Result {
  image: string;
  /** Tells whether the scan is still the one that this result is about. */
  scan?: string;
  model: string;
  finding: Finding;
  files: Record<string, string>;
  calibration: Calibration;
  bands: Band[];
  window: [number, number];
  affine?: number[][];
  review: Review | null;
  record: StudyRecord | null;
}

export interface Model {
  name: string;
  title?: string;
  modality: string | null;
  default?: boolean;
  description?: string;
  /** On which sequences it was not shown to beat the baselines; empty where there is no such limit. */
  verdict?: string;
  /** true, false, or null for a model that was not measured. */
  beats_baselines?: boolean | null;
  version?: string | null;
  hash?: string | null;
  scores?: string[];
  options?: Record<string, string[]>;
  points?: unknown;
  card?: string | boolean | null;
}

export type JobState = "queued" | "running" | "done" | "failed" | "cancelled";

export interface Job {
  id: string;
  kind: "infer" | "train" | "scoring" | "batch_infer";
  model: string | null;
  image: string;
  params: Params;
  state: JobState;
  position: number | null;
  stage: string | null;
  progress: number | null;
  created: string | null;
  started: string | null;
  finished: string | null;
  seconds: number | null;
  error: string | null;
  result: string | null;
}

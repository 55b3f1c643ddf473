/** A study's state: a word, a drawing and only then a colour. */

import { STATES } from "../format";
import { Check, Clock, Dot, Eye, Play, Warn } from "../parts/icons";
import type { State } from "../types";

const DRAWINGS: Record<State, typeof Check> = { new: Dot, queued: Clock, running: Play, analysed: Eye, failed: Warn, reviewed: Check };

export function Badge({ state }: { state: State }) {
  const Drawing = DRAWINGS[state] ?? Dot;
  return <span class={`badge ${state}`}><Drawing />{STATES[state] ?? state}</span>;
}

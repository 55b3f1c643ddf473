/** Which model, with which options, and how far its analysis is. */

import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, api, message, whenSignedIn } from "../api";
import { plural, seconds, words } from "../format";
import { Play, Stop, Warn } from "../parts/icons";
import { Progress } from "../parts/progress";
import { toast } from "../store";
import type { Job, Model, Params } from "../types";

export const OVER = new Set(["done", "failed", "cancelled"]);

export interface Running {
  job: Job | null;
  starting: boolean;
  fault: string;
  start: (model: string, params: Params) => Promise<void>;
  cancel: () => Promise<void>;
  clear: () => void;
}

/** The image's analysis: found again after a reload, followed until it is over. */
export function useJob(image: string, onDone: (job: Job) => void): Running {
  const [job, setJob] = useState<Job | null>(null);
  const [starting, setStarting] = useState(false);
  const [fault, setFault] = useState("");
  const done = useRef(onDone);
  done.current = onDone;

  const [turn, setTurn] = useState(0);
  useEffect(() => whenSignedIn(() => setTurn((n) => n + 1)), []);
  useEffect(() => {
    let gone = false;
    api.jobs({ image }).then(
      ({ jobs }) => {
        if (gone) return;
        const own = jobs.filter((one) => one.kind === "infer" && one.image === image);
        const active = own.find((one) => !OVER.has(one.state));
        // A failure that nothing came after is still news.
        const found = active ?? (own[0]?.state === "failed" ? own[0] : null);
        // What was started meanwhile is newer than this list.
        setJob((known) => known ?? found);
      },
      () => undefined,
    );
    return () => void (gone = true);
  }, [image, turn]);

  const following = job && !OVER.has(job.state) ? job.id : null;
  useEffect(() => {
    if (!following) return;
    let stopped = false;
    let timer = 0;
    let missed = 0;
    const look = async () => {
      try {
        const next = await api.job(following, { quiet: true });
        if (stopped) return;
        missed = 0;
        setFault("");
        setJob(next);
        if (OVER.has(next.state)) {
          done.current(next);
          return;
        }
      } catch (error) {
        if (stopped) return;
        if (error instanceof ApiError && error.status === 404) {
          setJob(null);
          setFault("The server does not know this analysis any more; it may have been restarted. Run it again.");
          return;
        }
        // A server that is busy, or away for a moment.
        if (++missed > 3) setFault(message(error));
      }
      if (!stopped) timer = window.setTimeout(() => void look(), missed ? 3000 : 500);
    };
    timer = window.setTimeout(() => void look(), 250);
    return () => {
      stopped = true;
      clearTimeout(timer);
    };
  }, [following]);

  return {
    job,
    starting,
    fault,
    start: async (model, params) => {
      setStarting(true);
      setFault("");
      try {
        setJob(await api.run(image, model, params));
      } catch (error) {
        setFault(`The analysis was not started: ${message(error)}`);
      }
      setStarting(false);
    },
    cancel: async () => {
      if (!job) return;
      try {
        await api.cancel(job.id);
        const now = await api.job(job.id);
        setJob((known) => (known?.id === now.id ? now : known));
        // It is not followed any more then.
        if (OVER.has(now.state)) done.current(now);
      } catch (error) {
        // A banner would hide the analysis, which goes on.
        toast(`Not cancelled: ${message(error)}`, "error");
        throw error;
      }
    },
    clear: () => {
      setJob((known) => (known && OVER.has(known.state) ? null : known));
      setFault("");
    },
  };
}

export function RunState({ running }: { running: Running }) {
  const { job, fault } = running;
  const [cancelling, setCancelling] = useState(false);
  useEffect(() => setCancelling(false), [job?.id]);
  if (fault) return <div class="banner error" role="alert"><Warn /> <span>{fault}</span><button type="button" class="quiet" onClick={running.clear}>Close</button></div>;
  if (!job || job.state === "done") return null;
  if (job.state === "failed")
    return <div class="banner error" role="alert"><Warn /> <span><strong>{job.model} failed.</strong> {job.error}</span><button type="button" class="quiet" onClick={running.clear}>Close</button></div>;
  if (job.state === "cancelled")
    return <div class="banner" role="status"><Stop /> <span>{job.model}: cancelled; nothing was stored.</span><button type="button" class="quiet" onClick={running.clear}>Close</button></div>;
  const waiting = job.state === "queued";
  const stage = waiting
    ? job.position != null && job.position > 1 ? `waiting, ${plural(job.position - 1, "analysis", "analyses")} before it` : "waiting, next in the queue"
    : words(job.stage ?? "starting");
  return (
    <div class="job" role="status" aria-label="Analysis">
      <div class="job-words">
        <strong>{job.model}</strong> <span>{cancelling ? "cancelling…" : stage}</span>
        {job.seconds != null && !waiting && <span class="muted">{seconds(job.seconds)}</span>}
      </div>
      <Progress share={waiting ? 0 : job.progress} label={`Progress of ${job.model ?? "the analysis"}: ${stage}`} />
      <button type="button" disabled={cancelling} onClick={() => { setCancelling(true); running.cancel().catch(() => setCancelling(false)); }}><Stop /> Cancel</button>
    </div>
  );
}

interface ChoiceProps {
  models: Model[];
  sequence: string | null;
  model: string;
  analysed: Set<string>;
  params: Params;
  busy: boolean;
  hasResult: boolean;
  onModel: (name: string) => void;
  onOption: (params: Params) => void;
  onRun: () => void;
  onCard: () => void;
}

/** Models that fit the scan's sequence first; the others stay within reach. */
export function RunChoice({ models, sequence, model, analysed, params, busy, hasResult, onModel, onOption, onRun, onCard }: ChoiceProps) {
  const listed = [...models].sort((a, b) => Number(!!b.default) - Number(!!a.default) || a.name.localeCompare(b.name));
  const kinds = [...new Set(listed.map((one) => one.modality ?? ""))].sort((a, b) => Number(b === sequence) - Number(a === sequence) || Number(b === "any") - Number(a === "any"));
  const groups: [string, Model[]][] = kinds.map((kind) => [
    kind === "any" ? "For any sequence" : kind ? `For ${kind.toUpperCase()}` : "Models",
    listed.filter((one) => (one.modality ?? "") === kind),
  ]);
  const chosen = models.find((one) => one.name === model);
  const menu = useRef<HTMLDetailsElement>(null);
  useEffect(() => {
    const close = (event: Event) => {
      const outside = event instanceof KeyboardEvent ? event.key === "Escape" : !menu.current?.contains(event.target as Node);
      if (outside && menu.current) menu.current.open = false;
    };
    window.addEventListener("pointerdown", close);
    window.addEventListener("keydown", close);
    return () => {
      window.removeEventListener("pointerdown", close);
      window.removeEventListener("keydown", close);
    };
  }, []);
  const scores = chosen?.scores ?? [];
  const option = (one: Model) => <option key={one.name} value={one.name}>{analysed.has(one.name) ? "✓ " : ""}{one.name}</option>;
  return (
    <div class="run-choice">
      <label class="field inline">
        <span class="sr-only">Model</span>
        <select value={model} onChange={(event) => onModel(event.currentTarget.value)} aria-label="Model" title="✓ marks models that have analysed this study">
          {!chosen && <option value={model}>{model || "no model"}</option>}
          {groups.map(([title, list]) => <optgroup key={title} label={title}>{list.map(option)}</optgroup>)}
        </select>
      </label>
      <button type="button" class="quiet" disabled={!chosen} onClick={onCard}>Model card</button>
      <details class="menu" ref={menu}>
        <summary class="button quiet">Options</summary>
        <div class="menu-body stack">
          {scores.length > 1 && (
            <label class="field"><span>Score</span>
              <select value={params["score"] ?? scores[0]} onChange={(event) => onOption({ score: event.currentTarget.value })}>{scores.map((one) => <option key={one} value={one}>{words(one)}</option>)}</select>
            </label>
          )}
          <label class="tick"><input type="checkbox" checked={params["uncertainty"] === "on"} onChange={(event) => onOption({ uncertainty: event.currentTarget.checked ? "on" : "" })} /><span>Estimate the uncertainty (8 analyses instead of one)</span></label>
        </div>
      </details>
      <button type="button" class={hasResult ? "" : "primary"} disabled={busy || !chosen} onClick={onRun}><Play /> {hasResult ? "Run again" : "Run"}</button>
    </div>
  );
}

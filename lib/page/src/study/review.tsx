/** The end of the findings: whether everything is kept, a comment on the whole study, and finishing the review. */

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { clock, localTime, plural } from "../format";
import { Dialog } from "../parts/dialog";
import { Check, Warn } from "../parts/icons";
import type { Decision, Lesion, LesionDecision, Result, Vector } from "../types";
import type { Reviewing } from "./review_state";
import { peakKey, placeOf } from "./settings";

interface BoxProps {
  result: Result;
  reviewing: Reviewing;
  onShow: (ras_mm: Vector) => void;
  onFinish: () => void;
  onNothing: () => void;
}

export function ReviewBox({ result, reviewing, onShow, onFinish, onNothing }: BoxProps) {
  const { lesions } = result.finding;
  const { saved, status } = reviewing;
  const decided = lesions.filter((lesion) => reviewing.decision(peakKey(lesion)) !== "undecided").length;
  const time = saved?.time ?? null;
  const done = status === "saved" && !!saved?.final;
  return (
    <section class="review" aria-label="Review">
      {reviewing.other && <p class="note"><Warn /> There is {reviewing.other.final ? "a finished review" : "a draft"} for {reviewing.other.model}; a review kept here takes its place.</p>}
      {reviewing.elsewhere.length > 0 && <Elsewhere list={reviewing.elsewhere} result={result} reviewing={reviewing} onShow={onShow} />}
      <label class="field">
        <span>Comment on the study</span>
        <General said={reviewing.general} keep={(text) => void reviewing.sayGeneral(text)} />
      </label>
      <p class={`save-state ${status}`} role="status">
        {status === "saving" && "Saving…"}
        {status === "saved" && (saved?.final ? <><Check /> Review finished{saved.reader ? ` by ${saved.reader}` : ""}{time ? `, ${localTime(time)}` : ""}</> : <><Check /> Draft saved{time ? `, ${clock(time)}` : ""}{saved?.signed?.reader ? ` (finished before by ${saved.signed.reader})` : ""}</>)}
        {status === "failed" && <><Warn /> Not saved: {reviewing.fault} <button type="button" class="link" onClick={() => void reviewing.retry()}>Try again</button></>}
        {status === "none" && (lesions.length ? "Nothing decided yet" : "Not reviewed yet")}
      </p>
      <div class="row">
        <button type="button" class={done ? "grow" : "primary grow"} disabled={status === "saving"} onClick={onFinish}>{done ? "Finish again" : "Finish review"}{lesions.length ? ` (${decided} of ${lesions.length})` : ""}</button>
        <button type="button" disabled={status === "saving"} onClick={onNothing}>Nothing abnormal</button>
      </div>
    </section>
  );
}

/** What is being typed is its own until the box is left, or taken away with the view. */
function General({ said, keep }: { said: string; keep: (text: string) => void }) {
  const [typed, setTyped] = useState(said);
  const last = useRef(said);
  useEffect(() => {
    last.current = said;
    setTyped(said);
  }, [said]);
  const leave = () => {
    const text = typed.trim();
    if (text === last.current) return;
    last.current = text;
    keep(text);
  };
  const now = useRef(leave);
  now.current = leave;
  useLayoutEffect(() => () => now.current(), []);
  return <textarea rows={2} maxLength={2000} value={typed} onInput={(event) => setTyped(event.currentTarget.value)} onChange={leave} />;
}

const SAID: Record<Decision, string> = { accept: "Accepted", reject: "Rejected", undecided: "Commented" };
const DIRECTIONS = [["R", "L"], ["A", "P"], ["S", "I"]] as const;

/** Decisions that have no row in the table of now stay in sight, and can be taken back. */
function Elsewhere({ list, result, reviewing, onShow }: { list: LesionDecision[]; result: Result; reviewing: Reviewing; onShow: (ras_mm: Vector) => void }) {
  return (
    <details class="elsewhere" open={list.length <= 2}>
      <summary><Warn /> {plural(list.length, "decision")} made at other settings: now part of a larger finding, or not marked</summary>
      <ul>
        {list.map((one) => {
          const at = placeOf(one.peak_voxel, result);
          const where = at ? `${at.map((value, k) => `${DIRECTIONS[k]![value >= 0 ? 0 : 1]} ${Math.abs(value).toFixed(0)}`).join(" ")} mm` : `voxel ${one.peak_voxel.join(", ")}`;
          return (
            <li key={one.peak_voxel.join(",")}>
              <span class="grow"><span class={one.decision}>{SAID[one.decision]}</span> {where}{one.comment ? `: ${one.comment}` : ""}</span>
              {at && <button type="button" class="link" aria-label={`Show ${where}`} onClick={() => onShow(at)}>Show</button>}
              <button type="button" class="link" aria-label={`Take back the decision at ${where}`} onClick={() => void reviewing.takeBack(one)}>Take back</button>
            </li>
          );
        })}
      </ul>
    </details>
  );
}

/** What a finished review writes, before it is written. */
export function FinishDialog({ lesions, reviewing, onClose, onDone }: { lesions: Lesion[]; reviewing: Reviewing; onClose: () => void; onDone: () => void }) {
  const of = (decision: Decision) => lesions.filter((lesion) => reviewing.decision(peakKey(lesion)) === decision).length;
  const open = of("undecided");
  const [rest, setRest] = useState<Decision>("undecided");
  const [busy, setBusy] = useState(false);
  const finish = async () => {
    setBusy(true);
    if (await reviewing.finish(rest)) onDone();
    else setBusy(false);
  };
  const kept = reviewing.elsewhere.filter((one) => one.decision === "accept").length;
  const accepted = of("accept") + (rest === "accept" ? open : 0);
  return (
    <Dialog
      title="Finish the review"
      onClose={onClose}
      foot={
        <>
          <button type="button" onClick={onClose}>Back</button>
          <button type="button" class="primary" autofocus={open === 0} disabled={busy || (open > 0 && rest === "undecided")} onClick={() => void finish()}>Finish review</button>
        </>
      }
    >
      <p>{of("accept")} accepted, {of("reject")} rejected, {open} undecided.</p>
      {kept > 0 && <p class="note"><Warn /> {plural(kept, "place")} accepted at other settings {kept === 1 ? "counts" : "count"} for the finding that holds {kept === 1 ? "it" : "them"} now. Where none does, go back to those settings, or take the decision back.</p>}
      {open > 0 && (
        <fieldset class="choices">
          <legend>{open === 1 ? "The undecided finding is" : `The ${open} undecided findings are`}</legend>
          <label class="tick"><input type="radio" name="rest" autofocus checked={rest === "accept"} onChange={() => setRest("accept")} /><span>accepted</span></label>
          <label class="tick"><input type="radio" name="rest" checked={rest === "reject"} onChange={() => setRest("reject")} /><span>rejected</span></label>
        </fieldset>
      )}
      <p class="muted">
        {open > 0 && rest === "undecided" ? "Say what they are, or go back and decide them one by one. " : accepted || kept ? `${accepted ? plural(accepted, "accepted finding") : "What is accepted"} will be stored as the final label of this study.` : "An empty final label will be stored: reviewed, nothing abnormal."} Your decisions and comments
        are kept as feedback.
      </p>
      {reviewing.status === "failed" && <p class="fault" role="alert">Not saved: {reviewing.fault}</p>}
    </Dialog>
  );
}

export function NothingDialog({ lesions, reviewing, onClose, onDone }: { lesions: Lesion[]; reviewing: Reviewing; onClose: () => void; onDone: () => void }) {
  const [busy, setBusy] = useState(false);
  const store = async () => {
    setBusy(true);
    if (await reviewing.nothing()) onDone();
    else setBusy(false);
  };
  return (
    <Dialog
      title="Nothing abnormal"
      onClose={onClose}
      foot={
        <>
          <button type="button" onClick={onClose}>Back</button>
          <button type="button" class="primary" disabled={busy} onClick={() => void store()}>Store: nothing abnormal</button>
        </>
      }
    >
      <p>{lesions.length ? `${plural(lesions.length, "finding")} will be rejected, and an` : "An"} empty final label will be stored: reviewed, nothing abnormal.{reviewing.elsewhere.some((one) => one.decision === "accept") ? " What was accepted at other settings will be rejected, too." : ""}</p>
      {reviewing.status === "failed" && <p class="fault" role="alert">Not saved: {reviewing.fault}</p>}
    </Dialog>
  );
}

/** The end of the findings: whether everything is kept, a comment on the whole study, and finishing the review. */

import { useState } from "preact/hooks";
import { clock, localTime, plural } from "../format";
import { Dialog } from "../parts/dialog";
import { Check, Warn } from "../parts/icons";
import type { Decision, Lesion } from "../types";
import type { Reviewing } from "./review_state";
import { peakKey } from "./settings";

export function ReviewBox({ lesions, reviewing, onFinish, onNothing }: { lesions: Lesion[]; reviewing: Reviewing; onFinish: () => void; onNothing: () => void }) {
  const { saved, status } = reviewing;
  const decided = lesions.filter((lesion) => reviewing.decision(peakKey(lesion)) !== "undecided").length;
  const time = saved?.time ?? null;
  return (
    <section class="review" aria-label="Review">
      {reviewing.other && <p class="note"><Warn /> There is {reviewing.other.final ? "a finished review" : "a draft"} for {reviewing.other.model}; a review kept here takes its place.</p>}
      {reviewing.elsewhere.length > 0 && <p class="note">{plural(reviewing.elsewhere.length, "decision")} on places that this threshold does not outline.</p>}
      <label class="field">
        <span>Comment on the study</span>
        <textarea rows={2} maxLength={2000} value={reviewing.general} onChange={(event) => void reviewing.sayGeneral(event.currentTarget.value.trim())} />
      </label>
      <p class={`save-state ${status}`} role="status">
        {status === "saving" && "Saving…"}
        {status === "saved" && (saved?.final ? <><Check /> Review finished{saved.reader ? ` by ${saved.reader}` : ""}{time ? `, ${localTime(time)}` : ""}</> : <><Check /> Draft saved{time ? `, ${clock(time)}` : ""}{saved?.signed?.reader ? ` (finished before by ${saved.signed.reader})` : ""}</>)}
        {status === "failed" && <><Warn /> Not saved: {reviewing.fault} <button type="button" class="link" onClick={() => void reviewing.retry()}>Try again</button></>}
        {status === "none" && (lesions.length ? "Nothing decided yet" : "Not reviewed yet")}
      </p>
      <div class="row">
        <button type="button" class="primary grow" disabled={status === "saving"} onClick={onFinish}>Finish review{lesions.length ? ` (${decided} of ${lesions.length})` : ""}</button>
        <button type="button" disabled={status === "saving"} onClick={onNothing}>Nothing abnormal</button>
      </div>
    </section>
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
      {open > 0 && (
        <fieldset class="choices">
          <legend>{open === 1 ? "The undecided finding is" : `The ${open} undecided findings are`}</legend>
          <label class="tick"><input type="radio" name="rest" autofocus checked={rest === "accept"} onChange={() => setRest("accept")} /><span>accepted</span></label>
          <label class="tick"><input type="radio" name="rest" checked={rest === "reject"} onChange={() => setRest("reject")} /><span>rejected</span></label>
        </fieldset>
      )}
      <p class="muted">
        {open > 0 && rest === "undecided" ? "Say what they are, or go back and decide them one by one. " : accepted ? `${plural(accepted, "accepted finding")} will be stored as the final label of this study.` : "An empty final label will be stored: reviewed, nothing abnormal."} Your decisions and comments
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
      <p>{lesions.length ? `${plural(lesions.length, "finding")} will be rejected, and an` : "An"} empty final label will be stored: reviewed, nothing abnormal.</p>
      {reviewing.status === "failed" && <p class="fault" role="alert">Not saved: {reviewing.fault}</p>}
    </Dialog>
  );
}

/** The findings: one row each, with its decision and comment. A click, j and k jump to the place in the picture. */

import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { millilitres, number } from "../format";
import { Check, Cross, Note, Undo } from "../parts/icons";
import type { Decision, Lesion } from "../types";
import type { Reviewing } from "./review_state";
import { peakKey } from "./settings";

const WORDS: Record<Decision, string> = { accept: "Accepted", reject: "Rejected", undecided: "Undecided" };

interface Props {
  lesions: Lesion[];
  stale: boolean;
  selected: string | null;
  reviewing: Reviewing;
  onSelect: (lesion: Lesion) => void;
  onComment: (lesion: Lesion) => void;
  commenting: string | null;
}

/** How far the volume may be off, in ml, and in which share of the repeated analyses the lesion was found again. */
function spread(lesion: Lesion): { volume: number | null; again: number | null } {
  const figure = (name: string): number | null => {
    const value = lesion.uncertainty?.[name];
    return typeof value === "number" ? value : null;
  };
  return { volume: figure("volume_ml_std"), again: figure("found_again") };
}

export function Lesions({ lesions, stale, selected, reviewing, onSelect, onComment, commenting }: Props) {
  const body = useRef<HTMLTableSectionElement>(null);
  useEffect(() => {
    body.current?.querySelector('tr[aria-selected="true"]')?.scrollIntoView({ block: "nearest" });
  }, [selected]);
  return (
    <div class={stale ? "lesions stale" : "lesions"} aria-busy={stale}>
      <table class="lesion-table" tabIndex={0} aria-label={`Findings, ${lesions.length}`}>
        <thead>
          <tr>
            <th scope="col">Nr</th>
            <th scope="col">Region</th>
            <th scope="col" class="num">Volume</th>
            <th scope="col" class="num" title="Highest value, in healthy standard deviations">Peak</th>
            <th scope="col" class="num" title="Mean value, in healthy standard deviations">Mean</th>
            <th scope="col">Decision</th>
          </tr>
        </thead>
        <tbody ref={body}>
          {lesions.map((lesion) => {
            const key = peakKey(lesion);
            const decided = reviewing.decision(key);
            const comment = reviewing.comment(key);
            const off = spread(lesion);
            const where = lesion.region || "no region";
            return [
              <tr key={key} aria-selected={selected === key} class={decided} onClick={() => onSelect(lesion)} data-lesion={lesion.index}>
                <th scope="row">
                  <button type="button" class="jump" aria-label={`Finding ${lesion.index}, ${where}: show`} onClick={(event) => { event.stopPropagation(); onSelect(lesion); }}>{lesion.index}</button>
                </th>
                <td class="region"><span class="where">{where}</span>{off.again != null && <small class="off">found again in {Math.round(off.again * 100)}&nbsp;% of repeats</small>}</td>
                <td class="num">{millilitres(lesion.volume_ml)}{off.volume != null && <small class="off" title="Standard deviation over repeated analyses">± {number(off.volume)}</small>}</td>
                <td class="num">{number(lesion.peak_score, 1)}</td>
                <td class="num">{number(lesion.mean_score, 1)}</td>
                <td class="decide">
                  <span class="sr-only">{WORDS[decided]}</span>
                  <button type="button" class="square accept" aria-pressed={decided === "accept"} aria-label={`Accept finding ${lesion.index}`} title={decided === "accept" ? "Accepted; press again to undo" : "Accept (a)"} onClick={(event) => { event.stopPropagation(); onSelect(lesion); void reviewing.decide(lesion, decided === "accept" ? "undecided" : "accept"); }}><Check /></button>
                  <button type="button" class="square reject" aria-pressed={decided === "reject"} aria-label={`Reject finding ${lesion.index}`} title={decided === "reject" ? "Rejected; press again to undo" : "Reject (r)"} onClick={(event) => { event.stopPropagation(); onSelect(lesion); void reviewing.decide(lesion, decided === "reject" ? "undecided" : "reject"); }}><Cross /></button>
                  <button type="button" class="square quiet undo" disabled={decided === "undecided"} aria-label={`Undo the decision on finding ${lesion.index}`} title="Undo (u)" onClick={(event) => { event.stopPropagation(); void reviewing.decide(lesion, "undecided"); }}><Undo /></button>
                  <button type="button" class={comment ? "square quiet has-note" : "square quiet"} aria-expanded={commenting === key} aria-label={comment ? `Comment on finding ${lesion.index}: ${comment}` : `Comment on finding ${lesion.index}`} title="Comment (c)" onClick={(event) => { event.stopPropagation(); onComment(lesion); }}><Note /></button>
                </td>
              </tr>,
              commenting === key ? (
                <tr key={`${key}:note`} class="under"><td colSpan={6}><Comment lesion={lesion} reviewing={reviewing} onDone={() => onComment(lesion)} /></td></tr>
              ) : comment ? (
                <tr key={`${key}:note`} class="under"><td colSpan={6} class="comment-line"><Note /> {comment}</td></tr>
              ) : null,
            ];
          })}
        </tbody>
      </table>
    </div>
  );
}

function Comment({ lesion, reviewing, onDone }: { lesion: Lesion; reviewing: Reviewing; onDone: () => void }) {
  const box = useRef<HTMLTextAreaElement>(null);
  useEffect(() => box.current?.focus(), []);
  // Also when the row goes, or the view.
  const now = useRef<() => void>(() => undefined);
  useLayoutEffect(() => () => now.current(), []);
  // Leaving the box keeps its text, too: also when Enter has taken the box away already.
  const last = useRef(reviewing.comment(peakKey(lesion)));
  const keep = (text: string) => {
    if (text === last.current) return;
    last.current = text;
    void reviewing.say(lesion, text);
  };
  now.current = () => box.current && keep(box.current.value.trim());
  return (
    <label class="field">
      <span>Comment on finding {lesion.index}</span>
      <textarea
        ref={box}
        rows={2}
        maxLength={1000}
        defaultValue={reviewing.comment(peakKey(lesion))}
        onChange={(event) => keep(event.currentTarget.value.trim())}
        onClick={(event) => event.stopPropagation()}
        onKeyDown={(event) => {
          event.stopPropagation();
          if (event.key === "Escape" || (event.key === "Enter" && !event.shiftKey)) {
            event.preventDefault();
            if (event.key === "Enter") keep(event.currentTarget.value.trim());
            else event.currentTarget.value = last.current;
            onDone();
          }
        }}
      />
      <small class="muted">Enter keeps it, Escape leaves it</small>
    </label>
  );
}

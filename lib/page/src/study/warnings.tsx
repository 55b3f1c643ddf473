/** What the reader must know before looking at any mark: the input gate, drift, and how good the model is at all. */

import { useState } from "preact/hooks";
import { localTime, number, pValue } from "../format";
import { Info, Warn } from "../parts/icons";
import type { Model, Replaced, Result } from "../types";

export interface Notice {
  kind: "warn" | "info";
  /** The consequence, always shown. */
  title: string;
  /** Why; shown on demand. */
  text: string;
}

const SHORT = 150;

/** The first clause of a long sentence. */
function clause(text: string): string {
  if (text.length <= SHORT) return text;
  const end = text.slice(0, SHORT).search(/[:;](?=[^:;]*$)/);
  return end > 30 ? text.slice(0, end) : `${text.slice(0, SHORT).replace(/\s\S*$/, "")}…`;
}

const sentence = (text: string) => `${capital(text)}${/[.!?…]$/.test(text) ? "" : "."}`;
const capital = (text: string) => text.charAt(0).toUpperCase() + text.slice(1);

export function replacedText({ kept_in }: Replaced): string {
  return `Results, reviews and labels of the former scan are no part of this study any more${kept_in ? `; they lie in the folder ${kept_in} of the studies` : ""}. Reports and labels that were taken from here before belong to the former scan.`;
}

export function notices(result: Result | null, model: Model | undefined, replaced: Replaced | null): Notice[] {
  const list: Notice[] = [];
  if (replaced)
    list.push({
      kind: "warn",
      title: `The file of this scan was replaced by hand${replaced.time ? `, noticed ${localTime(replaced.time)}` : ""}: make sure that it is the patient whom you expect.`,
      text: replacedText(replaced),
    });
  const { gate, drift, warnings = [] } = result?.finding ?? {};
  const about = (pattern: RegExp) => warnings.filter((text) => pattern.test(text)).join(" ");
  const ofGate = /unlike what the model was trained on/;
  const ofDrift = /bulk of this scan/;
  const ofDivision = /the map was divided by/;
  const divided = drift?.background?.divided_by ?? 1;
  if (gate && !gate.passed)
    list.push({
      kind: "warn",
      title: "Unlike the scans that the model was made for: the result may mean nothing.",
      text: `${capital(gate.reasons.join("; ") || "several features together are unusual")} (${number(gate.score, 1)} healthy standard deviations; at most ${number(gate.threshold, 1)} in healthy scans).`,
    });
  if (drift?.drifted)
    list.push({
      kind: "warn",
      title: "Drift: thresholds and p-value may not hold for this scan.",
      text: (about(ofDrift) && sentence(about(ofDrift))) || `As a whole it is further from the calibration's healthy scans than they are from each other (p ${pValue(drift.p_value)}).`,
    });
  if (divided > 1)
    list.push({
      kind: "warn",
      title: `All values were divided by ${number(divided, 1)}, because this whole brain deviates as on another scanner: faint lesions may be missed.`,
      text: `It deviates ${number(drift?.background?.ratio, 1)} times as much as the healthy scans of the calibration. Map, score and findings are those after the division; too much may be marked all the same.`,
    });
  for (const text of warnings) {
    if ((gate && !gate.passed && ofGate.test(text)) || (drift?.drifted && ofDrift.test(text)) || (divided > 1 && ofDivision.test(text))) continue;
    const title = clause(text);
    list.push({ kind: "warn", title: sentence(title), text: title === text ? "" : sentence(title.endsWith("…") ? text : text.slice(title.length).replace(/^[:;]\s*/, "")) });
  }
  if (model?.verdict) list.push({ kind: "warn", title: `${model.name}: ${model.verdict}`, text: "" });
  else if (model?.beats_baselines === true) list.push({ kind: "info", title: `${model.name} was shown to beat the intensity and atlas baselines; the model card says on which scans.`, text: "" });
  else if (model && model.beats_baselines === null) list.push({ kind: "warn", title: `${model.name} was not measured here: nothing is known about how well it finds anomalies.`, text: "" });
  return list;
}

export function Notices({ list }: { list: Notice[] }) {
  const [open, setOpen] = useState(false);
  if (!list.length) return null;
  const more = list.some((one) => one.text);
  return (
    <section class={list.every((one) => one.kind === "info") ? "notices calm" : "notices"} aria-label="Warnings">
      <ul>
        {list.map((one) => (
          <li key={one.title} class={one.kind}>
            {one.kind === "warn" ? <Warn /> : <Info />}
            <span><strong>{one.title}</strong>{open && one.text && <span class="why"> {one.text}</span>}</span>
          </li>
        ))}
      </ul>
      {more && <button type="button" class="quiet" aria-expanded={open} onClick={() => setOpen(!open)}>{open ? "Less" : "Why?"}</button>}
    </section>
  );
}

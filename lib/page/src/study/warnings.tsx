/** What the reader must know before looking at any mark: the input gate, drift, and how good the model is at all. */

import { number, pValue } from "../format";
import { Info, Warn } from "../parts/icons";
import type { Model, Result } from "../types";

export interface Notice {
  kind: "warn" | "info";
  title: string;
  text: string;
}

/** A model's verdict as one sentence, whatever form the card's figures have. */
export function verdictText(verdict: unknown): string {
  if (typeof verdict === "string") return verdict;
  if (Array.isArray(verdict)) return verdict.map(verdictText).filter(Boolean).join(" ");
  if (verdict && typeof verdict === "object") {
    const { text, sentence, summary } = verdict as Record<string, unknown>;
    for (const one of [text, sentence, summary]) if (typeof one === "string") return one;
  }
  return "";
}

/** Whether the verdict says that the model is better than both baselines; null where it says neither. */
export function beats(verdict: unknown): boolean | null {
  if (verdict && typeof verdict === "object" && "beats" in verdict) return typeof verdict.beats === "boolean" ? verdict.beats : null;
  return null;
}

export function notices(result: Result | null, model: Model | undefined): Notice[] {
  const list: Notice[] = [];
  const finding = result?.finding;
  const { gate, drift } = finding ?? {};
  if (gate && !gate.passed)
    list.push({
      kind: "warn",
      title: "Unlike the scans that the model was made for.",
      text: `The result may mean nothing: ${gate.reasons.join("; ") || "several features together are unusual"} (${number(gate.score, 1)} healthy standard deviations, limit ${number(gate.threshold, 1)}).`,
    });
  if (drift?.drifted)
    list.push({
      kind: "warn",
      title: "Drift.",
      text: `As a whole this scan is further from the calibration's healthy scans than they are from each other (p ${pValue(drift.p_value)}), so the false-positive rates may not hold.`,
    });
  for (const text of finding?.warnings ?? []) {
    // The gate's and drift's own sentences are above already.
    if (gate && !gate.passed && text.includes("unlike what the model was trained on")) continue;
    if (drift?.drifted && /drift|calibration's (healthy )?scans/i.test(text)) continue;
    list.push({ kind: "warn", title: "", text });
  }
  const verdict = verdictText(model?.verdict);
  if (verdict) list.push({ kind: beats(model?.verdict) === true ? "info" : "warn", title: "This model:", text: verdict });
  return list;
}

export function Notices({ list }: { list: Notice[] }) {
  if (!list.length) return null;
  return (
    <ul class="notices" aria-label="Warnings">
      {list.map((one) => (
        <li key={one.title + one.text} class={one.kind}>
          {one.kind === "warn" ? <Warn /> : <Info />}
          <span>{one.title && <strong>{one.title} </strong>}{one.text}</span>
        </li>
      ))}
    </ul>
  );
}

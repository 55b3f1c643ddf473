/** What the result rests on: calibration, promises, settings, times, hashes. */

import { localTime, millilitres, number, percent, seconds, words } from "../format";
import type { Result } from "../types";

function rows(value: Record<string, unknown> | null | undefined): [string, string][] {
  return Object.entries(value ?? {}).filter(([, one]) => one != null && typeof one !== "object").map(([key, one]) => [words(key), typeof one === "number" ? String(Number(one.toPrecision(4))) : String(one)]);
}

export function Facts({ result }: { result: Result }) {
  const { finding, calibration } = result;
  const own = finding.calibration;
  const list: [string, string][] = [
    ["Model", finding.model.id],
    ["Hash", finding.model.hash],
    ["Analysed", localTime(result.record?.time)],
    ["Calibration", [own?.kind, own?.data].filter(Boolean).join(": ") || calibration.id],
    ["Healthy scans", String(own?.healthy_scans ?? calibration.scan_scores.length)],
  ];
  if (own?.healthy_rate != null) list.push(["Healthy voxels marked", percent(own.healthy_rate)]);
  if (own?.false_volume_ml != null)
    list.push(["Falsely marked in a healthy scan", `up to ${millilitres(own.false_volume_ml)} in ${percent(own.false_volume_level ?? 0)} of scans`]);
  const gate = finding.gate;
  if (gate) list.push(["Input gate", `${gate.passed ? "passed" : "not passed"}, ${number(gate.score)} of at most ${number(gate.threshold)}`]);
  const drift = finding.drift;
  if (drift) list.push(["Distance from the calibration", `${number(drift.distance)}; healthy scans up to ${number(drift.healthy_largest)}`]);
  const divided = drift?.background?.divided_by;
  if (divided != null && divided > 1) list.push(["Map divided by", `${number(divided)}: the scan's background lies higher than in the healthy scans`]);
  const spent = Object.values(finding.seconds).reduce((sum, one) => sum + one, 0);
  return (
    <section class="facts" aria-label="What this rests on">
      <dl class="pairs">{list.filter(([, text]) => text).map(([name, text]) => <div key={name}><dt>{name}</dt><dd class={name === "Hash" ? "hash" : ""}>{text}</dd></div>)}</dl>
      <details><summary>Settings</summary><dl class="pairs">{rows(finding.settings).map(([name, text]) => <div key={name}><dt>{name}</dt><dd>{text}</dd></div>)}</dl></details>
      <details><summary>Time, {seconds(spent)}</summary><dl class="pairs">{Object.entries(finding.seconds).map(([name, one]) => <div key={name}><dt>{words(name)}</dt><dd>{one.toFixed(2)} s</dd></div>)}</dl></details>
      {finding.uncertainty && <details><summary>Uncertainty</summary><dl class="pairs">{rows(finding.uncertainty).map(([name, text]) => <div key={name}><dt>{name}</dt><dd>{text}</dd></div>)}</dl></details>}
    </section>
  );
}

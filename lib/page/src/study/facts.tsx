/** What the result rests on: calibration, promises, settings, times, hashes. */

import { localTime, millilitres, number, percent, seconds, words } from "../format";
import type { Result } from "../types";

function rows(value: Record<string, unknown> | null | undefined): [string, string][] {
  return Object.entries(value ?? {}).filter(([, one]) => one != null && typeof one !== "object").map(([key, one]) => [words(key), typeof one === "number" ? String(Number(one.toPrecision(4))) : String(one)]);
}

type Told = Record<string, unknown> | null | undefined;

/** How far score and volume of the whole scan would change; the score's only where it has the unit of the score. */
export function wholeSpread(told: Told): { score: number | null; volume: number | null } {
  const figure = (name: string) => (typeof told?.[name] === "number" ? (told[name] as number) : null);
  return { score: told?.["score_unit"] === "healthy standard deviations" ? figure("anomaly_score_std") : null, volume: figure("marked_ml_std") };
}

const SOURCES: Record<string, string> = { preprocessing: "preparation of the scan", model: "choice of model", noise: "noise" };

function sources(shares: unknown): string {
  const known = Object.entries((shares ?? {}) as Record<string, unknown>).filter((one): one is [string, number] => typeof one[1] === "number");
  return known.map(([name, share]) => `${SOURCES[name] ?? words(name)} ${Math.round(share * 100)} %`).join(", ");
}

function uncertainty(told: NonNullable<Told>): [string, string][] {
  const figure = (name: string) => told[name] as number | null | undefined;
  const members = Array.isArray(told["members"]) ? told["members"].map(String) : [];
  return [
    ["Analyses", `${figure("analyses") ?? "?"}: ${figure("preparations") ?? "?"} preparations, ${figure("seeds") ?? "?"} seeds each`],
    ["Members", members.join(", ")],
    ["Spread of the score", figure("anomaly_score_std") == null ? "" : `${number(figure("anomaly_score_std"))} (${String(told["score_unit"] ?? "")})`],
    ["It comes from", sources(told["anomaly_score_shares"])],
    ["Spread of the volume", figure("marked_ml_std") == null ? "" : millilitres(figure("marked_ml_std"))],
    ["It comes from", sources(told["marked_ml_shares"])],
  ];
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
  if (divided != null && divided > 1) list.push(["Map divided by", `${number(divided)}: all of this brain deviates ${number(drift?.background?.ratio, 1)} times as much as healthy ones`]);
  const spent = Object.values(finding.seconds).reduce((sum, one) => sum + one, 0);
  return (
    <section class="facts" aria-label="What this rests on">
      <dl class="pairs">{list.filter(([, text]) => text).map(([name, text]) => <div key={name}><dt>{name}</dt><dd class={name === "Hash" ? "hash" : ""}>{text}</dd></div>)}</dl>
      <details><summary>Settings</summary><dl class="pairs">{rows(finding.settings).map(([name, text]) => <div key={name}><dt>{name}</dt><dd>{text}</dd></div>)}</dl></details>
      <details><summary>Time, {seconds(spent)}</summary><dl class="pairs">{Object.entries(finding.seconds).map(([name, one]) => <div key={name}><dt>{words(name)}</dt><dd>{one.toFixed(2)} s</dd></div>)}</dl></details>
      {finding.uncertainty && <details open><summary>Uncertainty (standard deviation over repeated analyses)</summary><dl class="pairs">{uncertainty(finding.uncertainty).filter(([, text]) => text).map(([name, text], k) => <div key={k}><dt>{name}</dt><dd>{text}</dd></div>)}</dl></details>}
    </section>
  );
}

/** Numbers, times and names as words. */

import type { State } from "./types";

const DASH = "–";

export function number(value: number | null | undefined, digits = 2): string {
  return value == null || !Number.isFinite(value) ? DASH : value.toFixed(digits);
}

export function millilitres(value: number | null | undefined): string {
  if (value == null) return DASH;
  return `${value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} ml`;
}

export function pValue(value: number | null | undefined): string {
  if (value == null) return DASH;
  return value < 0.001 ? "< 0.001" : value.toFixed(3);
}

/** A share of healthy voxels as a percentage with two meaningful digits. */
export function percent(share: number): string {
  const value = share * 100;
  if (value >= 10) return `${value.toFixed(0)} %`;
  if (value >= 1) return `${value.toFixed(1)} %`;
  if (value <= 0) return "0 %";
  return `${Number(value.toPrecision(2))} %`;
}

export function oneIn(share: number): string {
  return share > 0 ? `1 in ${Math.round(1 / share).toLocaleString("en")}` : "none";
}

/** Local date and time; "" for what is no time. Numbers are seconds since 1970. */
export function localTime(value: unknown): string {
  if (value == null || value === "") return "";
  const date = new Date(typeof value === "number" ? value * 1000 : String(value));
  if (Number.isNaN(date.getTime())) return "";
  return date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

export function clock(value: unknown): string {
  const date = new Date(String(value));
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
}

export function seconds(value: number | null | undefined): string {
  if (value == null) return "";
  if (value < 90) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

export function plural(count: number, one: string, many = `${one}s`): string {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

export function words(name: string): string {
  return name.replace(/_/g, " ");
}

export const STATES: Record<State, string> = {
  new: "New",
  queued: "Waiting",
  running: "Running",
  analysed: "To read",
  failed: "Failed",
  reviewed: "Reviewed",
};

export function sequence(name: string | null | undefined): string {
  return name ? name.toUpperCase() : "";
}

/** What the archive says of a series, in one line. */
export function about(dicom: Record<string, string>): string {
  const date = /^(\d{4})(\d{2})(\d{2})$/.exec(dicom["StudyDate"] ?? "");
  const day = date ? new Date(Number(date[1]), Number(date[2]) - 1, Number(date[3])).toLocaleDateString(undefined, { dateStyle: "medium" }) : "";
  const name = (dicom["PatientName"] ?? "").replace(/\^+/g, " ").trim();
  return [name, dicom["PatientID"], dicom["StudyDescription"], dicom["SeriesDescription"], day].filter(Boolean).join(" · ");
}

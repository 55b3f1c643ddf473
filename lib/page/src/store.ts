/** The few values that every part of the page needs. */

import { useLayoutEffect, useState } from "preact/hooks";
import type { Model, PageInfo, Params } from "./types";
import type { Item } from "./worklist/uploads";

export interface Shared {
  page: PageInfo | null;
  models: Model[];
  reader: string;
  /** The worklist's settings when it was left, to come back to. */
  worklist: Params;
  toasts: Toast[];
  uploads: Item[];
  /** Whether uploaded scans are analysed at once. */
  analyseUploads: boolean;
}

export interface Toast {
  id: number;
  text: string;
  kind: "info" | "error";
}

const READER = "anomaly.reader";

function remembered(): string {
  try {
    return localStorage.getItem(READER) ?? "";
  } catch {
    return "";
  }
}

let state: Shared = { page: null, models: [], reader: remembered(), worklist: {}, toasts: [], uploads: [], analyseUploads: false };
const listeners = new Set<() => void>();

export function shared(): Shared {
  return state;
}

export function update(changes: Partial<Shared>): void {
  state = { ...state, ...changes };
  if (changes.reader !== undefined) {
    try {
      localStorage.setItem(READER, changes.reader);
    } catch {
      // Private windows may refuse; the name then lasts until the page is closed.
    }
  }
  for (const listener of listeners) listener();
}

export function useShared(): Shared {
  const [, again] = useState(0);
  // Before the first frame, so that no change is missed (as in useRoute).
  useLayoutEffect(() => {
    const listener = () => again((n) => n + 1);
    listeners.add(listener);
    return () => void listeners.delete(listener);
  }, []);
  return state;
}

let lastToast = 0;

/** A message at the edge of the page, read aloud by screen readers. Errors stay until they are closed. */
export function toast(text: string, kind: Toast["kind"] = "info"): void {
  const id = ++lastToast;
  update({ toasts: [...state.toasts.slice(-3), { id, text, kind }] });
  if (kind === "info") setTimeout(() => dismiss(id), 6000);
}

export function dismiss(id: number): void {
  update({ toasts: state.toasts.filter((one) => one.id !== id) });
}

/** Keys of the study view, unless something is being typed or a window is open. */

import { useEffect, useRef } from "preact/hooks";
import type { Layout } from "../viewer";

const LAYOUTS: Layout[] = ["planes", "axial", "coronal", "sagittal", "3d", "all"];

const STEPS = new Set(["j", "k", "ArrowDown", "ArrowUp", "+", "=", "-"]);

export interface StudyKeys {
  next: () => void;
  previous: () => void;
  accept: () => void;
  reject: () => void;
  undo: () => void;
  comment: () => void;
  finish: () => void;
  up: () => void;
  down: () => void;
  overlay: () => void;
  bands: () => void;
  swipe: () => void;
  side: () => void;
  layout: (name: Layout) => void;
  centre: () => void;
  worklist: () => void;
  nextStudy: () => void;
}

export function useStudyKeys(actions: StudyKeys): void {
  const now = useRef(actions);
  now.current = actions;
  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      const target = event.target as HTMLElement;
      if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
      const typing = /TEXTAREA|SELECT/.test(target.tagName) || (target instanceof HTMLInputElement && !["checkbox", "radio", "range"].includes(target.type));
      if (typing) return;
      const act = now.current;
      const table: Record<string, () => void> = {
        j: act.next, k: act.previous, a: act.accept, r: act.reject, u: act.undo, c: act.comment, f: act.finish,
        "+": act.up, "=": act.up, "-": act.down, o: act.overlay, b: act.bands, s: act.swipe, d: act.side,
        "0": act.centre, w: act.worklist, n: act.nextStudy,
      };
      // In the picture, on sliders and tabs the arrows have their own meaning.
      const arrows = !target.closest("input, .viewer-box, [role='tablist']");
      if (arrows && event.key === "ArrowDown") table["ArrowDown"] = act.next;
      if (arrows && event.key === "ArrowUp") table["ArrowUp"] = act.previous;
      const layout = LAYOUTS[Number(event.key) - 1];
      const action = layout ? () => act.layout(layout) : table[event.key];
      if (!action) return;
      event.preventDefault();
      // A key that is held steps through findings and thresholds; it decides and opens things once.
      if (event.repeat && !STEPS.has(event.key)) return;
      action();
    };
    window.addEventListener("keydown", press);
    return () => window.removeEventListener("keydown", press);
  }, []);
}

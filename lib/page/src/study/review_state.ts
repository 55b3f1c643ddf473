/** The reader's decisions on one study. Every change is sent at once as a draft; requests never overtake each other. */

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { ApiError, message, whenSignedIn } from "../api";
import { askReader } from "../parts/reader";
import { shared, toast } from "../store";
import type { Decision, Lesion, LesionDecision, Params, Result, Review, Vector } from "../types";
import { sendReview, takenReview, unsentReview, watchReview } from "./outbox";
import { peakKey } from "./settings";

export interface Reviewing {
  decision: (key: string) => Decision;
  comment: (key: string) => string;
  /** Decisions made at other settings: their places are part of a larger finding now, or not marked. */
  elsewhere: LesionDecision[];
  /** A review kept for another model, if that is what the server has. */
  other: Review | null;
  general: string;
  saved: Review | null;
  status: "none" | "saving" | "saved" | "failed";
  fault: string;
  decide: (lesion: Lesion, decision: Decision) => Promise<void>;
  /** Forget what was said of a place that has no row of its own at the settings of now. */
  takeBack: (one: LesionDecision) => Promise<void>;
  say: (lesion: Lesion, comment: string) => Promise<void>;
  sayGeneral: (comment: string) => Promise<void>;
  finish: (rest: Decision) => Promise<boolean>;
  nothing: () => Promise<boolean>;
  retry: () => Promise<void>;
}

interface Kept {
  decisions: Map<string, LesionDecision>;
  general: string;
}

function kept(review: Review | null): Kept {
  const lesions = review?.lesions ?? [];
  // A finished review also holds the lesions' figures, which are the server's to know.
  const plain = lesions.map(({ peak_voxel, decision, comment }): LesionDecision => ({ peak_voxel, decision, comment: comment ?? "" }));
  return { decisions: new Map(plain.map((one) => [one.peak_voxel.join(","), one])), general: review?.comment ?? "" };
}

/** The server's review, or the one it took from this page after it had made up the answer. */
function newest(image: string, { review, scan }: Result): Review | null {
  const own = takenReview(image);
  return own && own.scan === (scan ?? "") && (own.time ?? "") >= (review?.time ?? "") ? own : review;
}

export function useReview(image: string, result: Result | null, params: Params, onSaved: () => void): Reviewing {
  const [state, setState] = useState<Kept>(() => kept(null));
  const [saved, setSaved] = useState<Review | null>(null);
  const [status, setStatus] = useState<Reviewing["status"]>("none");
  const [fault, setFault] = useState("");
  const [away, setAway] = useState(0);
  const [signedOut, setSignedOut] = useState(false);
  const now = useRef(state);
  const sends = useRef(0);
  const loaded = useRef("");
  // The scan that the decisions are about: another one may be uploaded under its id meanwhile.
  const scan = useRef("");
  const lesions = result?.finding.lesions ?? [];
  const model = result?.model ?? "";

  // Once per model: later answers of the server must not undo a click that is on its way.
  useEffect(() => {
    if (!result || loaded.current === model) return;
    loaded.current = model;
    scan.current ||= result.scan ?? "";
    const known = newest(image, result);
    const own = known && (!known.model || known.model === model) ? known : null;
    // Decided here before, and not sent yet.
    const waiting = unsentReview(image);
    const mine = waiting?.model === model && waiting.scan === scan.current ? waiting : null;
    now.current = kept(mine ?? own);
    setState(now.current);
    setSaved(known);
    setStatus(mine ? "failed" : own ? "saved" : "none");
    if (mine) {
      setFault("it is sent again in a moment");
      setAway((n) => n + 1);
    }
  }, [result, model]);
  // A layout effect, so that a view that takes another one's place is there before that one asks who sends.
  useLayoutEffect(() => (model ? watchReview(image, model) : undefined), [image, model]);

  const send = (final: boolean, rest: Decision, reader: string): Promise<boolean> => {
    const review: Review = { model, params, scan: scan.current, reader, comment: now.current.general, final, lesions: [...now.current.decisions.values()], rest };
    const turn = ++sends.current;
    // What is said of it belongs to the newest review, and to the model that is looked at.
    const ours = () => turn === sends.current && loaded.current === model;
    setStatus("saving");
    return sendReview(image, review).then(
      (answer) => {
        setSaved(answer);
        if (ours()) {
          setStatus("saved");
          setFault("");
        }
        for (const warning of answer.warnings ?? []) toast(warning, "error");
        onSaved();
        return true;
      },
      (error: unknown) => {
        if (!ours()) return false;
        setStatus("failed");
        setFault(message(error));
        if (error instanceof ApiError && error.status === 0) setAway((n) => n + 1);
        if (error instanceof ApiError && error.status === 401) setSignedOut(true);
        return false;
      },
    );
  };

  // A server that was away for a moment gets the draft without a click.
  useEffect(() => {
    if (!away || status !== "failed" || !shared().reader) return;
    const before = sends.current;
    // Not where something was sent in this very moment: a draft would open a review again that is being finished.
    const timer = setTimeout(() => before === sends.current && void send(false, "undecided", shared().reader), 5000);
    return () => clearTimeout(timer);
  }, [away, status]);

  // A session that ended meanwhile: what was decided is sent when somebody has signed in again.
  useEffect(() => {
    if (!signedOut || status !== "failed") return;
    return whenSignedIn(() => {
      setSignedOut(false);
      void send(false, "undecided", shared().reader);
    });
  }, [signedOut, status]);

  /** next: of what is decided once the reader's name is known; something else may have been said meanwhile. */
  const put = async (next: (before: Kept) => Kept): Promise<void> => {
    const reader = await askReader();
    if (!reader) return;
    now.current = next(now.current);
    setState(now.current);
    await send(false, "undecided", reader);
  };

  const set = (lesion: Lesion, changes: Partial<LesionDecision>): Promise<void> => {
    const key = peakKey(lesion);
    const peak = key.split(",").map(Number) as Vector;
    return put((kept) => {
      const before = kept.decisions.get(key) ?? { peak_voxel: peak, decision: "undecided" as Decision };
      const after = { ...before, ...changes };
      const decisions = new Map(kept.decisions);
      if (after.decision === "undecided" && !after.comment) decisions.delete(key);
      else decisions.set(key, after);
      return { ...kept, decisions };
    });
  };

  const here = new Set(lesions.map(peakKey));
  return {
    decision: (key) => state.decisions.get(key)?.decision ?? "undecided",
    comment: (key) => state.decisions.get(key)?.comment ?? "",
    elsewhere: [...state.decisions.values()].filter((one) => !here.has(one.peak_voxel.join(","))),
    other: saved?.model && saved.model !== model ? saved : null,
    general: state.general,
    saved,
    status,
    fault,
    decide: (lesion, decision) => set(lesion, { decision }),
    takeBack: (one) => {
      return put((kept) => {
        const decisions = new Map(kept.decisions);
        decisions.delete(one.peak_voxel.join(","));
        return { ...kept, decisions };
      });
    },
    say: (lesion, comment) => set(lesion, { comment }),
    sayGeneral: (general) => put((kept) => ({ ...kept, general })),
    finish: async (rest) => {
      const reader = await askReader();
      return reader ? send(true, rest, reader) : false;
    },
    nothing: async () => {
      const reader = await askReader();
      if (!reader) return false;
      // What was accepted at other settings is no anomaly any more, either.
      const decisions = new Map([...now.current.decisions].map(([key, one]) => [key, one.decision === "accept" ? { ...one, decision: "reject" as Decision } : one]));
      for (const lesion of lesions) {
        const key = peakKey(lesion);
        const before = decisions.get(key) ?? { peak_voxel: key.split(",").map(Number) as Vector, decision: "reject" as Decision };
        decisions.set(key, { ...before, decision: "reject" });
      }
      now.current = { ...now.current, decisions };
      setState(now.current);
      return send(true, "reject", reader);
    },
    retry: async () => {
      const reader = await askReader();
      if (reader) await send(false, "undecided", reader);
    },
  };
}

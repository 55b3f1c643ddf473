/** Reviews on their way to the server, for each study one after the other. What could not be sent outlives its view. */

import { ApiError, api, message, whenSignedIn } from "../api";
import { toast } from "../store";
import type { Review } from "../types";

const RETRY_MS = 5000;

const chains = new Map<string, Promise<unknown>>();
/** The newest review of a study that the server has not taken. */
const unsent = new Map<string, Review>();
/** What the server took last from this page. */
const taken = new Map<string, Review>();
/** The model whose review a view shows and sends by itself. */
const watched = new Map<string, string>();

/** The server is away, busy, or asks for a login: the same review may be taken later. */
const passes = (error: unknown): boolean => error instanceof ApiError && (error.status === 0 || error.status === 401 || error.status >= 502);

export const unsentReview = (image: string): Review | null => unsent.get(image) ?? null;
export const takenReview = (image: string): Review | null => taken.get(image) ?? null;

/** Sent when those before it are answered. Raises ApiError. */
export function sendReview(image: string, review: Review): Promise<Review> {
  unsent.set(image, review);
  const turn = (chains.get(image) ?? Promise.resolve()).then(async () => {
    const over = () => unsent.get(image) === review && unsent.delete(image);
    try {
      const answer = await api.review(image, review);
      over();
      taken.set(image, { ...answer, scan: review.scan ?? "" });
      return answer;
    } catch (error) {
      if (!passes(error)) over();
      else if (left(image)) handOver(image);
      throw error;
    }
  });
  chains.set(image, turn.catch(() => undefined));
  return turn;
}

/** A view shows and sends this review from now on. Returns what hands over to this file what is not sent by then. */
export function watchReview(image: string, model: string): () => void {
  watched.set(image, model);
  return () => {
    if (watched.get(image) === model) watched.delete(image);
    void (chains.get(image) ?? Promise.resolve()).then(() => left(image) && handOver(image));
  };
}

const told = new Set<string>();
function handOver(image: string): void {
  if (!told.has(image)) toast(`${image}: the last decisions are not saved yet. They are sent as soon as the server takes them; leave this page open.`, "error");
  told.add(image);
  later();
}

function left(image: string): boolean {
  const review = unsent.get(image);
  return !!review && watched.get(image) !== review.model;
}

let timer = 0;
function later(): void {
  if (!timer) timer = window.setTimeout(() => void deliver(), RETRY_MS);
}

async function deliver(): Promise<void> {
  clearTimeout(timer);
  timer = 0;
  for (const image of [...unsent.keys()].filter(left)) {
    try {
      // A finished review is a reader's own step, with what it would write in sight.
      await sendReview(image, { ...unsent.get(image)!, final: false, rest: "undecided" });
      told.delete(image);
      toast(`${image}: the last decisions are saved now.`);
    } catch (error) {
      if (passes(error)) continue;
      told.delete(image);
      toast(`${image}: the last decisions are not saved. ${message(error)}`, "error");
    }
  }
  if ([...unsent.keys()].some(left)) later();
}
whenSignedIn(() => void deliver());

/** The next study that nobody else is reading, taken for this reader. */

import { ApiError, api, message } from "../api";
import { askReader } from "../parts/reader";
import { go, whenMoved } from "../route";
import { shared, toast } from "../store";
import type { Order } from "../types";
import { isMine, leaseOf } from "./lease";

const SHOWN = 50;

// The same order for as long as the page is open, so that pages of the list do not overlap.
export const SEED = String(Math.floor(Math.random() * 1e6));

let looking = false;

/** Opens the first unread study in the worklist's order. `current` is let go first. One at a time. */
export async function openNext(current = ""): Promise<void> {
  if (looking) return;
  looking = true;
  try {
    await open(current);
  } finally {
    looking = false;
  }
}

async function open(current: string): Promise<void> {
  const reader = await askReader();
  if (!reader) return;
  // A reader who has gone elsewhere meanwhile is not fetched back.
  let elsewhere = false;
  const end = whenMoved(() => {
    elsewhere = true;
    looking = false;
  });
  const order = (shared().worklist["order"] as Order | undefined) ?? "most_anomalous";
  try {
    const { studies } = await api.studies({ order, state: "analysed", search: shared().worklist["search"] ?? "", limit: String(SHOWN), seed: order === "random" ? SEED : "" });
    for (const study of studies) {
      const lease = leaseOf(study);
      if ((lease && !isMine(lease, reader)) || study.image === current) continue;
      if (elsewhere) return;
      try {
        await api.lease(study.image, reader);
      } catch (error) {
        // Somebody was quicker.
        if (error instanceof ApiError && error.status === 409) continue;
        throw error;
      }
      if (elsewhere) {
        await api.free(study.image, reader).catch(() => undefined);
        return;
      }
      if (current) void api.free(current, reader).catch(() => undefined);
      go({ view: "study", image: study.image, params: {} });
      return;
    }
    toast(studies.length ? "The studies that are left are in other readers' hands." : "Nothing is left to read: every analysed study is reviewed.");
  } catch (error) {
    toast(`The next study could not be taken: ${message(error)}`, "error");
  } finally {
    end();
  }
}

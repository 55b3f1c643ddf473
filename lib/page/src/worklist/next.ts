/** The next study that nobody else is reading, taken for this reader. */

import { ApiError, api, message } from "../api";
import { askReader } from "../parts/reader";
import { go } from "../route";
import { shared, toast } from "../store";
import type { Order } from "../types";

const SHOWN = 50;

/** Opens the first unread study in the worklist's order. `current` is let go first. */
export async function openNext(current = ""): Promise<void> {
  const reader = await askReader();
  if (!reader) return;
  const order = (shared().worklist["order"] as Order | undefined) ?? "most_anomalous";
  try {
    const { studies } = await api.studies({ order, state: "analysed", search: shared().worklist["search"] ?? "", limit: String(SHOWN) });
    const now = Date.now();
    for (const study of studies) {
      const held = study.lease && study.lease.reader !== reader && new Date(study.lease.until).getTime() > now;
      if (held || study.image === current) continue;
      try {
        await api.lease(study.image, reader);
      } catch (error) {
        // Somebody was quicker.
        if (error instanceof ApiError && error.status === 409) continue;
        throw error;
      }
      if (current) await api.free(current, reader).catch(() => undefined);
      go({ view: "study", image: study.image, params: {} });
      return;
    }
    toast(studies.length ? "The studies that are left are in other readers' hands." : "Nothing is left to read: every analysed study is reviewed.");
  } catch (error) {
    toast(`The next study could not be taken: ${message(error)}`, "error");
  }
}

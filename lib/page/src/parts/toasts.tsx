/** Messages at the edge of the page. */

import { dismiss, useShared } from "../store";
import { Cross, Info, Warn } from "./icons";

export function Toasts() {
  const { toasts } = useShared();
  return (
    <div class="toasts" role="region" aria-label="Messages" aria-live="polite">
      {toasts.map((one) => (
        <div key={one.id} class={`toast ${one.kind}`} role={one.kind === "error" ? "alert" : "status"}>
          {one.kind === "error" ? <Warn /> : <Info />}
          <span>{one.text}</span>
          <button type="button" class="quiet square" aria-label="Close this message" onClick={() => dismiss(one.id)}><Cross /></button>
        </div>
      ))}
    </div>
  );
}

/** A model's card in a window. */

import { useEffect, useState } from "preact/hooks";
import { api, message } from "../api";
import { Dialog } from "../parts/dialog";
import { Markdown } from "../parts/markdown";

export function ModelCard({ model, onClose }: { model: string; onClose: () => void }) {
  const [text, setText] = useState<string | null>(null);
  const [fault, setFault] = useState("");
  useEffect(() => {
    let gone = false;
    setText(null);
    setFault("");
    api.card(model).then((answer) => gone || setText(answer), (error: unknown) => gone || setFault(message(error)));
    return () => void (gone = true);
  }, [model]);
  return (
    <Dialog title={`Model card: ${model}`} onClose={onClose} wide>
      {fault ? <p class="fault" role="alert">The card could not be fetched: {fault}</p> : text == null ? <p role="status">Fetching the card…</p> : <Markdown text={text.replace(/^#\s+.*\n/, "")} />}
    </Dialog>
  );
}

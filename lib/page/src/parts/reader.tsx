/** Who is reading: kept in this browser, written into reviews and leases. */

import { useState } from "preact/hooks";
import { shared, update, useShared } from "../store";
import { Dialog } from "./dialog";

/** All that wait for the name: two may ask at once, such as a comment that is left by a click on a decision. */
let waiting: ((name: string | null) => void)[] = [];
let show: (open: boolean) => void = () => undefined;

/** The reader's name, asked for when it is not known. null when the reader declines. */
export function askReader(force = false): Promise<string | null> {
  const { reader } = shared();
  if (reader && !force) return Promise.resolve(reader);
  if (!waiting.length) show(true);
  return new Promise((resolve) => void waiting.push(resolve));
}

export function ReaderDialog() {
  const { reader } = useShared();
  const [open, setOpen] = useState(false);
  const [name, setName] = useState("");
  show = (value) => {
    setName(shared().reader);
    setOpen(value);
  };
  if (!open) return null;
  const end = (value: string | null) => {
    if (value) update({ reader: value });
    setOpen(false);
    const told = waiting;
    waiting = [];
    for (const one of told) one(value);
  };
  const submit = (event: Event) => {
    event.preventDefault();
    if (name.trim()) end(name.trim());
  };
  return (
    <Dialog title="Who is reading?" onClose={() => end(null)}>
      <form onSubmit={submit} class="stack">
        <label class="field">
          <span>Your name or initials</span>
          <input type="text" name="reader" maxLength={80} autocomplete="name" autofocus value={name} onInput={(event) => setName(event.currentTarget.value)} />
        </label>
        <p class="muted">
          It is written beside your decisions, and tells colleagues which study is in your hands. It stays in this browser
          {reader ? "." : " and can be changed at the top of the page."}
        </p>
        <div class="row end">
          <button type="button" onClick={() => end(null)}>Cancel</button>
          <button type="submit" class="primary" disabled={!name.trim()}>Continue</button>
        </div>
      </form>
    </Dialog>
  );
}

/** Signing in again where the session has ended, over what is on the screen: nothing that was typed is lost. */

import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { api, message, whenLoginNeeded } from "../api";
import { shared, toast, update, useShared } from "../store";
import { Dialog } from "./dialog";
import { Leave } from "./icons";

export function LoginDialog() {
  const [open, setOpen] = useState(false);
  const [user, setUser] = useState("");
  const [password, setPassword] = useState("");
  const [fault, setFault] = useState("");
  const [busy, setBusy] = useState(false);
  const declined = useRef(false);
  // Before the first frame, so that no answer comes earlier.
  useLayoutEffect(() => whenLoginNeeded((quiet) => {
    // Who has closed it is not asked again for what the page looks up by itself.
    if (quiet && declined.current) return;
    setUser((typed) => typed || shared().page?.user?.name || "");
    setOpen(true);
  }), []);
  if (!open) return null;
  const close = (signedIn: boolean) => {
    declined.current = !signedIn;
    setPassword("");
    setFault("");
    setOpen(false);
  };
  const submit = async (event: Event) => {
    event.preventDefault();
    if (busy) return;
    setBusy(true);
    try {
      await api.login(user, password);
    } catch (error) {
      setFault(message(error));
      return;
    } finally {
      setBusy(false);
    }
    close(true);
    // What could not be fetched at the start is fetched now.
    api.page().then((page) => update({ page }), (error: unknown) => toast(message(error), "error"));
    api.models().then((models) => update({ models }), () => undefined);
  };
  return (
    <Dialog title="Please sign in again" onClose={() => close(false)}>
      <form onSubmit={submit} class="stack">
        <p class="muted">The session has ended. What is on this page stays as it is.</p>
        <label class="field"><span>Token name, or user</span><input type="text" name="username" autocomplete="username" autocapitalize="none" spellcheck={false} value={user} onInput={(event) => setUser(event.currentTarget.value)} /></label>
        <label class="field"><span>Token, or password</span><input type="password" name="password" autocomplete="current-password" required autofocus value={password} onInput={(event) => setPassword(event.currentTarget.value)} /></label>
        {fault && <p class="fault" role="alert">{fault}</p>}
        <div class="row end"><button type="submit" class="primary" disabled={busy}>Sign in</button></div>
      </form>
    </Dialog>
  );
}

/** Who is signed in, and the way out; nothing where nobody is asked. */
export function SignedIn() {
  const { page } = useShared();
  if (!page?.user) return null;
  const leave = async () => {
    try {
      await api.logout();
      location.assign(new URL("login", document.baseURI));
    } catch (error) {
      toast(message(error), "error");
    }
  };
  return (
    <span class="signed-in">
      <span class="wide-only muted" title={`Role: ${page.user.role}`}>Signed in as {page.user.name}</span>
      <button type="button" class="quiet" title={`Signed in as ${page.user.name} (${page.user.role})`} onClick={() => void leave()} aria-label="Sign out"><Leave /> <span class="wide-only">Sign out</span></button>
    </span>
  );
}

/** The login of MONAI Label, where it is switched on. */

import { useEffect, useState } from "preact/hooks";
import { api, message, whenLoginNeeded } from "../api";
import { Dialog } from "./dialog";

export function LoginDialog() {
  const [open, setOpen] = useState(false);
  const [user, setUser] = useState("");
  const [password, setPassword] = useState("");
  const [fault, setFault] = useState("");
  useEffect(() => whenLoginNeeded(() => setOpen(true)), []);
  if (!open) return null;
  const submit = async (event: Event) => {
    event.preventDefault();
    try {
      await api.login(user, password);
      location.reload();
    } catch (error) {
      setFault(message(error));
    }
  };
  return (
    <Dialog title="This server asks for a login" onClose={() => setOpen(false)}>
      <form onSubmit={submit} class="stack">
        <label class="field"><span>User</span><input type="text" autocomplete="username" autofocus value={user} onInput={(event) => setUser(event.currentTarget.value)} /></label>
        <label class="field"><span>Password</span><input type="password" autocomplete="current-password" value={password} onInput={(event) => setPassword(event.currentTarget.value)} /></label>
        {fault && <p class="fault" role="alert">{fault}</p>}
        <div class="row end"><button type="submit" class="primary">Log in</button></div>
      </form>
    </Dialog>
  );
}

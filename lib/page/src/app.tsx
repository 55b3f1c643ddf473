/** The frame around every view: name, reader, help, the line on intended use, messages. */

import { useEffect, useState } from "preact/hooks";
import { api, message } from "./api";
import { Help } from "./parts/help";
import { Brain, Keys } from "./parts/icons";
import { LoginDialog, SignedIn } from "./parts/login";
import { askReader, ReaderDialog } from "./parts/reader";
import { Toasts } from "./parts/toasts";
import { hashOf, useRoute } from "./route";
import { toast, update, useShared } from "./store";
import { StudyView } from "./study/study";
import { Worklist } from "./worklist/worklist";

export function App() {
  const route = useRoute();
  const { page, reader, worklist } = useShared();
  const [help, setHelp] = useState(false);

  useEffect(() => {
    api.page().then((answer) => update({ page: answer }), (error: unknown) => toast(message(error), "error"));
    api.models().then((answer) => update({ models: answer }), (error: unknown) => toast(`The models could not be listed: ${message(error)}`, "error"));
  }, []);

  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      const target = event.target as HTMLElement;
      if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|TEXTAREA|SELECT/.test(target.tagName)) return;
      if (document.querySelector("dialog[open]")) return;
      if (event.key === "?") setHelp(true);
    };
    window.addEventListener("keydown", press);
    return () => window.removeEventListener("keydown", press);
  }, []);

  return (
    <>
      <a class="skip" href="#main" onClick={(event) => { event.preventDefault(); document.getElementById("main")?.focus(); }}>Skip to the content</a>
      <header class="top">
        <a class="home" href={hashOf({ view: "worklist", image: "", params: worklist })} aria-label="Brain anomalies: worklist">
          <Brain /> <span class="home-name">Brain anomalies</span>
        </a>
        <p class="research" role="note">For research use only; not a medical device</p>
        <span class="grow" />
        <button type="button" class="quiet" onClick={() => void askReader(true)}>
          {reader ? <><span class="sr-only">Reader: </span>{reader}</> : "Who is reading?"}
        </button>
        <SignedIn />
        <button type="button" class="quiet" onClick={() => setHelp(true)} aria-label="Keys and help"><Keys /> <span class="wide-only">Help</span></button>
      </header>
      {route.view === "study" ? <StudyView key={route.image} route={route} /> : <Worklist route={route} />}
      <footer class="bottom">
        <span>{page ? `Version ${page.version}` : ""}</span>
        <a href="./THIRD-PARTY-LICENSES.txt" target="_blank" rel="noopener">Licences</a>
      </footer>
      {help && <Help onClose={() => setHelp(false)} />}
      <ReaderDialog />
      <LoginDialog />
      <Toasts />
    </>
  );
}

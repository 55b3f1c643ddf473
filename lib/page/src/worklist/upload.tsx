/** Scans from this computer: dropped anywhere on the worklist, or chosen. Two at a time. */

import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, api, message, upload } from "../api";
import { plural } from "../format";
import { Check, Cross, Upload, Warn } from "../parts/icons";
import { Progress } from "../parts/progress";
import { go } from "../route";

interface Item {
  key: number;
  file: File;
  image: string;
  share: number;
  state: "waiting" | "sending" | "storing" | "done" | "failed";
  text: string;
  stop: AbortController;
}

const AT_ONCE = 2;
let lastKey = 0;

/** The file's known ending, or "" for a file that the server does not take. */
function ending(name: string, extensions: string[]): string {
  return extensions.find((one) => name.toLowerCase().endsWith(one)) ?? "";
}

/** An id that the server takes: it keeps letters, spaces and most signs, but no slashes and no double dots. */
export function imageId(name: string, extension: string): string {
  const stem = name.slice(0, name.length - extension.length);
  const safe = stem.replace(/[\u0000-\u001f\u007f/\\]/g, "_").replace(/\.{2,}/g, ".").replace(/^[.~ ]+|[. ]+$/g, "");
  return safe.slice(0, 128) || "scan";
}

export function UploadArea({ extensions, onStored, run }: { extensions: string[]; onStored: () => void; run: (image: string) => Promise<void> }) {
  const [items, setItems] = useState<Item[]>([]);
  const [over, setOver] = useState(false);
  const [analyse, setAnalyse] = useState(false);
  const picker = useRef<HTMLInputElement>(null);
  const current = useRef<Item[]>([]);
  const analysing = useRef(analyse);
  analysing.current = analyse;

  const change = (key: number, changes: Partial<Item>) => {
    current.current = current.current.map((one) => (one.key === key ? { ...one, ...changes } : one));
    setItems(current.current);
  };

  const pump = () => {
    const sending = current.current.filter((one) => one.state === "sending" || one.state === "storing").length;
    for (const item of current.current.filter((one) => one.state === "waiting").slice(0, AT_ONCE - sending)) void start(item);
  };

  const start = async (item: Item) => {
    change(item.key, { state: "sending" });
    try {
      const told = (share: number) => change(item.key, { share, state: share >= 1 ? "storing" : "sending" });
      const image = await upload(item.file, item.image, ending(item.file.name, extensions), told, item.stop.signal);
      change(item.key, { state: "done", share: 1, image, text: "" });
      if (analysing.current) await run(image);
      onStored();
    } catch (error) {
      change(item.key, { state: "failed", text: message(error) });
    }
    pump();
  };

  const add = (files: Iterable<File>) => {
    const fresh = [...files].map((file): Item => {
      const known = ending(file.name, extensions);
      return {
        key: ++lastKey,
        file,
        image: imageId(file.name, known),
        share: 0,
        state: known ? "waiting" : "failed",
        text: known ? "" : `not a file that can be read here: expected one ending in ${extensions.join(", ")}`,
        stop: new AbortController(),
      };
    });
    current.current = [...current.current, ...fresh];
    setItems(current.current);
    pump();
  };

  useEffect(() => {
    let depth = 0;
    const carries = (event: DragEvent) => event.dataTransfer?.types.includes("Files") ?? false;
    const enter = (event: DragEvent) => {
      if (!carries(event)) return;
      depth++;
      setOver(true);
    };
    const leave = () => {
      depth = Math.max(0, depth - 1);
      if (!depth) setOver(false);
    };
    const hover = (event: DragEvent) => carries(event) && event.preventDefault();
    const drop = (event: DragEvent) => {
      if (!carries(event)) return;
      event.preventDefault();
      depth = 0;
      setOver(false);
      add(event.dataTransfer?.files ?? []);
    };
    window.addEventListener("dragenter", enter);
    window.addEventListener("dragleave", leave);
    window.addEventListener("dragover", hover);
    window.addEventListener("drop", drop);
    return () => {
      window.removeEventListener("dragenter", enter);
      window.removeEventListener("dragleave", leave);
      window.removeEventListener("dragover", hover);
      window.removeEventListener("drop", drop);
    };
  }, [extensions]);

  const busy = items.filter((one) => one.state !== "done" && one.state !== "failed").length;
  return (
    <section class={over ? "upload over" : "upload"} aria-label="Add scans">
      <div class="upload-line">
        <Upload />
        <span class="upload-words">
          {over ? "Let go to add the scans" : "Drop scans here, or"}
        </span>
        {!over && (
          <button type="button" onClick={() => picker.current?.click()}>Choose files…</button>
        )}
        <span class="muted upload-kinds">NIfTI or NRRD ({extensions.join(", ")})</span>
        <label class="tick">
          <input type="checkbox" checked={analyse} onChange={(event) => setAnalyse(event.currentTarget.checked)} />
          <span>Analyse them at once</span>
        </label>
        <input
          ref={picker}
          type="file"
          name="scans"
          multiple
          class="hidden-input"
          tabIndex={-1}
          aria-label="Scans to add"
          accept={[...extensions, ".gz"].join(",")}
          onChange={(event) => {
            add(event.currentTarget.files ?? []);
            event.currentTarget.value = "";
          }}
        />
      </div>
      {items.length > 0 && (
        <ul class="upload-list" aria-label="Uploads">
          {items.map((item) => (
            <li key={item.key} class={`upload-item ${item.state}`}>
              {item.state === "done" ? <Check /> : item.state === "failed" ? <Warn /> : <Upload />}
              <span class="name" title={item.file.name}>{item.file.name}</span>
              {item.state === "sending" && <Progress share={item.share} label={`Sending ${item.file.name}`} />}
              {item.state === "storing" && <span class="muted">storing…</span>}
              {item.state === "waiting" && <span class="muted">waiting</span>}
              {item.state === "failed" && <span class="fault" role="alert">{item.text}</span>}
              {item.state === "done" && (
                <button type="button" class="link" onClick={() => go({ view: "study", image: item.image, params: {} })}>Open {item.image}</button>
              )}
              {(item.state === "waiting" || item.state === "sending") && (
                <button type="button" class="quiet" onClick={() => (item.state === "waiting" ? change(item.key, { state: "failed", text: "stopped" }) : item.stop.abort())}>Stop</button>
              )}
            </li>
          ))}
          {!busy && (
            <li class="row end">
              <span class="muted grow">{plural(items.filter((one) => one.state === "done").length, "scan")} stored</span>
              <button type="button" class="quiet" onClick={() => { current.current = []; setItems([]); }}><Cross /> Close this list</button>
            </li>
          )}
        </ul>
      )}
    </section>
  );
}

/** The model offered first for a scan of unknown sequence, or of the one that its name tells. */
export async function runDefault(image: string, defaults: Record<string, string>, guess: (image: string) => Promise<string | null>): Promise<void> {
  const sequence = (await guess(image)) ?? "t1";
  const model = defaults[sequence] ?? Object.values(defaults)[0];
  if (!model) throw new ApiError(0, "this server was started without models");
  await api.run(image, model, {});
}

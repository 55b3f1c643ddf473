/** Scans from this computer: dropped anywhere on the worklist, or chosen. Two at a time. */

import { useEffect, useRef, useState } from "preact/hooks";
import { plural } from "../format";
import { Check, Cross, Upload, Warn } from "../parts/icons";
import { Progress } from "../parts/progress";
import { go } from "../route";
import { update, useShared } from "../store";
import { addUploads, stopUpload } from "./uploads";

export function UploadArea({ extensions, onStored }: { extensions: string[]; onStored: () => void }) {
  const { uploads: items, analyseUploads } = useShared();
  const [over, setOver] = useState(false);
  const picker = useRef<HTMLInputElement>(null);
  const add = (files: Iterable<File>) => addUploads(files, extensions);
  const done = items.filter((one) => one.state === "done").length;
  const settled = items.filter((one) => one.settled).length;
  const known = useRef(settled);
  useEffect(() => {
    if (settled !== known.current) onStored();
    known.current = settled;
  }, [settled]);

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
          <input type="checkbox" checked={analyseUploads} onChange={(event) => update({ analyseUploads: event.currentTarget.checked })} />
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
                <button type="button" class="quiet" onClick={() => stopUpload(item)}>Stop</button>
              )}
            </li>
          ))}
          {!busy && (
            <li class="row end">
              <span class="muted grow">{plural(done, "scan")} stored</span>
              <button type="button" class="quiet" onClick={() => update({ uploads: [] })}><Cross /> Close this list</button>
            </li>
          )}
        </ul>
      )}
    </section>
  );
}

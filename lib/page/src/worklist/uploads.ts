/** Scans on their way to the server, two at a time. They go on, and can be seen again, when the list is left. */

import { ApiError, api, message, upload, whenSignedIn } from "../api";
import { shared, toast, update } from "../store";

export interface Item {
  key: number;
  file: File;
  image: string;
  extension: string;
  share: number;
  state: "waiting" | "sending" | "storing" | "done" | "failed";
  text: string;
  /** Refused because the session had ended: sent again after signing in. */
  signedOut: boolean;
  /** Stored, and its analysis asked for where that was wished. */
  settled: boolean;
  stop: AbortController;
}

const AT_ONCE = 2;
let lastKey = 0;

/** The file's known ending, or "" for a file that the server does not take. */
function ending(name: string, extensions: string[]): string {
  return extensions.find((one) => name.toLowerCase().endsWith(one)) ?? "";
}

/** An id that the server takes: it keeps letters, spaces and most signs, but no slashes and no double dots. */
function imageId(name: string, extension: string): string {
  const stem = name.slice(0, name.length - extension.length);
  const safe = stem.replace(/[\u0000-\u001f\u007f/\\]/g, "_").replace(/\.{2,}/g, ".").replace(/^[.~ ]+|[. ]+$/g, "");
  return safe.slice(0, 128) || "scan";
}

export function addUploads(files: Iterable<File>, extensions: string[]): void {
  const fresh = [...files].map((file): Item => {
    const extension = ending(file.name, extensions);
    return {
      key: ++lastKey,
      file,
      image: imageId(file.name, extension),
      extension,
      share: 0,
      state: extension ? "waiting" : "failed",
      text: extension ? "" : `not a file that can be read here: expected one ending in ${extensions.join(", ")}`,
      signedOut: false,
      settled: false,
      stop: new AbortController(),
    };
  });
  update({ uploads: [...shared().uploads, ...fresh] });
  pump();
}

export function stopUpload(item: Item): void {
  if (item.state === "waiting") change(item.key, { state: "failed", text: "stopped" });
  else item.stop.abort();
}

function change(key: number, changes: Partial<Item>): void {
  update({ uploads: shared().uploads.map((one) => (one.key === key ? { ...one, ...changes } : one)) });
}

function pump(): void {
  const sending = shared().uploads.filter((one) => one.state === "sending" || one.state === "storing").length;
  const next = shared().uploads.filter((one) => one.state === "waiting").slice(0, Math.max(0, AT_ONCE - sending));
  for (const item of next) void start(item);
}

async function start(item: Item): Promise<void> {
  change(item.key, { state: "sending", text: "", signedOut: false });
  try {
    const told = (share: number) => change(item.key, { share, state: share >= 1 ? "storing" : "sending" });
    const image = await upload(item.file, item.image, item.extension, told, item.stop.signal);
    change(item.key, { state: "done", share: 1, image, text: "" });
    if (shared().analyseUploads) await analyse(image);
    change(item.key, { settled: true });
  } catch (error) {
    change(item.key, { state: "failed", share: 0, text: message(error), signedOut: error instanceof ApiError && error.status === 401 });
  }
  pump();
}

/** With the model offered first for the scan's sequence, or for T1 where nothing tells it. */
async function analyse(image: string): Promise<void> {
  try {
    const [study, { default_models: defaults }] = await Promise.all([api.study(image), api.studies({ limit: "1" })]);
    const model = defaults[study.sequence ?? "t1"] ?? Object.values(defaults)[0];
    if (!model) throw new ApiError(0, "this server was started without models");
    await api.run(image, model, {});
  } catch (error) {
    toast(`${image} is stored but not analysed: ${message(error)}`, "error");
  }
}

whenSignedIn(() => {
  for (const item of shared().uploads) if (item.signedOut) change(item.key, { state: "waiting", text: "", signedOut: false });
  pump();
});

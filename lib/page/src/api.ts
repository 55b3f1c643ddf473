/** Requests to this server. Every address is relative to the page's own, so that a prefix or a proxy changes nothing. */

import { localTime } from "./format";
import type { Job, Model, PageInfo, Params, Result, Review, Study, StudyList } from "./types";

const ROOT = new URL("../", new URL("./", document.baseURI));
/** Times within the server's sentences, to be shown as the reader's clock has them. */
const ISO_TIME = /\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)/g;

/** An answer that is not 2xx, or none at all (status 0). The message is what the server said, to be shown as text. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
    this.name = "ApiError";
  }
}

export function address(path: string, params: Params = {}): string {
  const url = new URL(path, ROOT);
  for (const [key, value] of Object.entries(params)) if (value !== "") url.searchParams.set(key, value);
  return url.toString();
}

let onLogin: (quiet: boolean) => void = () => undefined;
/** Call `listener` when the server asks for a login: the session is over, or was ended elsewhere. quiet: nobody waits. */
export function whenLoginNeeded(listener: (quiet: boolean) => void): void {
  onLogin = listener;
}
/** How often somebody has signed in on this page. */
let signIns = 0;
const resumed = new Set<() => void>();
/** Call `listener` when somebody has signed in again. Returns what ends that. */
export function whenSignedIn(listener: () => void): () => void {
  resumed.add(listener);
  return () => void resumed.delete(listener);
}

export function message(error: unknown): string {
  if (error instanceof Error) return error.message;
  return String(error);
}

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

/** FastAPI says `{"detail": text}`, or a list of faults for parameters of the wrong type. */
function said(body: string, status: number): string {
  try {
    const detail: unknown = (JSON.parse(body) as { detail?: unknown }).detail;
    if (typeof detail === "string") return detail.replace(ISO_TIME, (time) => localTime(time) || time);
    if (Array.isArray(detail))
      return detail.map((fault: { msg?: string; loc?: string[] }) => `${(fault.loc ?? []).join(".")}: ${fault.msg ?? ""}`).join("; ");
  } catch {
    // Not JSON: a proxy's page, perhaps.
  }
  return `the server answered with status ${status}`;
}

interface How {
  /** A wrong password is no end of the session. */
  signingIn?: boolean;
  /** A look that the page takes by itself. */
  quiet?: boolean;
}

async function send(path: string, init: RequestInit = {}, params: Params = {}, how: How = {}): Promise<Response> {
  const session = signIns;
  let response: Response;
  try {
    response = await fetch(address(path, params), {
      ...init,
      credentials: "same-origin",
    });
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ApiError(0, "the server cannot be reached; is it still running?");
  }
  if (!response.ok) {
    if (response.status === 401 && !how.signingIn) {
      // It left before somebody signed in: the new session may do what the old one may not.
      if (session !== signIns) return send(path, init, params, how);
      onLogin(!!how.quiet);
    }
    throw new ApiError(response.status, said(await textOf(response).catch(ended), response.status));
  }
  return response;
}

/** Raises ApiError where the connection breaks before the end. */
async function textOf(response: Response): Promise<string> {
  try {
    return await response.text();
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ApiError(0, "the server's answer broke off; is it still running?");
  }
}

/** An error's own body may break off, too: its status is what counts. */
function ended(error: unknown): string {
  if (isAbort(error)) throw error;
  return "";
}

async function json<T>(path: string, init: RequestInit = {}, params: Params = {}, how: How = {}): Promise<T> {
  const response = await send(path, init, params, how);
  return parsed<T>(await textOf(response), response.status);
}

function parsed<T>(text: string, status: number): T {
  try {
    return JSON.parse(text) as T;
  } catch {
    throw new ApiError(status, "the answer is not what this server gives; something on the way has answered for it");
  }
}

function body(method: string, value: unknown): RequestInit {
  return { method, body: JSON.stringify(value), headers: { "Content-Type": "application/json" } };
}

const id = encodeURIComponent;

export const api = {
  page: () => json<PageInfo>("anomaly/page.json"),
  studies: (params: Params, signal?: AbortSignal, how: How = {}) => json<StudyList>("anomaly/studies", { signal }, params, how),
  study: (image: string, signal?: AbortSignal) => json<Study>(`anomaly/studies/${id(image)}`, { signal }),
  models: () => json<Model[]>("anomaly/models"),
  card: async (model: string) => (await send(`anomaly/models/${id(model)}/card`)).text(),
  result: (image: string, params: Params, signal?: AbortSignal) =>
    json<Result>(`anomaly/results/${id(image)}`, { signal }, params),
  jobs: async (params: Params = {}) => json<{ jobs: Job[]; waiting: number }>("anomaly/jobs", {}, params),
  job: (job: string, how: How = {}) => json<Job>(`anomaly/jobs/${id(job)}`, {}, {}, how),
  run: (image: string, model: string, params: Params) => json<Job>("anomaly/jobs", body("POST", { image, model, params })),
  cancel: (job: string) => send(`anomaly/jobs/${id(job)}`, { method: "DELETE" }),
  review: (image: string, review: Review) => json<Review>(`anomaly/reviews/${id(image)}`, body("PUT", review)),
  lease: (image: string, reader: string) => send(`anomaly/studies/${id(image)}/lease`, body("POST", { reader })),
  free: (image: string, reader: string) =>
    send(`anomaly/studies/${id(image)}/lease`, { method: "DELETE", keepalive: true }, { reader }),
  archive: (image: string, model: string, params: Params, objects: string[]) =>
    json<{ stored: { object: string }[] }>(`anomaly/dicom/${id(image)}`, body("POST", { model, params, objects })),
  /** The session is a cookie that scripts cannot read. */
  async login(user: string, password: string): Promise<PageInfo["user"]> {
    const form = new URLSearchParams({ username: user, password });
    const who = await json<PageInfo["user"]>("anomaly/login", { method: "POST", body: form, headers: { Accept: "application/json" } }, {}, { signingIn: true });
    signIns++;
    for (const listener of [...resumed]) listener();
    return who;
  },
  logout: () => send("anomaly/logout", { method: "POST", headers: { Accept: "application/json" } }),
};

/** Addresses of files, as links and for the viewer. */
export const files = {
  scan: (image: string) => address(`anomaly/results/${id(image)}/scan.nii.gz`),
  image: (image: string) => address("datastore/image", { image }),
  volume: (image: string, kind: string, extension: string, params: Params) =>
    address(`anomaly/results/${id(image)}/${kind}.${extension}`, params),
  report: (image: string, name: string, params: Params) => address(`anomaly/results/${id(image)}/${name}`, params),
  dicom: (image: string, object: string, params: Params) => address(`anomaly/dicom/${id(image)}/${object}.dcm`, params),
  feedback: (format: "json" | "csv") => address("anomaly/reviews/", { format }),
};

/** PUT a file into the datastore. `told` gets the share sent, 0..1; resolves to the id. Rejects with ApiError. */
export function upload(file: File, image: string, extension: string, told: (share: number) => void, signal: AbortSignal) {
  return new Promise<string>((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", address("datastore/image", { image }));
    request.upload.onprogress = (event) => event.lengthComputable && told(event.loaded / event.total);
    request.onload = () => {
      if (request.status === 401) onLogin(false);
      if (request.status >= 300) return reject(new ApiError(request.status, said(request.responseText, request.status)));
      try {
        resolve(parsed<{ image: string }>(request.responseText, request.status).image);
      } catch (error) {
        reject(error);
      }
    };
    request.onerror = () => reject(new ApiError(0, "the server cannot be reached; is it still running?"));
    request.onabort = () => reject(new ApiError(0, "stopped"));
    signal.addEventListener("abort", () => request.abort());
    const form = new FormData();
    // The id travels in the address: MONAI Label would cut it at the first dot of the file's name.
    form.append("file", file, `scan${extension}`);
    request.send(form);
  });
}

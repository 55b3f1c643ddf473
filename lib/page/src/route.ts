/** The state that belongs into the address: #/?… is the worklist, #/study/<id>?… a study. */

import { useLayoutEffect, useState } from "preact/hooks";
import type { Params } from "./types";

export interface Route {
  view: "worklist" | "study";
  image: string;
  params: Params;
}

export function parse(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#/, "").split(/\?(.*)/s);
  const params: Params = Object.fromEntries(new URLSearchParams(query));
  const study = /^\/study\/(.+)$/.exec(path);
  if (study?.[1]) {
    try {
      return { view: "study", image: decodeURIComponent(study[1]), params };
    } catch {
      // A damaged address leads to the worklist.
    }
  }
  return { view: "worklist", image: "", params };
}

export function hashOf(route: Route): string {
  const query = new URLSearchParams(Object.entries(route.params).filter(([, value]) => value !== "")).toString();
  const path = route.view === "study" ? `#/study/${encodeURIComponent(route.image)}` : "#/";
  return query ? `${path}?${query}` : path;
}

type Listener = (route: Route) => void;
const listeners = new Set<Listener>();

function tell(): void {
  const route = parse(location.hash);
  for (const listener of listeners) listener(route);
}
window.addEventListener("popstate", tell);
window.addEventListener("hashchange", tell);

/** Call `listener` when another view is gone to. Returns what ends that. */
export function whenMoved(listener: () => void): () => void {
  const from = parse(location.hash);
  const look = (to: Route) => (to.view !== from.view || to.image !== from.image) && listener();
  listeners.add(look);
  return () => void listeners.delete(look);
}

/** Another view: a step that the browser's back button undoes. */
export function go(route: Route): void {
  history.pushState(null, "", hashOf(route));
  tell();
}

/** Another setting of the same view. Returns whether the address is another one now. */
export function change(params: Params): boolean {
  const route = parse(location.hash);
  const next = { ...route, params: { ...route.params, ...params } };
  const hash = hashOf(next);
  if (hash === hashOf(route)) return false;
  history.replaceState(null, "", hash);
  tell();
  return true;
}

export function useRoute(): Route {
  const [route, setRoute] = useState(() => parse(location.hash));
  // Before the first frame: an address that changes between drawing and a later effect would be missed.
  useLayoutEffect(() => {
    listeners.add(setRoute);
    return () => void listeners.delete(setRoute);
  }, []);
  return route;
}

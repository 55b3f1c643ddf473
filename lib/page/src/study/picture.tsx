/** The viewer, loaded when the first study is opened, and the controls that change the picture only. */

import { useEffect, useRef, useState } from "preact/hooks";
import { api, files, message, whenSignedIn } from "../api";
import { Warn } from "../parts/icons";
import { change } from "../route";
import type { Params, Result } from "../types";
import type { Compare, Layer, Layout, Viewer } from "../viewer";
import { mapParams } from "./settings";

export const LAYOUTS: [Layout, string][] = [["planes", "Planes"], ["axial", "Axial"], ["coronal", "Coronal"], ["sagittal", "Sagittal"], ["3d", "3-D"], ["all", "All"]];
const COMPARES: [Compare, string][] = [["off", "Off"], ["side", "Side"], ["swipe", "Swipe"]];
const LAYERS: [Layer, string][] = [["map", "Map"], ["bands", "Bands"], ["uncertainty", "Uncertainty"], ["none", "None"]];

export interface View {
  layout: Layout;
  compare: Compare;
  layer: Layer;
  opacity: number;
}

export function view(params: Params): View {
  const one = <T extends string>(known: [T, string][], value: string | undefined): T => known.find(([key]) => key === value)?.[0] ?? known[0]![0];
  const opacity = Number(params["opacity"] ?? "");
  return {
    layout: one(LAYOUTS, params["layout"]),
    compare: one(COMPARES, params["compare"]),
    layer: one(LAYERS, params["layer"]),
    opacity: params["opacity"] && opacity >= 0 && opacity <= 1 ? opacity : 0.6,
  };
}

interface Props {
  image: string;
  result: Result | null;
  /** Whether it is known if there is a result: the scan alone is not loaded while that is asked. */
  settled: boolean;
  /** Tells whether it is still the same scan; "" where nothing was analysed yet. */
  scan: string;
  params: Params;
  threshold: number;
  onReady: (viewer: Viewer | null) => void;
  onLoaded: () => void;
}

/** The viewer fetches by itself; where its answer was 401 this opens the login. */
const askForLogin = () => void api.page().catch(() => undefined);

export function Picture({ image, result, settled, scan, params, threshold, onReady, onLoaded }: Props) {
  const host = useRef<HTMLDivElement>(null);
  const [viewer, setViewer] = useState<Viewer | null>(null);
  /** How the last loading ended, and of what. */
  const [ended, setEnded] = useState<{ of: string; as: "ready" | "failed" }>({ of: "", as: "ready" });
  const [fault, setFault] = useState("");
  const [turn, setTurn] = useState(0);
  const [starts, setStarts] = useState(0);
  const { layout, compare, layer, opacity } = view(params);
  const limit = useRef(threshold);
  limit.current = threshold;
  const loaded = useRef(onLoaded);
  loaded.current = onLoaded;

  useEffect(() => {
    let made: Viewer | null = null;
    let gone = false;
    void import("../viewer").then(
      ({ createViewer }) => {
        if (gone || !host.current) return;
        made = createViewer(host.current);
        made.onTrouble((sentence) => {
          if (gone) return;
          setFault(sentence);
          if (sentence) askForLogin();
        });
        setViewer(made);
        onReady(made);
      },
    ).catch((error: unknown) => {
      if (gone) return;
      setFault(`The viewer could not be started: ${message(error)}`);
    });
    return () => {
      gone = true;
      onReady(null);
      made?.destroy();
    };
  }, [starts]);

  const again = () => {
    setFault("");
    if (viewer) setTurn((n) => n + 1);
    else setStarts((n) => n + 1);
  };
  useEffect(() => (fault ? whenSignedIn(again) : undefined), [fault, viewer]);

  const has = (kind: string) => !!result && kind in result.files;
  // The picture is fetched anew only when the map itself is another one.
  const source = result ? JSON.stringify([scan, result.model, result.finding.model.hash, mapParams(params), Object.keys(result.files).sort()]) : settled ? "scan" : "";
  const wanted = `${turn} ${source}`;
  const state = viewer && source && ended.of === wanted ? ended.as : fault && !viewer ? "failed" : "loading";
  useEffect(() => {
    if (!viewer || !source) return;
    let old = false;
    setFault("");
    const own = result ? { ...mapParams(params), model: result.model } : {};
    const address = (kind: string) => (has(kind) ? files.volume(image, kind, "nii.gz", own) : undefined);
    viewer
      .load({
        scan: files.scan(image),
        name: image,
        version: scan,
        map: address("anomaly_map"),
        reconstruction: address("reconstruction"),
        uncertainty: address("uncertainty_map"),
        brain: address("brain_mask"),
        window: result?.window,
        edges: result?.bands.map((band) => band.value) ?? [],
        bands: result?.bands,
        threshold: limit.current,
      })
      .then(
        () => {
          if (old) return;
          setEnded({ of: wanted, as: "ready" });
          viewer.setThreshold(limit.current);
          loaded.current();
        },
        (error: unknown) => {
          if (old || (error instanceof Error && error.name === "Superseded")) return;
          setEnded({ of: wanted, as: "failed" });
          setFault(message(error));
          askForLogin();
        },
      );
    return () => {
      old = true;
    };
  }, [viewer, source, turn]);

  useEffect(() => viewer?.setThreshold(threshold), [viewer, threshold]);
  useEffect(() => viewer?.setOpacity(opacity), [viewer, opacity]);
  useEffect(() => viewer?.setLayout(layout), [viewer, layout]);
  useEffect(() => {
    viewer?.setCompare(has("reconstruction") ? compare : "off");
  }, [viewer, compare, wanted]);
  useEffect(() => {
    viewer?.setLayer(layer, true);
  }, [viewer, layer, wanted]);
  useEffect(() => {
    if (!viewer || !host.current) return;
    const watcher = new ResizeObserver(() => viewer.resize());
    watcher.observe(host.current);
    return () => watcher.disconnect();
  }, [viewer]);

  return (
    <section class="picture" aria-label="Picture">
      <div class="toolbar" role="toolbar" aria-label="Picture">
        <Choice name="Layout" options={LAYOUTS} value={layout} pick={(value) => change({ layout: value === "planes" ? "" : value })} />
        <Choice
          name="Overlay"
          options={LAYERS.filter(([key]) => key !== "uncertainty" || has("uncertainty_map"))}
          value={layer}
          disabled={!result}
          pick={(value) => change({ layer: value === "map" ? "" : value })}
        />
        <label class="field inline opacity">
          <span>Opacity</span>
          <input type="range" min={0} max={1} step={0.05} value={opacity} disabled={!result || layer === "none"} aria-valuetext={`${Math.round(opacity * 100)} %`} onInput={(event) => change({ opacity: event.currentTarget.value })} />
        </label>
        <Choice name="Pseudo-healthy" options={COMPARES} value={has("reconstruction") ? compare : "off"} disabled={!has("reconstruction")} pick={(value) => change({ compare: value === "off" ? "" : value })} />
      </div>
      <div class="viewer-box" data-viewer={state}>
        <div class="viewer-host" ref={host} />
        {state === "loading" && !fault && <p class="viewer-note" role="status">Loading the images…</p>}
        {fault && (
          <div class="viewer-note error" role="alert">
            <p><Warn /> {fault}</p>
            <button type="button" onClick={again}>Try again</button>
          </div>
        )}
      </div>
    </section>
  );
}

function Choice<T extends string>({ name, options, value, pick, disabled }: { name: string; options: [T, string][]; value: T; pick: (value: T) => void; disabled?: boolean }) {
  return (
    <div class="segmented" role="group" aria-label={name}>
      {name !== "Layout" && <span class="segmented-name" aria-hidden="true">{name}</span>}
      {options.map(([key, text]) => (
        <button key={key} type="button" aria-pressed={value === key} disabled={disabled} onClick={() => pick(key)}>{text}</button>
      ))}
    </div>
  );
}

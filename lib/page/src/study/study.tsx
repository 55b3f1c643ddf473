/** One study: its picture, the findings, and everything that can be done with them. */

import { useCallback, useEffect, useMemo, useRef, useState } from "preact/hooks";
import { ApiError, api, isAbort, message, whenSignedIn } from "../api";
import { about, clock, millilitres, number, pValue, plural, sequence } from "../format";
import { HealthyChart } from "../parts/chart";
import { Back, Lock, Next, Target, Warn } from "../parts/icons";
import { askReader } from "../parts/reader";
import { change, go, hashOf, type Route } from "../route";
import { shared, toast, useShared } from "../store";
import type { Lesion, Params, Result, Study } from "../types";
import type { Viewer } from "../viewer";
import { Badge } from "../worklist/badge";
import { isMine, leaseOf } from "../worklist/lease";
import { openNext } from "../worklist/next";
import { ModelCard } from "./card";
import { Downloads } from "./downloads";
import { Facts, wholeSpread } from "./facts";
import { useStudyKeys } from "./keys";
import { Lesions } from "./lesions";
import { Picture, view } from "./picture";
import { FinishDialog, NothingDialog, ReviewBox } from "./review";
import { useReview } from "./review_state";
import { OVER, RunChoice, RunState, useJob } from "./run";
import { mapParams, peakKey, place, runParams, serverParams } from "./settings";
import { ThresholdSlider } from "./threshold";
import { Notices, notices } from "./warnings";

const VOLUMES = ["0 ml", "0.03 ml", "0.1 ml", "0.5 ml", "1 ml"];
const SMOOTHING = ["standard", "none", "strong"];

/** A study; opened anew where its scan is another one than when it was opened: nothing of the former may stay. */
export function StudyView({ route }: { route: Route }) {
  const [opened, setOpened] = useState(0);
  const replaced = useCallback(() => {
    toast(`The file of ${route.image} has changed on the server, so the study was opened anew.`, "error");
    setOpened((n) => n + 1);
  }, [route.image]);
  return <OpenStudy key={opened} route={route} onReplaced={replaced} />;
}

function OpenStudy({ route, onReplaced }: { route: Route; onReplaced: () => void }) {
  const { image, params } = route;
  const { models, reader, page, worklist } = useShared();
  const [study, setStudy] = useState<Study | null>(null);
  const [result, setResult] = useState<Result | null>(null);
  const [unknown, setUnknown] = useState("");
  const [absent, setAbsent] = useState("");
  const [fault, setFault] = useState("");
  /** What was asked for last, answered or refused. */
  const [settled, setSettled] = useState("");
  const [turn, setTurn] = useState(0);
  const [live, setLive] = useState<number | null>(null);
  const [selected, setSelected] = useState<string | null>(null);
  const [commenting, setCommenting] = useState<string | null>(null);
  const [dialog, setDialog] = useState<"" | "finish" | "nothing" | "card">("");
  const [tab, setTab] = useState<"findings" | "files">("findings");
  const viewer = useRef<Viewer | null>(null);
  const again = () => setTurn((n) => n + 1);
  useEffect(() => whenSignedIn(again), []);

  const asked: Params = useMemo(() => ({ ...serverParams(params), model: params["model"] ?? "" }), [JSON.stringify(serverParams(params)), params["model"]]);

  const question = JSON.stringify([asked, turn]);
  const asking = settled !== question;

  const looks = useRef(0);
  const replacedAt = useRef<number | null | undefined>(undefined);
  const lookAtStudy = useCallback(() => {
    const look = ++looks.current;
    api.study(image).then(
      (answer) => {
        // A later look has the word, or the view is gone.
        if (look !== looks.current) return;
        const at = answer.replaced_by_hand?.time ?? null;
        if (replacedAt.current !== undefined && at !== replacedAt.current) return onReplaced();
        replacedAt.current = at;
        setStudy(answer);
        setUnknown("");
      },
      (error: unknown) => {
        if (look !== looks.current) return;
        if (error instanceof ApiError && (error.status === 404 || error.status === 400)) setUnknown(message(error));
      },
    );
  }, [image]);
  useEffect(() => {
    document.title = `${image} · Brain anomalies`;
    lookAtStudy();
    return () => void looks.current++;
  }, [image, turn]);

  const scan = useRef("");
  const moving = useRef(false);
  const wanted = useRef(question);
  wanted.current = question;
  useEffect(() => {
    const stop = new AbortController();
    api.result(image, asked, stop.signal).then(
      (answer) => {
        if (stop.signal.aborted) return;
        if (scan.current && answer.scan && answer.scan !== scan.current) return onReplaced();
        scan.current ||= answer.scan ?? "";
        setResult(answer);
        setAbsent("");
        setFault("");
        // A hand that is still moving the threshold is not answered by what it asked for before.
        if (!moving.current && wanted.current === question) setLive(null);
        setSettled(question);
      },
      (error: unknown) => {
        if (isAbort(error) || stop.signal.aborted) return;
        setSettled(question);
        if (error instanceof ApiError && error.status === 404) {
          setResult(null);
          setAbsent(message(error));
          setFault("");
          // What was there is gone: perhaps the scan is another one.
          if (scan.current) lookAtStudy();
        } else setFault(message(error));
      },
    );
    return () => stop.abort();
  }, [image, question]);

  const running = useJob(image, (job) => {
    if (job.state === "done") {
      // Somebody who reads another model's result must not find it exchanged.
      if (job.model === model || !shown) change({ model: job.model ?? "" });
      else toast(`${job.model} has analysed this study, too: choose it in the list of models to see its result.`);
      again();
    }
    lookAtStudy();
  });

  const model = params["model"] || result?.model || study?.model || offered(models, study?.sequence ?? null);
  const info = models.find((one) => one.name === model);
  const shown = result && (!params["model"] || result.model === params["model"]) ? result : null;
  const analysed = new Set(Object.entries(study?.results ?? {}).filter(([, record]) => record.score != null).map(([name]) => name));
  const threshold = live ?? shown?.finding.threshold ?? 0;
  const lesions = shown?.finding.lesions ?? [];
  const reviewing = useReview(image, shown, serverParams(params), lookAtStudy);
  const stale = asking || live !== null;
  const busy = running.starting || (!!running.job && !OVER.has(running.job.state));
  const reasons = notices(shown, info, study?.replaced_by_hand ?? null);
  const spread = wholeSpread(shown?.finding.uncertainty);
  const lease = leaseOf(study);

  const select = (lesion: Lesion) => {
    setSelected(peakKey(lesion));
    setTab("findings");
    if (shown) viewer.current?.goTo(place(lesion, shown));
  };
  const current = () => lesions.find((lesion) => peakKey(lesion) === selected) ?? null;
  const step = (by: number) => {
    const at = lesions.findIndex((lesion) => peakKey(lesion) === selected);
    const next = lesions[at < 0 ? (by > 0 ? 0 : lesions.length - 1) : Math.min(lesions.length - 1, Math.max(0, at + by))];
    if (next) select(next);
  };
  const comment = (lesion: Lesion) => {
    const key = peakKey(lesion);
    setSelected(key);
    setCommenting(commenting === key ? null : key);
  };
  const toWorklist = () => go({ view: "worklist", image: "", params: worklist });

  // The first finding is shown without a click, once the picture is there.
  const first = useRef("");
  const jumpTo = useCallback(() => {
    if (!shown || !viewer.current || first.current === shown.model) return;
    // One that was chosen while the picture was on its way stays chosen.
    const lesion = shown.finding.lesions.find((one) => peakKey(one) === selected) ?? shown.finding.lesions[0];
    if (!lesion) return;
    first.current = shown.model;
    setSelected(peakKey(lesion));
    viewer.current.goTo(place(lesion, shown));
  }, [shown, selected]);

  const move = (value: number) => {
    moving.current = true;
    setLive(value);
  };
  const pick = (changes: Params) => {
    moving.current = false;
    // Moved there and back: nothing is asked for, so no answer will come.
    if (!change(changes)) setLive(null);
  };
  const timer = useRef(0);
  const nudge = (by: number) => {
    if (!shown) return;
    const next = Math.max(0, Number((threshold + by).toFixed(3)));
    move(next);
    clearTimeout(timer.current);
    timer.current = window.setTimeout(() => pick({ threshold: String(next), operating_point: "" }), 350);
  };
  // A threshold is one of this study and this map: it must not reach the next address.
  const map = JSON.stringify([params["model"], mapParams(params)]);
  useEffect(() => () => {
    clearTimeout(timer.current);
    moving.current = false;
  }, [image, map]);
  const { layer, compare } = view(params);
  useStudyKeys({
    next: () => step(1),
    previous: () => step(-1),
    accept: () => { const lesion = current(); if (lesion) void reviewing.decide(lesion, "accept"); },
    reject: () => { const lesion = current(); if (lesion) void reviewing.decide(lesion, "reject"); },
    undo: () => { const lesion = current(); if (lesion) void reviewing.decide(lesion, "undecided"); },
    comment: () => { const lesion = current(); if (lesion) comment(lesion); },
    finish: () => shown && setDialog("finish"),
    up: () => nudge(0.1),
    down: () => nudge(-0.1),
    overlay: () => change({ layer: layer === "none" ? "" : "none" }),
    bands: () => change({ layer: layer === "bands" ? "" : "bands" }),
    swipe: () => change({ compare: compare === "swipe" ? "" : "swipe" }),
    side: () => change({ compare: compare === "side" ? "" : "side" }),
    layout: (name) => change({ layout: name === "planes" ? "" : name }),
    centre: () => { const lesion = current(); if (lesion && shown) viewer.current?.goTo(place(lesion, shown)); },
    worklist: toWorklist,
    nextStudy: () => void openNext(image),
  });

  const start = () => void running.start(model, runParams(params));
  const take = async () => {
    const name = await askReader();
    if (!name) return;
    try {
      await api.lease(image, name);
      lookAtStudy();
    } catch (error) {
      toast(message(error), "error");
    }
  };
  const reviewed = () => {
    setDialog("");
    toast("Review finished.");
    if (lease && isMine(lease, shared().reader)) void api.free(image, lease.reader).catch(() => undefined);
    lookAtStudy();
  };

  return (
    <main class="study" id="main" tabIndex={-1}>
      <div key="head" class="study-head">
        <a class="button quiet" href={hashOf({ view: "worklist", image: "", params: worklist })} aria-label="Back to the worklist"><Back /></a>
        <h1 title={image}>{study?.dicom ? about(study.dicom) || image : image}</h1>
        {study?.sequence && <span class="tag">{sequence(study.sequence)}</span>}
        {study && <Badge state={study.state} />}
        {lease && !isMine(lease, reader) && <span class="remark warn"><Lock /> read by {lease.reader} until {clock(lease.until)}</span>}
        {lease && isMine(lease, reader) && <span class="remark"><Lock /> in your hands until {clock(lease.until)}</span>}
        {!lease && study && study.state !== "reviewed" && <button type="button" class="link" title="Tells colleagues that you are reading this study" onClick={() => void take()}>Reserve</button>}
        <span class="grow" />
        <RunChoice
          models={models}
          sequence={study?.sequence ?? null}
          model={model}
          analysed={analysed}
          params={params}
          busy={busy}
          hasResult={!!shown}
          onModel={(name) => change({ model: name, score: "", threshold: "" })}
          onOption={change}
          onRun={start}
          onCard={() => setDialog("card")}
        />
        <button type="button" onClick={() => void openNext(image)} aria-label="Next study">Next <span class="wide-words">study</span> <Next /></button>
      </div>
      <RunState running={running} />
      {fault && fault !== running.job?.error && <div key="fault" class="banner error" role="alert"><Warn /> <span>{fault}</span><button type="button" onClick={again}>Try again</button></div>}
      <Notices list={reasons} />
      {/* Keys: a banner that comes must not take the body's place, which would start the viewer anew. */}
      <div key="body" class="study-body">
        <div class="left">
          <Picture
            image={image}
            result={shown}
            settled={!asking || !!result}
            scan={shown?.scan ?? ""}
            params={params}
            threshold={threshold}
            onReady={(made) => { viewer.current = made; }}
            onLoaded={jumpTo}
          />
          {shown && (
            <div class="controls">
              <ThresholdSlider key={JSON.stringify([shown.model, mapParams(params)])} result={shown} value={threshold} onMove={move} onPick={pick}>
                <label class="field inline"><span>Min. volume</span>
                  <select value={volume(params, shown)} onChange={(event) => change({ min_lesion_volume: event.currentTarget.value })}>
                    {[...new Set([...VOLUMES, volume(params, shown)])].map((one) => <option key={one} value={one}>{one}</option>)}
                  </select>
                </label>
                <label class="field inline"><span>Smoothing</span>
                  <select value={params["smoothing"] || shown.calibration.smoothing} onChange={(event) => change({ smoothing: event.currentTarget.value, threshold: "" })}>
                    {(info?.options?.["smoothing"] ?? SMOOTHING).map((one) => <option key={one} value={one}>{one}</option>)}
                  </select>
                </label>
              </ThresholdSlider>
            </div>
          )}
        </div>
        <aside class="panel" aria-label="Result">
          {!shown && (
            <div class="empty">
              {unknown ? (
                <>
                  <h2>No such study</h2>
                  <p>{unknown}</p>
                  <button type="button" onClick={toWorklist}>Back to the worklist</button>
                </>
              ) : busy ? (
                <>
                  <h2>Being analysed</h2>
                  <p>The result is shown here as soon as it is there. You can leave this page meanwhile.</p>
                </>
              ) : asking ? (
                <p role="status">Looking for a result…</p>
              ) : absent ? (
                <>
                  <h2>No result at hand</h2>
                  <p title={absent}>{model ? `There is no analysis with ${model} and these options yet, or it is not kept any more.` : absent}</p>
                  {model && <button type="button" class="primary" disabled={!info} onClick={start}>Run {model}</button>}
                </>
              ) : (
                <p>No result could be fetched.</p>
              )}
            </div>
          )}
          {shown && (
            <>
              <div class="score">
                <div class="score-figures">
                  <div title="Mean of the highest 2 ml of the anomaly map, in healthy standard deviations"><span class="muted">Score</span><strong>{number(shown.finding.anomaly_score)}{spread.score != null && <small> ± {number(spread.score)}</small>}</strong></div>
                  <div title={`Rank of the score among the healthy scans; with ${shown.calibration.scan_scores.length} of them it cannot be lower than ${pValue(1 / (shown.calibration.scan_scores.length + 1))}`}><span class="muted">p-value</span><strong>{pValue(shown.finding.p_value)}</strong></div>
                  <div title="All findings together"><span class="muted">Volume</span><strong>{millilitres(shown.finding.anomaly_volume_ml)}{spread.volume != null && <small> ± {number(spread.volume, 1)}</small>}</strong></div>
                  <div><span class="muted">Findings</span><strong>{shown.finding.lesion_count}</strong></div>
                </div>
                {shown.finding.anomaly_score != null && shown.calibration.scan_scores.length > 1 && (
                  <HealthyChart score={shown.finding.anomaly_score} healthy={shown.calibration.scan_scores} pValue={pValue(shown.finding.p_value)} />
                )}
              </div>
              <div class="tabs" role="tablist" aria-label="Result">
                <Tab id="findings" now={tab} pick={setTab}>Findings</Tab>
                <Tab id="files" now={tab} pick={setTab}>Report, files, details</Tab>
              </div>
              {tab === "findings" ? (
                <div role="tabpanel" id="panel-findings" aria-labelledby="tab-findings" class="tabpanel">
                  {lesions.length ? (
                    <Lesions lesions={lesions} stale={stale} selected={selected} reviewing={reviewing} onSelect={select} onComment={comment} commenting={commenting} />
                  ) : (
                    <p class="empty"><Target /> Nothing lies above this threshold{Number.parseFloat(volume(params, shown)) > 0 ? ` in pieces of ${volume(params, shown)} or more` : ""}.</p>
                  )}
                  <ReviewBox result={shown} reviewing={reviewing} onShow={(at) => viewer.current?.goTo(at)} onFinish={() => setDialog("finish")} onNothing={() => setDialog("nothing")} />
                </div>
              ) : (
                <div role="tabpanel" id="panel-files" aria-labelledby="tab-files" class="tabpanel">
                  <Downloads result={shown} image={image} params={serverParams(params)} dicom={page?.datastore === "dicomweb"} />
                  <h3>What this rests on</h3>
                  <Facts result={shown} />
                </div>
              )}
            </>
          )}
        </aside>
      </div>
      <p class="sr-only" role="status">{shown && !stale ? `${plural(lesions.length, "finding")} at threshold ${number(threshold)}` : ""}</p>
      {dialog === "finish" && <FinishDialog lesions={lesions} reviewing={reviewing} onClose={() => setDialog("")} onDone={reviewed} />}
      {dialog === "nothing" && <NothingDialog lesions={lesions} reviewing={reviewing} onClose={() => setDialog("")} onDone={reviewed} />}
      {dialog === "card" && <ModelCard key={model} model={model} onClose={() => setDialog("")} />}
    </main>
  );
}

/** The model that the server offers first for the sequence. */
function offered(models: { name: string; default?: boolean; modality: string | null }[], sequence: string | null): string {
  const fitting = models.filter((one) => !sequence || one.modality === sequence);
  return (fitting.find((one) => one.default) ?? models.find((one) => one.default) ?? models[0])?.name ?? "";
}

function volume(params: Params, result: Result): string {
  if (params["min_lesion_volume"]) return params["min_lesion_volume"];
  const used = result.finding.settings["min_volume_ml"];
  return `${typeof used === "number" ? used : 0.1} ml`;
}

function Tab({ id, now, pick, children }: { id: "findings" | "files"; now: string; pick: (id: "findings" | "files") => void; children: string }) {
  const move = (event: KeyboardEvent) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = id === "findings" ? "files" : "findings";
    pick(other);
    document.getElementById(`tab-${other}`)?.focus();
  };
  return (
    <button type="button" role="tab" id={`tab-${id}`} aria-selected={now === id} aria-controls={`panel-${id}`} tabIndex={now === id ? 0 : -1} onClick={() => pick(id)} onKeyDown={move}>{children}</button>
  );
}

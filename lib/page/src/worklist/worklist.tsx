/** The list of studies: searched, filtered and ordered by the server, a page at a time. */

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { api, files, isAbort, message, whenSignedIn } from "../api";
import { about, clock, localTime, millilitres, number, pValue, plural, sequence, STATES } from "../format";
import { Info, Lock, Next, Search, Warn } from "../parts/icons";
import { change, go, hashOf, type Route } from "../route";
import { update, useShared } from "../store";
import { replacedText } from "../study/warnings";
import type { Order, Params, State, Study, StudyList } from "../types";
import { Badge } from "./badge";
import { isMine, leaseOf } from "./lease";
import { openNext, SEED } from "./next";
import { UploadArea } from "./upload";

const LIMIT = 50;
const ORDERS: Record<Order, string> = {
  most_anomalous: "Most anomalous first",
  borderline: "Borderline first",
  random: "Random",
  name: "By name",
  newest: "Newest first",
};

export function Worklist({ route }: { route: Route }) {
  const { page, reader } = useShared();
  const { order = "most_anomalous", state = "", search = "", offset = "0" } = route.params;
  const [list, setList] = useState<StudyList | null>(null);
  const [fault, setFault] = useState("");
  const [typed, setTyped] = useState(search);
  const [turn, setTurn] = useState(0);
  /** What was asked for last, answered or refused. */
  const [settled, setSettled] = useState("");
  const waiting = useRef(false);
  const quiet = useRef(false);
  const searchBox = useRef<HTMLInputElement>(null);
  const again = () => setTurn((n) => n + 1);
  useEffect(() => whenSignedIn(again), []);

  useEffect(() => update({ worklist: route.params }), [route]);
  // What was typed meanwhile must not be overwritten by the search that it was sent as.
  const sent = useRef(search);
  useEffect(() => {
    if (search !== sent.current) setTyped(search);
    sent.current = search;
  }, [search]);
  useEffect(() => {
    document.title = "Worklist · Brain anomalies";
  }, []);

  const question = JSON.stringify([order, state, search, offset]);
  useEffect(() => {
    const stop = new AbortController();
    const params: Params = { order, state, search, offset, limit: String(LIMIT) };
    if (order === "random") params["seed"] = SEED;
    const how = { quiet: quiet.current };
    quiet.current = false;
    waiting.current = true;
    const end = () => {
      if (stop.signal.aborted) return false;
      waiting.current = false;
      setSettled(question);
      return true;
    };
    api.studies(params, stop.signal, how).then(
      (answer) => {
        if (!end()) return;
        setList(answer);
        setFault("");
      },
      (error: unknown) => {
        if (!isAbort(error) && end()) setFault(message(error));
      },
    );
    return () => stop.abort();
  }, [question, turn]);

  // Work that goes on is watched closely; else the list is looked at now and then.
  const going = (list?.counts.running ?? 0) + (list?.counts.queued ?? 0) > 0;
  useEffect(() => {
    const look = () => {
      // A server that takes longer than this is waited for: asked anew it would never come to an answer.
      if (document.visibilityState !== "visible" || waiting.current) return;
      quiet.current = true;
      again();
    };
    const timer = setInterval(look, going ? 3000 : 30000);
    return () => clearInterval(timer);
  }, [going]);

  useEffect(() => {
    if (typed === search) return;
    const timer = setTimeout(() => {
      sent.current = typed;
      change({ search: typed, offset: "" });
    }, 250);
    return () => clearTimeout(timer);
  }, [typed, search]);

  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      const target = event.target as HTMLElement;
      if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|TEXTAREA|SELECT/.test(target.tagName)) return;
      if (document.querySelector("dialog[open]")) return;
      if (event.key === "/") {
        event.preventDefault();
        searchBox.current?.focus();
      } else if (event.key === "n") void openNext();
    };
    window.addEventListener("keydown", press);
    return () => window.removeEventListener("keydown", press);
  }, []);

  const all = useMemo(() => Object.values(list?.counts ?? {}).reduce((sum, count) => sum + (count ?? 0), 0), [list]);
  const start = Number(offset) || 0;
  // The back button leads to the page before; the next one is read from its top.
  const turnTo = (at: number) => {
    go({ ...route, params: { ...route.params, offset: at > 0 ? String(at) : "" } });
    window.scrollTo(0, 0);
  };

  return (
    <main class="worklist" id="main" tabIndex={-1}>
      <div class="worklist-head">
        <h1>Worklist</h1>
        <p class="muted">{list ? plural(all, "study", "studies") : ""}</p>
        <span class="grow" />
        <a class="button quiet" href={files.feedback("csv")} download="feedback.csv">All decisions (CSV)</a>
        <button type="button" class="primary" onClick={() => void openNext()}>Next study <Next /></button>
      </div>
      {page?.uploads ? (
        <UploadArea extensions={page.extensions} onStored={again} />
      ) : page ? (
        <p class="note"><Info /> The scans of this server come from a DICOM archive: send new ones there.</p>
      ) : null}

      <div class="filters" role="search">
        <label class="searchbox">
          <Search />
          <span class="sr-only">Search by name</span>
          <input ref={searchBox} type="search" placeholder="Search by name" value={typed} onInput={(event) => setTyped(event.currentTarget.value)} />
        </label>
        <div class="chips" role="group" aria-label="State">
          <Chip name="All" count={list ? all : null} on={!state} pick={() => change({ state: "", offset: "" })} />
          {(Object.keys(STATES) as State[]).map((one) => (
            <Chip key={one} name={STATES[one]} count={list ? (list.counts[one] ?? 0) : null} on={state === one} pick={() => change({ state: one, offset: "" })} />
          ))}
        </div>
        <label class="field inline">
          <span>Order</span>
          <select value={order} onChange={(event) => change({ order: event.currentTarget.value, offset: "" })}>
            {Object.entries(ORDERS).map(([key, text]) => <option key={key} value={key}>{text}</option>)}
          </select>
        </label>
      </div>

      {fault && (
        <div class="banner error" role="alert">
          <Warn /> <span>The list could not be fetched: {fault}</span>
          <button type="button" onClick={again}>Try again</button>
        </div>
      )}
      {!list && !fault && <p class="empty" role="status">Fetching the list…</p>}
      {list && list.studies.length === 0 && (
        <div class="empty">
          {all === 0 && !search ? (
            <>
              <h2>No scans yet</h2>
              <p>{page?.uploads ? "Drop NIfTI or NRRD files on this page, or put them into the server's studies folder." : "The archive has no series that this server looks for."}</p>
            </>
          ) : (
            <>
              <h2>No study fits</h2>
              <p>{search ? `Nothing is named like “${search}”${state ? ` among those that are ${STATES[state as State].toLowerCase()}` : ""}.` : `No study is in the state “${STATES[state as State] ?? state}”.`}</p>
              <button type="button" onClick={() => change({ search: "", state: "", offset: "" })}>Show all studies</button>
            </>
          )}
        </div>
      )}
      {list && list.studies.length > 0 && (
        <>
          <div class="table-box" aria-busy={settled !== question}>
            <table class="studies">
              <caption class="sr-only">Studies, {ORDERS[order as Order] ?? order}</caption>
              <thead>
                <tr>
                  <th scope="col">Study</th>
                  <th scope="col">State</th>
                  <th scope="col" class="num">Score</th>
                  <th scope="col" class="num" title="Rank among the healthy scans of the calibration">p</th>
                  <th scope="col" class="num">Volume</th>
                  <th scope="col" class="num">Findings</th>
                  <th scope="col">Model</th>
                  <th scope="col">Remarks</th>
                </tr>
              </thead>
              <tbody>{list.studies.map((study) => <Row key={study.image} study={study} reader={reader} />)}</tbody>
            </table>
          </div>
          <nav class="paging" aria-label="Pages of the list">
            <button type="button" disabled={start === 0} onClick={() => turnTo(start - LIMIT)}>Previous</button>
            <span>{(start + 1).toLocaleString("en")}–{(start + list.studies.length).toLocaleString("en")} of {list.total.toLocaleString("en")}</span>
            <button type="button" disabled={start + LIMIT >= list.total} onClick={() => turnTo(start + LIMIT)}>Next</button>
          </nav>
        </>
      )}
    </main>
  );
}

function Chip({ name, count, on, pick }: { name: string; count: number | null; on: boolean; pick: () => void }) {
  return <button type="button" class="chip" aria-pressed={on} onClick={pick}>{name} <span class="count">{count?.toLocaleString("en") ?? "–"}</span></button>;
}

function Row({ study, reader }: { study: Study; reader: string }) {
  const told = study.dicom ? about(study.dicom) : "";
  const held = leaseOf(study);
  const odd = typeof study.gate === "object" && study.gate ? !study.gate.passed : study.gate === false || typeof study.gate === "string";
  const drifted = typeof study.drift === "object" && study.drift ? study.drift.drifted : study.drift === true || typeof study.drift === "string";
  return (
    <tr>
      <th scope="row">
        <a href={hashOf({ view: "study", image: study.image, params: {} })}>{told || study.image}</a>
        {study.sequence && <span class="tag">{sequence(study.sequence)}</span>}
        {told && <span class="about">{study.image}</span>}
      </th>
      <td data-label="State"><Badge state={study.state} /></td>
      <td data-label="Score" class="num strong">{number(study.score)}</td>
      <td data-label="p" class="num">{pValue(study.p_value)}</td>
      <td data-label="Volume" class="num">{millilitres(study.volume_ml)}</td>
      <td data-label="Findings" class="num">{study.lesions ?? "–"}</td>
      <td data-label="Model" class="model">{study.model ?? ""}</td>
      <td data-label="Remarks" class="remarks">
        {odd && <span class="remark warn" title={typeof study.gate === "object" ? study.gate?.reasons.join("; ") : undefined}><Warn /> unusual scan</span>}
        {drifted && <span class="remark warn"><Warn /> drift</span>}
        {study.error && <span class="remark fault" title={study.error}>{study.error}</span>}
        {study.replaced_by_hand && <span class="remark warn" title={`${replacedText(study.replaced_by_hand)}`}><Warn /> scan replaced by hand{study.replaced_by_hand.time ? ` ${localTime(study.replaced_by_hand.time)}` : ""}</span>}
        {held && <span class="remark"><Lock /> {isMine(held, reader) ? "in your hands" : `read by ${held.reader}`} until {clock(held.until)}</span>}
        {study.healthy && <span class="remark">marked healthy</span>}
        {study.review && !study.review.final && <span class="remark">draft review</span>}
      </td>
    </tr>
  );
}

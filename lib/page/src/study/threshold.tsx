/** The slider over the healthy scale. It moves in the browser; on release the findings are asked for anew. */

import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { number, oneIn, percent, words } from "../format";
import type { Params, Result } from "../types";
import { beyondTails, healthyShare } from "./settings";

const STEP = 0.02;
const SETTLE_MS = 250;

interface Props {
  result: Result;
  /** In healthy standard deviations. */
  value: number;
  onMove: (value: number) => void;
  onPick: (params: Params) => void;
  /** Stands at the end of the first line. */
  children?: ComponentChildren;
}

export function range(result: Result): [number, number] {
  const points = Object.values(result.calibration.points);
  const peaks = result.finding.lesions.map((lesion) => lesion.peak_score);
  const low = Math.min(...points, result.finding.threshold, 1);
  const high = Math.max(...points, result.finding.threshold, ...peaks, ...result.bands.map((band) => band.value));
  return [Math.max(0, Math.floor((low - 0.5) * 4) / 4), Math.ceil((high * 1.08 + 0.1) * 4) / 4];
}

export function ThresholdSlider({ result, value, onMove, onPick, children }: Props) {
  // The span must not change under the hand: it only grows.
  const span = useRef<[number, number]>(range(result));
  const now = range(result);
  span.current = [Math.min(span.current[0], now[0]), Math.max(span.current[1], now[1], value)];
  const [low, high] = span.current;
  const timer = useRef(0);
  useEffect(() => () => clearTimeout(timer.current), []);
  const moved = useRef(false);

  const { points, tails } = result.calibration;
  const marks = Object.entries(points)
    .map(([name, at]) => ({ name, at, share: healthyShare(at, tails), left: ((at - low) / (high - low)) * 100 }))
    .sort((a, b) => a.at - b.at);
  const chosen = Object.entries(points).find(([, at]) => Math.abs(at - value) < 1e-4)?.[0];
  const share = healthyShare(value, tails);
  const meaning =
    share == null ? "more than the scale tells" : beyondTails(value, tails) ? `fewer than ${oneIn(share)} healthy voxels lie above` : `${oneIn(share)} healthy voxels lie above (${percent(share)})`;

  const settle = (at: number) => {
    moved.current = false;
    clearTimeout(timer.current);
    timer.current = window.setTimeout(() => onPick({ threshold: String(Number(at.toFixed(3))), operating_point: "" }), SETTLE_MS);
  };
  return (
    <div class="threshold">
      <div class="threshold-words">
        <label for="threshold">Threshold</label>
        <output for="threshold" class="threshold-value">{number(value)} <abbr title="healthy standard deviations">SD</abbr></output>
        <span class="muted threshold-meaning">{chosen ? `${words(chosen)}: ` : ""}{meaning}</span>
        <span class="grow" />
        {children}
      </div>
      <div class="threshold-track">
        <input
          id="threshold"
          type="range"
          min={low}
          max={high}
          step={STEP}
          value={value}
          aria-valuetext={`${number(value)} healthy standard deviations, ${meaning}`}
          onInput={(event) => {
            clearTimeout(timer.current);
            moved.current = true;
            onMove(Number(event.currentTarget.value));
          }}
          // Moved there and back there is no change to tell, but the hand has let go.
          onPointerUp={(event) => moved.current && settle(Number(event.currentTarget.value))}
          onChange={(event) => settle(Number(event.currentTarget.value))}
        />
        <div class="ticks" aria-hidden="true">
          {marks.map((mark) => <i key={mark.name} class="tick-mark" style={{ left: `${mark.left}%` }} />)}
        </div>
      </div>
      <div class="points" role="group" aria-label="Operating points">
        <span class="muted points-note">Healthy voxels marked</span>
        {marks.map((mark) => (
          <button
            key={mark.name}
            type="button"
            class="point"
            aria-pressed={chosen === mark.name}
            title={`Threshold ${number(mark.at)} SD`}
            onClick={() => {
              clearTimeout(timer.current);
              onMove(mark.at);
              onPick({ operating_point: mark.name, threshold: "" });
            }}
          >
            {words(mark.name)} <span class="muted">{mark.share != null ? `${beyondTails(mark.at, tails) ? "< " : ""}${percent(mark.share)}` : number(mark.at)}</span>
          </button>
        ))}
      </div>
    </div>
  );
}

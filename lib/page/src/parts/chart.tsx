/** The scan's score beside those of the healthy scans that the model was calibrated on: one dot each. */

import { number } from "../format";

const WIDTH = 320;
const EDGE = 12;

export function HealthyChart({ score, healthy, pValue }: { score: number; healthy: number[]; pValue: string }) {
  const low = Math.min(score, ...healthy);
  const high = Math.max(score, ...healthy);
  const span = high - low || 1;
  const at = (value: number) => EDGE + ((value - low) / span) * (WIDTH - 2 * EDGE);
  const above = healthy.filter((value) => value >= score).length;
  const label = `Score ${number(score)}; the ${healthy.length} healthy scans lie between ${number(Math.min(...healthy))} and ${number(Math.max(...healthy))}, ${above} of them at or above this scan. p = ${pValue}.`;
  // Dots that would lie on each other are stacked.
  const columns = new Map<number, number>();
  const dots = [...healthy].sort((a, b) => a - b).map((value) => {
    const column = Math.round(at(value) / 7);
    const level = columns.get(column) ?? 0;
    columns.set(column, level + 1);
    return { x: column * 7, y: 44 - level * 7 };
  });
  const x = at(score);
  const anchor = x > WIDTH - 60 ? "end" : x < 60 ? "start" : "middle";
  return (
    <figure class="healthy">
      <svg viewBox={`0 0 ${WIDTH} 66`} role="img" aria-label={label}>
        <line x1={EDGE} x2={WIDTH - EDGE} y1="50" y2="50" class="axis" />
        {dots.map((dot) => <circle cx={dot.x} cy={Math.max(12, dot.y)} r="3" class="dot" />)}
        <line x1={x} x2={x} y1="15" y2="54" class="mine" />
        <text x={x} y="11" text-anchor={anchor} class="mine-text">this scan {number(score)}</text>
        <text x={EDGE} y="63" class="tick">{number(low)}</text>
        <text x={WIDTH - EDGE} y="63" text-anchor="end" class="tick">{number(high)}</text>
      </svg>
      <figcaption>{above} of {healthy.length} healthy scans score as high or higher</figcaption>
    </figure>
  );
}

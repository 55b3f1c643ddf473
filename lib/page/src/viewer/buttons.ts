/** What changes how the images are shown and belongs to no study: side convention, interpolation, the view itself. */

import type { Convention } from "./types";

export interface ButtonEvents {
  convention(): void;
  smooth(): void;
  reset(): void;
}

const CONVENTIONS = {
  radiological: "Radiological: the patient's left is on the right of the screen. Press for neurological.",
  neurological: "Neurological: the patient's left is on the left of the screen. Press for radiological.",
} as const;

export class Buttons {
  readonly element = document.createElement("div");
  private readonly side = button();
  private readonly grain = button();

  constructor(events: ButtonEvents) {
    this.element.className = "av-buttons";
    const reset = button();
    reset.textContent = "Reset view";
    reset.title = "Zoom, turn and grey values as at the start";
    this.side.addEventListener("click", () => events.convention());
    this.grain.addEventListener("click", () => events.smooth());
    reset.addEventListener("click", () => events.reset());
    this.element.append(this.side, this.grain, reset);
  }

  update(convention: Convention, smooth: boolean): void {
    this.side.textContent = convention === "radiological" ? "Radiological" : "Neurological";
    this.side.title = CONVENTIONS[convention];
    this.grain.textContent = smooth ? "Smooth" : "Voxels";
    this.grain.title = smooth ? "Shown smooth between voxels. Press for single voxels." : "Single voxels. Press for smooth.";
  }
}

function button(): HTMLButtonElement {
  const made = document.createElement("button");
  made.type = "button";
  return made;
}

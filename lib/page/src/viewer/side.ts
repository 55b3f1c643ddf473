/** One canvas with its letters and its hands: the scan, or the pseudo-healthy image beside or over it. */

import { CanvasView } from "./canvas_view";
import { Letters } from "./letters";
import { Pointer, type Gestures } from "./pointer";
import type { Convention, Vec3 } from "./types";

export interface SideEvents extends Gestures {
  drawn(side: Side): void;
  lost(): void;
  restored(side: Side): void;
}

export class Side {
  readonly view: CanvasView;
  private readonly letters: Letters;
  private readonly pointer: Pointer;
  private closed = false;

  constructor(readonly panel: HTMLElement, events: SideEvents) {
    this.view = new CanvasView(panel);
    this.letters = new Letters(this.view);
    this.pointer = new Pointer(this.view, events);
    this.view.onDrawn = () => events.drawn(this);
    // Closing a canvas gives its context back, which is no loss.
    this.view.canvas.addEventListener("webglcontextlost", (event) => {
      event.preventDefault();
      if (!this.closed) events.lost();
    });
    this.view.canvas.addEventListener("webglcontextrestored", () => {
      if (!this.closed) events.restored(this);
    });
  }

  /** voxel: counted right, front, up. */
  letter(convention: Convention, voxel: Vec3, dims: Vec3, shifted: boolean): void {
    this.letters.update(convention, voxel, dims, shifted);
  }

  clear(): void {
    this.view.clear();
    this.letters.clear();
  }

  destroy(): void {
    this.closed = true;
    this.pointer.destroy();
    this.view.destroy();
    this.letters.remove();
  }
}

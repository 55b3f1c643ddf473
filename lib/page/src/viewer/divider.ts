/** The divider between scan and pseudo-healthy image: dragged, or moved with the arrow keys. */

const STEP = 0.02;

export class Divider {
  readonly element = document.createElement("div");
  private share = 0.5;

  constructor(private readonly moved: (share: number) => void) {
    const { element } = this;
    element.className = "av-divider";
    element.tabIndex = 0;
    element.setAttribute("role", "slider");
    element.setAttribute("aria-label", "Divider: scan on the left, pseudo-healthy image on the right");
    element.setAttribute("aria-valuemin", "0");
    element.setAttribute("aria-valuemax", "100");
    const handle = document.createElement("span");
    handle.className = "av-divider-handle";
    handle.textContent = "◂ ▸";
    element.append(handle);
    element.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      event.stopPropagation();
      element.focus();
      element.setPointerCapture(event.pointerId);
    });
    element.addEventListener("pointermove", (event) => {
      if (!element.hasPointerCapture(event.pointerId)) return;
      const box = element.parentElement!.getBoundingClientRect();
      this.set((event.clientX - box.left) / box.width);
    });
    element.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -STEP, ArrowRight: STEP, ArrowDown: -STEP, ArrowUp: STEP, PageUp: 0.1, PageDown: -0.1 }[event.key];
      if (by !== undefined) this.set(this.share + by);
      else if (event.key === "Home") this.set(0);
      else if (event.key === "End") this.set(1);
      else return;
      // The page's own keys (lesions) are not meant while the divider has the focus.
      event.preventDefault();
      event.stopPropagation();
    });
    this.place();
  }

  get value(): number {
    return this.share;
  }

  set(share: number): void {
    this.share = Math.min(Math.max(share, 0), 1);
    this.place();
    this.moved(this.share);
  }

  private place(): void {
    this.element.style.left = `${100 * this.share}%`;
    this.element.setAttribute("aria-valuenow", String(Math.round(100 * this.share)));
    this.element.setAttribute("aria-valuetext", `${Math.round(100 * this.share)} % scan`);
  }
}

/** The viewer's part of the document: two panels for canvases, the divider between them, and the line below. */

import { Buttons, type ButtonEvents } from "./buttons";
import { ColourBar } from "./colour_bar";
import { Divider } from "./divider";
import { Readout } from "./readout";
import type { Compare } from "./types";

export class Frame {
  readonly root = element("div", "av");
  readonly stage = element("div", "av-stage");
  readonly scanPanel = element("div", "av-panel av-scan");
  readonly healthyPanel = element("div", "av-panel av-healthy");
  readonly readout = new Readout();
  readonly bar = new ColourBar();
  readonly buttons: Buttons;
  readonly divider = new Divider(() => this.clip());
  private readonly message = element("div", "av-message");
  private readonly caption = element("div", "av-caption");
  private compare: Compare = "off";

  constructor(host: HTMLElement, events: ButtonEvents) {
    this.buttons = new Buttons(events);
    this.root.tabIndex = 0;
    this.root.setAttribute("role", "group");
    this.root.setAttribute("aria-label", "Image viewer: Page Up and Page Down leaf through the slices");
    this.message.setAttribute("role", "status");
    this.caption.textContent = "Scan";
    const other = element("div", "av-caption");
    other.textContent = "Pseudo-healthy; outside the brain the scan, darkened";
    this.scanPanel.append(this.caption);
    this.healthyPanel.append(other);
    this.stage.append(this.scanPanel, this.healthyPanel, this.divider.element, this.message);
    const foot = element("div", "av-foot");
    foot.append(this.readout.element, this.buttons.element, this.bar.element);
    this.root.append(this.stage, foot);
    host.append(this.root);
    this.write(null);
    this.arrange("off");
  }

  /** How the two panels lie. */
  arrange(compare: Compare): void {
    this.compare = compare;
    this.root.dataset.compare = compare;
    this.healthyPanel.hidden = this.caption.hidden = compare === "off";
    this.divider.element.hidden = compare !== "swipe";
    this.clip();
  }

  /** A sentence over the images: what is being waited for, or what went wrong. */
  write(sentence: string | null, kind: "trouble" | "wait" = "wait"): void {
    this.message.hidden = sentence === null;
    this.message.dataset.kind = kind;
    this.message.textContent = sentence ?? "";
  }

  /** Panels beside one another, or over one another where there is more height than width. */
  measure(): void {
    const { clientWidth, clientHeight } = this.stage;
    this.root.toggleAttribute("data-tall", clientHeight > clientWidth * 1.1);
  }

  private clip(): void {
    this.healthyPanel.style.clipPath = this.compare === "swipe" ? `inset(0 0 0 ${100 * this.divider.value}%)` : "";
  }
}

function element(tag: string, name: string): HTMLElement {
  const made = document.createElement(tag);
  made.className = name;
  return made;
}

/** The colours' meaning, in words and shares of healthy voxels; the same for every scan of a model. */

import { mapColour, SHARES, shareInWords, spreadColour, spreadTop, type Rgb, type Scale } from "./colours";
import type { Layer } from "./types";

export interface BarContent {
  layer: Layer;
  scale: Scale;
  threshold: number;
  bands: { name: string; colour: Rgb }[];
}

const css = ([r, g, b]: Rgb): string => `rgb(${r}, ${g}, ${b})`;

export class ColourBar {
  readonly element = document.createElement("figure");
  private readonly strip = document.createElement("canvas");
  private readonly marks = document.createElement("div");
  private readonly words = document.createElement("figcaption");
  private readonly threshold = document.createElement("span");
  private drawn = "";

  constructor() {
    this.element.className = "av-bar";
    this.strip.width = 256;
    this.strip.height = 1;
    this.strip.className = "av-bar-strip";
    this.marks.className = "av-bar-marks";
    this.threshold.className = "av-bar-threshold";
    const track = document.createElement("div");
    track.className = "av-bar-track";
    track.append(this.strip, this.threshold);
    this.element.append(this.words, track, this.marks);
  }

  update(content: BarContent): void {
    const { layer, scale, threshold } = content;
    this.element.hidden = layer === "none";
    if (layer === "none") return;
    const top = layer === "uncertainty" ? spreadTop(scale) : scale.top;
    const name = JSON.stringify([layer, scale, content.bands]);
    if (name !== this.drawn) {
      this.drawn = name;
      this.paint(content, top);
    }
    // What lies below the threshold is not on the scan, so it is not on the bar either.
    const hidden = layer === "uncertainty" ? 0 : Math.min(Math.max(threshold / top, 0), 1);
    this.threshold.style.width = `${100 * hidden}%`;
    this.threshold.hidden = layer === "uncertainty";
    this.words.textContent = this.caption(content);
    this.element.setAttribute("aria-label", this.words.textContent);
  }

  private caption({ layer, scale, threshold }: BarContent): string {
    if (layer === "uncertainty") return "Spread over repeated analyses, in healthy SD";
    const shown = `shown from ${threshold.toFixed(2)} SD`;
    if (!scale.known) return `Healthy SD, ${shown} (shares of healthy voxels unknown)`;
    if (layer === "bands") return "Exceeded by 1 %, 0.1 %, 0.01 % of healthy voxels";
    return `Share of healthy voxels above, ${shown}`;
  }

  private paint({ layer, scale, bands }: BarContent, top: number): void {
    const pen = this.strip.getContext("2d");
    for (let x = 0; pen && x < 256; x++) {
      const value = ((x + 0.5) / 256) * top;
      let colour: Rgb | null = layer === "uncertainty" ? spreadColour(value, scale) : mapColour(value, scale);
      if (layer === "bands") {
        const band = scale.edges.filter((edge) => value >= edge).length - 1;
        colour = band < 0 ? null : bands[band]!.colour;
      }
      pen.fillStyle = colour ? css(colour) : "#000";
      pen.fillRect(x, 0, 1, 1);
    }
    this.marks.replaceChildren();
    if (layer === "uncertainty") {
      for (const share of [0, 0.5, 1]) this.mark(share, (share * top).toFixed(1));
    } else if (layer === "bands") {
      const ends = [...scale.edges, top];
      bands.forEach((band, k) => this.mark((ends[k]! + ends[k + 1]!) / 2 / top, band.name.replace(" suspicion", "")));
    } else {
      scale.edges.forEach((edge, k) => {
        this.mark(edge / top, scale.known ? shareInWords(SHARES[k]!) : edge.toFixed(0), `${edge.toFixed(2)} healthy SD`);
      });
    }
  }

  private mark(share: number, text: string, title = ""): void {
    const span = document.createElement("span");
    span.textContent = text;
    span.title = title;
    span.style.left = `${100 * share}%`;
    this.marks.append(span);
  }
}

/**
 * How a layer's values become colours on the graphics card, for the slices and for the 3-D view.
 *
 * The values lie on the card as they are; the threshold is a number beside them. So a slider follows the hand, where
 * NiiVue by itself would send the whole volume to the card again for every step.
 */

import { mapTable, spreadTable, spreadTop, type Rgb, type Scale } from "./colours";
import { toColumns, type Mat4 } from "./geometry";
import type { Image } from "./image_source";
import { UNITS, VolumePass, type ValueTextures } from "./volume_pass";

export type Paint = "map" | "bands" | "uncertainty";

export interface Look {
  paint: Paint;
  scale: Scale;
  threshold: number;
  opacity: number;
  bands: Rgb[];
}

/** `vec4 layerColour(float value, bool inside)` and the uniforms that it reads. */
// Below the threshold the colour stays that of the threshold and only the opacity is 0: in the 3-D texture the card
// interpolates between voxels, and black with opacity 0 would give every spot a dark rim.
export const LAYER_COLOUR = `
uniform sampler2D colours;
uniform float threshold, layerOpacity, top;
uniform vec3 edges;
uniform vec3 band[3];
uniform int paint;
vec4 layerColour(float value, bool inside) {
  float seen = max(value, threshold);
  float shown = inside && value >= threshold ? layerOpacity : 0.0;
  if (paint == 1) {
    vec3 flatColour = seen >= edges.z ? band[2] : seen >= edges.y ? band[1] : band[0];
    return vec4(flatColour, value >= edges.x ? shown : 0.0);
  }
  float share = clamp((paint == 2 ? value : seen) / top, 0.0, 1.0);
  vec3 colour = texture(colours, vec2(share, 0.5)).rgb;
  if (paint == 2) return vec4(colour, inside ? smoothstep(0.1, 0.35, share) * layerOpacity : 0.0);
  return vec4(colour, shown);
}
bool within(vec3 at) {
  return all(greaterThanEqual(at, vec3(-1e-5))) && all(lessThanEqual(at, vec3(1.00001)));
}`;

const FRAGMENT = `#version 300 es
precision highp float;
precision highp int;
uniform highp sampler3D values;
uniform mat4 toValues;
uniform float level, slope, intercept;
in vec2 at;
out vec4 colour;
${LAYER_COLOUR}
void main() {
  vec3 place = (toValues * vec4(at, level, 1.0)).xyz;
  float value = texture(values, clamp(place, 0.0, 1.0)).r * slope + intercept;
  colour = layerColour(value, within(place));
  // Low values are thin as mist, so that they do not hide the core of a lesion.
  float core = clamp((value - threshold) / max(top - threshold, 1e-6), 0.0, 1.0);
  float banded = value >= edges.z ? 0.9 : value >= edges.y ? 0.25 : 0.08;
  colour.a *= paint == 0 ? mix(0.08, 0.9, core * core) : paint == 1 ? banded : 0.35;
}`;

/** The table of a look's colours, made anew only for another scale. */
export class ColourTable {
  private texture: WebGLTexture | null = null;
  private made = "";

  constructor(private readonly gl: WebGL2RenderingContext) {}

  bind(unit: number, look: Look): void {
    const { gl } = this;
    gl.activeTexture(gl.TEXTURE0 + unit);
    const name = look.paint === "uncertainty" ? "spread" : `map ${look.scale.edges.join()}`;
    if (name === this.made) {
      gl.bindTexture(gl.TEXTURE_2D, this.texture);
      return;
    }
    const table = look.paint === "uncertainty" ? spreadTable() : mapTable(look.scale);
    gl.deleteTexture(this.texture);
    this.texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.pixelStorei(gl.UNPACK_FLIP_Y_WEBGL, false);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, table.length / 4, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, table);
    for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
    for (const f of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, f, gl.LINEAR);
    this.made = name;
  }

  destroy(): void {
    this.gl.deleteTexture(this.texture);
  }
}

/** Set what `LAYER_COLOUR` reads; the program is in use. */
export function setLook(gl: WebGL2RenderingContext, at: (name: string) => WebGLUniformLocation | null, look: Look): void {
  gl.uniform1i(at("colours"), UNITS.colours);
  gl.uniform1f(at("threshold"), look.threshold);
  gl.uniform1f(at("layerOpacity"), look.opacity);
  gl.uniform1f(at("top"), look.paint === "uncertainty" ? spreadTop(look.scale) : look.scale.top);
  gl.uniform3fv(at("edges"), look.scale.edges);
  gl.uniform3fv(at("band"), look.bands.flat().map((v) => v / 255));
  gl.uniform1i(at("paint"), { map: 0, bands: 1, uncertainty: 2 }[look.paint]);
}

/** The layer as a colour texture for NiiVue's 3-D view. */
export class OverlayPainter {
  private readonly pass: VolumePass;

  constructor(private readonly gl: WebGL2RenderingContext, private readonly values: ValueTextures, private readonly table: ColourTable) {
    this.pass = new VolumePass(gl, FRAGMENT);
  }

  /**
   * Fill `out`, an RGBA8 3-D texture of `size`, with the look of `image`.
   * toValues: texture coordinates of `out` to those of `image`.
   */
  paint(out: WebGLTexture, size: number[], image: Image, toValues: Mat4, look: Look): void {
    const { gl, pass } = this;
    this.values.bind(UNITS.layer, image, false);
    this.table.bind(UNITS.colours, look);
    gl.useProgram(pass.program);
    gl.uniform1i(pass.at("values"), UNITS.layer);
    gl.uniformMatrix4fv(pass.at("toValues"), false, toColumns(toValues));
    gl.uniform1f(pass.at("slope"), image.slope);
    gl.uniform1f(pass.at("intercept"), image.intercept);
    setLook(gl, (name) => pass.at(name), look);
    pass.fill(out, size);
  }

  destroy(): void {
    this.pass.destroy();
  }
}

/**
 * Paints a scalar volume into the colour texture that NiiVue lays over the scan, on the graphics card.
 *
 * NiiVue itself sends the whole volume to the card again for every change of a threshold. Here the values stay there;
 * a new threshold is one pass over the texture, so a slider follows the hand.
 */

import { mapTable, spreadTable, spreadTop, type Rgb, type Scale } from "./colours";
import { toColumns, type Mat4 } from "./geometry";
import type { Image } from "./image_source";
import { VolumePass, type ValueTextures } from "./volume_pass";

export type Paint = "map" | "bands" | "uncertainty";

export interface Look {
  paint: Paint;
  scale: Scale;
  threshold: number;
  opacity: number;
  bands: Rgb[];
}

// Below the threshold the colour stays that of the threshold and only the opacity is 0: the card interpolates between
// voxels, and black with opacity 0 would give every spot a dark rim.
const FRAGMENT = `#version 300 es
precision highp float;
precision highp int;
uniform highp sampler3D values;
uniform sampler2D colours;
uniform mat4 toValues;
uniform float level, threshold, opacity, top, slope, intercept;
uniform vec3 edges;
uniform vec3 band[3];
uniform int paint;
uniform bool solid;
in vec2 at;
out vec4 colour;
void main() {
  vec3 where = (toValues * vec4(at, level, 1.0)).xyz;
  vec3 outside = step(where, vec3(-1e-5)) + step(vec3(1.00001), where);
  float value = texture(values, clamp(where, 0.0, 1.0)).r * slope + intercept;
  bool inside = outside.x + outside.y + outside.z == 0.0;
  float shown = inside && value >= threshold ? 1.0 : 0.0;
  float seen = max(value, threshold);
  if (paint == 1) {
    if (value < edges.x) shown = 0.0;
    vec3 flatColour = seen >= edges.z ? band[2] : seen >= edges.y ? band[1] : band[0];
    colour = vec4(flatColour, shown * opacity);
  } else if (paint == 2) {
    float share = clamp(value / top, 0.0, 1.0);
    colour = vec4(texture(colours, vec2(share, 0.5)).rgb, inside ? smoothstep(0.1, 0.35, share) * opacity : 0.0);
  } else {
    colour = vec4(texture(colours, vec2(clamp(seen / top, 0.0, 1.0), 0.5)).rgb, shown * opacity);
  }
  if (solid) {
    float core = clamp((value - threshold) / max(top - threshold, 1e-6), 0.0, 1.0);
    float banded = value >= edges.z ? 0.9 : value >= edges.y ? 0.25 : 0.08;
    colour.a *= paint == 0 ? mix(0.08, 0.9, core * core) : paint == 1 ? banded : 0.35;
  }
}`;

const VALUES_UNIT = 11;
const COLOURS_UNIT = 12;

export class OverlayPainter {
  private readonly pass: VolumePass;
  private colours: WebGLTexture | null = null;
  private coloursOf = "";

  constructor(private readonly gl: WebGL2RenderingContext, private readonly values: ValueTextures) {
    this.pass = new VolumePass(gl, FRAGMENT);
  }

  /**
   * Fill `out`, an RGBA8 3-D texture of `size`, with the look of `image`.
   * toValues: texture coordinates of `out` to those of `image`. exact: both lie on the same voxels. solid: for the
   * 3-D view, where low values are thin as mist, so that they do not hide the core of a lesion.
   */
  paint(
    out: WebGLTexture, size: number[], image: Image, toValues: Mat4, exact: boolean, look: Look, solid: boolean,
  ): void {
    const { gl, pass } = this;
    this.values.bind(VALUES_UNIT, image, exact);
    this.bindColours(look);
    gl.useProgram(pass.program);
    gl.uniform1i(pass.at("values"), VALUES_UNIT);
    gl.uniform1i(pass.at("colours"), COLOURS_UNIT);
    gl.uniformMatrix4fv(pass.at("toValues"), false, toColumns(toValues));
    gl.uniform1f(pass.at("threshold"), look.threshold);
    gl.uniform1f(pass.at("opacity"), look.opacity);
    gl.uniform1f(pass.at("top"), look.paint === "uncertainty" ? spreadTop(look.scale) : look.scale.top);
    gl.uniform1f(pass.at("slope"), image.slope);
    gl.uniform1f(pass.at("intercept"), image.intercept);
    gl.uniform3fv(pass.at("edges"), look.scale.edges);
    gl.uniform3fv(pass.at("band"), look.bands.flat().map((v) => v / 255));
    gl.uniform1i(pass.at("solid"), solid ? 1 : 0);
    gl.uniform1i(pass.at("paint"), { map: 0, bands: 1, uncertainty: 2 }[look.paint]);
    pass.fill(out, size);
  }

  destroy(): void {
    this.gl.deleteTexture(this.colours);
    this.pass.destroy();
  }

  private bindColours(look: Look): void {
    const { gl } = this;
    gl.activeTexture(gl.TEXTURE0 + COLOURS_UNIT);
    const name = look.paint === "uncertainty" ? "spread" : `map ${look.scale.edges.join()}`;
    if (name === this.coloursOf) {
      gl.bindTexture(gl.TEXTURE_2D, this.colours);
      return;
    }
    const table = look.paint === "uncertainty" ? spreadTable() : mapTable(look.scale);
    gl.deleteTexture(this.colours);
    this.colours = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.colours);
    gl.pixelStorei(gl.UNPACK_FLIP_Y_WEBGL, false);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, table.length / 4, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, table);
    for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
    for (const f of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, f, gl.LINEAR);
    this.coloursOf = name;
  }
}

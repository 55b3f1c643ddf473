/**
 * Paints a scalar volume into the colour texture that NiiVue lays over the scan, on the graphics card.
 *
 * NiiVue itself sends the whole volume to the card again for every change of a threshold. Here the values stay there;
 * a new threshold is one pass over the texture, so a slider follows the hand.
 */

import { mapTable, spreadTable, spreadTop, type Rgb, type Scale } from "./colours";
import { toColumns, type Mat4 } from "./geometry";
import type { Image } from "./image_source";

export type Paint = "map" | "bands" | "uncertainty";

export interface Look {
  paint: Paint;
  scale: Scale;
  threshold: number;
  opacity: number;
  bands: Rgb[];
}

const VERTEX = `#version 300 es
layout(location = 0) in vec3 pos;
out vec2 at;
void main() {
  at = pos.xy;
  gl_Position = vec4(pos.xy * 2.0 - 1.0, 0.0, 1.0);
}`;

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
in vec2 at;
out vec4 colour;
void main() {
  vec3 where = (toValues * vec4(at, level, 1.0)).xyz;
  vec3 below = step(where, vec3(-1e-5)) + step(vec3(1.00001), where);
  float value = texture(values, clamp(where, 0.0, 1.0)).r * slope + intercept;
  bool inside = below.x + below.y + below.z == 0.0;
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
}`;

interface Held {
  texture: WebGLTexture;
  image: Image;
}

const VALUES_UNIT = 11;
const COLOURS_UNIT = 12;

export class OverlayPainter {
  private readonly program: WebGLProgram;
  private readonly places = new Map<string, WebGLUniformLocation | null>();
  private readonly held = new Map<Image, Held>();
  private readonly linear: boolean;
  private colours: WebGLTexture | null = null;
  private coloursOf = "";

  constructor(private readonly gl: WebGL2RenderingContext) {
    this.program = linked(gl, VERTEX, FRAGMENT);
    this.linear = gl.getExtension("OES_texture_float_linear") !== null;
  }

  /**
   * Fill `out`, an RGBA8 3-D texture of `size`, with the look of `image`.
   * toValues: texture coordinates of `out` to those of `image`. exact: both lie on the same voxels.
   */
  paint(out: WebGLTexture, size: number[], image: Image, toValues: Mat4, exact: boolean, look: Look): void {
    const { gl } = this;
    const held = this.upload(image);
    gl.activeTexture(gl.TEXTURE0 + VALUES_UNIT);
    gl.bindTexture(gl.TEXTURE_3D, held.texture);
    const filter = exact || !this.linear ? gl.NEAREST : gl.LINEAR;
    gl.texParameteri(gl.TEXTURE_3D, gl.TEXTURE_MIN_FILTER, filter);
    gl.texParameteri(gl.TEXTURE_3D, gl.TEXTURE_MAG_FILTER, filter);
    this.bindColours(look);

    gl.useProgram(this.program);
    gl.uniform1i(this.at("values"), VALUES_UNIT);
    gl.uniform1i(this.at("colours"), COLOURS_UNIT);
    gl.uniformMatrix4fv(this.at("toValues"), false, toColumns(toValues));
    gl.uniform1f(this.at("threshold"), look.threshold);
    gl.uniform1f(this.at("opacity"), look.opacity);
    gl.uniform1f(this.at("top"), look.paint === "uncertainty" ? spreadTop(look.scale) : look.scale.top);
    gl.uniform1f(this.at("slope"), image.slope);
    gl.uniform1f(this.at("intercept"), image.intercept);
    gl.uniform3fv(this.at("edges"), look.scale.edges);
    gl.uniform3fv(this.at("band"), look.bands.flat().map((v) => v / 255));
    gl.uniform1i(this.at("paint"), { map: 0, bands: 1, uncertainty: 2 }[look.paint]);
    this.fill(out, size);
  }

  /** Free what belongs to images that are no longer shown. */
  keepOnly(images: readonly (Image | null)[]): void {
    for (const [image, held] of this.held) {
      if (images.includes(image)) continue;
      this.gl.deleteTexture(held.texture);
      this.held.delete(image);
    }
  }

  destroy(): void {
    this.keepOnly([]);
    this.gl.deleteTexture(this.colours);
    this.gl.deleteProgram(this.program);
  }

  private fill(out: WebGLTexture, size: number[]): void {
    const { gl } = this;
    const target = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, target);
    gl.viewport(0, 0, size[0]!, size[1]!);
    gl.disable(gl.BLEND);
    gl.disable(gl.CULL_FACE);
    gl.disable(gl.DEPTH_TEST);
    for (let k = 0; k < size[2]!; k++) {
      gl.framebufferTextureLayer(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, out, 0, k);
      gl.uniform1f(this.at("level"), (k + 0.5) / size[2]!);
      gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    }
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.deleteFramebuffer(target);
    gl.viewport(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight);
  }

  private upload(image: Image): Held {
    const known = this.held.get(image);
    if (known) return known;
    const { gl } = this;
    const texture = gl.createTexture();
    gl.activeTexture(gl.TEXTURE0 + VALUES_UNIT);
    gl.bindTexture(gl.TEXTURE_3D, texture);
    for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T, gl.TEXTURE_WRAP_R]) {
      gl.texParameteri(gl.TEXTURE_3D, side, gl.CLAMP_TO_EDGE);
    }
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    const [x, y, z] = image.dims;
    gl.texStorage3D(gl.TEXTURE_3D, 1, gl.R32F, x, y, z);
    const all = image.data instanceof Float32Array ? image.data : Float32Array.from(image.data);
    gl.texSubImage3D(gl.TEXTURE_3D, 0, 0, 0, 0, x, y, z, gl.RED, gl.FLOAT, all, 0);
    const held = { texture, image };
    this.held.set(image, held);
    return held;
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

  private at(name: string): WebGLUniformLocation | null {
    if (!this.places.has(name)) this.places.set(name, this.gl.getUniformLocation(this.program, name));
    return this.places.get(name)!;
  }
}

export function linked(gl: WebGL2RenderingContext, vertex: string, fragment: string): WebGLProgram {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]] as const) {
    const shader = gl.createShader(kind)!;
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
    gl.deleteShader(shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
    throw new Error(`The graphics card refuses the overlay: ${gl.getProgramInfoLog(program) ?? "no reason given"}`);
  }
  return program;
}

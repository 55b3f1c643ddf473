/**
 * Paints the scan's grey values through the window for the 3-D view, on the graphics card: the brain alone, since
 * skin and skull would hide what the map shows.
 */

import { toColumns, type Mat4 } from "./geometry";
import type { Image } from "./image_source";
import { UNITS, VolumePass, type ValueTextures } from "./volume_pass";

// Dark fluid lets the surface of the brain behind it show.
const FRAGMENT = `#version 300 es
precision highp float;
uniform highp sampler3D values;
uniform highp sampler3D mask;
uniform mat4 toValues, toMask;
uniform float level, slope, intercept;
uniform vec2 range;
uniform bool masked;
in vec2 at;
out vec4 colour;
void main() {
  vec4 here = vec4(at, level, 1.0);
  float value = texture(values, clamp((toValues * here).xyz, 0.0, 1.0)).r * slope + intercept;
  float grey = clamp((value - range.x) / (range.y - range.x), 0.0, 1.0);
  float inside = masked ? step(0.5, texture(mask, clamp((toMask * here).xyz, 0.0, 1.0)).r) : 1.0;
  colour = vec4(vec3(grey), inside * smoothstep(0.12, 0.4, grey));
}`;

export interface Masked {
  image: Image;
  toMask: Mat4;
}

export class ScanPainter {
  private readonly pass: VolumePass;

  constructor(private readonly gl: WebGL2RenderingContext, private readonly values: ValueTextures) {
    this.pass = new VolumePass(gl, FRAGMENT);
  }

  /** Fill `out`, an RGBA8 3-D texture of `size`; `toValues` as in the overlay's painter. mask: what stays opaque. */
  paint(out: WebGLTexture, size: number[], scan: Image, toValues: Mat4, range: [number, number], mask: Masked | null): void {
    const { gl, pass } = this;
    this.values.bind(UNITS.scan, scan, false);
    this.values.bind(UNITS.mask, mask?.image ?? scan, false);
    gl.useProgram(pass.program);
    gl.uniform1i(pass.at("values"), UNITS.scan);
    gl.uniform1i(pass.at("mask"), UNITS.mask);
    gl.uniformMatrix4fv(pass.at("toValues"), false, toColumns(toValues));
    gl.uniformMatrix4fv(pass.at("toMask"), false, toColumns(mask?.toMask ?? toValues));
    gl.uniform1f(pass.at("slope"), scan.slope);
    gl.uniform1f(pass.at("intercept"), scan.intercept);
    gl.uniform2f(pass.at("range"), range[0], range[1]);
    gl.uniform1i(pass.at("masked"), mask ? 1 : 0);
    pass.fill(out, size);
  }

  destroy(): void {
    this.pass.destroy();
  }
}

/**
 * A ball lit from the upper left, which NiiVue takes the shading of surfaces from; made here, since NiiVue's own is
 * a picture behind a `data:` address.
 */
export function litBall(gl: WebGL2RenderingContext, unit: number): WebGLTexture {
  const size = 64;
  const pixels = new Uint8Array(size * size * 4);
  for (let y = 0; y < size; y++)
    for (let x = 0; x < size; x++) {
      const [u, v] = [((x + 0.5) / size) * 2 - 1, ((y + 0.5) / size) * 2 - 1];
      const w = Math.sqrt(Math.max(0, 1 - u * u - v * v));
      const light = Math.max(0, -0.35 * u - 0.5 * v + 0.79 * w);
      const grey = Math.round(255 * Math.min(1, 0.3 + 0.62 * light));
      pixels.set([grey, grey, grey, 255], (y * size + x) * 4);
    }
  const texture = gl.createTexture();
  gl.activeTexture(gl.TEXTURE0 + unit);
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.pixelStorei(gl.UNPACK_FLIP_Y_WEBGL, false);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, size, size, 0, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
  for (const f of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, f, gl.LINEAR);
  return texture;
}

/** How NiiVue's slices are coloured here: from the values themselves, for every pixel of the screen. */

import { toColumns, type Mat4 } from "./geometry";
import type { Image } from "./image_source";
import { LAYER_COLOUR, setLook, type Look } from "./overlay_painter";
import { UNITS } from "./volume_pass";

// Where the card cannot read between float voxels, eight reads do it.
export const SLICE_FRAGMENT = `#version 300 es
precision highp int;
precision highp float;
uniform highp sampler3D scanValues;
uniform highp sampler3D layerValues;
uniform mat4 toScan;
uniform mat4 toLayer;
uniform vec2 range;
uniform vec2 scanScale;
uniform vec2 layerScale;
uniform bool layered;
uniform bool byHand;
in vec3 texPos;
out vec4 color;
${LAYER_COLOUR}
float read(highp sampler3D values, vec3 place) {
  place = clamp(place, 0.0, 1.0);
  if (!byHand) return texture(values, place).r;
  ivec3 size = textureSize(values, 0);
  vec3 at = place * vec3(size) - 0.5;
  ivec3 low = ivec3(floor(at));
  vec3 share = at - vec3(low);
  float sum = 0.0;
  for (int k = 0; k < 8; k++) {
    ivec3 corner = ivec3(k & 1, (k >> 1) & 1, k >> 2);
    vec3 weight = mix(1.0 - share, share, vec3(corner));
    sum += weight.x * weight.y * weight.z * texelFetch(values, clamp(low + corner, ivec3(0), size - 1), 0).r;
  }
  return sum;
}
void main() {
  float value = read(scanValues, (toScan * vec4(texPos, 1.0)).xyz) * scanScale.x + scanScale.y;
  color = vec4(vec3(clamp((value - range.x) / (range.y - range.x), 0.0, 1.0)), 1.0);
  if (!layered) return;
  vec3 place = (toLayer * vec4(texPos, 1.0)).xyz;
  vec4 over = layerColour(read(layerValues, place) * layerScale.x + layerScale.y, within(place));
  color.rgb = mix(color.rgb, over.rgb, over.a);
}`;

export interface SliceLook {
  scan: Image;
  toScan: Mat4;
  range: [number, number];
  layer: Image | null;
  toLayer: Mat4;
  look: Look | null;
  byHand: boolean;
}

/** Set the uniforms of a program made of `SLICE_FRAGMENT`. */
export function setSliceLook(gl: WebGL2RenderingContext, program: WebGLProgram, set: SliceLook): void {
  const at = (name: string): WebGLUniformLocation | null => gl.getUniformLocation(program, name);
  gl.useProgram(program);
  gl.uniform1i(at("scanValues"), UNITS.scan);
  gl.uniform1i(at("layerValues"), UNITS.layer);
  gl.uniformMatrix4fv(at("toScan"), false, toColumns(set.toScan));
  gl.uniformMatrix4fv(at("toLayer"), false, toColumns(set.toLayer));
  gl.uniform2f(at("range"), set.range[0], set.range[1]);
  gl.uniform2f(at("scanScale"), set.scan.slope, set.scan.intercept);
  gl.uniform2f(at("layerScale"), set.layer?.slope ?? 1, set.layer?.intercept ?? 0);
  gl.uniform1i(at("layered"), set.layer && set.look ? 1 : 0);
  gl.uniform1i(at("byHand"), set.byHand ? 1 : 0);
  if (set.look) setLook(gl, at, set.look);
  else gl.uniform1i(at("colours"), UNITS.colours);
}

/** Passes of the graphics card over a volume: values stay on the card, colours are made from them slice by slice. */

import type { Image } from "./image_source";

/** Texture units beyond those that NiiVue uses. */
export const UNITS = { scan: 11, colours: 12, layer: 13, mask: 14 } as const;

const VERTEX = `#version 300 es
layout(location = 0) in vec3 pos;
out vec2 at;
void main() {
  at = pos.xy;
  gl_Position = vec4(pos.xy * 2.0 - 1.0, 0.0, 1.0);
}`;

/** The values of images as float textures, sent to the card once. */
export class ValueTextures {
  private readonly held = new Map<Image, WebGLTexture>();
  /** Whether the card reads between float voxels by itself; many tablets do not. */
  readonly linear: boolean;

  constructor(private readonly gl: WebGL2RenderingContext) {
    this.linear = gl.getExtension("OES_texture_float_linear") !== null;
  }

  /** smooth: read between voxels, where the card can. */
  bind(unit: number, image: Image, smooth: boolean): void {
    const { gl } = this;
    gl.activeTexture(gl.TEXTURE0 + unit);
    let texture = this.held.get(image);
    if (texture) gl.bindTexture(gl.TEXTURE_3D, texture);
    else {
      texture = this.sent(image);
      this.held.set(image, texture);
    }
    const filter = smooth && this.linear ? gl.LINEAR : gl.NEAREST;
    gl.texParameteri(gl.TEXTURE_3D, gl.TEXTURE_MIN_FILTER, filter);
    gl.texParameteri(gl.TEXTURE_3D, gl.TEXTURE_MAG_FILTER, filter);
  }

  keepOnly(images: readonly (Image | null)[]): void {
    for (const [image, texture] of this.held) {
      if (images.includes(image)) continue;
      this.gl.deleteTexture(texture);
      this.held.delete(image);
    }
  }

  private sent(image: Image): WebGLTexture {
    const { gl } = this;
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_3D, texture);
    for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T, gl.TEXTURE_WRAP_R]) {
      gl.texParameteri(gl.TEXTURE_3D, side, gl.CLAMP_TO_EDGE);
    }
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    const [x, y, z] = image.dims;
    gl.texStorage3D(gl.TEXTURE_3D, 1, gl.R32F, x, y, z);
    const all = image.data instanceof Float32Array ? image.data : Float32Array.from(image.data);
    gl.texSubImage3D(gl.TEXTURE_3D, 0, 0, 0, 0, x, y, z, gl.RED, gl.FLOAT, all, 0);
    return texture;
  }
}

/** A program with the places of its uniforms, and the loop over the slices of its output. */
export class VolumePass {
  readonly program: WebGLProgram;
  private readonly places = new Map<string, WebGLUniformLocation | null>();

  constructor(private readonly gl: WebGL2RenderingContext, fragment: string) {
    this.program = linked(gl, VERTEX, fragment);
  }

  at(name: string): WebGLUniformLocation | null {
    if (!this.places.has(name)) this.places.set(name, this.gl.getUniformLocation(this.program, name));
    return this.places.get(name)!;
  }

  /** The program is in use and a square of 0..1 is bound as vertices; `level` is the uniform of the slice's place. */
  fill(out: WebGLTexture, size: number[]): void {
    const { gl } = this;
    const target = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, target);
    gl.viewport(0, 0, size[0]!, size[1]!);
    for (const off of [gl.BLEND, gl.CULL_FACE, gl.DEPTH_TEST, gl.SCISSOR_TEST]) gl.disable(off);
    for (let k = 0; k < size[2]!; k++) {
      gl.framebufferTextureLayer(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, out, 0, k);
      gl.uniform1f(this.at("level"), (k + 0.5) / size[2]!);
      gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    }
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.deleteFramebuffer(target);
    gl.viewport(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight);
  }

  destroy(): void {
    this.gl.deleteProgram(this.program);
  }
}

function linked(gl: WebGL2RenderingContext, vertex: string, fragment: string): WebGLProgram {
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
    throw new Error(`The graphics card refuses to colour the images: ${gl.getProgramInfoLog(program) ?? "no reason given"}`);
  }
  return program;
}

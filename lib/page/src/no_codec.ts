/** Stands in for codecs of Zarr, a format that this page never reads: 1.4 MB and WebAssembly less. */
export default class NoCodec {
  constructor() {
    throw new Error("this page does not read Zarr");
  }
}

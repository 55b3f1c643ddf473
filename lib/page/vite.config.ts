import { fileURLToPath } from "node:url";
import { defineConfig } from "vite";
import { licences } from "./scripts/licences.ts";

// Relative addresses: MONAI Label may be served under a prefix, or behind a proxy.
export default defineConfig({
  base: "./",
  plugins: [licences()],
  resolve: {
    alias: [{ find: /^numcodecs\/(blosc|lz4|zstd)$/, replacement: fileURLToPath(new URL("src/no_codec.ts", import.meta.url)) }],
  },
  build: {
    target: "es2022",
    outDir: "dist",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    sourcemap: false,
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 4000,
  },
});

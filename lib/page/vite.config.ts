import { defineConfig } from "vite";

// Relative addresses: MONAI Label may be served under a prefix, or behind a proxy.
export default defineConfig({
  base: "./",
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

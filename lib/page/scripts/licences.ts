/** The licences of every package whose code is in the build, into dist/THIRD-PARTY-LICENSES.txt. */

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Plugin } from "vite";

const ALLOWED = new Set(["MIT", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "ISC", "0BSD"]);
/** Packages that come without the text of their licence: it was taken from their repository. */
const OWN_TEXTS = new URL("../licences/", import.meta.url).pathname;

interface Described {
  name: string;
  version: string;
  license: string;
}

/** The package's folder, out of a module's address: the last node_modules/ decides. */
function folderOf(id: string): string | null {
  const found = /^(.*\/node_modules\/(?:@[^/]+\/)?[^/]+)\//.exec(id.replace(/^\0/, "").split("?")[0] ?? "");
  return found?.[1] ?? null;
}

function text(folder: string, name: string): string {
  const own = join(OWN_TEXTS, `${name.replace("/", "__")}.txt`);
  if (existsSync(own)) return readFileSync(own, "utf8");
  const file = readdirSync(folder).find((one) => /^(licen[cs]e|copying)/i.test(one));
  if (!file) throw new Error(`${name} has no licence file; put its text into ${own}`);
  return readFileSync(join(folder, file), "utf8");
}

export function licences(): Plugin {
  return {
    name: "third-party-licences",
    generateBundle(_options, bundle) {
      const folders = new Set<string>();
      for (const chunk of Object.values(bundle))
        if (chunk.type === "chunk") for (const id of Object.keys(chunk.modules)) {
          const folder = folderOf(id);
          if (folder) folders.add(folder);
        }
      const parts = [...folders].map((folder) => {
        const { name, version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8")) as Described;
        if (!ALLOWED.has(license)) throw new Error(`${name} ${version} is under ${license}, which is not one of ${[...ALLOWED].join(", ")}`);
        return `${name} ${version} (${license})\n\n${text(folder, name).trim()}\n`;
      });
      for (const extra of readdirSync(OWN_TEXTS).filter((one) => one.startsWith("embedded-")))
        parts.push(readFileSync(join(OWN_TEXTS, extra), "utf8"));
      const head = "The page /anomaly/ contains code of these packages.\n";
      this.emitFile({ type: "asset", fileName: "THIRD-PARTY-LICENSES.txt", source: [head, ...parts.sort()].join(`\n${"-".repeat(80)}\n\n`) });
    },
  };
}

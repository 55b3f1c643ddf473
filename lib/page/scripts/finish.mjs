// Writes down which sources dist/ was built from, so that a test can tell without Node whether it is up to date.
// The recipe is in tests/lib/test_page.py: sha256 over "name\0sha256 of the content\n" of every source, by name.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const ROOT = new URL("..", import.meta.url).pathname;
const SOURCES = ["index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "src", "scripts", "licences"];

function files(path) {
  return statSync(join(ROOT, path)).isDirectory() ? readdirSync(join(ROOT, path)).flatMap((name) => files(`${path}/${name}`)) : [path];
}

const sha256 = (content) => createHash("sha256").update(content).digest("hex");
const names = SOURCES.flatMap(files).sort((a, b) => (a < b ? -1 : 1));
const lines = names.map((name) => `${name}\0${sha256(readFileSync(join(ROOT, name)))}\n`);
writeFileSync(join(ROOT, "dist", "SOURCES.sha256"), `${sha256(lines.join(""))}\n`);

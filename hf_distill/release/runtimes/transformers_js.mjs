// transformers.js in Node.

import { createRequire } from "node:module";
import { basename, dirname, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { rows } from "./transformers_js_rows.mjs";

export async function embed({ place, packages, ...wanted }) {
  const from = createRequire(join(resolve(place), "package.json"));
  const library = await import(pathToFileURL(from.resolve(packages[0])));
  library.env.localModelPath = dirname(wanted.student.folder);
  return rows(library, basename(wanted.student.folder), { device: "cpu" }, wanted);
}

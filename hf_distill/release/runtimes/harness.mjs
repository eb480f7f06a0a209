// Run by Node: a runtime in JavaScript embeds texts with a student, as harness.py does for Python.
// Reads one JSON object from standard input, writes a .npy, and prints a line of JSON with the
// versions of the packages and what is missing. Packages lie in the node_modules of `place`.
//
// A runtime exports `embed(wanted)`, which returns a row a text: queries first, then documents. One
// that needs a program exports `program`, and `version()`, which is null where that is missing.

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

function npy(rows) {
  const shape = `(${rows.length}, ${rows[0].length})`;
  const described = `{'descr': '<f4', 'fortran_order': False, 'shape': ${shape}, }`;
  const header = described.padEnd(Math.ceil((described.length + 11) / 64) * 64 - 11) + "\n";
  const start = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, header.length & 255, header.length >> 8];
  const values = Buffer.alloc(4 * rows.length * rows[0].length);
  rows.flat().forEach((value, i) => values.writeFloatLE(value, 4 * i));
  return Buffer.concat([Buffer.from(start), Buffer.from(header), values]);
}

const wanted = JSON.parse(readFileSync(0, "utf8"));
const versions = { node: process.versions.node };
const missing = [];
for (const name of wanted.packages) {
  const about = join(wanted.place, "node_modules", name, "package.json");
  if (existsSync(about)) versions[name] = JSON.parse(readFileSync(about, "utf8")).version;
  else missing.push(name);
}
const { embed, program, version } = await import(pathToFileURL(wanted.runtime));
if (program) {
  const found = version();
  if (found) versions[program] = found;
  else missing.push(program);
}
if (wanted.out && missing.length === 0) writeFileSync(wanted.out, npy(await embed(wanted)));
console.log(JSON.stringify({ versions, missing }));
process.exit(0); // whatever a library still has open

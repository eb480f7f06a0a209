// transformers.js in Node: reads one JSON object from standard input, writes a .npy, and prints a
// line of JSON, as harness.py does. The package lies in the node_modules of the folder `place`.

import { createRequire } from "node:module";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, basename, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const BATCH = 16;

function npy(rows) {
  const shape = `(${rows.length}, ${rows[0].length})`;
  const described = `{'descr': '<f4', 'fortran_order': False, 'shape': ${shape}, }`;
  const header = described.padEnd(Math.ceil((described.length + 11) / 64) * 64 - 11) + "\n";
  const start = Buffer.from([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, header.length & 255, header.length >> 8]);
  const values = Buffer.alloc(4 * rows.length * rows[0].length);
  rows.flat().forEach((value, i) => values.writeFloatLE(value, 4 * i));
  return Buffer.concat([start, Buffer.from(header), values]);
}

const wanted = JSON.parse(readFileSync(0, "utf8"));
const versions = { node: process.versions.node };
const missing = [];
for (const name of wanted.packages) {
  const about = join(wanted.place, "node_modules", name, "package.json");
  if (existsSync(about)) versions[name] = JSON.parse(readFileSync(about, "utf8")).version;
  else missing.push(name);
}
if (wanted.out && missing.length === 0) {
  const from = createRequire(join(resolve(wanted.place), "package.json"));
  const { AutoModel, AutoTokenizer, env } = await import(pathToFileURL(from.resolve(wanted.packages[0])));
  const { folder, file, prompts, max_length } = wanted.student;
  env.allowRemoteModels = false;
  env.localModelPath = dirname(folder);
  const dtype = file.includes("quantized") ? "q8" : "fp32";
  const name = basename(folder);
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  const model = await AutoModel.from_pretrained(name, { dtype, device: "cpu" });
  const rows = [];
  for (const [texts, kind] of [[wanted.queries, "query"], [wanted.documents, "document"]]) {
    for (let start = 0; start < texts.length; start += BATCH) {
      const batch = texts.slice(start, start + BATCH).map((text) => prompts[kind] + text);
      const tokens = tokenizer(batch, { padding: true, truncation: true, max_length });
      const { sentence_embedding } = await model(tokens);
      rows.push(...sentence_embedding.tolist());
    }
  }
  writeFileSync(wanted.out, npy(rows));
}
console.log(JSON.stringify({ versions, missing }));

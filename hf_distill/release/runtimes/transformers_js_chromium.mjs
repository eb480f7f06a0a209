// transformers.js in a headless Chromium: a server on loopback gives it a page, the library, the
// student and the texts; the page embeds them and sends the embeddings back.

import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

const NAMES = ["chromium", "chromium-browser", "google-chrome"];
const OPTIONS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
  "--disable-background-networking",
];
const TYPES = { ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm" };
const WEB = "/node_modules/@huggingface/transformers/dist/transformers.web.js";
const ORT = "/node_modules/onnxruntime-web/dist/";

const PAGE = `<!DOCTYPE html><meta charset="utf-8">
<script type="importmap">{"imports": {
  "onnxruntime-web/webgpu": "${ORT}ort.webgpu.min.mjs",
  "onnxruntime-common": "/node_modules/onnxruntime-common/dist/esm/index.js"
}}</script>
<script type="module">
const send = (route, body) => fetch(route, { method: "POST", body: JSON.stringify(body) });
try {
  const wanted = await (await fetch("/wanted")).json();
  const { rows } = await import("/runtimes/transformers_js_rows.mjs");
  const library = await import("${WEB}");
  library.env.localModelPath = "/";
  library.env.useBrowserCache = false;
  library.env.backends.onnx.wasm.wasmPaths = "${ORT}";
  library.env.backends.onnx.wasm.numThreads = 1;
  await send("/embeddings", await rows(library, "student", { device: "wasm" }, wanted));
} catch (error) {
  await send("/failed", String(error.stack ?? error));
}
</script>`;

function named() {
  for (const name of NAMES) {
    try {
      return [name, execFileSync(name, ["--version"], { encoding: "utf8", stdio: "pipe" })];
    } catch (error) {
      if (error.code !== "ENOENT") throw error;
    }
  }
  return [null, null];
}

export const program = "chromium";
export const version = () => named()[1]?.match(/[0-9.]+/)[0] ?? null;

export async function embed({ place, student, queries, documents }) {
  const folders = {
    node_modules: join(place, "node_modules"), student: student.folder,
    runtimes: fileURLToPath(new URL(".", import.meta.url)),
  };
  const wanted = JSON.stringify({ student, queries, documents });
  let answered;
  const answer = new Promise((resolve, reject) => (answered = { resolve, reject }));

  function reply(request, response) {
    const path = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
    if (request.method === "POST") {
      const parts = [];
      request.on("data", (part) => parts.push(part));
      request.on("end", () => {
        const body = JSON.parse(Buffer.concat(parts));
        if (path === "/embeddings") answered.resolve(body);
        else answered.reject(new Error(body));
        response.end();
      });
      return;
    }
    const [first, ...rest] = path.slice(1).split("/");
    try {
      const content = path === "/" ? PAGE : path === "/wanted" ? wanted
        : readFileSync(join(folders[first] ?? "/nowhere", normalize(`/${rest.join("/")}`)));
      response.setHeader("Content-Type", path === "/" ? "text/html" : TYPES[extname(path)] ?? "");
      response.end(content);
    } catch {
      response.statusCode = 404;
      response.end();
    }
  }

  const server = createServer(reply);
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const profile = mkdtempSync(join(tmpdir(), "chromium-"));
  const address = `http://127.0.0.1:${server.address().port}/`;
  const line = [...OPTIONS, `--user-data-dir=${profile}`, address];
  const browser = spawn(named()[0], line, { stdio: "ignore", detached: true });
  browser.on("exit", (code) => answered.reject(new Error(`Chromium ended with code ${code}`)));
  try {
    return await answer;
  } finally {
    if ((browser.exitCode ?? browser.signalCode) === null) process.kill(-browser.pid, "SIGKILL");
    server.closeAllConnections();
    server.close();
    rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
  }
}

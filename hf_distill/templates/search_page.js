// The search page. It embeds a question with the student and compares it with every document of the
// index. Everything happens in this browser: no question leaves it.

const TOP = 10;
const TYPING = 80; // milliseconds without a key before a question is answered
const SHOWN = 420; // characters of a document that are shown at once
const CHIPS = 6;
const LIKE = 0.98; // the least cosine of the probe's embedding to the one that was stored

const at = (url) => new URL(url, import.meta.url).href;
const element = (id) => document.getElementById(id);
const box = element("question");
const count = (number) => number.toLocaleString("en");
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const one_line = (text) => text.replace(/\s+/g, " ").trim();

function make(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text; // never as HTML
  if (className) made.className = className;
  return made;
}

// --- loading -------------------------------------------------------------------------------------

const loaded = {}; // what for -> bytes

async function load(file, what) {
  const response = await fetch(at(file.url), { integrity: file.integrity });
  if (!response.ok) throw new Error(`${file.url} answers HTTP ${response.status}`);
  const stream = file.gzip
    ? response.body.pipeThrough(new DecompressionStream("gzip"))
    : response.body;
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  loaded[what] = (loaded[what] ?? 0) + file.bytes;
  element("progress").value += file.bytes;
  return bytes;
}

const parsed = (bytes) => JSON.parse(new TextDecoder().decode(bytes));

async function loadIndex({ vectors, documents, dimension }) {
  const index = { codes: new Int8Array(documents * dimension), scales: new Float32Array(documents) };
  await Promise.all(
    vectors.map(async (part) => {
      const { buffer } = await load(part, "index");
      index.scales.set(new Float32Array(buffer, 0, part.rows), part.start);
      index.codes.set(new Int8Array(buffer, 4 * part.rows), part.start * dimension);
    }),
  );
  return index;
}

async function loadStudent(settings) {
  const [{ env, InferenceSession, Tensor }, { Tokenizer }, wasm, model, tokenizer] =
    await Promise.all([
      import(at(settings.onnxruntime)),
      import(at(settings.tokenizers)),
      load(settings.wasm, "runtime"),
      load(settings.model, "student"),
      load(settings.tokenizer, "student"),
    ]);
  env.wasm.numThreads = 1; // more need headers that most static hosts do not send
  env.wasm.wasmBinary = wasm;
  const session = await InferenceSession.create(model, { executionProviders: ["wasm"] });
  return { session, Tensor, tokenizer: new Tokenizer(parsed(tokenizer), {}) };
}

// --- answering -----------------------------------------------------------------------------------

let settings, student, index, examples;
const exampleOf = new Map(); // text in the box -> example

function tokensOf(text) {
  const { prompt, prefix, suffix, length } = settings;
  const { ids } = student.tokenizer.encode(prompt + text, { add_special_tokens: false });
  return [...prefix, ...ids.slice(0, length - prefix.length - suffix.length), ...suffix];
}

async function embed(text) {
  const ids = tokensOf(text);
  const shape = [1, ids.length];
  const answer = await student.session.run({
    input_ids: new student.Tensor("int64", BigInt64Array.from(ids, BigInt), shape),
    attention_mask: new student.Tensor("int64", new BigInt64Array(ids.length).fill(1n), shape),
  });
  const embedding = Float32Array.from(answer[settings.output].data);
  const norm = Math.hypot(...embedding) || 1;
  return embedding.map((value) => value / norm);
}

// The best of the first `rows` documents: [[row, cosine], ...]. Equal ones in the order of rows.
function search(query, rows) {
  const { codes, scales } = index;
  const best = [];
  for (let row = 0, place = 0; row < rows; row++) {
    let sum = 0;
    for (let i = 0; i < query.length; i++, place++) sum += query[i] * codes[place];
    const score = sum * scales[row];
    if (best.length === TOP && score <= best[TOP - 1][1]) continue;
    let rank = best.length;
    while (rank > 0 && best[rank - 1][1] < score) rank--;
    best.splice(rank, 0, [row, score]);
    best.length = Math.min(best.length, TOP);
  }
  return best;
}

const parts = new Map(); // part of the texts -> promise of its [[id, text], ...]

async function documentOf(row) {
  const part = settings.texts.find(({ start, rows }) => row < start + rows);
  if (!parts.has(part)) parts.set(part, load(part, "texts").then(parsed));
  return (await parts.get(part))[row - part.start];
}

async function answer(text) {
  const example = exampleOf.get(text);
  const start = performance.now();
  const query = await embed(example?.student ?? text);
  const embedded = performance.now();
  const rows = example?.teacher ? settings.searched : settings.documents;
  const hits = search(query, rows);
  const end = performance.now();
  const lists = [[settings.student, hits]];
  if (example?.teacher) {
    const read = example.query ? `${settings.teacher}, which read: ${example.query}` : settings.teacher;
    lists.push([read, example.teacher]);
  }
  const shown = await Promise.all(
    lists.map(async ([name, list]) => [
      name,
      await Promise.all(
        list.map(async ([row, score]) => [row, score, ...(await documentOf(row))]),
      ),
    ]),
  );
  show(shown, example);
  const times = [embedded - start, end - embedded].map((time) => time.toFixed(1));
  const said = [
    `${hits.length} of ${count(rows)} ${rows < settings.documents ? "held-out " : ""}documents`,
    `question embedded in ${times[0]} ms, searched in ${times[1]} ms`,
  ];
  if (example?.teacher) {
    const own = new Set(hits.map(([row]) => row));
    const both = example.teacher.filter(([row]) => own.has(row)).length;
    said.push(`${both} of the teacher's ${example.teacher.length} are among them`);
  }
  say(said.join("; ") + ".");
  showSize();
  performance.measure("answer", { start, end });
}

// Answer one question at a time. Of those that are typed meanwhile, the last one counts.
let wanted = null;
let working = false;

async function ask(text) {
  wanted = text;
  if (working || !student) return;
  working = true;
  try {
    while (wanted !== null) {
      const next = one_line(wanted);
      wanted = null;
      if (next) await answer(next);
      else show([]), say("");
    }
    remember();
  } catch (error) {
    fail(error);
  } finally {
    working = false;
  }
}

let remembering; // browsers limit how often the address may change
function remember() {
  clearTimeout(remembering);
  remembering = setTimeout(() => {
    const text = one_line(box.value);
    history.replaceState(null, "", text ? `?q=${encodeURIComponent(text)}` : location.pathname);
  }, 400);
}

// --- showing -------------------------------------------------------------------------------------

function say(text) {
  element("status").textContent = text;
}

function fail(error) {
  console.error(error);
  element("loading").hidden = true;
  element("problem").textContent = `This does not work here: ${error.message}`;
}

function hit([row, score, id, text], example) {
  const item = make("li");
  item.tabIndex = -1;
  const head = make("p", undefined, "head");
  head.append(make("b", score.toFixed(3)), " ", make("code", id));
  if (example?.relevant.includes(row)) head.append(" ", make("span", "judged relevant", "mark"));
  const body = make("p", text.length > SHOWN ? `${text.slice(0, SHOWN)} …` : text, "text");
  body.dir = "auto";
  item.append(head, body);
  if (text.length > SHOWN) {
    const more = make("button", "Show all", "more");
    more.type = "button";
    more.addEventListener("click", () => {
      body.textContent = text;
      more.remove();
      item.focus();
    });
    item.append(more);
  }
  return item;
}

function show(lists, example) {
  element("answers").replaceChildren(
    ...lists.map(([name, hits], place) => {
      const section = make("section");
      const title = make("h2", place ? "Teacher, as the run stored it" : "Student, in this browser");
      title.id = `answers-${place}`;
      section.setAttribute("aria-labelledby", title.id);
      const list = make("ol");
      list.setAttribute("aria-labelledby", title.id);
      list.append(...hits.map((of) => hit(of, example)));
      section.append(title, make("p", name, "soft"), list);
      return section;
    }),
  );
  for (const chip of element("examples").querySelectorAll("button")) {
    chip.setAttribute("aria-pressed", String(exampleOf.get(one_line(box.value)) === chip.example));
  }
}

function showSize() {
  const total = Object.values(loaded).reduce((sum, bytes) => sum + bytes, 0);
  const each = Object.entries(loaded).map(([what, bytes]) => `${what} ${megabytes(bytes)}`);
  element("size").textContent =
    `${megabytes(total)} are loaded (${each.join(", ")}); ` +
    `ready ${(opened / 1000).toFixed(1)} s after the page was opened.`;
}

let first = 0; // of the examples that are offered
function offer() {
  const offered = examples.slice(first, first + CHIPS);
  first = first + CHIPS < examples.length ? first + CHIPS : 0;
  element("examples").replaceChildren(
    ...offered.map((example) => {
      const item = make("li");
      const chip = make("button", example.text);
      chip.type = "button";
      chip.example = example;
      chip.dir = "auto";
      chip.setAttribute("aria-pressed", String(one_line(box.value) === example.text));
      chip.addEventListener("click", () => {
        box.value = example.text;
        ask(example.text);
      });
      item.append(chip);
      return item;
    }),
  );
}

// --- keys ----------------------------------------------------------------------------------------

let typing;
box.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => ask(box.value), TYPING);
});
element("search").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  ask(box.value);
});

const MOVES = { ArrowDown: [0, 1], ArrowUp: [0, -1], ArrowRight: [1, 0], ArrowLeft: [-1, 0] };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const item = document.activeElement?.closest("#answers li");
  if (event.key === "/" && document.activeElement !== box) {
    box.focus();
    box.select();
  } else if (event.key === "Escape" && document.activeElement === box) {
    box.value = "";
    ask("");
  } else if (event.key === "Escape") {
    box.focus();
  } else if (event.key === "ArrowDown" && document.activeElement === box) {
    element("answers").querySelector("li")?.focus();
  } else if (event.key in MOVES && item) {
    const lists = [...element("answers").querySelectorAll("ol")];
    const column = lists.indexOf(item.parentElement) + MOVES[event.key][0];
    const row = [...item.parentElement.children].indexOf(item) + MOVES[event.key][1];
    if (row < 0) box.focus();
    else lists[column]?.children[row]?.focus();
  } else if (event.key === "Enter" && item && document.activeElement === item) {
    item.querySelector("button")?.click();
  } else return;
  event.preventDefault();
});

// --- opening -------------------------------------------------------------------------------------

let opened = 0; // milliseconds from opening the page until it could answer

// The page's own test: does this browser read and embed texts as the student does?
async function check() {
  const wrong = settings.probes.filter(({ text, ids }) => String(tokensOf(text)) !== String(ids));
  const embedding = await embed(settings.probes[0].text);
  const cosine = embedding.reduce((sum, value, i) => sum + value * settings.embedding[i], 0);
  if (!(cosine > LIKE)) {
    throw new Error(`the student embeds a text otherwise here (cosine ${cosine.toFixed(3)})`);
  }
  if (wrong.length) {
    element("problem").textContent =
      `The tokenizer reads ${wrong.length} of ${settings.probes.length} texts otherwise here than ` +
      "the student's own. Answers may be worse.";
  }
}

// Keep what the page needs, so that it opens without a network. Browsers allow that over HTTPS and
// on this machine.
async function keep() {
  if (!settings.offline || !("serviceWorker" in navigator)) return;
  const root = at("../");
  const name = `hf_distill ${at("./")}`;
  await navigator.serviceWorker.register(at("../offline.js"));
  const earlier = (other) => {
    const start = `hf_distill ${root}`; // a page below this one begins so, too
    return other.startsWith(start) && /^page-[0-9a-f]{16}\/$/.test(other.slice(start.length));
  };
  for (const other of await caches.keys()) {
    if (earlier(other) && other !== name) await caches.delete(other);
  }
  const { onnxruntime, tokenizers, wasm, model, tokenizer, vectors, texts } = settings;
  const files = [wasm, model, tokenizer, settings.examples, ...vectors, ...texts];
  const cache = await caches.open(name);
  await cache.addAll([
    root, ...["page.js", "page.css", "settings.json", onnxruntime, tokenizers].map(at),
    ...files.map(({ url }) => at(url)),
  ]);
}

async function open() {
  element("file").remove();
  const response = await fetch(at("settings.json"));
  if (!response.ok) throw new Error(`settings.json answers HTTP ${response.status}`);
  settings = await response.json();
  const needed = [settings.wasm, settings.model, settings.tokenizer, ...settings.vectors];
  element("progress").max = needed.reduce((sum, { bytes }) => sum + bytes, 0);
  element("loading").hidden = false;
  const asked = new URLSearchParams(location.search).get("q");
  if (asked && !box.value) box.value = asked;
  load(settings.examples, "texts").then((bytes) => {
    examples = parsed(bytes);
    for (const example of examples) exampleOf.set(example.text, example);
    if (examples.length) {
      element("offered").hidden = false;
      element("others").hidden = examples.length <= CHIPS;
      element("others").addEventListener("click", offer);
      offer();
      if (student && exampleOf.has(one_line(box.value))) ask(box.value);
    }
  }, fail);
  const [ready, vectors] = await Promise.all([loadStudent(settings), loadIndex(settings)]);
  student = ready;
  index = vectors;
  await check();
  opened = performance.now();
  element("loading").hidden = true;
  showSize();
  await ask(box.value);
  document.documentElement.dataset.ready = "true";
  await keep().catch((error) => console.warn(`not kept for use without a network: ${error}`));
  document.documentElement.dataset.kept = "true";
}

open().catch(fail);

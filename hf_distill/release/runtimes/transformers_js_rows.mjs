// What transformers.js does in Node and in a browser: embed texts with the student that
// `env.localModelPath` holds under `name`. Its tokenizer cuts at `max_length`, prompts included.

const BATCH = 16;

export async function rows(library, name, options, { student, queries, documents }) {
  const { AutoModel, AutoTokenizer, env } = library;
  const { file, prompts, max_length } = student;
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  const dtype = file.includes("quantized") ? "q8" : "fp32";
  const model = await AutoModel.from_pretrained(name, { dtype, ...options });
  const embedded = [];
  for (const [texts, kind] of [[queries, "query"], [documents, "document"]]) {
    for (let start = 0; start < texts.length; start += BATCH) {
      const batch = texts.slice(start, start + BATCH).map((text) => prompts[kind] + text);
      const tokens = tokenizer(batch, { padding: true, truncation: true, max_length });
      const { sentence_embedding } = await model(tokens);
      embedded.push(...sentence_embedding.tolist());
    }
  }
  return embedded;
}

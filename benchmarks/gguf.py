"""What llama.cpp makes of a student: why `hf-distill export --format gguf` refuses.

    python benchmarks/gguf.py STUDENT [--keep FOLDER]

STUDENT is a saved student with a BERT backbone and mean pooling. Its backbone is written as GGUF in
float32 twice, with and without the student's head as the tensor `dense_2`, which is where llama.cpp
has the head of the architectures that can have one. llama.cpp (xllamacpp, in an environment of its
own) then embeds the texts of `hf-distill verify`; without the head, they are compared with the
student's embeddings without its head. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense

from hf_distill.release.probes import KINDS, PROBES

PACKAGES = ("gguf==0.19.0", "xllamacpp", "numpy")
EXACT = 1e-4

_PARTS = {
    "attention.self.query": "attn_q", "attention.self.key": "attn_k",
    "attention.self.value": "attn_v", "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm", "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm",
}  # fmt: skip
_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
}

WRITE = """
import json, sys
import gguf, numpy as np
about = json.load(open(sys.argv[1]))
out = gguf.GGUFWriter(sys.argv[2], "bert")
config = about["config"]
out.add_block_count(config["num_hidden_layers"])
out.add_context_length(config["max_position_embeddings"])
out.add_embedding_length(config["hidden_size"])
out.add_feed_forward_length(config["intermediate_size"])
out.add_head_count(config["num_attention_heads"])
out.add_layer_norm_eps(config["layer_norm_eps"])
out.add_causal_attention(False)
out.add_pooling_type(gguf.PoolingType.MEAN)
out.add_file_type(0)
out.add_tokenizer_model("bert")
out.add_tokenizer_pre("default")
out.add_token_list(about["tokens"])
out.add_token_types(about["types"])
out.add_token_type_count(config["type_vocab_size"])
for name, number in about["special"].items():
    getattr(out, f"add_{name}_token_id")(number)
out.add_add_bos_token(True)
out.add_add_eos_token(True)
tensors = np.load(sys.argv[3])
if "dense_2.weight" in tensors:
    size = tensors["dense_2.weight"].shape[0]
    out.add_uint32("bert.dense_2_feat_in", config["hidden_size"])
    out.add_uint32("bert.dense_2_feat_out", size)
    out.add_uint32("bert.embedding_length_out", size)
for name in tensors.files:
    out.add_tensor(name, tensors[name])
out.write_header_to_file()
out.write_kv_data_to_file()
out.write_tensors_to_file()
out.close()
"""

EMBED = """
import json, sys
import xllamacpp
about = xllamacpp.CommonParams()
about.model.path = sys.argv[1]
about.embedding = True
about.n_ctx = about.n_batch = about.n_ubatch = 512
about.n_parallel = 1
about.warmup = False
server = xllamacpp.Server(about)
answers = []
for text in json.load(sys.stdin):
    answer = server.handle_embeddings({"input": [text]})
    answer = answer if isinstance(answer, dict) else json.loads(answer)
    answers.append(answer["data"][0]["embedding"] if "data" in answer else str(answer))
print(json.dumps({"version": xllamacpp.__version__, "answers": answers}))
"""


def environment(folder: Path) -> str:
    """The Python that has `PACKAGES`. It is made if it is not there."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        (folder / "ready").touch()
    return str(python)


def about_of(student: Path) -> dict[str, Any]:
    """What the file says besides its tensors. llama.cpp marks the start of a word, where WordPiece
    marks its continuation.
    """
    config = json.loads((student / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((student / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"] for token in tokenizer["added_tokens"]}
    vocabulary = tokenizer["model"]["vocab"]

    def marked(token: str) -> str:
        if token in special:
            return token
        return token[2:] if token.startswith("##") else f"\u2581{token}"

    tokens = sorted(vocabulary, key=vocabulary.get)
    names = {"bos": "[CLS]", "eos": "[SEP]", "sep": "[SEP]", "unk": "[UNK]", "pad": "[PAD]"}
    return {
        "config": config,
        "tokens": [marked(token) for token in tokens],
        "types": [3 if token in special else 1 for token in tokens],
        "special": {kind: vocabulary[token] for kind, token in names.items()},
    }


def tensors_of(student: Path, layers: int, head: bool) -> dict[str, np.ndarray]:
    """The tensors of a file, by llama.cpp's names."""
    names = dict(_EMBEDDINGS)
    for layer in range(layers):
        for theirs, ours in _PARTS.items():
            for kind in ("weight", "bias"):
                names[f"encoder.layer.{layer}.{theirs}.{kind}"] = f"blk.{layer}.{ours}.{kind}"
    weights = load_file(student / "model.safetensors")
    tensors = {ours: weights[theirs].astype(np.float32) for theirs, ours in names.items()}
    if head:
        dense = load_file(student / "2_Dense" / "model.safetensors")
        tensors["dense_2.weight"] = dense["linear.weight"].astype(np.float32)
    return tensors


def embedded(python: str, student: Path, head: bool) -> dict[str, Any]:
    """llama.cpp's answers, or `error`: its words where it does not load the file."""
    about = about_of(student)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "about.json").write_text(json.dumps(about))
        np.savez(
            folder / "tensors.npz",
            **tensors_of(student, about["config"]["num_hidden_layers"], head),
        )
        files = [str(folder / name) for name in ("about.json", "model.gguf", "tensors.npz")]
        subprocess.run([python, "-c", WRITE, *files], check=True)
        done = subprocess.run(
            [python, "-c", EMBED, files[1]],
            input=json.dumps(list(PROBES)), capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line]
        return {"error": (lines or done.stderr.splitlines()[-1:])[0].partition("error ")[2]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Write, embed, and print a line for each figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("student", metavar="STUDENT", type=Path)
    parser.add_argument("--keep", type=Path, help="Keep the environment in this folder.")
    line = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        python = environment((line.keep or Path(scratch)).resolve() / "gguf")
        with_head = embedded(python, line.student, head=True)
        without = embedded(python, line.student, head=False)
    model = SentenceTransformer(str(line.student), device="cpu")
    parts = [module for module in model if not isinstance(module, Dense)]
    headless = SentenceTransformer(modules=parts, device="cpu")
    headless.max_seq_length = 512  # llama.cpp has no limit of its own below that
    expected = headless.encode(list(PROBES), show_progress_bar=False)
    kind_of = {text: kind for kind, texts in KINDS.items() for text in texts}
    read = [i for i, got in enumerate(without["answers"]) if not isinstance(got, str)]
    off = {
        PROBES[i]: float(np.abs(np.array(without["answers"][i]) - expected[i]).max()) for i in read
    }
    worst = max(off, key=lambda text: off[text])
    figures = {
        "xllamacpp": without["version"],
        "with the head, llama.cpp says": with_head.get("error", "it loads the file"),
        "texts": len(PROBES),
        "refused, longer than its batch": len(PROBES) - len(read),
        f"without the head, differ by more than {EXACT:g}": sum(d > EXACT for d in off.values()),
        "largest difference": off[worst],
        "of": f"{worst!r} ({kind_of[worst]})",
        "median difference": float(np.median(list(off.values()))),
    }
    for what, value in figures.items():
        print(f"{what}: {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

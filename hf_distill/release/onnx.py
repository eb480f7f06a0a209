"""The student as ONNX, pooling, head and normalisation inside the graph: `onnxruntime` and
`tokenizers` are enough to serve it.

The files have names of their own, not `model.onnx`: under that name, text-embeddings-inference and
sentence-transformers expect a graph whose output is token embeddings, and would pool a second time.
"""

from __future__ import annotations

import importlib
import json
import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from tokenizers import Tokenizer
from torch import Tensor, nn

from hf_distill.compute.search import search
from hf_distill.errors import InputError
from hf_distill.evaluation.intervals import (
    Figure,
    figure,
    mean,
)
from hf_distill.evaluation.retrieval import (
    DEPTH,
    make_run,
    per_query,
)
from hf_distill.evaluation.tasks import (
    RetrievalTask,
    held_out_task,
)
from hf_distill.finished_run import (
    FinishedRun,
    digest_of_model,
)
from hf_distill.run.folder import (
    write_json,
    written_whole,
)

OPSET = 18
INPUTS, OUTPUT = ("input_ids", "attention_mask"), "sentence_embedding"
FILES = {"float32": "onnx/sentence_embedding.onnx", "int8": "onnx/sentence_embedding_int8.onnx"}
"""Precision -> path in the model's folder. int8: weights in 8 bits, activations quantised as they
come (dynamic).
"""

TOLERANCE = 1e-5
_CHECKED = ("a", "read a csv file", "Ünïcödé – 漢字 🙂", "one long text " * 100)
_BATCH = 32


class _Graph(nn.Module):
    """The whole model as a function of two tensors (B, T) int64; its output is (B, d) float32."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        embedding: Tensor = self.model({"input_ids": input_ids, "attention_mask": attention_mask})[
            "sentence_embedding"
        ]
        return embedding


@dataclass(frozen=True)
class OnnxEncoder:
    """An exported model, loaded by `onnxruntime` and `tokenizers` alone. `prompts`: kind (`query`,
    `document`) -> prompt.
    """

    session: Any
    tokenizer: Tokenizer
    prompts: dict[str, str]

    def encode(self, texts: Sequence[str], kind: str | None = None) -> np.ndarray:
        """Embeddings (len(texts), d), float32, of unit length. `kind`: put its prompt before each
        text.
        """
        prompt = self.prompts.get(kind or "", "")
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = []
        for start in range(0, len(order), _BATCH):
            tokens = self.tokenizer.encode_batch(
                [prompt + texts[i] for i in order[start : start + _BATCH]]
            )
            feed = {
                "input_ids": np.array([t.ids for t in tokens], dtype=np.int64),
                "attention_mask": np.array([t.attention_mask for t in tokens], dtype=np.int64),
            }
            parts.append(self.session.run([OUTPUT], feed)[0])
        embeddings: np.ndarray = np.concatenate(parts)[np.argsort(order)]
        return embeddings


def load_onnx(model_dir: Path, precision: str = "float32") -> OnnxEncoder:
    """Load what `export_onnx` wrote.

    Raises:
        InputError: It is not there, or onnxruntime is not installed.
    """
    path = model_dir / FILES[precision]
    if not path.is_file():
        raise InputError(
            f"there is no {path}; make it: hf-distill export {model_dir} --format onnx"
        )
    runtime = _require("onnxruntime")
    settings = json.loads((model_dir / "sentence_bert_config.json").read_text(encoding="utf-8"))
    special = json.loads((model_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
    prompts = json.loads(
        (model_dir / "config_sentence_transformers.json").read_text(encoding="utf-8")
    ).get("prompts", {})
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    pad = special.get("pad_token") or "[PAD]"
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad) or 0, pad_token=pad)
    tokenizer.enable_truncation(settings["max_seq_length"])
    return OnnxEncoder(
        runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"]), tokenizer, prompts
    )


def _require(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{name} is not installed: pip install 'hf_distill[onnx]'") from error


def export_onnx(model_dir: Path) -> dict[str, Path]:
    """Write `FILES` into the folder of a saved student, and compare the float32 one with it.

    torch's exporter by tracing is used: the newer one needs a further package, and nothing here
    depends on the data. int8 has a scale for each channel (one for a whole matrix costs nDCG:
    measure it), and 7 bits of the 8, so that CPUs without VNNI do not overflow.

    Returns:
        Precision -> file.

    Raises:
        InputError: No model there, or the packages of the extra `onnx` are missing.
        RuntimeError: Embeddings of the float32 file differ from the model's by more than
            `TOLERANCE`.
    """
    if not (model_dir / "modules.json").is_file() or not (model_dir / "tokenizer.json").is_file():
        raise InputError(f"{model_dir} holds no saved student (no modules.json and tokenizer.json)")
    _require("onnx")
    quantization = _require("onnxruntime.quantization")
    model = SentenceTransformer(
        str(model_dir), device="cpu", model_kwargs={"attn_implementation": "eager"}
    ).eval()
    if not isinstance(model[0], Transformer):
        raise InputError(
            f"{model_dir} begins with a {type(model[0]).__name__}, which is a table and a mean: there is no graph to export"
        )
    example = model.preprocess(["a text", "another text, which is longer"])
    paths = {precision: model_dir / name for precision, name in FILES.items()}
    with (
        written_whole(paths["float32"]) as exact,
        written_whole(paths["int8"]) as small,
        tempfile.TemporaryDirectory() as scratch,
    ):
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter(
                "ignore"
            )  # of tracing: what it could get wrong is compared below, at other shapes
            torch.onnx.export(
                _Graph(model),
                tuple(example[name] for name in INPUTS),
                str(exact),
                dynamo=False,
                opset_version=OPSET,
                input_names=list(INPUTS),
                output_names=[OUTPUT],
                dynamic_axes={name: {0: "batch", 1: "tokens"} for name in INPUTS}
                | {OUTPUT: {0: "batch"}},
            )
        level = logging.root.level
        logging.root.setLevel(
            logging.ERROR
        )  # it advises a preprocessing that is for static quantisation
        try:
            quantization.quantize_dynamic(
                str(exact),
                str(Path(scratch) / "int8.onnx"),
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
            )
        finally:
            logging.root.setLevel(level)
        small.write_bytes((Path(scratch) / "int8.onnx").read_bytes())
    expected = model.encode(list(_CHECKED), show_progress_bar=False)
    difference = float(np.abs(load_onnx(model_dir).encode(_CHECKED) - expected).max())
    if not difference <= TOLERANCE:
        for path in paths.values():
            path.unlink()
        raise RuntimeError(
            f"the exported graph's embeddings differ from the model's by up to {difference:.2g}; it was removed"
        )
    return paths


def _ndcg(task: RetrievalTask, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """nDCG@10 (Q,) of each query, by exact search over the task's documents."""
    found = search(queries, documents, DEPTH)
    return per_query(make_run(list(task.queries), list(task.documents), *found), task.qrels)[
        "nDCG@10"
    ]


def measure_onnx(finished: FinishedRun) -> dict[str, Any]:
    """What each precision costs on the run's held-out task, noted in `onnx.json` of its folder.

    Returns:
        `fingerprint` of the student, `num_queries`, and `variants`: precision -> `nDCG@10`,
            `minus_student` (the paired difference to the
        student in PyTorch, float32), each with its interval, and `megabytes`.
    """
    folder, seed = finished.folder, finished.recipe.training.seed
    task = held_out_task(finished.data)
    queries, documents = list(task.queries.values()), list(task.documents.values())
    student = SentenceTransformer(str(folder.student), device="cpu")
    exact = _ndcg(
        task,
        student.encode_query(queries, show_progress_bar=False),
        student.encode_document(documents, show_progress_bar=False),
    )
    variants: dict[str, dict[str, Figure | float]] = {}
    for precision, name in FILES.items():
        encoder = load_onnx(folder.student, precision)
        values = _ndcg(
            task, encoder.encode(queries, "query"), encoder.encode(documents, "document")
        )
        variants[precision] = {
            "nDCG@10": figure(mean, [values], seed),
            "minus_student": figure(mean, [values - exact], seed),
            "megabytes": round((folder.student / name).stat().st_size / 1e6, 1),
        }
    result = {
        "fingerprint": digest_of_model(folder.student),
        "num_queries": len(queries),
        "variants": variants,
    }
    write_json(folder.onnx, result)
    return result

"""The student as ONNX, with pooling, head and normalisation inside the graph: `onnxruntime` and
`tokenizers` are enough to serve it.

The files have the names that transformers.js, fastembed and text-embeddings-inference look for. The
only output is `sentence_embedding`, on purpose: there are no token embeddings that a runtime could
pool itself, and so lose the head without a word.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn

from hf_distill.errors import InputError
from hf_distill.release.cost import Costs, measure, measured
from hf_distill.release.onnx_encoder import (
    FILES,
    INPUTS,
    OUTPUT,
    OnnxEncoder,
    load_onnx,
    require,
)
from hf_distill.report.results import CommonResults, RunResults
from hf_distill.run.stage import files_of, written_whole
from hf_distill.student.save import check_saved

OPSET = 18
TOLERANCE = 1e-5
_CHECKED = ("a", "read a csv file", "Ünïcödé – 漢字 🙂", "one long text " * 100)


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


def loaded_for_graph(model_dir: Path, instead: str) -> SentenceTransformer:
    """A saved student whose graph is to be written, on the CPU.

    Raises:
        InputError: The folder holds no model, or one without a graph; `instead` is what to do then.
    """
    check_saved(model_dir)
    model = SentenceTransformer(
        str(model_dir), device="cpu", model_kwargs={"attn_implementation": "eager"}
    ).eval()
    if not isinstance(model[0], Transformer):
        raise InputError(
            f"{model_dir} begins with a {type(model[0]).__name__}, a table of vectors: it has no "
            f"graph to export; {instead}"
        )
    return model


INSTEAD = "use --format model2vec, or load it with sentence-transformers"


def write_graph(model: SentenceTransformer, path: Path) -> None:
    """Write the whole model as ONNX in float32.

    We use torch's tracing exporter: the newer one needs another package, and no branch of the model
    depends on the data.
    """
    example = model.preprocess(["a text", "another text, which is longer"])
    with warnings.catch_warnings(), torch.inference_mode():
        # Tracing warns about constants. A comparison at other shapes would show them.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Graph(model),
            tuple(example[name] for name in INPUTS),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in INPUTS}
            | {OUTPUT: {0: "batch"}},
        )


def difference_of(encoder: OnnxEncoder, model: SentenceTransformer) -> float:
    """The largest difference, in any dimension, between a graph's embeddings and the model's, on
    texts of several lengths.
    """
    expected = model.encode(list(_CHECKED), show_progress_bar=False)
    return float(np.abs(encoder.encode(_CHECKED) - expected).max())


def export_onnx(model_dir: Path) -> dict[str, Path]:
    """Write `FILES` into the folder of a saved student, and compare the float32 file with it.

    int8 has a scale for each channel, since one scale for a whole matrix lowers nDCG, and uses 7 of
    its 8 bits, because CPUs without VNNI overflow otherwise.

    Returns:
        Precision -> file.

    Raises:
        InputError: The folder holds no model, or one without a graph, or the packages of the extra
            `onnx` are missing.
        RuntimeError: The float32 file's embeddings differ from the model's by more than
            `TOLERANCE`. Both files are then removed.
    """
    check_saved(model_dir)
    require("onnx")
    quantization = require("onnxruntime.quantization")
    model = loaded_for_graph(model_dir, INSTEAD)
    paths = {precision: model_dir / name for precision, name in FILES.items()}
    with (
        written_whole(paths["float32"]) as exact,
        written_whole(paths["int8"]) as small,
        tempfile.TemporaryDirectory() as scratch,
    ):
        write_graph(model, exact)
        level = logging.root.level
        # It recommends a preprocessing that only static quantisation needs.
        logging.root.setLevel(logging.ERROR)
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
    difference = difference_of(load_onnx(model_dir), model)
    if not difference <= TOLERANCE:
        for path in paths.values():
            path.unlink()
        raise RuntimeError(
            f"the exported graph's embeddings differ from the model's by up to {difference:.2g}; "
            "the files were removed"
        )
    return paths


@dataclass(frozen=True)
class OnnxRecord(Costs):
    """The content of `onnx.json`. The variants are `float32` and `int8`."""


def measure_onnx(results: RunResults) -> OnnxRecord:
    """Measure each exported precision on the run's held-out task. A stage: `onnx.json`."""
    folder = results.folder
    files = {precision: folder.student / name for precision, name in FILES.items()}
    return measure(
        results, folder.onnx, OnnxRecord, files, lambda name: load_onnx(folder.student, name).encode
    )


def measured_onnx(results: CommonResults) -> OnnxRecord | None:
    """What was measured of this student's ONNX files; None if it has none, or if they were not
    measured.
    """
    return measured(results, results.folder.onnx, OnnxRecord, list(FILES.values()))


def onnx_files(results: CommonResults) -> frozenset[str]:
    """The ONNX files of this student that were measured, as paths in its folder."""
    folder = results.folder
    return files_of(folder.onnx, folder.student) if measured_onnx(results) else frozenset()

"""The student for OpenVINO in int8, with pooling, head and normalisation inside the graph.

In float32, OpenVINO reads `onnx/model.onnx` as it is. Here each weight has eight bits and each
channel a scale and a zero point; activations stay in floating point. That needs no data and, on the
quickstart's student, loses less than quantised activations do (docs/serving.md).
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_distill.errors import InputError
from hf_distill.release.cost import Costs, measure, measured
from hf_distill.release.onnx import INSTEAD, difference_of, loaded_for_graph, write_graph
from hf_distill.release.onnx_encoder import OnnxEncoder, encoder_of, require
from hf_distill.report.results import CommonResults, RunResults
from hf_distill.run.stage import files_of, folder_written_whole

FOLDER = "openvino"
GRAPH, WEIGHTS = f"{FOLDER}/model_int8.xml", f"{FOLDER}/model_int8.bin"
"""Paths in the student's folder."""

TOLERANCE = 1e-4
"""Largest difference, in any dimension, of OpenVINO's float32 embeddings from the model's, before
the weights are quantised.
"""

INT8 = "int8"


@dataclass(frozen=True)
class _Session:
    """A compiled model, called like a session of onnxruntime."""

    compiled: Any

    def run(self, outputs: Sequence[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        answer = self.compiled(feed)
        return [answer[name].copy() for name in outputs]


def _encoder(model_dir: Path, graph: Any) -> OnnxEncoder:
    """On the CPU and in float32: without the hint, OpenVINO computes in bfloat16 where it can."""
    core = require("openvino", FOLDER).Core()
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return encoder_of(model_dir, _Session(compiled))


def load_openvino(model_dir: Path) -> OnnxEncoder:
    """Load what `export_openvino` wrote.

    Raises:
        InputError: There is no such file, or OpenVINO is not installed.
    """
    path = model_dir / GRAPH
    if not path.is_file():
        raise InputError(
            f"there is no {path}; write it with: hf-distill export {model_dir} --format openvino"
        )
    return _encoder(model_dir, str(path))


def export_openvino(model_dir: Path) -> Path:
    """Write `GRAPH` and `WEIGHTS` into the folder of a saved student.

    Returns:
        The file with the weights.

    Raises:
        InputError: The folder holds no model, or one without a graph, or the packages of the extra
            `openvino` are missing.
        RuntimeError: Before the weights are quantised, OpenVINO's embeddings differ from the
            model's by more than `TOLERANCE`. Nothing is written then.
    """
    model = loaded_for_graph(model_dir, INSTEAD)
    require("onnx", FOLDER)
    openvino = require("openvino", FOLDER)
    os.environ.setdefault("NNCF_CI", "1")  # without it, nncf tells Intel of each use, unasked
    nncf = require("nncf", FOLDER)
    folder = Path(os.path.normpath(model_dir / FOLDER))
    own = frozenset(folder / Path(name).name for name in (GRAPH, WEIGHTS))
    nncf.set_log_level(logging.ERROR)
    with (
        folder_written_whole(folder, own) as new,
        tempfile.TemporaryDirectory() as scratch,
    ):
        exact = Path(scratch) / "model.onnx"
        write_graph(model, exact)
        graph = openvino.Core().read_model(str(exact))
        difference = difference_of(_encoder(model_dir, graph), model)
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"OpenVINO's embeddings differ from the model's by up to {difference:.2g}; nothing "
                "was written"
            )
        small = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)
        openvino.save_model(small, str(new / Path(GRAPH).name), compress_to_fp16=False)
    return model_dir / WEIGHTS


@dataclass(frozen=True)
class OpenvinoRecord(Costs):
    """The content of `openvino.json`. The one variant is `INT8`."""


def measure_openvino(results: RunResults) -> OpenvinoRecord:
    """Measure what was exported on the run's held-out task. A stage: `openvino.json`."""
    folder = results.folder
    graph, weights = folder.student / GRAPH, folder.student / WEIGHTS
    return measure(
        results,
        folder.openvino,
        OpenvinoRecord,
        {INT8: weights},
        lambda _: load_openvino(folder.student).encode,
        [graph],
    )


def measured_openvino(results: CommonResults) -> OpenvinoRecord | None:
    """What was measured of this student in OpenVINO; None if it was not exported, or if it was not
    measured.
    """
    return measured(results, results.folder.openvino, OpenvinoRecord, [GRAPH, WEIGHTS])


def openvino_files(results: CommonResults) -> frozenset[str]:
    """The OpenVINO files of this student that were measured, as paths in its folder."""
    folder = results.folder
    return files_of(folder.openvino, folder.student) if measured_openvino(results) else frozenset()

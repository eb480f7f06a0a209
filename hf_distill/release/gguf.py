"""Why a student is not written as GGUF for llama.cpp: nothing that llama.cpp could read would give
the student's embeddings. `benchmarks/gguf.py` shows it with llama.cpp itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

from hf_distill.errors import InputError
from hf_distill.release.onnx import INSTEAD
from hf_distill.student.save import check_saved

_SERVED = "use --format onnx or openvino, or serve it with text-embeddings-inference or Infinity"


def refuse_gguf(model_dir: Path) -> NoReturn:
    """Say which part of a saved student llama.cpp has no place for.

    A head is a matrix between pooling and normalisation. The layers of a BERT end with a layer
    normalisation, so it cannot be multiplied into the one before; a change of basis that would
    avoid it must commute with the layer normalisations, and a trained head does not.

    Raises:
        InputError: Always, or because the folder holds no model.
    """
    check_saved(model_dir)
    modules = json.loads((model_dir / "modules.json").read_text(encoding="utf-8"))
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    if kinds[0] != "Transformer":
        why = f"the student begins with a {kinds[0]}, a table of vectors, and llama.cpp has none"
        raise InputError(f"--format gguf: {why}; {INSTEAD}")
    if "Dense" in kinds:
        why = (
            "the student has a linear head after its pooling, for which llama.cpp's graph of this "
            "backbone has no place, and which no layer before it can take in: a layer "
            "normalisation lies between. Without the head, other documents would be found"
        )
    else:
        why = (
            "llama.cpp computes GELU by a table of float16 and splits some scripts otherwise, so "
            "its embeddings differ by more than 1e-4 (docs/serving.md)"
        )
    raise InputError(f"--format gguf: {why}; {_SERVED}")

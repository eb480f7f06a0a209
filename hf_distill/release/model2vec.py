"""A static student for model2vec, which embeds with numpy and `tokenizers` alone.

model2vec differs from the student in three ways, so not every static student can be written:

- It leaves unknown tokens out. That is equal if the tokenizer has none (byte-level BPE), or if the
  unknown token's vector is zero and embeddings have unit length.
- Where it cuts at N tokens, it first cuts at N times the median length of a token, in characters.
- It has no modules: a head is multiplied into the table.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from torch import nn

from hf_distill.errors import InputError
from hf_distill.release.cost import Costs, Encode, measure, measured
from hf_distill.release.onnx_encoder import require
from hf_distill.release.probes import PROBES
from hf_distill.report.results import CommonResults, RunResults
from hf_distill.run.stage import files_of, folder_written_whole
from hf_distill.student.save import check_saved

FOLDER = "model2vec"
WEIGHTS = f"{FOLDER}/model.safetensors"
FILES = (WEIGHTS, f"{FOLDER}/config.json", f"{FOLDER}/tokenizer.json")
"""Paths in the student's folder: `StaticModel.from_pretrained(student, subfolder="model2vec")`."""

TOLERANCE = 1e-5
"""Largest difference, in any dimension, from the student's embeddings."""

# The last two are unknown to WordPiece, and to Unigram without byte fallback.
_CHECKED = (*PROBES, "x" * 500, "\U0010ffff")
_INSTEAD = "load it with sentence-transformers"


def table_of(model: SentenceTransformer) -> tuple[np.ndarray, bool]:
    """The vectors (V, d) float32 of which the student takes the mean, and whether it scales that to
    unit length. The mean of mapped vectors is the mapped mean if the map is linear.

    Raises:
        InputError: The student is not static, or does more than that.
    """
    first, *rest = model
    if not isinstance(first, StaticEmbedding):
        raise InputError(
            f"--format model2vec: the student begins with a {type(first).__name__}, and model2vec "
            "holds one vector for each token and no layers; use --format onnx"
        )
    rows = first.embedding.weight.detach().double()
    normalised = False
    for module in rest:
        if isinstance(module, Normalize):
            normalised = True
            continue
        if not isinstance(module, Dense) or normalised:
            raise _refused(f"it has a {type(module).__name__} where model2vec has nothing")
        activation = module.activation_function
        if module.bias or not isinstance(activation, nn.Identity):
            what = "a bias" if module.bias else f"the activation {type(activation).__name__}"
            raise _refused(f"its head has {what}, so it is no part of a table of vectors")
        rows = rows @ module.linear.weight.detach().double().T
    return rows.float().numpy(), normalised


def _refused(why: str) -> InputError:
    return InputError(f"--format model2vec: {why}; {_INSTEAD}")


def export_model2vec(model_dir: Path) -> Path:
    """Write `FILES` into the folder of a saved static student, and compare what model2vec makes of
    them with the student's embeddings of some texts.

    Returns:
        The file with the vectors.

    Raises:
        InputError: There is no saved student, model2vec is not installed, or it would embed other
            than the student: why. Nothing is written then.
    """
    check_saved(model_dir)
    static_model = require("model2vec", "model2vec").StaticModel
    model = SentenceTransformer(str(model_dir), device="cpu").eval()
    table, normalised = table_of(model)
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    if len(table) != tokenizer.get_vocab_size():
        raise _refused(
            f"it has {len(table):,} vectors, and its tokenizer {tokenizer.get_vocab_size():,} "
            "tokens, which must be as many"
        )
    cut = tokenizer.truncation
    config = {
        "model_type": "model2vec",
        "architectures": ["StaticModel"],
        "normalize": normalised,
        "max_length": cut and cut["max_length"],
        "hidden_dim": table.shape[1],
        "embedding_dtype": "float32",
    }
    folder = Path(os.path.normpath(model_dir / FOLDER))
    own = frozenset(folder / Path(name).name for name in FILES)
    with folder_written_whole(folder, own) as new:
        save_file({"embeddings": table}, new / "model.safetensors")
        (new / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(model_dir / "tokenizer.json", new / "tokenizer.json")
        _compare(model, static_model.from_pretrained(new))
    return model_dir / WEIGHTS


def _compare(model: SentenceTransformer, static: Any) -> None:
    """Compare the embeddings of `_CHECKED`.

    Raises:
        InputError: They differ: by how much, and why.
    """
    texts = list(_CHECKED)
    differences = np.abs(
        static.encode(texts) - model.encode(texts, prompt="", show_progress_bar=False)
    ).max(axis=1)
    wrong = [text for text, off in zip(texts, differences, strict=True) if not off <= TOLERANCE]
    if not wrong:
        return
    reason, tokenizer = "", static.tokenizer
    if static.max_length is not None:
        characters = static.max_length * static.median_token_length
        if all(len(text) > characters for text in wrong):
            reason = (
                f" (model2vec cuts a text at {characters} characters before it cuts at "
                f"{static.max_length} tokens)"
            )
    unknown = static.unk_token_id
    if unknown is not None and all(
        unknown in tokenizer.encode(text, add_special_tokens=False).ids for text in wrong
    ):
        reason = (
            f" (model2vec leaves out the unknown token {tokenizer.id_to_token(unknown)}, for which "
            "this student has a vector)"
        )
    raise _refused(
        f"model2vec embeds {len(wrong)} of {len(texts)} texts other than the student does, by up "
        f"to {differences.max():.2g}{reason}, so nothing was written"
    )


@dataclass(frozen=True)
class Model2VecRecord(Costs):
    """The content of `model2vec.json`. The one variant is `model2vec`."""


def measure_model2vec(results: RunResults) -> Model2VecRecord:
    """Measure what was exported on the run's held-out task. A stage: `model2vec.json`."""
    folder = results.folder
    weights, *beside = (folder.student / name for name in FILES)

    def load(_: str) -> Encode:
        static = require("model2vec", "model2vec").StaticModel.from_pretrained(weights.parent)
        prompts = SentenceTransformer(str(folder.student), device="cpu").prompts

        def encode(texts: list[str], kind: str) -> np.ndarray:
            return np.asarray(static.encode([(prompts.get(kind) or "") + text for text in texts]))

        return encode

    return measure(results, folder.model2vec, Model2VecRecord, {FOLDER: weights}, load, beside)


def measured_model2vec(results: CommonResults) -> Model2VecRecord | None:
    """What was measured of this student in model2vec; None if it was not exported, or if it was not
    measured.
    """
    return measured(results, results.folder.model2vec, Model2VecRecord, FILES)


def model2vec_files(results: CommonResults) -> frozenset[str]:
    """The model2vec files of this student that were measured, as paths in its folder."""
    folder = results.folder
    found = measured_model2vec(results)
    return files_of(folder.model2vec, folder.student) if found else frozenset()

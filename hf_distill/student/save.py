"""Saving a student in the portable sentence-transformers layout.

sentence-transformers >= 5.4 writes class paths and pooling settings that text-embeddings-inference
and its own older versions cannot read. They do read the layout written here: 3.4, 5.1 and 6.2 load
it with identical embeddings (`benchmarks/parity.py`). Version 2.7 does not, because it reads a
Dense head from a pickle only, and a student has no pickles.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, Pooling, StaticEmbedding
from torch import nn

from hf_distill.errors import InputError
from hf_distill.run.stage import folder_written_whole

_POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}

_MODULES = (Transformer, StaticEmbedding, Pooling, Dense, Normalize)


def _portable_config(module: nn.Module) -> dict[str, Any] | None:
    """The module's configuration in the portable layout; None if it has no configuration."""
    if isinstance(module, Pooling):
        config: dict[str, Any] = {"word_embedding_dimension": module.embedding_dimension}
        config |= {key: module.pooling_mode == mode for mode, key in _POOLING_KEYS.items()}
        return config | {"include_prompt": module.include_prompt}
    if isinstance(module, Dense):
        activation = type(module.activation_function)
        return {
            "in_features": module.in_features,
            "out_features": module.out_features,
            "bias": module.bias,
            "activation_function": f"{activation.__module__}.{activation.__name__}",
        }
    return None


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _make_portable(folder: Path, module: nn.Module) -> None:
    """Rewrite the settings of `module`, which is saved in `folder`."""
    if (config := _portable_config(module)) is not None:
        _write_json(folder / "config.json", config)
    elif isinstance(module, Normalize):
        shutil.rmtree(folder, ignore_errors=True)
    elif isinstance(module, Transformer):
        settings = {"max_seq_length": module.max_seq_length, "do_lower_case": False}
        _write_json(folder / "sentence_bert_config.json", settings)
        # A tokenizer may hold the `max_length` of the model that it comes from. fastembed reads it,
        # and would cut there.
        path = folder / "tokenizer_config.json"
        of_tokenizer = json.loads(path.read_text(encoding="utf-8"))
        of_tokenizer.pop("max_length", None)
        if module.max_seq_length is not None:
            of_tokenizer["model_max_length"] = module.max_seq_length
        _write_json(path, of_tokenizer)


def _forget_batch(tokenizer: Any) -> None:
    """Encoding leaves the last batch's padding and truncation in the tokenizer, and they do not
    belong in the saved file.
    """
    own = getattr(tokenizer, "backend_tokenizer", None)
    if own is not None:
        own.no_padding()
        own.no_truncation()


def _portable_type(module: nn.Module) -> str:
    return f"sentence_transformers.models.{type(module).__name__}"


def save_router(queries: SentenceTransformer, documents: SentenceTransformer, folder: Path) -> None:
    """Save two models as one (a Router, sentence-transformers 5 or newer): `queries` for
    `encode_query`, and `documents` for `encode_document`. Embeddings have unit length.

    Args:
        queries: Its prompts are the router's.
        documents: The other model.
        folder: An empty folder.
    """
    routes = {"query": list(queries), "document": list(documents)}
    router = Router(cast(Any, routes), default_route="document")
    prompts = {name: prompt or "" for name, prompt in queries.prompts.items()}
    model = SentenceTransformer(
        modules=[router, Normalize()], prompts=prompts, similarity_fn_name="cosine", device="cpu"
    )
    for first, *_ in routes.values():
        _forget_batch(getattr(first, "tokenizer", None))
    model.save_pretrained(str(folder), create_model_card=False)
    every = {
        f"{route}_{i}_{type(module).__name__}": module
        for route, modules in routes.items()
        for i, module in enumerate(modules)
    }
    if any(type(module) not in _MODULES for module in every.values()):
        return  # modules of other kinds are saved as they save themselves
    for name, module in every.items():
        _make_portable(folder / name, module)
    _make_portable(folder / "1_Normalize", model[1])
    config = json.loads((folder / "router_config.json").read_text(encoding="utf-8"))
    config["types"] = {name: _portable_type(module) for name, module in every.items()}
    del config["parameters"]["route_mappings"]  # there are none, and version 5 does not know them
    _write_json(folder / "router_config.json", config)
    _write_modules(folder, [router, model[1]], ["", "1_Normalize"])


def _write_modules(folder: Path, modules: Sequence[nn.Module], names: Sequence[str]) -> None:
    _write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": name, "type": _portable_type(module)}
            for i, (module, name) in enumerate(zip(modules, names, strict=True))
        ],
    )


def check_saved(folder: Path) -> None:
    """Check that `folder` holds a saved student.

    Raises:
        InputError: It does not.
    """
    if not (folder / "modules.json").is_file() or not (folder / "tokenizer.json").is_file():
        raise InputError(
            f"{folder} holds no saved student (no modules.json and tokenizer.json); name the "
            "folder of a run or of a student"
        )


def save_student(
    student: SentenceTransformer, path: str | Path, own: frozenset[Path] | None = None
) -> None:
    """Save `student` to the folder `path` in the portable layout: safetensors only, no Dropout. An
    existing folder is replaced as a whole; files in it that are not among `own` stay, if that is
    given.

    Raises:
        ValueError: The student has a module other than Transformer, Pooling, Dense, Dropout,
            StaticEmbedding and Normalize.
    """
    modules = [module for module in student if not isinstance(module, Dropout)]
    others = [type(module).__name__ for module in modules if not isinstance(module, _MODULES)]
    if others:
        raise ValueError(
            f"a student consists of {', '.join(kind.__name__ for kind in _MODULES)}; this one has "
            f"{', '.join(others)}"
        )
    plain = SentenceTransformer(
        modules=modules,
        prompts={name: prompt or "" for name, prompt in student.prompts.items()},
        similarity_fn_name="cosine",
        device="cpu",
    )
    static = isinstance(modules[0], StaticEmbedding)
    if not static:
        plain.max_seq_length = student.max_seq_length
    _forget_batch(plain.tokenizer)
    names = ["" if i == 0 else f"{i}_{type(module).__name__}" for i, module in enumerate(modules)]
    with folder_written_whole(Path(path), own) as folder:
        plain.save_pretrained(str(folder), create_model_card=False)
        for module, name in zip(modules, names, strict=True):
            _make_portable(folder / name, module)
        _write_modules(folder, modules, names)

"""What a recipe can name: sources of data, kinds of teacher and selection rules, each with where it
lives.

A name stands for `package.module:name`. For code of your own, write that in the recipe instead of a
name: it is loaded in the same way as what this package brings.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_distill.errors import InputError

PLUGIN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""`package.module:name`, as in `my_package.my_module:MyTeacher`."""


@dataclass(frozen=True)
class Kind:
    """`where` it lives, as `package.module:name`, and one line of `help`."""

    where: str
    help: str


SOURCES: Mapping[str, Kind] = {
    "auto": Kind(
        "hf_distill.data.sources.files:read_any",
        "what sources, dataset_path or dataset_name say; without any of them, pydocs",
    ),
    "files": Kind("hf_distill.data.sources.files:read_files", "files in any format, see --format"),
    "hub": Kind("hf_distill.data.sources.files:read_hub", "a data set on the Hugging Face Hub"),
    "pydocs": Kind(
        "hf_distill.data.sources.pydocs:read_pydocs",
        "docstrings of the Python packages installed here",
    ),
    "qrecc": Kind("hf_distill.data.sources.files:read_qrecc", "files in the format qrecc"),
    "beir": Kind("hf_distill.data.sources.files:read_beir", "files in the format beir"),
    "texts": Kind(
        "hf_distill.data.sources.files:read_texts",
        "texts without queries: a folder of .txt or .md documents, tables with a column of texts, "
        "or parallel texts",
    ),
    "generate": Kind(
        "hf_distill.data.sources.generate:read_generated",
        "such texts, and queries that a language model writes for them (chat_url; its key, if it "
        "needs one, in OPENAI_API_KEY)",
    ),
}
"""Sources of data: functions of the recipe (see `hf_distill.data.collection.SourcePairs`)."""

FORMATS: Mapping[str, Kind] = {
    "qrecc": Kind("hf_distill.data.sources.qrecc:FORMAT", "QReCC's JSON list of turns"),
    "turns": Kind(
        "hf_distill.data.sources.turns:FORMAT",
        "turns of conversations: history, query, rewrite and a document a row",
    ),
    "beir": Kind("hf_distill.data.sources.beir:FORMAT", "corpus, queries and qrels with ids"),
    "msmarco": Kind(
        "hf_distill.data.sources.msmarco:FORMAT",
        "collection, queries, qrels, triples and TREC runs as tab-separated files",
    ),
    "pylate": Kind(
        "hf_distill.data.sources.pylate:FORMAT",
        "query_id, document_ids and scores beside tables of the texts",
    ),
    "flagembedding": Kind(
        "hf_distill.data.sources.flagembedding:FORMAT", "query, pos, neg, pos_scores, neg_scores"
    ),
    "tevatron": Kind(
        "hf_distill.data.sources.tevatron:FORMAT", "query, positive_passages, negative_passages"
    ),
    "sentence-transformers": Kind(
        "hf_distill.data.sources.sentence_transformers:FORMAT",
        "anchor, positive, negative ..., or lists of documents with labels or scores",
    ),
    "texts": Kind(
        "hf_distill.data.sources.texts:FORMAT",
        "texts without queries: a text a row, or what the teacher and what the student reads",
    ),
    "pairs": Kind(
        "hf_distill.data.sources.pairs:FORMAT",
        "a query and a document a row, with an optional label, score, group and source",
    ),
}
"""Formats of files (`hf_distill.data.format.Format`), in the order in which they are tried on files
whose format is not named.
"""

TEACHERS: Mapping[str, Kind] = {
    "bi-encoder": Kind("hf_distill.teachers.bi_encoder:load_bi_encoder", "a SentenceTransformer"),
    "cross-encoder": Kind(
        "hf_distill.teachers.cross_encoder:load_cross_encoder", "a CrossEncoder with one output"
    ),
    "sparse-encoder": Kind(
        "hf_distill.teachers.sparse_encoder:load_sparse_encoder", "a SparseEncoder (SPLADE)"
    ),
    "endpoint": Kind(
        "hf_distill.teachers.endpoint:load_endpoint",
        "an OpenAI-compatible embeddings API (its key, if it needs one, in OPENAI_API_KEY)",
    ),
    "rerank-endpoint": Kind(
        "hf_distill.teachers.rerank_endpoint:load_rerank_endpoint",
        "a ranker behind a /rerank API: text-embeddings-inference, vLLM, Infinity, Cohere, Jina "
        "(its key, if it needs one, in RERANK_API_KEY)",
    ),
    "chat-judge": Kind(
        "hf_distill.teachers.chat_judge:load_chat_judge",
        "a language model behind an OpenAI-compatible chat API, which grades documents from 0 to 3",
    ),
    "precomputed": Kind(
        "hf_distill.teachers.precomputed:load_precomputed",
        "a JSON, JSONL, CSV or Parquet file of scores or embeddings, e.g. teacher_soft_labels.json",
    ),
    "ensemble": Kind("hf_distill.teachers.ensemble:load_ensemble", "several of these"),
}
"""Kinds of teacher: functions of the recipe that return a `hf_distill.teachers.base.Teacher`."""

RULES: Mapping[str, Kind] = {
    name: Kind(f"hf_distill.selection.rules:{name}", drops)
    for name, drops in {
        "invalid": "query under 6 or document under 11 characters",
        "echo": "the document is the query",
        "near_echo": "the query has at least the share S of the document's bigrams (near_echo=S)",
        "duplicate": "all but the first of equal pairs",
        "near_duplicate": "all but the first N of near-equal pairs (near_duplicate[=N])",
        "percentile": "scores below the P-th percentile (percentile=P[:by=group|source])",
        "threshold": "scores below T (threshold=T)",
        "top_k": "all but the N highest scores (top_k=N[:by=group|source])",
        "rank": "the document is not among the teacher's K best of the pool (rank=K)",
        "margin": "the document is not M above the best other one of the pool (margin=M)",
        "mismatched": "the rank is probably that of a random document (mismatched[=PROBABILITY])",
        "stratified": "all but a share F, drawn evenly over the scores (stratified=F[:on=margin])",
        "coverage": "all but a share F, drawn evenly over clusters of documents (coverage=F)",
        "agreement": "all but the share F on which teacher and second_model agree best "
        "(agreement=F)",
        "disagreement": "all but the share F on which they disagree most (disagreement=F)",
        "random": "all but a random share F (random=F)",
    }.items()
}
"""Selection rules (`hf_distill.selection.rules.RuleKind`), with what each drops."""


def list_kinds(kinds: Mapping[str, Kind]) -> str:
    """`name: help; name: help`, for `--help`."""
    return "; ".join(f"{name}: {kind.help}" for name, kind in kinds.items())


def load_kind(name: str, kinds: Mapping[str, Kind], key: str) -> Any:
    """The object that `name` stands for: one of `kinds`, or any `package.module:name`.

    Args:
        name: What the recipe says.
        kinds: The names that this package knows.
        key: The recipe's key, for the error.

    Raises:
        InputError: An unknown name (the nearest one is suggested), a module that cannot be
            imported, or one that has no such attribute.
    """
    check_kind(name, kinds, key)
    return load_object(kinds[name].where if name in kinds else name, key)


def check_kind(name: str, kinds: Mapping[str, Kind], key: str) -> None:
    """Raise InputError, with the nearest name, if `name` is none of `kinds` and reads not like
    `package.module:name`. Nothing is imported.
    """
    if name in kinds or PLUGIN.fullmatch(name):
        return
    near = difflib.get_close_matches(name, kinds, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise InputError(
        f"--{key} {name!r} is unknown.{hint} It can be {', '.join(kinds)}, or package.module:name "
        "of your own"
    )


def load_object(where: str, key: str) -> Any:
    """What `where`, a `package.module:name`, names.

    Raises:
        InputError: The module cannot be imported, or has no such attribute.
    """
    module_name, _, name = where.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"--{key} {where}: the module {module_name} cannot be imported ({error}); install it, "
            "or put its folder on PYTHONPATH"
        ) from error
    if not hasattr(module, name):
        raise InputError(f"--{key} {where}: the module {module_name} has no {name}")
    return getattr(module, name)


def digests_of_plugins(texts: Iterable[str]) -> list[str]:
    """SHA-256 of the module's file for each of `texts` that begins with a `package.module:name`, so
    that results are made again when that code changes.
    """
    digests = []
    for text in texts:
        plugin = PLUGIN.match(text)
        spec = importlib.util.find_spec(plugin[0].split(":")[0]) if plugin else None
        if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
            digests.append(hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest())
    return digests

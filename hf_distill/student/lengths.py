"""How long the texts are in tokens, and how many of them teacher and student cut at their limits.

A model reads only the beginning of a text that is longer than its limit, and says nothing about it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from sentence_transformers import CrossEncoder
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Router, Transformer
from tokenizers import Tokenizer

from hf_distill.compute.encode import Asked, batches_by_length
from hf_distill.data.collection import Collection
from hf_distill.recipe.arguments import Recipe
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import stage
from hf_distill.student.build import backbone_identity, build_student
from hf_distill.teachers.base import Teacher, TextKind

SAMPLE = 100_000
"""Of more texts than this, so many are counted."""

WORTH_A_FLAG = 0.1
"""If the student cuts a share of the documents that is larger than the teacher's by this, the
summary names the flag.
"""

_UNLIMITED = 10**9
_BATCH_TOKENS = 100_000
_READ = 10_000

KINDS: tuple[TextKind, ...] = ("query", "document")

_Read = Callable[[np.ndarray], list[str] | list[tuple[str, str]]]
"""The texts or pairs at some places (m,). Its name says which."""


@dataclass(frozen=True)
class Lengths:
    """How long some texts are for one model, in tokens: with prompts and special tokens.

    Attributes:
        texts: How many there are.
        counted: How many of them were counted, drawn by the seed.
        mean, median, p95, longest: Tokens of a text.
        limit: The most tokens that the model reads; None: it has no limit.
        cut: How many of those counted are longer.
        lost: The share of all their tokens that the model does not read.
    """

    texts: int
    counted: int
    mean: float
    median: int
    p95: int
    longest: int
    limit: int | None
    cut: int
    lost: float

    @classmethod
    def of(cls, tokens: np.ndarray, limit: int | None, texts: int) -> Lengths:
        """Of `tokens` (counted,) of some of the `texts`, at least one."""
        beyond = np.maximum(tokens - (limit or tokens.max()), 0)
        median, p95 = np.quantile(tokens, [0.5, 0.95], method="inverted_cdf")
        return cls(
            texts=texts,
            counted=len(tokens),
            mean=round(float(tokens.mean()), 1),
            median=int(median),
            p95=int(p95),
            longest=int(tokens.max()),
            limit=limit,
            cut=int((beyond > 0).sum()),
            lost=float(beyond.sum() / tokens.sum()) if tokens.any() else 0.0,
        )

    @property
    def share_cut(self) -> float:
        """The share of the counted texts that are cut."""
        return self.cut / self.counted


@dataclass(frozen=True)
class ModelLengths:
    """How long the texts are for one model.

    Attributes:
        role: What it is in the run.
        name: The teacher's name; of the student, its backbone.
        of: `queries` and `documents`, or of a cross-encoder `pairs`, or where there are no pairs
            `texts` (and `student's texts`, if it reads others) -> how long they are.
    """

    role: Literal["teacher", "student"]
    name: str
    of: dict[str, Lengths]


@dataclass(frozen=True)
class TextLengths:
    """`text_lengths.json`.

    Attributes:
        key: The fingerprint of what it depends on.
        models: The teachers that read texts here (several in an ensemble), then the student.
        unknown: Names of teachers that read texts elsewhere (a file, an endpoint): what they cut is
            not known.
    """

    key: str
    models: tuple[ModelLengths, ...]
    unknown: tuple[str, ...]

    @property
    def student(self) -> ModelLengths:
        """How long the texts are for the student."""
        return self.models[-1]

    @property
    def teachers(self) -> tuple[ModelLengths, ...]:
        """How long they are for each teacher that reads texts here."""
        return self.models[:-1]

    def summary(self) -> str:
        """What was cut, for a terminal: a line for each model that cuts something."""
        lines = [line for model in self.models for line in _lines(model)]
        if not lines:
            reads = ", ".join(f"the {model.role} reads {_limits(model)}" for model in self.models)
            lines = [f"no text is cut: {reads}"]
        if flag := self._flag():
            lines.append(flag)
        for name in self.unknown:
            lines.append(f"whether {name} cut texts is not known here")
        return "Cut      " + "\n         ".join(lines)

    def _flag(self) -> str | None:
        """The flag that lets the student read more, if it cuts far more than every teacher does."""
        kind = "documents" if "documents" in self.student.of else "texts"
        own = self.student.of[kind]
        read = [model.of.get(kind) or model.of["pairs"] for model in self.teachers]
        if not read or own.share_cut - max(one.share_cut for one in read) <= WORTH_A_FLAG:
            return None
        more = max(one.limit or own.longest for one in read)
        return f"--student_max_length {more} lets the student read as much as the teacher"


def _lines(model: ModelLengths) -> Iterator[str]:
    for kind, lengths in model.of.items():
        if lengths.cut:
            drawn = f" (drawn from {lengths.texts:,})" if lengths.counted < lengths.texts else ""
            yield (
                f"the {model.role} reads {lengths.limit:,} tokens: {lengths.cut:,} of "
                f"{lengths.counted:,} {kind}{drawn} are longer ({lengths.share_cut:.1%}), up to "
                f"{lengths.longest:,}; {lengths.lost:.1%} of all their tokens are lost"
            )


def _limits(model: ModelLengths) -> str:
    limits = sorted({lengths.limit or _UNLIMITED for lengths in model.of.values()})
    texts = (f"{limit:,} tokens" if limit < _UNLIMITED else "whole texts" for limit in limits)
    return " or ".join(texts)


class Earlier(Protocol):
    """What `text_lengths` reads; `hf_distill.pipeline.Run` has it."""

    recipe: Recipe
    folder: RunFolder

    @property
    def teacher(self) -> Teacher: ...
    @property
    def collection(self) -> Collection: ...


def text_lengths(earlier: Earlier) -> TextLengths:
    """How long the texts of the collection are for teacher and student. No model is run.

    A student whose vocabulary is cut (`student_vocabulary: used`) is measured with the whole one.
    It splits the training texts alike; rare words of other texts may take more tokens than counted.
    """
    recipe, teacher, collection = earlier.recipe, earlier.teacher, earlier.collection

    def make(key: str) -> TextLengths:
        readers, unknown = _readers_of(teacher)
        student = build_student(recipe.student, teacher, None, recipe.seed)
        asked = {kind: Asked({"prompt": teacher.prompts.of(kind)}) for kind in KINDS}
        readers.append(_Reader("student", recipe.student.student_backbone, student, asked, ""))
        counted: dict[str, np.ndarray] = {}
        return TextLengths(
            key=key,
            models=tuple(_measured(reader, collection, recipe.seed, counted) for reader in readers),
            unknown=unknown,
        )

    inputs = [
        collection.key, teacher.identity, vars(teacher.prompts), vars(recipe.student),
        backbone_identity(recipe.student), recipe.seed,
    ]  # fmt: skip
    return stage(earlier.folder.text_lengths, TextLengths, inputs, make)


def teacher_lengths(
    teacher: Teacher, collection: Collection, seed: int
) -> tuple[tuple[ModelLengths, ...], tuple[str, ...]]:
    """How long the texts of the collection are for `teacher` alone: `TextLengths.teachers` and
    `TextLengths.unknown`. No model is run.
    """
    readers, unknown = _readers_of(teacher)
    counted: dict[str, np.ndarray] = {}
    return tuple(_measured(reader, collection, seed, counted) for reader in readers), unknown


@dataclass(frozen=True)
class _Reader:
    """A model, and how it is asked.

    Attributes:
        role, name: As in `ModelLengths`.
        model: The model.
        asked: How it is asked for each kind of text; of a cross-encoder, for pairs.
        before_documents: Text before the document of a pair.
    """

    role: Literal["teacher", "student"]
    name: str
    model: BaseModel
    asked: Mapping[TextKind, Asked] | Asked
    before_documents: str

    def tokens(self, items: list[Any], kind: TextKind | None, whole: bool) -> np.ndarray:
        """Tokens (n,) of texts or pairs: as many as the model reads, or, with `whole`, as many as
        there are.
        """
        asked = self._asked(kind)
        tokenizer = self._first(kind).tokenizer
        if isinstance(tokenizer, Tokenizer):  # of a table of token vectors
            if whole:
                tokenizer = Tokenizer.from_str(tokenizer.to_str())
                tokenizer.no_truncation()
            texts = [asked.prompt + text for text in items]
            encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            return np.array([len(one) for one in encoded])
        limit = {"max_length": _UNLIMITED} if whole else {}
        features = self.model.preprocess(items, **{**asked.preprocess, **limit})
        if "attention_mask" in features:
            tokens: np.ndarray = features["attention_mask"].sum(dim=1).numpy()
        else:  # not padded (`unpad_inputs`)
            tokens = np.diff(features["cu_seq_lens_q"].numpy())
        return tokens

    def splits_like(self, kind: TextKind | None) -> str:
        """Two models that return the same split these texts into the same tokens, as a student that
        is cut from its teacher does.
        """
        first = self._first(kind)
        backend = getattr(first.tokenizer, "backend_tokenizer", None)
        if type(first) is not Transformer or backend is None:
            return f"{self.role} {self.name} {kind}"
        how = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
        return json.dumps([how, kind, self._asked(kind).prompt])

    def declared_limit(self, kind: TextKind | None) -> int | None:
        """The limit that the model names."""
        limit = getattr(self._first(kind), "max_seq_length", None)
        return int(limit) if limit and limit < _UNLIMITED else None

    def _asked(self, kind: TextKind | None) -> Asked:
        return self.asked if isinstance(self.asked, Asked) else self.asked[kind or "query"]

    def _first(self, kind: TextKind | None) -> Any:
        """The module that reads these texts."""
        first: Any = self.model[0]
        if not isinstance(first, Router):
            return first
        task = self._asked(kind).preprocess.get("task")
        routes: Any = first.sub_modules
        return routes[task if task in routes else first.default_route][0]


def _readers_of(teacher: Teacher) -> tuple[list[_Reader], tuple[str, ...]]:
    """How the teacher (each of an ensemble) reads texts, and the names of those that read them
    elsewhere.
    """
    members = [member for member, _ in teacher.members] or [teacher]
    readers = [_reader_of(member) for member in members]
    elsewhere = (
        member.name for member, reader in zip(members, readers, strict=True) if reader is None
    )
    return [reader for reader in readers if reader is not None], tuple(elsewhere)


def _reader_of(teacher: Teacher) -> _Reader | None:
    """How the teacher reads texts; None if no model in this process does."""
    model = getattr(teacher, "model", None)
    if not isinstance(model, BaseModel):
        model = teacher.backbone
    if model is None:
        return None
    prompts = teacher.prompts
    asked = getattr(teacher, "asked", {kind: Asked({"prompt": prompts.of(kind)}) for kind in KINDS})
    return _Reader("teacher", teacher.name, model, asked, prompts.document)


def _measured(
    reader: _Reader, collection: Collection, seed: int, counted: dict[str, np.ndarray]
) -> ModelLengths:
    """How long what `reader` reads is. `counted` holds the tokens of models that split texts
    alike.
    """
    pairs = collection.every_pair()

    def both(places: np.ndarray) -> list[tuple[str, str]]:
        some = pairs.take(places)
        documents = collection.document_texts(some.documents)
        documents = [reader.before_documents + document for document in documents]
        return list(zip(collection.query_texts(some.queries), documents, strict=True))

    def lengths(read: _Read, count: int, kind: TextKind | None) -> Lengths:
        places = np.arange(count)
        if count > SAMPLE:
            draw = np.random.default_rng(seed)
            places = np.sort(draw.choice(count, SAMPLE, replace=False))
        like = f"{reader.splits_like(kind)} {read.__name__}"
        if like not in counted:
            counted[like] = _count(reader, read, places, kind)
        tokens = counted[like]
        # The limit is what it reads of the longest text, or what it declares if that is not cut.
        longest = read(places[[tokens.argmax()]])
        most = int(reader.tokens(longest, kind, whole=False)[0])
        limit = most if most < tokens.max() else reader.declared_limit(kind)
        return Lengths.of(tokens, limit, count)

    of: dict[str, Lengths] = {}
    if (alone := collection.record.texts) is not None:
        of["texts"] = lengths(collection.teacher_texts, len(collection.texts), "document")
        if alone.parallel and reader.role == "student":
            counted.clear()  # of other texts
            of["student's texts"] = lengths(
                collection.student_texts, len(collection.texts), "document"
            )
    elif isinstance(reader.model, CrossEncoder):
        of["pairs"] = lengths(both, len(pairs), None)
    else:
        of_student = reader.role == "student" and collection.num_student_queries
        queries = collection.student_queries if of_student else collection.query_texts
        of["queries"] = lengths(queries, len(collection.queries), "query")
        of["documents"] = lengths(collection.document_texts, len(collection.documents), "document")
    return ModelLengths(reader.role, reader.name, of)


def _count(reader: _Reader, read: _Read, places: np.ndarray, kind: TextKind | None) -> np.ndarray:
    """(n,) int64, the tokens of the texts or pairs at `places` (n,), uncut."""
    counts = np.empty(len(places), dtype=np.int64)
    for start in range(0, len(places), _READ):
        items = read(places[start : start + _READ])
        for batch in batches_by_length(items, _BATCH_TOKENS):
            rows = start + np.array(batch)
            counts[rows] = reader.tokens([items[i] for i in batch], kind, whole=True)
    return counts

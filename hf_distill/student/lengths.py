"""How long the texts are in tokens, and how many of them teacher and student cut at their limits.

A model reads only the beginning of a text that is longer than its limit, and says nothing about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from sentence_transformers import CrossEncoder
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Router
from tokenizers import Tokenizer

from hf_distill.compute.encode import Item, batches_by_length
from hf_distill.data.collection import Collection
from hf_distill.recipe.arguments import Recipe
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import stage
from hf_distill.student.build import backbone_identity, build_student
from hf_distill.teachers.base import Prompts, Teacher

SAMPLE = 100_000
"""Of more texts than this, so many are counted."""

WORTH_A_FLAG = 0.1
"""If the student cuts a share of the documents that is larger than the teacher's by this, the
summary names the flag.
"""

_UNLIMITED = 10**9
_BATCH_TOKENS = 100_000
_READ = 10_000

Kind = Literal["queries", "documents", "pairs"]
Task = Literal["query", "document"] | None


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
        of: What it reads -> how long that is. A cross-encoder reads pairs.
    """

    role: Literal["teacher", "student"]
    name: str
    of: dict[Kind, Lengths]


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
        own = self.student.of["documents"]
        read = [model.of.get("documents") or model.of["pairs"] for model in self.teachers]
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
        members = [member for member, _ in teacher.members] or [teacher]
        models = [
            ModelLengths("teacher", member.name, _of_model(model, member.prompts, earlier))
            for member in members
            if (model := _model_of(member))
        ]
        backbone = recipe.student.student_backbone
        student = build_student(recipe.student, teacher, None, recipe.seed)
        of_student = _of_model(student, teacher.prompts, earlier)
        models.append(ModelLengths("student", backbone, of_student))
        unknown = tuple(member.name for member in members if not _model_of(member))
        return TextLengths(key, tuple(models), unknown)

    inputs = [
        collection.key, teacher.identity, vars(teacher.prompts), vars(recipe.student),
        backbone_identity(recipe.student), recipe.seed,
    ]  # fmt: skip
    return stage(earlier.folder.text_lengths, TextLengths, inputs, make)


def _model_of(teacher: Teacher) -> BaseModel | None:
    """The model that reads texts for the teacher in this process."""
    own = getattr(teacher, "model", None)
    return own if isinstance(own, BaseModel) else teacher.backbone


def _of_model(model: BaseModel, prompts: Prompts, earlier: Earlier) -> dict[Kind, Lengths]:
    """How long what `model` reads is."""
    collection = earlier.collection
    pairs = collection.every_pair()

    def queries(numbers: np.ndarray) -> list[str]:
        return [prompts.query + text for text in collection.query_texts(numbers)]

    def documents(numbers: np.ndarray) -> list[str]:
        return [prompts.document + text for text in collection.document_texts(numbers)]

    def both(places: np.ndarray) -> list[tuple[str, str]]:
        some = pairs.take(places)
        return list(zip(queries(some.queries), documents(some.documents), strict=True))

    def measured(read: Callable[[np.ndarray], Sequence[Item]], count: int, task: Task) -> Lengths:
        places = np.arange(count)
        if count > SAMPLE:
            draw = np.random.default_rng(earlier.recipe.seed)
            places = np.sort(draw.choice(count, SAMPLE, replace=False))
        blocks = (read(places[start : start + _READ]) for start in range(0, len(places), _READ))
        return Lengths.of(*_tokens_and_limit(model, blocks, task), count)

    if isinstance(model, CrossEncoder):
        return {"pairs": measured(both, len(pairs), None)}
    return {
        "queries": measured(queries, len(collection.queries), "query"),
        "documents": measured(documents, len(collection.documents), "document"),
    }


def _tokens_and_limit(
    model: BaseModel, blocks: Iterable[Sequence[Item]], task: Task
) -> tuple[np.ndarray, int | None]:
    """Tokens (n,) of all items, and the most that `model` reads of one. The limit is what it reads
    of the longest item, if it cuts that, and else what it declares.
    """
    counts: list[np.ndarray] = []
    longest: Item = ""
    most = -1
    for items in blocks:
        tokens = np.empty(len(items), dtype=np.int64)
        for batch in batches_by_length(items, _BATCH_TOKENS):
            tokens[batch] = _tokens(model, [items[i] for i in batch], task, whole=True)
        if tokens.max() > most:
            most, longest = int(tokens.max()), items[int(tokens.argmax())]
        counts.append(tokens)
    read = int(_tokens(model, [longest], task, whole=False)[0])
    return np.concatenate(counts), read if read < most else _declared(model, task)


def _tokens(model: BaseModel, items: list[Any], task: Task, whole: bool) -> np.ndarray:
    """Tokens (n,) of items: as many as `model` reads, or, with `whole`, as many as there are."""
    tokenizer = model.tokenizer
    if isinstance(tokenizer, Tokenizer):  # of a static model
        if whole:
            tokenizer = Tokenizer.from_str(tokenizer.to_str())
            tokenizer.no_truncation()
        encoded = tokenizer.encode_batch_fast(items, add_special_tokens=False)
        return np.array([len(one) for one in encoded])
    arguments: dict[str, Any] = {"task": task} if task else {}
    if whole:
        arguments["max_length"] = _UNLIMITED
    features = model.preprocess(items, **arguments)
    if "attention_mask" in features:
        tokens: np.ndarray = features["attention_mask"].sum(dim=1).numpy()
    else:  # not padded (`unpad_inputs`)
        tokens = np.diff(features["cu_seq_lens_q"].numpy())
    return tokens


def _declared(model: BaseModel, task: Task) -> int | None:
    """The limit that the module which reads these texts names."""
    first: Any = model[0]
    if isinstance(first, Router):
        routes: Any = first.sub_modules
        route = task if task in routes else first.default_route
        first = routes[route][0] if route else None
    limit = getattr(first, "max_seq_length", None)
    return int(limit) if limit and limit < _UNLIMITED else None

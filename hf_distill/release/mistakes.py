"""Why a runtime's embeddings differ from those of sentence-transformers: the usual mistakes are
computed, and the one that gives the runtime's embeddings is named.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from hf_distill.release.probes import KINDS

CLOSE = 1e-3
"""Largest difference, in any dimension of a unit vector, from the mistake that is named."""

_LIMITS = (16, 32, 64, 128, 256, 384, 512)
"""Tokens at which runtimes cut that do not read the student's own limit."""

_POOLINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda tokens: tokens.mean(axis=0),
    "cls": lambda tokens: tokens[0],
    "max": lambda tokens: tokens.max(axis=0),
    "lasttoken": lambda tokens: tokens[-1],
}
"""Token embeddings (T, h) -> (h,)."""

_NAMES = {"mean": "the mean", "cls": "the CLS token", "max": "the maximum", "lasttoken": "the last"}


@dataclass(frozen=True)
class Sent:
    """What a runtime was sent, and what it answered.

    Attributes:
        queries, documents: Texts, without prompts.
        embeddings: (len(queries) + len(documents), d) float32, its answer.
    """

    queries: Sequence[str]
    documents: Sequence[str]
    embeddings: np.ndarray

    def prompted(self, query: str, document: str) -> list[str]:
        """All texts, behind these prompts."""
        return [query + text for text in self.queries] + [document + t for t in self.documents]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (N, d) of unit length; zeros stay."""
    lengths: np.ndarray = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12))


@dataclass(frozen=True)
class _Cut:
    """Where a text is cut, in tokens. `ended`: the special token at its end is kept."""

    limit: int
    ended: bool = True


@dataclass
class _Student:
    """A student that can be read wrongly. Token embeddings are kept: each costs a pass."""

    model: SentenceTransformer
    tokens: dict[tuple[str, str, _Cut], list[np.ndarray]] = field(default_factory=dict)

    @property
    def limit(self) -> int:
        return int(self.model.max_seq_length or 0)

    @property
    def pooling(self) -> str:
        return next(str(m.pooling_mode) for m in self.model if isinstance(m, Pooling))

    def hidden(self, sent: Sent, prompts: tuple[str, str], cut: _Cut) -> list[np.ndarray]:
        """The token embeddings (T, h) of each text."""
        key = (*prompts, cut)
        if key not in self.tokens:
            texts = sent.prompted(*prompts)
            self.tokens[key] = self._up_to(texts, cut.limit) if cut.ended else self._endless(texts)
        return self.tokens[key]

    def _up_to(self, texts: list[str], limit: int) -> list[np.ndarray]:
        """As sentence-transformers reads them with this limit."""
        own, self.model.max_seq_length = self.limit, limit
        try:
            rows = self.model.encode(
                texts, output_value="token_embeddings", prompt="", show_progress_bar=False
            )
        finally:
            self.model.max_seq_length = own
        return [row.float().cpu().numpy() for row in rows]

    def _endless(self, texts: list[str]) -> list[np.ndarray]:
        """Cut at the student's limit after the special tokens were added: the last is lost."""
        first, parts = self.model[0], []
        for text in texts:
            tokens = self.model.tokenizer(text, truncation=False, verbose=False)["input_ids"]
            ids = torch.tensor([tokens[: self.limit]])
            with torch.inference_mode():
                state = first({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            parts.append(state["token_embeddings"][0].float().numpy())
        return parts

    def headed(self, pooled: np.ndarray) -> np.ndarray:
        """(N, h) through the linear layers."""
        state = torch.from_numpy(pooled)
        with torch.inference_mode():
            for module in self.model:
                if isinstance(module, Dense):
                    state = module({"sentence_embedding": state})["sentence_embedding"]
        return state.numpy()


def _prompts(model: SentenceTransformer) -> dict[str, tuple[str, str]]:
    """What is wrong -> prompts of queries and documents. The first is right."""
    query, document = (model.prompts.get(kind) or "" for kind in ("query", "document"))
    variants = {"": (query, document)}
    if query or document:
        variants |= {
            "the prompts are missing": ("", ""),
            "the prompts stand twice": (query * 2, document * 2),
        }
    if query != document:
        variants |= {
            "queries get the prompt of documents": (document, document),
            "documents get the prompt of queries": (query, query),
        }
    return variants


def _cuts(student: _Student) -> dict[str, _Cut]:
    """What is wrong -> where texts are cut. The first is right."""
    first, own = student.model[0], student.limit
    most = first.auto_model.config.max_position_embeddings if isinstance(first, Transformer) else 0
    others = [n for n in sorted({*_LIMITS, most}) if n != own and 0 < n <= most]
    said = {f"texts are cut at {n} tokens, not at {own}": _Cut(n) for n in others}
    endless = f"the special token at the end of texts that are cut at {own} tokens is lost"
    return {"": _Cut(own), endless: _Cut(own, ended=False)} | said


def _mistakes(student: _Student, sent: Sent) -> Iterator[tuple[list[str], np.ndarray]]:
    """What is wrong -> unit embeddings, the fewest mistakes first."""
    prompts, cuts = _prompts(student.model), _cuts(student)
    heads = {"": True}
    if any(isinstance(module, Dense) for module in student.model):
        heads["the Dense head is missing"] = False
    own = student.pooling
    poolings = {"": own} | {
        f"it pools {_NAMES[mode]}, not {_NAMES.get(own, own)}": mode
        for mode in _POOLINGS
        if mode != own
    }
    ways = itertools.product(prompts, cuts, poolings, heads)
    for way in sorted(ways, key=lambda way: sum(map(bool, way))):
        prompt, cut, pooling, head = way
        pool = _POOLINGS.get(poolings[pooling])
        if pool is None:  # a pooling that is not imitated here
            continue
        tokens = student.hidden(sent, prompts[prompt], cuts[cut])
        pooled = np.stack([pool(rows) for rows in tokens])
        rows = student.headed(pooled) if heads[head] else pooled
        yield [what for what in (head, pooling, prompt, cut) if what], unit(rows)


def _of_tables(student: _Student, sent: Sent) -> Iterator[tuple[list[str], np.ndarray]]:
    """The same of a student without a transformer, which has neither head nor limit."""
    for what, prompts in _prompts(student.model).items():
        texts = sent.prompted(*prompts)
        rows = student.model.encode(texts, prompt="", show_progress_bar=False)
        yield [what] if what else [], unit(rows)


def _where(sent: Sent, wrong: np.ndarray) -> str:
    """Which kinds of texts differ, if the others do not. A run's own texts are not quoted: a card
    may show this.
    """
    every = [*sent.queries, *sent.documents]
    kinds: Mapping[str, str] = {text: kind for kind, texts in KINDS.items() for text in texts}
    seen = {kinds.get(text, "the run's texts") for text in every}
    different = [every[i] for i in np.flatnonzero(wrong).tolist()]
    bad = {kinds.get(text, "the run's texts") for text in different}
    only = f" (only {', '.join(sorted(bad))})" if bad < seen else ""
    example = next((f", e.g. {text[:40]!r}" for text in different if text in kinds), "")
    return (
        f"{len(different)} of {len(every)} texts differ{only}{example}; none of the usual mistakes "
        "gives its embeddings"
    )


def likely_reason(
    model: SentenceTransformer, sent: Sent, expected: np.ndarray, tolerance: float
) -> str:
    """What the runtime probably does wrong.

    Args:
        model: The student, in float32.
        sent: What it was sent and answered. All rows are finite.
        expected: (N, e) float32, what sentence-transformers answers.
        tolerance: Largest difference of embeddings that are the same.
    """
    got = sent.embeddings
    lengths = np.linalg.norm(got, axis=1)
    wrong = np.abs(lengths - 1) > CLOSE
    # A student without a transformer has zeros where it reads no token.
    raw = ["embeddings are not normalised"] if (wrong & (lengths > 0)).any() else []
    student = _Student(model)
    static = not isinstance(model[0], Transformer)
    for what, rows in (_of_tables if static else _mistakes)(student, sent):
        if rows.shape != got.shape or np.abs(rows - unit(got)).max() > CLOSE:
            continue
        # A mistake that changes nothing explains nothing.
        told = rows.shape != expected.shape or np.abs(rows - unit(expected)).max() > CLOSE
        if told or (raw and not what):
            return " and ".join([*what, *raw])
    if got.shape != expected.shape:
        return f"its embeddings have {got.shape[1]} dimensions, the student's {expected.shape[1]}"
    differences = np.abs(got - expected).max(axis=1)
    if differences.max() <= 100 * tolerance and np.median(differences) > tolerance / 10:
        return "every text differs a little: it computes in a lower precision, such as float16"
    return _where(sent, differences > tolerance)

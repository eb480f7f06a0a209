"""What an evaluation of a run on texts alone found: the types of its `evaluation.json`."""

from __future__ import annotations

from dataclasses import dataclass

from hf_distill.evaluation.results import Bootstrap, Efficiency, Estimate, Significance, TaskResults


@dataclass(frozen=True)
class Closeness:
    """How closely a student's cosines follow the teacher's scores on some pairs of texts.

    Attributes:
        pairs: How many, one of each held-out text.
        pearson, spearman: Correlations.
        mae: Mean absolute error.
    """

    pairs: int
    pearson: Estimate
    spearman: Estimate
    mae: Estimate


@dataclass(frozen=True)
class TextSystem:
    """A system on texts without judgements: does it find what the teacher finds?

    Attributes:
        overlap: Share of the teacher's ten nearest texts among the system's ten.
        ndcg: nDCG@10 of the system's order, with the teacher's scores as gains (see
            `hf_distill.evaluation.agreement.gained`).
        random, near: Its scores of each held-out text with a random other one, and with one of the
            teacher's ten nearest; None for BM25, whose scores are no cosines.
    """

    overlap: Estimate
    ndcg: Estimate
    random: Closeness | None = None
    near: Closeness | None = None


@dataclass(frozen=True)
class Spread:
    """How a system's scores of two random texts are distributed."""

    mean: float
    sd: float


@dataclass(frozen=True)
class TranslationResults:
    """How a system embeds the two forms of a text: what the teacher and what the student reads.

    Attributes:
        found: Share of the student's texts whose nearest teacher's text is their own.
        found_back: Share of the teacher's texts whose nearest student's text is their own.
        cosine: Mean cosine of a student's text to the teacher's own embedding of its text, in the
            student's space; None where there is no such space.
    """

    found: Estimate
    found_back: Estimate
    cosine: Estimate | None


@dataclass(frozen=True)
class TextsEvaluation:
    """The content of `evaluation.json` of a run on texts alone. Nobody judged which text answers
    which: the teacher's own order and scores are what a student is measured by.

    Attributes:
        key, training, collection, bootstrap, efficiency, tasks: As in `Evaluation`.
        num_texts: Held-out texts, each a query: as the student reads it.
        num_searched: Texts that each of them searches without itself, as the teacher reads them:
            the held-out ones, and training texts.
        systems: `student`, `untrained student` and `bm25` -> its figures.
        significance: The student's overlap minus that of each other system, text by text.
        spread: `teacher` and `student` -> its scores of random texts.
        collapsed: What is wrong with the student's scores as a whole; None if nothing is.
        translations: System -> how it embeds the two forms of a text; empty where there is one.
        by_source: Source -> the student's translations of its texts, where there are several.
    """

    key: str
    training: str
    collection: str
    bootstrap: Bootstrap
    num_texts: int
    num_searched: int
    systems: dict[str, TextSystem]
    significance: Significance
    spread: dict[str, Spread]
    collapsed: str | None
    translations: dict[str, TranslationResults]
    by_source: dict[str, TranslationResults]
    efficiency: Efficiency
    tasks: dict[str, TaskResults]

"""Which candidates of a query's list a pair is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from hf_distill.recipe.arguments import Recipe
from hf_distill.scoring.lists import ScoredLists
from hf_distill.selection.relabelled import Relabelled
from hf_distill.training.in_batch import cut_below

_BLOCK = 4096


@dataclass(frozen=True)
class Choice:
    """How hard negatives are chosen out of lists.

    Attributes:
        number: How many for each pair.
        how: The best, random ones, or one of each of `number` equal parts of the ranks.
        cut: Those that the ranker scores above this part of the pair's own document are left out;
            None: nothing is.
    """

    number: int
    how: Literal["top", "random", "stratified"]
    cut: float | None

    def places(self, counts: np.ndarray, width: int, draw: np.random.Generator) -> np.ndarray:
        """(n, number) int64: which of its `counts` (n,) candidates, best first, each pair takes;
        all of them, and the last one again, where there are no more. No list is longer than
        `width`.
        """
        most, number = counts[:, None], self.number
        first: np.ndarray = np.minimum(np.arange(number), most - 1)
        if self.how == "random":
            order = np.where(np.arange(width) < most, draw.random((len(counts), width)), 2.0)
            first = np.take_along_axis(np.argsort(order, axis=1), first, axis=1)
        elif self.how == "stratified":
            bounds = np.arange(number + 1) * most // number
            sizes = np.diff(bounds, axis=1)
            drawn = bounds[:, :-1] + (draw.random(sizes.shape) * sizes).astype(np.int64)
            first = np.where(most > number, drawn, first)
        return np.sort(first, axis=1)


def choose(
    documents: np.ndarray,
    scores: np.ndarray,
    own: np.ndarray,
    choice: Choice,
    draw: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Hard negatives out of lists.

    Candidates above the cut are probably answers (NV-Retriever, arXiv:2407.15831). One without a
    score stays. Where all are above it, the lowest ones are taken, and the contrastive term ignores
    them. Stratified candidates follow arXiv:2604.04734.

    Args:
        documents: (n, L) int64, the list of each pair; -1: it is shorter.
        scores: (n, L) float32, the ranker's; NaN: unknown.
        own: (n,) float32, its scores of the pairs' own documents; NaN: unknown.
        choice: How they are chosen.
        draw: Draws them.

    Returns:
        Documents (n, number) int64 and their scores (n, number) float32, the best first (where all
        are above the cut, the lowest); the last one is repeated where there are fewer.
    """
    there: np.ndarray = np.greater_equal(documents, 0)
    usable: np.ndarray = there
    if choice.cut is not None:
        above = np.greater(scores, cut_below(own, choice.cut)[:, None])
        usable = there & ~above
    none = np.logical_not(usable.any(axis=1, keepdims=True))
    usable = usable | (none & there)
    value = np.nan_to_num(scores, nan=-np.inf)
    order = np.lexsort((np.where(none, value, -value), ~usable), axis=1)
    counts = usable.sum(axis=1)
    counts = np.where(none[:, 0], np.minimum(counts, choice.number), counts)
    places = choice.places(counts, documents.shape[1], draw)
    chosen = np.take_along_axis(order, places, axis=1)
    return (
        np.take_along_axis(documents, chosen, axis=1),
        np.take_along_axis(scores, chosen, axis=1),
    )


def of_lists(
    lists: ScoredLists,
    places: np.ndarray,
    number: int,
    recipe: Recipe,
    new: Relabelled | None = None,
) -> dict[str, np.ndarray]:
    """`negatives` (n, number) int64, documents, and `list_scores` (n, 1 + number) float32, the
    ranker's of each pair's own document and of these.

    Args:
        lists: Of the queries.
        places: (n,) int64, which of their pairs.
        number: Hard negatives of each.
        recipe: `choose_candidates`, `positive_cut` and `seed` are read.
        new: The documents of relabelled pairs, in place of their own. They are no negatives of
            their queries.
    """
    documents, scores = lists.padded()
    choice = Choice(number, recipe.lists.choose_candidates, recipe.training.positive_cut)
    negatives = np.empty((len(places), number), dtype=np.int64)
    list_scores = np.empty((len(places), 1 + number), dtype=np.float32)
    for start in range(0, len(places), _BLOCK):
        rows = slice(start, start + _BLOCK)
        own, of = lists.own[places[rows]], lists.of[places[rows]]
        listed = documents[of]
        if new is not None:
            own = np.where(new.new[rows], new.scores[rows], own)
            answers = new.answers(listed, rows)
            others = (listed >= 0) & ~answers
            listed = np.where(answers & others.any(axis=1, keepdims=True), -1, listed)
        list_scores[rows, 0] = own
        negatives[rows], list_scores[rows, 1:] = choose(
            listed,
            scores[of],
            own,
            choice,
            np.random.default_rng((recipe.seed, start)),
        )
    return {"negatives": negatives, "list_scores": list_scores}

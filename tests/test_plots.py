"""Plots and their words, and the audit as a part of the report's page."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from datasets import Dataset
from run_results import random_values, training, usual_evaluation
from test_report import Reader

from hf_distill.data.collection import JUDGEMENT_FEATURES, Collection, CollectionRecord, Source
from hf_distill.evaluation.results import PairScores
from hf_distill.report.page import environment
from hf_distill.report.plots import (
    describe_selection,
    plot_calibration,
    plot_cost,
    plot_losses,
    plot_ranks,
    plot_retrieval,
    plot_scatter,
    plot_selection,
    plot_wins,
    save_selection_plot,
    score_thresholds,
)
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.ranking import Ranking
from hf_distill.selection.audit import Audit
from hf_distill.selection.mismatch import detect_mismatches
from hf_distill.selection.rules import parse_rules
from hf_distill.selection.select import SelectionInputs, select_pairs


def audit(folder: Path, rules: list[str]) -> Audit:
    """Of twelve training pairs in three groups, the last three with the same score."""
    n = 12
    judgements = Dataset.from_dict(
        {
            "pair_id": [str(i) for i in range(n)],
            "query": list(range(n)),
            "document": list(range(n)),
            "grade": [1] * n,
            "group": [f"<script>{i // 4}" for i in range(n)],
            "source": [None] * n,
            "split": ["train"] * n,
            "reason": [None] * n,
        },
        JUDGEMENT_FEATURES,
    )
    queries = Dataset.from_dict({"text": [f"query <b>{i}</b>" for i in range(n)]})
    documents = Dataset.from_dict(
        {"text": [f"document & {i}" for i in range(n)], "searched": [False] * n}
    )
    split = {"train": n, "validation": 0, "test": 0, "leaked": 0}
    record = CollectionRecord("c", Source("pairs"), {}, split, {}, 0)
    pairs = Collection(queries, documents, judgements, record).pairs("train")
    margin = (0.1 * np.arange(n)).astype(np.float32)
    ranked = Ranking(
        "r", np.ones(n, np.int32), margin, np.empty((n, 0), int), np.empty((n, 0), np.float32), n
    )
    values = (np.minimum(np.arange(n), 9) / 10).astype(np.float32)
    inputs = SelectionInputs(pairs, values, ranked, "inputs")
    return select_pairs(inputs, parse_rules(rules), 3, RunFolder(folder)).audit


def test_the_page_shows_both_sides_ties_overlap_and_losses(tmp_path: Path) -> None:
    rules = [
        "threshold=0.1",
        "margin=0.25",
        "top_k=2",
        "near_echo=0.9",
        "percentile=50:by=group:weight=0.5",
    ]
    html = environment().get_template("selection.html.j2").render(audit=audit(tmp_path, rules))
    text = Reader(html).text
    assert "Pairs on both sides of the threshold of top_k=2" in text
    assert "3 pairs are tied at the threshold of top_k=2" in text
    assert "The rule dropped 1 of them, drawn with seed 3" in text
    assert "2 of 3 groups have no pair left" in text
    assert "one for each group" in text
    assert "margin 0.25" in text
    assert "query <b>1</b>" in text
    assert "<script>" not in html
    assert "<b>" not in html


def test_a_selection_without_rules_says_so(tmp_path: Path) -> None:
    html = environment().get_template("selection.html.j2").render(audit=audit(tmp_path, []))
    assert "no rule: every training pair is kept" in html


def test_only_thresholds_of_the_score_are_in_its_histogram(tmp_path: Path) -> None:
    selected = audit(tmp_path, ["margin=0.25", "threshold=0.4"])
    assert score_thresholds(selected) == [("threshold=0.4", 0.4)]
    described = "Histogram of teacher scores: 8 pairs kept, 4 dropped; threshold=0.4 at 0.4000"
    assert describe_selection(selected) == plot_selection(selected).alt == described
    save_selection_plot(selected, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_the_loss_is_told_from_its_first_to_its_last_value() -> None:
    log = [
        {"loss": 2.0, "step": 1, "contrastive": 1.5},
        {"eval_loss": 1.9, "step": 1},
        {"loss": 1.0, "step": 2, "contrastive": 0.5},
    ]
    assert "over 2 steps, from 2.000 to 1.000" in plot_losses(training(log=log)).alt
    assert "not logged" in plot_losses(training()).alt


def test_terms_of_ones_own_are_drawn() -> None:
    log = [{"loss": 2.0, "step": step, "mine": 0.5} for step in (1, 2)]
    recorded = training(log=log)
    assert plot_losses(recorded, ["mine"]).svg != plot_losses(recorded).svg


def test_pictures_say_in_words_what_they_show() -> None:
    values = random_values()
    measured = usual_evaluation()
    student = measured.retrieval.systems["student"]["nDCG@10"]
    shown = f"student {student.value:.3f} ({student.low:.3f} to {student.high:.3f})"
    assert shown in plot_retrieval(measured.retrieval).alt
    cost = plot_cost(measured).alt
    assert f"student {student.value:.3f} at 2.5 ms" in cost
    assert f"BM25 {values['bm25'].mean():.3f}, not timed" in cost
    assert "30 held-out pairs: Pearson 0.9" in plot_scatter(measured).alt
    assert "Calibration in 10 bins" in plot_calibration(measured.fidelity.calibration).alt
    wins = int((values["student"] > values["bm25"]).sum())
    assert (
        f"Difference to BM25 on each query: {wins} wins"
        in plot_wins(measured.per_query, "bm25").alt
    )


def test_thousands_of_points_are_drawn_as_an_image() -> None:
    scores = tuple(np.linspace(-1, 1, 2001).tolist())
    many = dataclasses.replace(usual_evaluation(), pairs=PairScores((), scores, scores[::-1]))
    assert len(plot_scatter(many).svg) < 5 * len(plot_scatter(usual_evaluation()).svg)


def test_the_ranks_are_plotted_whether_or_not_mismatched_pairs_are_found() -> None:
    first = np.ones(150, dtype=np.int32)
    none = plot_ranks(detect_mismatches(first, 100))
    some = plot_ranks(detect_mismatches(np.array([*first, *range(1, 101)]), 100))
    assert "Density of 150 ranks, 100 at rank 1 and 0 at the last: no mismatched pairs" in none.alt
    assert "Density of 250 ranks, 60.4 at rank 1 and 0.4 at the last: up to 40.0%" in some.alt

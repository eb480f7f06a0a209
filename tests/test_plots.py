"""The audit as a part of the report's page, and its picture."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from datasets import Dataset

from hf_distill.report.page import environment
from hf_distill.report.plots import (
    describe_selection,
    save_selection_plot,
    score_thresholds,
)
from hf_distill.run.folder import RunFolder
from hf_distill.selection.rules import parse_rules
from hf_distill.selection.select import select_pairs


def audit(folder: Path, rules: list[str]) -> dict:
    n = 12
    pairs = Dataset.from_dict(
        {
            "pair_id": [str(i) for i in range(n)], "query": [f"query <b>{i}</b>" for i in range(n)],
            "document": [f"document & {i}" for i in range(n)],
            "teacher_score": [min(i, 9) / 10 for i in range(n)], "margin": [0.1 * i for i in range(n)], "rank": [1] * n,
            "group": [f"<script>{i // 4}" for i in range(n)],
        }
    )  # fmt: skip
    return dict(select_pairs(pairs, parse_rules(rules), 3, RunFolder(folder), "scores").audit)


class Balanced(HTMLParser):
    """Fails where a tag is closed that is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data.split()


def test_the_page_shows_both_sides_ties_overlap_and_losses(tmp_path: Path) -> None:
    made = audit(
        tmp_path,
        [
            "threshold=0.1",
            "margin=0.25",
            "top_k=2",
            "near_echo=0.9",
            "percentile=50:by=group:weight=0.5",
        ],
    )
    html = environment().get_template("selection.html.j2").render(audit=made)
    page = Balanced()
    page.feed(html)
    assert page.open == []
    text = " ".join(page.words)
    assert "Nearest the threshold of top_k=2 , on both sides" in text
    assert "3 pairs are tied: 1 of them were dropped, drawn with seed 3" in text
    assert "Of 3 groups" in text
    assert "have no pair left" in text
    assert "one for each group" in text
    assert "margin 0.25" in text
    assert "query <b>1</b>" in text
    assert "<script>" not in html.replace("&lt;script&gt;", ""), "text from data is escaped"
    assert "<b>" not in html


def test_no_rule_is_said(tmp_path: Path) -> None:
    assert "no rule: every training pair is kept" in environment().get_template(
        "selection.html.j2"
    ).render(audit=audit(tmp_path, []))


def test_only_thresholds_of_the_score_stand_in_its_histogram(tmp_path: Path) -> None:
    made = audit(tmp_path, ["margin=0.25", "threshold=0.4"])
    assert score_thresholds(made) == [("threshold=0.4", 0.4)]
    assert (
        describe_selection(made)
        == "Histogram of teacher scores: 8 pairs kept, 4 dropped; threshold=0.4 at 0.4000"
    )
    save_selection_plot(made, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")

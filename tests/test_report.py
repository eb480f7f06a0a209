import base64
from html.parser import HTMLParser
from itertools import pairwise

import jinja2
import numpy as np
import pytest
from datasets import Dataset

from hf_distill.evaluation.agreement import ranking_agreement
from hf_distill.evaluation.evaluate import ratio_of_means
from hf_distill.evaluation.examples import (
    per_query_values,
    wins_and_losses,
)
from hf_distill.evaluation.fidelity import fidelity
from hf_distill.evaluation.intervals import (
    figure,
    mean,
)
from hf_distill.evaluation.paper_protocol import paper_protocol
from hf_distill.evaluation.significance import compare_systems
from hf_distill.report.page import (
    comparison_rows,
    environment,
    is_it_good_enough,
    probability,
    verdict,
    write_report,
)
from hf_distill.report.plots import (
    GREY,
    plot_losses,
    plot_selection,
)
from hf_distill.run.folder import RunFolder
from hf_distill.selection.rules import parse_rules
from hf_distill.selection.select import select_pairs


def evaluation(bm25: tuple[float, float], untrained: tuple[float, float]) -> dict:
    margins = {
        "bm25": {"nDCG@10": {"low": bm25[0], "high": bm25[1]}},
        "untrained student": {"nDCG@10": {"low": untrained[0], "high": untrained[1]}},
    }
    ratio = {"value": 0.975, "low": 0.95, "high": 1.0}
    return {"retrieval": {"student_over_teacher": {"nDCG@10": ratio}, "student_minus": margins}}


@pytest.mark.parametrize(
    ("bm25", "untrained", "says"),
    [
        ((0.01, 0.1), (0.1, 0.2), "it is better than BM25 and the untrained student."),
        (
            (-0.01, 0.1),
            (0.1, 0.2),
            "it is better than the untrained student, cannot be told apart from BM25.",
        ),
        (
            (-0.2, -0.1),
            (-0.1, 0.1),
            "it cannot be told apart from the untrained student, is worse than BM25.",
        ),
    ],
)
def test_the_verdict_claims_what_the_intervals_show(
    bm25: tuple, untrained: tuple, says: str
) -> None:
    text = verdict(evaluation(bm25, untrained))
    assert (
        text
        == f"The student keeps 97.5% of the teacher's nDCG@10 (95% interval 95.0% to 100.0%); {says}"
    )


def test_pictures_say_in_words_what_they_show() -> None:
    audit = {
        "histogram": {"edges": [0.0, 0.5, 1.0], "kept": [0, 3], "dropped": [2, 1]},
        "rules": [
            {"rule": "percentile=50", "threshold": 0.6, "column": "score"},
            {"rule": "echo", "threshold": None, "column": None},
        ],
    }
    picture = plot_selection(audit)
    assert (
        picture.alt
        == "Histogram of teacher scores: 3 pairs kept, 3 dropped; percentile=50 at 0.6000"
    )
    assert picture.svg.startswith("data:image/svg+xml;base64,")
    log = [
        {"loss": 2.0, "step": 1, "contrastive": 1.5},
        {"eval_loss": 1.9, "step": 1},
        {"loss": 1.0, "step": 2, "contrastive": 0.5},
    ]
    assert "over 2 steps, from 2.000 to 1.000" in plot_losses({"log": log, "steps": 2}).alt
    assert "not logged" in plot_losses({"log": [], "steps": 2}).alt


def test_html_is_escaped_and_an_undefined_name_is_an_error() -> None:
    jinja = environment()
    assert jinja.autoescape("report.html.j2") is True
    assert jinja.autoescape("model_card_template.md") is False, (
        "cards escape text of the data by a filter of their own"
    )
    with pytest.raises(jinja2.UndefinedError):
        jinja.from_string("{{ nothing }}").render()


# --- the whole page
# --------------------------------------------------------------------------------------------------

SYSTEMS = ("teacher", "student", "untrained student", "bm25")
NASTY = '<script>alert("query")</script>'


def whole_evaluation(
    values: dict[str, np.ndarray], teacher_scores: np.ndarray, student_scores: np.ndarray
) -> dict:
    """What `evaluate_student` writes, by the same functions, from per-query values and pair
    scores.
    """
    n = len(values["student"])
    ids = [f"q{i}" for i in range(n)]
    qrels = {q: {f"d{i}": 1} for i, q in enumerate(ids)}
    run = {q: {f"d{i}": 1.0, f"d{(i + 1) % n}": 0.5} for i, q in enumerate(ids)}
    against = "teacher" if "teacher" in values else "bm25"
    cost = {
        "parameters": 10**6,
        "megabytes": 4.0,
        "dtype": "float32",
        "dimension": 8,
        "documents_per_second": 50.0,
    }
    cost |= {"query_ms_p50": 2.5, "query_ms_p95": 3.0}
    margins = {
        name: {"nDCG@10": figure(mean, [values["student"] - v], 0)}
        for name, v in values.items()
        if name != "student"
    }
    ratio = (
        {"nDCG@10": figure(ratio_of_means, [values["student"], values["teacher"]], 0)}
        if "teacher" in values
        else None
    )
    return {
        "bootstrap": {"resamples": 2000, "level": 0.95, "seed": 0},
        "retrieval": {
            "num_queries": n,
            "num_documents": n,
            "systems": {name: {"nDCG@10": figure(mean, [v], 0)} for name, v in values.items()},
            "student_over_teacher": ratio,
            "student_minus": margins,
        },
        "significance": {"measure": "nDCG@10", **compare_systems(values, "student", 0)},
        "per_query": per_query_values("nDCG@10", values, ids),
        "wins_and_losses": wins_and_losses(
            "nDCG@10", ("student", against), values, {"student": run, against: run}, dict.fromkeys(ids, NASTY),
            {f"d{i}": f"{NASTY} & <b>document</b> {i}" for i in range(n)}, qrels,
        ),
        "ranking_agreement": ranking_agreement(run, {"student": run, "untrained student": run}, 0) if "teacher" in values else None,
        "fidelity": fidelity(teacher_scores, student_scores, 0),
        "fidelity_untrained": fidelity(teacher_scores, student_scores[::-1], 0),
        "paper_protocol": paper_protocol(teacher_scores, student_scores),
        "efficiency": {
            "documents": 4, "queries": 4, "device": "cpu", "student": cost, **({"teacher": cost} if "teacher" in values else {}),
        },
        "pairs": {"pair_id": [], "teacher_score": teacher_scores.tolist(), "student_score": student_scores.tolist()},
    }  # fmt: skip


def page(evaluation: dict, folder: RunFolder) -> str:
    folder.path.mkdir(parents=True, exist_ok=True)
    scores = {
        "pair_id": list("abcd"),
        "query": [NASTY] * 4,
        "document": [NASTY] * 4,
        "teacher_score": [0.1, 0.3, 0.5, 0.7],
    }
    audit = select_pairs(
        Dataset.from_dict(scores), parse_rules(["threshold=.2"]), 0, folder, "scores"
    ).audit
    write_report(
        evaluation,
        audit,
        {"steps": 2, "examples": 8, "seconds": 1.5, "precision": "fp32", "processes": 1, "best_step": None, "log": []},
        {
            "teacher": "t", "items": 8, "item": "text", "pairs": 4, "seconds": 0.5, "dimension": 8, "score": {"mean": 0.5, "sd": 0.1},
        },
        {"source": {"rows": 4}, "split": {"train": 2, "validation": 1, "test": 1}, "leaks": {"removed": {}, "left": 0}},
        {"seed": 1, "dataset_path": NASTY},
        "a run",
        folder,
    )  # fmt: skip
    return folder.report.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """What a screen reader meets: headings, images, tables, landmarks; and whether tags are closed
    in order.
    """

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def random_values(systems: tuple[str, ...], n: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: np.clip(rng.normal(0.8 - 0.15 * i, 0.15, n), 0, 1) for i, name in enumerate(systems)
    }


SCORES = np.linspace(0.1, 0.9, 30)


def test_the_page_answers_first_and_is_self_contained_ordered_and_escaped(
    folder: RunFolder,
) -> None:
    text = page(whole_evaluation(random_values(SYSTEMS), SCORES, SCORES**2), folder)
    first = text[: text.index("Retrieval on held-out queries")]
    assert all(
        question in first
        for question in ("Is the student good enough?", "What did it cost?", "How sure are we?")
    )
    assert "A query takes 2.5 ms instead of 2.5 ms" in first
    reader = Reader(text)
    assert {"header", "main", "footer", "h1"} <= {tag for tag, _ in reader.tags}
    assert "script" not in {tag for tag, _ in reader.tags}
    assert "b>document" not in text
    assert text.count("&lt;script&gt;") >= 10
    levels = [int(tag[1]) for tag, _ in reader.tags if tag in {"h1", "h2", "h3", "h4"}]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(levels)), "no level is skipped"
    images = reader.all("img")
    assert len(images) == 7
    assert all(
        image["alt"] and image["src"].startswith("data:image/svg+xml;base64,") for image in images
    )
    assert not [
        a
        for _, attributes in reader.tags
        for a in ("src", "href")
        if str(attributes.get(a, "data:")).split(":")[0] != "data"
    ]
    assert "@import" not in text
    assert "url(" not in text
    assert all(attributes.get("scope") in ("col", "row") for attributes in reader.all("th"))
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert sorted(ids) == sorted(
        {attributes["aria-labelledby"] for attributes in reader.all("section")}
    )
    assert all(
        a.get("aria-label") and a.get("tabindex") == "0"
        for a in reader.all("div")
        if a.get("class") == "scroll"
    )


def test_a_picture_follows_dark_mode() -> None:
    svg = base64.b64decode(plot_losses({"log": [], "steps": 2}).svg.split(",")[1]).decode()
    assert "prefers-color-scheme:dark" in svg
    assert GREY not in svg


def test_a_teacher_that_cannot_search_has_a_page(folder: RunFolder) -> None:
    text = page(whole_evaluation(random_values(SYSTEMS[1:]), SCORES, SCORES**2), folder)
    assert "The largest wins against BM25" in text
    assert "its teacher cannot search" in text.lower()


def test_an_older_evaluation_has_a_page(folder: RunFolder) -> None:
    evaluation = whole_evaluation(random_values(SYSTEMS), SCORES, SCORES**2)
    for key in ("significance", "per_query", "wins_and_losses", "ranking_agreement"):
        del evaluation[key]
    for key in ("kendall", "calibration", "decisions"):
        del evaluation["fidelity"][key], evaluation["fidelity_untrained"][key]
    text = page(evaluation, folder)
    assert len(Reader(text).all("img")) == 5
    assert "Difference in nDCG@10 on the same queries" in text


def test_one_query_and_constant_scores_have_a_page(folder: RunFolder) -> None:
    text = page(
        whole_evaluation(
            {name: np.array([0.5]) for name in SYSTEMS}, np.full(2, 0.5), np.full(2, 0.7)
        ),
        folder,
    )
    assert "the teacher&#39;s scores are all equal" in text
    assert "Not shown: as far as 1 query can tell, training has changed nothing." in text
    assert "These queries do not say how differences vary" in text
    assert "There are none." in text


@pytest.mark.parametrize(
    ("shifts", "says"),
    [
        ({"bm25": -0.3, "untrained student": -0.3, "teacher": 0.0}, "Yes, as far as 60 queries can tell: it cannot be told apart"),
        ({"bm25": -0.3, "untrained student": -0.3, "teacher": -0.3}, "Yes: it is better than its teacher on this task."),
        ({"bm25": -0.3, "untrained student": -0.3, "teacher": 0.3}, "It is of use, and behind its teacher"),
        ({"bm25": 0.3, "untrained student": -0.3, "teacher": 0.3}, "No: BM25, which needs no model, is better."),
        ({"bm25": 0.0, "untrained student": -0.3, "teacher": 0.3}, "Not shown: as far as 60 queries can tell, BM25"),
        ({"bm25": -0.3, "untrained student": 0.3, "teacher": 0.3}, "No: it is worse than before training."),
    ],
)  # fmt: skip
def test_the_answer_goes_by_the_tests(shifts: dict, says: str) -> None:
    rng = np.random.default_rng(0)
    student = rng.normal(0.5, 0.1, 60)
    noise = np.tile([-0.01, 0.01], 30)
    values = {
        "student": student,
        **{name: student + shift + noise for name, shift in shifts.items()},
    }
    assert is_it_good_enough(whole_evaluation(values, SCORES, SCORES)).startswith(says)


def test_the_table_has_the_student_first() -> None:
    values = random_values(SYSTEMS)
    rows = comparison_rows(compare_systems(values, "student", 0))
    difference = values["student"] - values["bm25"]
    bm25 = next(row for row in rows if row["label"] == "BM25")
    assert bm25["difference"]["value"] == pytest.approx(difference.mean())
    assert bm25["difference"]["low"] < bm25["difference"]["value"] < bm25["difference"]["high"]
    assert bm25["wins"] == (difference > 0).sum()


def test_probabilities_are_written_as_they_are_read() -> None:
    assert [probability(p) for p in (None, 1.0, 0.0342, 0.0004)] == [
        "undefined",
        "1",
        ".034",
        "< .001",
    ]

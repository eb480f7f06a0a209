"""The headline, and the whole page."""

import base64
import dataclasses
from html.parser import HTMLParser
from itertools import pairwise

import jinja2
import numpy as np
import pytest
from run_results import (
    NASTY,
    SCORES,
    SYSTEMS,
    evaluation,
    random_values,
    retrieval_results,
    run_results,
    training,
    usual_evaluation,
)

from hf_distill.evaluation.fidelity import fidelity
from hf_distill.evaluation.intervals import estimate, mean, undefined
from hf_distill.evaluation.results import (
    ON_QUERY,
    ON_UTTERANCE,
    Evaluation,
    NotApplicable,
    SourceResults,
    TaskResults,
)
from hf_distill.evaluation.significance import student_significance
from hf_distill.report.headline import (
    is_it_good_enough,
    probability,
    results_table,
    standing,
    verdict,
    with_interval,
)
from hf_distill.report.page import environment, write_report
from hf_distill.report.plots import GREY, apart, plot_cost, plot_losses
from hf_distill.run.folder import RunFolder


def shifted(shifts: dict[str, float]) -> Evaluation:
    """A student on 60 queries, and systems that differ from it by `shifts` and a little noise."""
    student = np.random.default_rng(0).normal(0.5, 0.1, 60)
    noise = np.tile([-0.01, 0.01], 30)
    values = {"student": student}
    values |= {name: student + shift + noise for name, shift in shifts.items()}
    return dataclasses.replace(
        usual_evaluation(),
        retrieval=retrieval_results(values),
        significance=student_significance("nDCG@10", values, 0),
    )


@pytest.mark.parametrize(
    ("bm25", "untrained", "claims"),
    [
        (-0.1, -0.1, "it is better than BM25 and the untrained student."),
        (0.0, -0.1, "it is better than the untrained student and cannot be told apart from BM25."),
        (0.1, 0.0, "it cannot be told apart from the untrained student and is worse than BM25."),
    ],
)
def test_the_verdict_claims_what_the_tests_show(bm25: float, untrained: float, claims: str) -> None:
    measured = shifted({"teacher": 0.1, "untrained student": untrained, "bm25": bm25})
    ratio = measured.retrieval.student_over_teacher
    assert ratio is not None
    assert verdict(measured) == (
        f"The student keeps {ratio.value:.1%} of the teacher's nDCG@10 "
        f"(95% interval {ratio.low:.1%} to {ratio.high:.1%}); {claims}"
    )


@pytest.mark.parametrize(
    ("bm25", "untrained", "teacher", "answer"),
    [
        (-0.3, -0.3, 0.0, "Yes: on 60 queries, it cannot be told apart"),
        (-0.3, -0.3, -0.3, "Yes: it is better than its teacher"),
        (-0.3, -0.3, 0.3, "It is useful, but behind its teacher"),
        (0.3, -0.3, 0.3, "No: BM25, which needs no model, is better."),
        (0.0, -0.3, 0.3, "Not shown: on 60 queries, it cannot be told apart from BM25"),
        (-0.3, 0.3, 0.3, "No: it is worse than before training."),
        (-0.3, 0.0, 0.3, "Not shown: on 60 queries, training"),
    ],
)
def test_the_answer_follows_the_tests(
    bm25: float, untrained: float, teacher: float, answer: str
) -> None:
    measured = shifted({"teacher": teacher, "untrained student": untrained, "bm25": bm25})
    assert is_it_good_enough(measured).startswith(answer)


def test_every_other_system_stands_somewhere() -> None:
    stands = standing(shifted({"teacher": 0.3, "untrained student": 0.0, "bm25": -0.3}))
    assert (stands.better, stands.level, stands.worse) == (
        ("bm25",),
        ("untrained student",),
        ("teacher",),
    )


def test_the_table_has_a_row_for_each_system_in_order() -> None:
    measured = usual_evaluation()
    lines = results_table(measured).splitlines()
    assert lines[0].split() == ["nDCG@10"]
    labels = ["teacher", "student", "untrained student", "BM25"]
    assert [line[:18].strip() for line in lines[1:5]] == labels
    student = measured.retrieval.systems["student"]["nDCG@10"]
    assert lines[2].split()[-1] == f"{student.value:.3f}"
    assert lines[-1] == verdict(measured)
    assert f"MAE to the teacher on 30 held-out pairs: {measured.fidelity.mae.value:.3f}" in lines[7]


def test_an_undefined_estimate_says_why() -> None:
    flat = fidelity(np.full(30, 0.5), SCORES, 0)
    assert with_interval(flat.pearson) == "undefined (the teacher's scores are all equal)"
    table = results_table(dataclasses.replace(usual_evaluation(), fidelity=flat))
    assert f"Pearson to the teacher on 30 held-out pairs: {with_interval(flat.pearson)}" in table


def test_probabilities_are_written_as_in_papers() -> None:
    assert [probability(p) for p in (None, 1.0, 0.0342, 0.0004)] == [
        "undefined",
        "1",
        ".034",
        "< .001",
    ]


def test_html_is_escaped_and_an_undefined_name_is_an_error() -> None:
    jinja = environment()
    assert jinja.autoescape("report.html.j2") is True
    assert jinja.autoescape("model_card_template.md") is False, "cards have a filter of their own"
    with pytest.raises(jinja2.UndefinedError):
        jinja.from_string("{{ nothing }}").render()


# --- the whole page ---------------------------------------------------------------------------


def page(measured: Evaluation, folder: RunFolder) -> str:
    results, *_ = run_results(
        folder, "--dataset_path", NASTY, measured=measured, rules=("threshold=.2",)
    )
    write_report(results)
    return folder.report.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """What a screen reader meets: headings, images, tables and landmarks. Tags must be closed in
    order.
    """

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []
        self.text = " ".join(self.words)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def usual_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(usual_evaluation(), RunFolder(tmp_path_factory.mktemp("report") / "run"))


def test_the_page_answers_first_and_is_self_contained_ordered_and_escaped(usual_page: str) -> None:
    text, reader = usual_page, Reader(usual_page)
    first = reader.text[: reader.text.index("Retrieval on held-out queries")]
    for question in ("Is the student good enough?", "What did it cost?", "How sure are we?"):
        assert question in first
    assert "A query takes 2.5 ms instead of 2.5 ms" in first
    tags = {tag for tag, _ in reader.tags}
    assert {"header", "main", "footer", "h1"} <= tags
    assert "script" not in tags
    assert "b>document" not in text
    assert text.count("&lt;script&gt;") >= 10
    levels = [int(tag[1]) for tag, _ in reader.tags if tag in {"h1", "h2", "h3", "h4"}]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(levels)), "no level is skipped"
    images = reader.all("img")
    assert len(images) == 7
    assert all(image["alt"] for image in images)
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in images)
    links = [a for _, attributes in reader.tags for a in ("src", "href") if a in attributes]
    assert len(links) == 7, "only the images load anything"
    assert "@import" not in text
    assert "url(" not in text
    assert all(attributes.get("scope") in ("col", "row") for attributes in reader.all("th"))
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert sorted(ids) == sorted(a["aria-labelledby"] for a in reader.all("section"))
    scrolling = [a for a in reader.all("div") if a.get("class") == "scroll"]
    assert scrolling
    assert all(a.get("aria-label") and a.get("tabindex") == "0" for a in scrolling)


def test_the_page_shows_the_student_minus_the_others(usual_page: str) -> None:
    values, text = random_values(), Reader(usual_page).text
    difference = values["student"] - values["bm25"]
    assert f"BM25 +{difference.mean():.3f}" in text
    wins, losses = (difference > 0).sum(), (difference < 0).sum()
    assert f"{wins} / {40 - wins - losses} / {losses}" in text


def test_the_page_shows_small_indices_and_the_mixed_one(usual_page: str) -> None:
    text = Reader(usual_page).text
    assert "binary, queries in float32" in text
    assert "binary, rescored by int8" in text
    assert "and 8 on disk" in text
    assert "Teacher: it is compared by euclidean." in text
    assert "projected to 8 principal components" in text


def test_a_picture_follows_dark_mode() -> None:
    svg = base64.b64decode(plot_losses(training()).svg.split(",")[1]).decode()
    assert "prefers-color-scheme:dark" in svg
    assert GREY not in svg


def test_a_teacher_that_cannot_search_has_a_page(folder: RunFolder) -> None:
    text = Reader(page(evaluation(random_values(SYSTEMS[1:])), folder)).text
    assert "The largest wins against BM25" in text
    assert "Its teacher cannot search" in text
    assert "No: the teacher has no index." in text


def test_labels_of_systems_that_cost_the_same_are_apart() -> None:
    points = [(4.0, 0.5), (9.0, 0.51), (4.0, 0.45), (4.0, 0.9), (4.0, 0.46)]
    assert apart(points, 0.1) == pytest.approx([0.65, 0.51, 0.45, 0.9, 0.55])
    one_student = evaluation(random_values((*SYSTEMS, ON_UTTERANCE, ON_QUERY)))
    assert "utterance" not in plot_cost(one_student).alt, "nobody timed the other readings"


def test_one_query_and_constant_scores_have_a_page(folder: RunFolder) -> None:
    one = {name: np.array([0.5]) for name in SYSTEMS}
    text = page(evaluation(one, np.full(2, 0.5), np.full(2, 0.7)), folder)
    assert "the teacher&#39;s scores are all equal" in text
    assert "Not shown: on 1 query, training made no clear difference" in text
    assert "The differences do not vary over these queries" in text
    assert text.count("There are none.") == 2


def richer() -> Evaluation:
    """With a BM25 that is not applicable, a task out of domain, and two sources."""
    values = random_values(SYSTEMS[:3])
    absent = NotApplicable(39, 40)
    measured = evaluation(values)
    nothing = undefined(40, absent.reason)
    retrieval = dataclasses.replace(
        measured.retrieval,
        systems={**measured.retrieval.systems, "bm25": {"nDCG@10": nothing}},
        not_applicable={"bm25": absent},
    )
    task = TaskResults(
        f"a/{NASTY}", retrieval_results(random_values()), measured.significance, measured.per_query
    )
    row = {
        name: {m: estimate(mean, [array], 0) for m in ("nDCG@10", "R@10")}
        for name, array in values.items()
    }
    nobody = {name: dict.fromkeys(measures, undefined(0, "none")) for name, measures in row.items()}
    mae = measured.fidelity.mae
    sources = {
        NASTY: SourceResults(40, 30, row, measured.fidelity.pearson, mae),
        "wiki": SourceResults(0, 0, nobody, undefined(0, "none"), undefined(0, "none")),
    }
    return dataclasses.replace(
        measured, retrieval=retrieval, tasks={NASTY: task}, by_source=sources
    )


def test_the_page_shows_tasks_sources_and_a_baseline_that_is_not_applicable(
    folder: RunFolder,
) -> None:
    measured = richer()
    text = page(measured, folder)
    reader = Reader(text)
    assert "<script" not in text
    assert "BM25 not applicable: finds no document for 39 of 40 queries" in reader.text
    assert "better than BM25" not in reader.text[: reader.text.index("Out of domain")]
    assert "There is no BM25 to compare with" in reader.text
    elsewhere = reader.text[reader.text.index("Out of domain") :]
    own = measured.tasks[NASTY].retrieval.systems["student"]["nDCG@10"]
    assert f"student {own.value:.3f} {own.low:.3f} to {own.high:.3f}" in elsewhere
    assert "Without a held-out query: wiki." in elsewhere
    assert "how the student performs elsewhere was not measured" not in reader.text


def test_the_page_says_what_was_cut(usual_page: str) -> None:
    text = Reader(usual_page).text
    assert "student: documents 200 9 40 48 32 7 3.5% 5.1%" in text
    assert "teacher: queries 200 9 12 14 32 0 0.0% 0.0%" in text
    assert "What an endpoint cuts is not known here." in text


def test_the_page_says_what_was_recognised_and_what_is_not_used(folder: RunFolder) -> None:
    results, *_ = run_results(folder)
    record = dataclasses.replace(
        results.collection.record,
        read_as="FlagEmbedding lists",
        unused={f"column {NASTY}": 1200},
        split={**results.collection.record.split, "candidates": 1400},
    )
    collection = dataclasses.replace(results.collection, record=record)
    labels = dataclasses.replace(results.soft_labels, query_prompt="query: ")
    write_report(dataclasses.replace(results, collection=collection, soft_labels=labels))
    text = Reader(folder.report.read_text(encoding="utf-8")).text
    assert "Read as FlagEmbedding lists." in text
    assert "1,400 candidates stand beside the pairs" in text
    assert f"Not used: column {NASTY}: 1,200." in text
    assert 'It reads queries behind the prompt "query: "' in text


def test_the_table_names_tasks_and_what_is_not_applicable() -> None:
    table = results_table(richer())
    lines = table.splitlines()
    row = next(line for line in lines if line.startswith("BM25"))
    assert row.split(None, 1)[1] == "not applicable: finds no document for 39 of 40 queries"
    title = lines.index(f"{NASTY}: 40 queries, 40 documents")
    assert [line.split()[0] for line in lines[title + 1 : title + 5]] == [
        "teacher", "student", "untrained", "BM25",
    ]  # fmt: skip
    assert lines[-1].startswith(f"{NASTY}: The student keeps")


def test_a_retrieval_that_shows_nothing_makes_no_claim(folder: RunFolder) -> None:
    usual = usual_evaluation()
    trivial = dataclasses.replace(usual.retrieval, same_text=40)
    text = Reader(page(dataclasses.replace(usual, retrieval=trivial), folder)).text
    first = text[: text.index("Retrieval on held-out queries")]
    assert "not shown" in first
    assert "% of the teacher" not in first
    assert "better than" not in first
    assert "40 of 40 queries are the text of their own document" in first

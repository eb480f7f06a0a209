import jinja2
import pytest

from hf_distill.report import environment, plot_losses, plot_selection, verdict


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
        ((-0.01, 0.1), (0.1, 0.2), "it is better than the untrained student, cannot be told apart from BM25."),
        ((-0.2, -0.1), (-0.1, 0.1), "it cannot be told apart from the untrained student, is worse than BM25."),
    ],
)
def test_the_verdict_claims_what_the_intervals_show(bm25: tuple, untrained: tuple, says: str) -> None:
    text = verdict(evaluation(bm25, untrained))
    assert text == f"The student keeps 97.5% of the teacher's nDCG@10 (95% interval 95.0% to 100.0%); {says}"


def test_pictures_say_in_words_what_they_show() -> None:
    audit = {
        "histogram": {"edges": [0.0, 0.5, 1.0], "kept": [0, 3], "dropped": [2, 1]},
        "rules": [{"rule": "percentile=50", "threshold": 0.6, "column": "score"}, {"rule": "echo", "threshold": None, "column": None}],
    }
    picture = plot_selection(audit)
    assert picture.alt == "Histogram of teacher scores: 3 pairs kept, 3 dropped; percentile=50 at 0.6000"
    assert picture.svg.startswith("data:image/svg+xml;base64,")
    log = [{"loss": 2.0, "step": 1, "contrastive": 1.5}, {"eval_loss": 1.9, "step": 1}, {"loss": 1.0, "step": 2, "contrastive": 0.5}]
    assert "over 2 steps, from 2.000 to 1.000" in plot_losses({"log": log, "steps": 2}).alt
    assert "not logged" in plot_losses({"log": [], "steps": 2}).alt


def test_html_is_escaped_and_an_undefined_name_is_an_error() -> None:
    jinja = environment()
    assert jinja.autoescape("report.html.j2") is True
    assert jinja.autoescape("model_card_template.md") is False, "cards escape text of the data by a filter of their own"
    with pytest.raises(jinja2.UndefinedError):
        jinja.from_string("{{ nothing }}").render()

"""The report: evaluation and audit as one HTML page that holds its plots and loads nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl

from hf_distill.errors import printable
from hf_distill.evaluation.results import STUDENT, TEACHER, Estimate, SourceResults
from hf_distill.report import plots
from hf_distill.report.headline import (
    LABELS,
    NDCG,
    beside_the_ranker,
    in_a_sentence,
    is_it_good_enough,
    probability,
    systems_in_order,
    task_verdict,
    verdict,
    which_documents,
    with_interval,
)
from hf_distill.report.parity import measured_parity
from hf_distill.report.results import CommonResults, RunResults, TextsResults
from hf_distill.report.texts import SHOWN, is_it_like_its_teacher, texts_verdict
from hf_distill.run.stage import written_whole

TEMPLATES = Path(__file__).parent.parent / "templates"


@cache
def environment() -> jinja2.Environment:
    """Jinja with HTML escaping for `.html.j2` templates only. An undefined name is an error.

    There is one, because it keeps the templates that it has compiled. Nobody changes it.
    """
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"], default_for_string=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.finalize = lambda value: printable(value) if type(value) is str else value
    jinja.filters |= {
        "probability": probability,
        "in_a_sentence": in_a_sentence,
        "with_interval": with_interval,
        "in_order": systems_in_order,
        "shown_by_source": _shown_by_source,
        "task_verdict": task_verdict,
        "which_documents": which_documents,
        "beside_the_ranker": beside_the_ranker,
        "count": "{:,}".format,
    }
    jinja.globals |= {"labels": LABELS, "ndcg": NDCG}
    return jinja


def _shown_by_source(row: SourceResults) -> dict[str, Estimate]:
    """The retrieval figures of a source that its row shows, by the heads of their columns: nDCG@10
    of every system, and R@10 of the student.
    """
    shown = {f"{LABELS[name]}, {NDCG}": row.systems[name][NDCG] for name in row.systems}
    return {**shown, f"{LABELS[STUDENT]}, R@10": row.systems[STUDENT]["R@10"]}


def _own_terms(results: CommonResults) -> list[str]:
    """A term of one's own is package.module:name=WEIGHT, and the log has it under its name."""
    return [term.rpartition("=")[0].partition(":")[2] for term in results.recipe.training.terms]


def _pictures(results: RunResults) -> dict[str, plots.Picture]:
    evaluation = results.evaluation
    own_terms, detection = _own_terms(results), results.audit.detection
    with mpl.rc_context(plots.STYLE):
        return {
            "cost": plots.plot_cost(evaluation),
            "retrieval": plots.plot_retrieval(evaluation.retrieval),
            "wins": plots.plot_wins(evaluation.per_query, evaluation.wins_and_losses.against),
            "scatter": plots.plot_scatter(evaluation),
            "calibration": plots.plot_calibration(evaluation.fidelity.calibration),
            "selection": plots.plot_selection(results.audit),
            **({"ranks": plots.plot_ranks(detection)} if detection and detection.edges else {}),
            "losses": plots.plot_losses(results.training, own_terms),
            **({"points": plots.plot_points(results.training)} if results.training.points else {}),
        }


def write_report(results: RunResults) -> None:
    """Write `report.html`. Text from the data is escaped; nothing is loaded from elsewhere."""
    evaluation = results.evaluation
    _write(
        results,
        "report.html.j2",
        audit=results.audit,
        lists=results.lists,
        evaluation=evaluation,
        student=evaluation.efficiency.systems[STUDENT],
        teacher=evaluation.efficiency.systems.get(TEACHER),
        answer=is_it_good_enough(evaluation),
        verdict=verdict(evaluation),
        pictures=_pictures(results),
    )


def write_texts_report(results: TextsResults) -> None:
    """The same of a run on texts alone."""
    evaluation = results.evaluation
    with mpl.rc_context(plots.STYLE):
        pictures = {
            "overlap": plots.plot_overlap(evaluation),
            "losses": plots.plot_losses(results.training, _own_terms(results)),
        }
    _write(
        results,
        "texts_report.html.j2",
        evaluation=evaluation,
        student=evaluation.efficiency.systems[STUDENT],
        teacher=evaluation.efficiency.systems.get(TEACHER),
        answer=is_it_like_its_teacher(evaluation),
        verdict=texts_verdict(evaluation),
        shown=SHOWN,
        pictures=pictures,
    )


def _write(results: CommonResults, template: str, **values: Any) -> None:
    page = (
        environment()
        .get_template(template)
        .render(
            name=results.recipe.name,
            keys=results.recipe.keys(),
            collection=results.collection.record,
            soft_labels=results.soft_labels,
            training=results.training,
            lengths=results.lengths,
            parity=measured_parity(results),
            **values,
        )
    )
    with written_whole(results.folder.report) as temporary:
        temporary.write_text(page, encoding="utf-8")

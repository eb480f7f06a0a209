"""The report: evaluation and audit as one self-contained HTML page, plots inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl

from hf_distill.evaluation.evaluate import (
    BM25,
    STUDENT,
    TEACHER,
    UNTRAINED,
)
from hf_distill.evaluation.significance import (
    ALPHA,
    TESTS,
)
from hf_distill.report.plots import (
    LABELS,
    STYLE,
    plot_calibration,
    plot_cost,
    plot_losses,
    plot_retrieval,
    plot_scatter,
    plot_selection,
    plot_wins,
)
from hf_distill.run.folder import (
    RunFolder,
    written_whole,
)

TEMPLATES = Path(__file__).parent.parent / "templates"


def environment() -> jinja2.Environment:
    """Jinja with HTML escaping for `.html` templates only; an undefined name is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"], default_for_string=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def headline(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the headline table: one per system, figures as {value, low, high}."""
    systems = evaluation["retrieval"]["systems"]
    return [
        {"system": name, "label": LABELS[name].removeprefix("the "), **systems[name]}
        for name in (TEACHER, STUDENT, UNTRAINED, BM25)
        if name in systems
    ]


def results_table(evaluation: Mapping[str, Any]) -> str:
    """The headline figures as a short table for a terminal, and the verdict under it."""
    measures = list(evaluation["retrieval"]["systems"][STUDENT])
    lines = [f"{'':<18}" + "".join(f"{name:>10}" for name in measures)]
    for row in headline(evaluation):
        lines.append(
            f"{row['label']:<18}" + "".join(f"{row[name]['value']:>10.3f}" for name in measures)
        )
    f = evaluation["fidelity"]
    lines.append("")
    for name in ("pearson", "mae"):
        figure = f[name]
        value = (
            "undefined"
            if figure["value"] is None
            else f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
        )
        lines.append(
            f"{name.upper() if name == 'mae' else 'Pearson'} to the teacher on {f['num_pairs']:,} held-out pairs: {value}"
        )
    return "\n".join([*lines, verdict(evaluation)])


def standing(evaluation: Mapping[str, Any]) -> dict[str, list[str]]:
    """Which systems the student is "better", "level" or "worse" than in nDCG@10.

    By the sign-flip randomisation test at 5% after Holm's correction; by the bootstrap interval
    where there is none.
    """
    margins = evaluation["retrieval"]["student_minus"]
    result: dict[str, list[str]] = {"better": [], "level": [], "worse": []}
    comparisons = evaluation.get("significance", {}).get("comparisons", {})
    for name in (BM25, UNTRAINED, TEACHER):
        if name not in margins:
            continue
        margin = margins[name]["nDCG@10"]
        if name in comparisons:
            p = comparisons[name]["randomisation"]["p_holm"]
            differs = p is not None and p < ALPHA
            better = differs and margin["value"] > 0
        else:
            differs, better = margin["low"] > 0 or margin["high"] < 0, margin["low"] > 0
        result["better" if better else "worse" if differs else "level"].append(name)
    return result


def verdict(evaluation: Mapping[str, Any]) -> str:
    """One honest sentence: what share of the teacher's nDCG@10 the student keeps, and what it beats
    beyond doubt (see `standing`).
    """
    over_teacher = evaluation["retrieval"]["student_over_teacher"]
    stands = {
        how: [name for name in names if name != TEACHER]
        for how, names in standing(evaluation).items()
    }
    if over_teacher is not None:
        ratio = over_teacher["nDCG@10"]
        kept = f"The student keeps {ratio['value']:.1%} of the teacher's nDCG@10 (95% interval {ratio['low']:.1%} to {ratio['high']:.1%})"
    else:
        own = evaluation["retrieval"]["systems"][STUDENT]["nDCG@10"]
        searches = TEACHER in evaluation["retrieval"]["systems"]
        why = (
            "the teacher finds nothing"
            if searches
            else "the teacher embeds no texts, so it cannot search the corpus"
        )
        kept = f"The student reaches nDCG@10 {own['value']:.3f} (95% interval {own['low']:.3f} to {own['high']:.3f}; {why})"
    claims = [
        f"{verb} {' and '.join(LABELS[name] for name in names)}"
        for verb, names in (
            ("is better than", stands["better"]),
            ("cannot be told apart from", stands["level"]),
            ("is worse than", stands["worse"]),
        )
        if names
    ]
    return f"{kept}; it {', '.join(claims)}."


def is_it_good_enough(evaluation: Mapping[str, Any]) -> str:
    """The answer in a sentence, by fixed rules over `standing`: training must have helped, BM25
    must be beaten, then the teacher counts.
    """
    stands, queries = standing(evaluation), evaluation["retrieval"]["num_queries"]
    as_far = f"as far as {queries:,} quer{'y' if queries == 1 else 'ies'} can tell"
    rules = (
        ("worse", UNTRAINED, "No: it is worse than before training."),
        ("level", UNTRAINED, f"Not shown: {as_far}, training has changed nothing."),
        ("worse", BM25, "No: BM25, which needs no model, is better."),
        ("level", BM25, f"Not shown: {as_far}, BM25, which needs no model, is as good."),
        ("better", TEACHER, "Yes: it is better than its teacher on this task."),
        ("level", TEACHER, f"Yes, {as_far}: it cannot be told apart from its teacher."),
        (
            "worse",
            TEACHER,
            "It is of use, and behind its teacher: enough, if the difference is worth less to you than the cost.",
        ),
    )
    alone = "It is of use: it beats BM25 and itself before training. Its teacher cannot search, so it cannot be held against it."
    return next((answer for how, name, answer in rules if name in stands[how]), alone)


def mirrored(figure: Mapping[str, Any]) -> dict[str, Any]:
    """The same difference the other way round."""
    if figure["value"] is None:
        return dict(figure)
    return {**figure, "value": -figure["value"], "low": -figure["high"], "high": -figure["low"]}


def comparison_rows(significance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The student against every other system, student minus other: the file has it the other way
    round.
    """
    return [
        {
            "label": LABELS.get(name, name).removeprefix("the "),
            "difference": mirrored(row["difference"]),
            "tests": [row[test] for test in TESTS],
            "cohens_dz": mirrored(row["cohens_dz"]),
            "smallest_detectable": row["smallest_detectable"],
            "wins": row["losses"],
            "ties": row["ties"],
            "losses": row["wins"],
        }
        for name, row in significance["comparisons"].items()
    ]


def probability(p: float | None) -> str:
    """A p-value as it is read: "< .001", ".034", "1"."""
    if p is None:
        return "undefined"
    return "< .001" if p < 0.001 else "1" if p > 0.9995 else f"{p:.3f}".removeprefix("0")


def _pictures(
    evaluation: Mapping[str, Any],
    audit: Mapping[str, Any],
    training: Mapping[str, Any],
    against: str | None,
) -> dict[str, Any]:
    pictures = {
        "cost": plot_cost(evaluation),
        "retrieval": plot_retrieval(evaluation["retrieval"]),
        "scatter": plot_scatter(evaluation),
        "selection": plot_selection(audit),
        "losses": plot_losses(training),
    }
    if "calibration" in evaluation["fidelity"]:
        pictures["calibration"] = plot_calibration(evaluation["fidelity"]["calibration"])
    if against is not None:
        pictures["wins"] = plot_wins(evaluation["per_query"], against)
    return pictures


def write_report(
    evaluation: Mapping[str, Any],
    audit: Mapping[str, Any],
    training: Mapping[str, Any],
    soft_labels: Mapping[str, Any],
    counts: Mapping[str, Any],
    recipe: Mapping[str, Any],
    name: str,
    folder: RunFolder,
) -> None:
    """Write `report.html` from measured results; text from the data is escaped, nothing is loaded
    from elsewhere.
    """
    against = evaluation["wins_and_losses"]["against"] if "wins_and_losses" in evaluation else None
    with mpl.rc_context(STYLE):
        pictures = _pictures(evaluation, audit, training, against)
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            name=name,
            answer=is_it_good_enough(evaluation),
            verdict=verdict(evaluation),
            rows=headline(evaluation),
            comparisons=comparison_rows(evaluation["significance"])
            if "significance" in evaluation
            else [],
            against=None
            if against is None
            else LABELS[against]
            if against == BM25
            else f"the {LABELS[against].removeprefix('the ')}",
            probability=probability,
            measures=list(next(iter(evaluation["retrieval"]["systems"].values()))),
            evaluation=evaluation,
            audit=audit,
            training=training,
            soft_labels=soft_labels,
            counts=counts,
            recipe=recipe,
            pictures=pictures,
        )
    )
    with written_whole(folder.report) as temporary:
        temporary.write_text(page, encoding="utf-8")

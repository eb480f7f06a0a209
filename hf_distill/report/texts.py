"""What terminal, report and model card show first of a run on texts alone."""

from __future__ import annotations

from hf_distill.evaluation.results import (
    BM25,
    STUDENT,
    TEACHER,
    UNTRAINED,
)
from hf_distill.evaluation.texts import OVERLAP
from hf_distill.evaluation.texts_results import Closeness, TextsEvaluation, TranslationResults
from hf_distill.report.headline import (
    LABELS,
    NDCG,
    Standing,
    claims_of,
    stands_of,
    task_lines,
    with_interval,
)

SHOWN = (STUDENT, UNTRAINED, BM25)
"""The systems of a table, in the order of its rows."""

_WIDTH = 18
_MOST = 0.5


def texts_table(evaluation: TextsEvaluation) -> str:
    """The most important numbers as a short table for a terminal, and the verdict below it."""
    lines = [" " * _WIDTH + f"{OVERLAP:>12}{NDCG:>10}"]
    for name in SHOWN:
        if name in evaluation.systems:
            system = evaluation.systems[name]
            values = f"{system.overlap.value:>12.3f}{system.ndcg.value:>10.3f}"
            lines.append(f"{LABELS[name]:<{_WIDTH}}{values}")
    student = evaluation.systems[STUDENT]
    lines.append("")
    lines += [_close(what, of) for what, of in (("random", student.random), ("near", student.near))]
    lines += [
        f"{_name(name)} finds {translated(of)}" for name, of in evaluation.translations.items()
    ]
    lines.append(texts_verdict(evaluation))
    return "\n".join([*lines, *task_lines(evaluation.tasks)])


def _name(system: str) -> str:
    return "The teacher" if system == TEACHER else f"The {LABELS[system]}"


def _close(what: str, of: Closeness | None) -> str:
    assert of is not None, "a student has cosines"
    return (
        f"On {of.pairs:,} {what} pairs of texts: Pearson to the teacher "
        f"{with_interval(of.pearson)}, MAE {with_interval(of.mae)}"
    )


def translated(of: TranslationResults) -> str:
    """How often a text and its other form find each other."""
    return (
        f"a text's own other form first for {of.found.value:.1%} of {of.found.n:,} texts, and back "
        f"for {of.found_back.value:.1%}"
    )


def texts_standing(evaluation: TextsEvaluation) -> Standing:
    """Where the student stands in overlap, by the same rules as in retrieval."""
    return stands_of(evaluation.significance.comparisons)


def texts_verdict(evaluation: TextsEvaluation) -> str:
    """One honest sentence: how much of what the teacher finds the student finds, and which systems
    it is better or worse than. A student that has collapsed is named first.
    """
    own = evaluation.systems[STUDENT].overlap
    kept = (
        f"The student finds {own.value:.1%} of the teacher's ten nearest texts (95% interval "
        f"{own.low:.1%} to {own.high:.1%})"
    )
    claims = claims_of(texts_standing(evaluation))
    said = f"{kept}; it {claims}." if claims else f"{kept}."
    if BM25 not in evaluation.systems:
        said += " BM25 finds no text for most of them."
    if evaluation.collapsed:
        return f"The student has collapsed: {evaluation.collapsed}. {said}"
    return said


def is_it_like_its_teacher(evaluation: TextsEvaluation) -> str:
    """The answer in a sentence, by fixed rules: it must not have collapsed, training must have
    helped, and it must find more of what the teacher finds than BM25.
    """
    if evaluation.collapsed:
        return f"No: it has collapsed: {evaluation.collapsed}."
    stands, texts = texts_standing(evaluation), f"on {evaluation.num_texts:,} texts"
    rules = (
        (stands.worse, UNTRAINED, "No: it is worse than before training."),
        (stands.level, UNTRAINED, f"Not shown: {texts}, training made no clear difference."),
        (stands.worse, BM25, "No: BM25, which needs no model, finds more of what it finds."),
        (stands.level, BM25, f"Not shown: {texts}, it cannot be told apart from BM25."),
    )
    share = evaluation.systems[STUDENT].overlap.value
    misses = " It still misses most of that." if share is not None and share < _MOST else ""
    beaten = "than before training" + (" and than BM25" if BM25 in stands.better else "")
    judged = (
        "The judged queries below say how well it searches."
        if evaluation.tasks
        else "Whether that is right for a task, nobody judged here: --test_path and --eval_tasks "
        "measure it."
    )
    return next(
        (answer for names, name, answer in rules if name in names),
        f"It finds more of what its teacher finds {beaten}.{misses} {judged}",
    )

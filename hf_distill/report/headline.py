"""What terminal, report and model card show first: the table of results, the verdict, and the
answer to whether the student is good enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hf_distill.evaluation.ranker import RANKER, RERANKED
from hf_distill.evaluation.results import (
    ALONE,
    BM25,
    IN_ORDER,
    ON_QUERY,
    ON_UTTERANCE,
    STUDENT,
    TEACHER,
    UNTRAINED,
    Comparison,
    Estimate,
    Evaluation,
    RetrievalResults,
    TaskResults,
)
from hf_distill.evaluation.significance import ALPHA
from hf_distill.recipe.arguments import CONVERSATION, UTTERANCE

LABELS = {
    TEACHER: "teacher",
    STUDENT: "student",
    ALONE: "student alone",
    ON_UTTERANCE: "student, bare utterance",
    ON_QUERY: "student, teacher's text",
    UNTRAINED: "untrained student",
    RANKER: "ranker",
    RERANKED: "student's best, reranked",
    BM25: "BM25",
}
"""The name of each system in tables and plots."""

NDCG = "nDCG@10"
"""The measure that every claim is about."""


def in_a_sentence(system: str) -> str:
    """The name of `system` in a sentence: `BM25`, `the student on the bare utterance`."""
    return LABELS[system] if system == BM25 else f"the {LABELS[system]}".replace(", ", " on the ")


def which_documents(retrieval: RetrievalResults) -> str | None:
    """Whose documents the systems of a query encoder search, in a sentence; None: each its own."""
    if retrieval.searched == "own":
        return None
    return (
        "Student and untrained student embed the queries and search the documents as the teacher "
        f"embedded them; {in_a_sentence(ALONE)} embeds the documents, too."
    )


def systems_in_order(retrieval: RetrievalResults) -> dict[str, dict[str, Estimate]]:
    """System -> measure -> its mean, in the order of the table's rows."""
    systems = retrieval.systems
    return {name: systems[name] for name in IN_ORDER if name in systems}


def who_reads_what(evaluation: Evaluation) -> str:
    """In a sentence, which texts the systems are given as queries; empty if they are the same."""
    reads = {
        None: "",
        CONVERSATION: "the rewritten question; the student reads the utterance and the turns "
        "before it, as they were said",
        UTTERANCE: "the rewritten question; the student reads the bare utterance",
    }
    column = f"the query; the student reads {evaluation.student_query} in its place"
    said = reads.get(evaluation.student_query, column)
    return f"Teacher and BM25 read {said}." if said else ""


def _rows(retrieval: RetrievalResults, width: int) -> list[str]:
    """The means of each system, a line each."""
    lines = []
    for name, measures in systems_in_order(retrieval).items():
        absent = retrieval.not_applicable.get(name)
        means = "".join(f"{estimate.value:>10.3f}" for estimate in measures.values() if not absent)
        lines.append(f"{LABELS[name]:<{width}}{f'  {absent.reason}' if absent else means}")
    return lines


def results_table(evaluation: Evaluation) -> str:
    """The most important numbers as a short table for a terminal, and the verdict below it."""
    retrieval, fidelity, tasks = evaluation.retrieval, evaluation.fidelity, evaluation.tasks
    titles = {name: _title(name, task) for name, task in tasks.items()}
    every = [retrieval, *(task.retrieval for task in tasks.values())]
    names = [LABELS[name] for one in every for name in one.systems]
    width = max(18, *(len(name) + 1 for name in names), *(len(t) + 2 for t in titles.values()))
    measures = retrieval.systems[STUDENT]
    lines = [" " * width + "".join(f"{measure:>10}" for measure in measures)]
    lines += _rows(retrieval, width)
    if said := which_documents(retrieval):
        lines += ["", said]
    for name, task in tasks.items():
        lines += ["", titles[name], *_rows(task.retrieval, width)]
    pairs = f"to the teacher on {fidelity.num_pairs:,} held-out pairs"
    lines += [
        "",
        f"Pearson {pairs}: {with_interval(fidelity.pearson)}",
        f"MAE {pairs}: {with_interval(fidelity.mae)}",
        verdict(evaluation),
        *([beside_the_ranker(evaluation)] if evaluation.ranker else []),
        *(f"{name}: {task_verdict(task)}" for name, task in tasks.items()),
    ]
    return "\n".join(lines)


def beside_the_ranker(evaluation: Evaluation) -> str:
    """How the student stands to the ranker, in two sentences; empty if there is none."""
    ranker = evaluation.ranker
    if ranker is None:
        return ""
    compared, own = ranker.student_minus_ranker, ranker.ndcg[STUDENT]
    p = compared.tests["randomisation"].p
    difference, student = compared.difference.value, evaluation.efficiency.systems[STUDENT]
    told = (
        "cannot be told apart from it"
        if p is None or p >= ALPHA or difference is None
        else "is better"
        if difference > 0
        else "is behind it"
    )
    return (
        f"On {ranker.num_queries:,} held-out queries the ranker, which reorders "
        f"{in_a_sentence(ranker.first_stage)}'s best {ranker.depth} documents in "
        f"{ranker.milliseconds:,.0f} ms, reaches {NDCG} {with_interval(ranker.ndcg[RANKER])}; the "
        f"student, which embeds a query in {student.query_ms_p50:.1f} ms, reaches "
        f"{with_interval(own)} there, and {told}."
    )


def task_lines(tasks: Mapping[str, TaskResults]) -> list[str]:
    """Further tasks alone, as lines for a terminal; none where there is none."""
    titles = {name: _title(name, task) for name, task in tasks.items()}
    width = max([18, *(len(title) + 2 for title in titles.values())])
    lines = []
    for name, task in tasks.items():
        head = "".join(f"{measure:>10}" for measure in task.retrieval.systems[STUDENT])
        lines += ["", f"{titles[name]:<{width}}{head}", *_rows(task.retrieval, width)]
        lines.append(f"{name}: {task_verdict(task)}")
    return lines


def _title(name: str, task: TaskResults) -> str:
    retrieval = task.retrieval
    return f"{name}: {retrieval.num_queries:,} queries, {retrieval.num_documents:,} documents"


def with_interval(estimate: Estimate) -> str:
    """`0.570 (0.546 to 0.593)`, or why there is no value."""
    if estimate.value is None:
        return f"undefined ({estimate.undefined})"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


@dataclass(frozen=True)
class Standing:
    """Systems that the student is `better`, `level` or `worse` than in nDCG@10."""

    better: tuple[str, ...]
    level: tuple[str, ...]
    worse: tuple[str, ...]


def standing(measured: Evaluation | TaskResults) -> Standing:
    """Where the student stands, by the sign-flip randomisation test at 5% after Holm's
    correction. A test without a p-value shows no difference. A system that is not applicable has no
    test, and nothing is claimed where retrieval shows nothing.
    """
    return stands_of({} if measured.retrieval.trivial else measured.significance.comparisons)


def stands_of(comparisons: Mapping[str, Comparison]) -> Standing:
    """The same of comparisons of the student with other systems."""
    stands: dict[str, list[str]] = {"better": [], "level": [], "worse": []}
    for name in (BM25, UNTRAINED, TEACHER):
        if name not in comparisons:
            continue
        p, difference = (
            comparisons[name].tests["randomisation"].p_holm,
            comparisons[name].difference,
        )
        if p is None or p >= ALPHA:
            how = "level"
        else:
            how = "better" if difference.value is not None and difference.value > 0 else "worse"
        stands[how].append(name)
    return Standing(**{how: tuple(names) for how, names in stands.items()})


def verdict(evaluation: Evaluation) -> str:
    """One honest sentence: what share of the teacher's nDCG@10 the student keeps, and which other
    systems it is better or worse than (see `standing`). A second one names a system that is not
    applicable, and the last one which texts the systems read, if these differ.
    """
    retrieval = evaluation.retrieval
    if retrieval.trivial:
        return f"The retrieval shows nothing: {retrieval.trivial}."
    if retrieval.student_over_teacher is not None or TEACHER not in retrieval.systems:
        why = "the teacher embeds no texts, so it cannot search the corpus"
    else:
        why = "the teacher finds nothing"
    return f"{_sentence(evaluation, why)} {who_reads_what(evaluation)}".rstrip()


def task_verdict(task: TaskResults) -> str:
    """The same for a further task."""
    if task.retrieval.trivial:
        return f"shows nothing: {task.retrieval.trivial}."
    in_table = TEACHER in task.retrieval.systems
    return _sentence(
        task, "the teacher finds nothing" if in_table else "the teacher cannot embed these texts"
    )


def _sentence(measured: Evaluation | TaskResults, without_teacher: str) -> str:
    claims, retrieval = claims_of(standing(measured)), measured.retrieval
    ratio = retrieval.student_over_teacher
    if ratio is not None:
        on = " in the teacher's own index" if retrieval.searched == "teacher" else ""
        kept = (
            f"The student keeps {ratio.value:.1%} of the teacher's {NDCG}{on} "
            f"(95% interval {ratio.low:.1%} to {ratio.high:.1%})"
        )
    else:
        own = retrieval.systems[STUDENT][NDCG]
        kept = (
            f"The student reaches {NDCG} {own.value:.3f} "
            f"(95% interval {own.low:.3f} to {own.high:.3f}; {without_teacher})"
        )
    said = f"{kept}; it {claims}." if claims else f"{kept}."
    absent = (f" {LABELS[n]} is {a.reason}." for n, a in retrieval.not_applicable.items())
    return said + "".join(absent)


def claims_of(stands: Standing) -> str:
    """`is better than BM25 and cannot be told apart from the untrained student`; empty if nothing
    but the teacher was compared.
    """
    claims = [
        f"{verb} {' and '.join(in_a_sentence(name) for name in names if name != TEACHER)}"
        for verb, names in (
            ("is better than", stands.better),
            ("cannot be told apart from", stands.level),
            ("is worse than", stands.worse),
        )
        if set(names) - {TEACHER}
    ]
    return _joined(claims) if claims else ""


def _joined(claims: list[str]) -> str:
    return ", ".join(claims[:-1]) + " and " + claims[-1] if len(claims) > 1 else claims[0]


def is_it_good_enough(evaluation: Evaluation) -> str:
    """The answer in a sentence, by fixed rules: training must have helped, the student must beat
    BM25, then the teacher counts (see `standing`).
    """
    retrieval, stands = evaluation.retrieval, standing(evaluation)
    if retrieval.trivial:
        return f"Not shown: {retrieval.trivial}."
    queries = retrieval.num_queries
    on = f"on {queries:,} quer{'y' if queries == 1 else 'ies'}"
    reads = "needs no model" if evaluation.student_query is None else "reads what the teacher reads"
    bm25 = f"BM25, which {reads}"
    rules = (
        (stands.worse, UNTRAINED, "No: it is worse than before training."),
        (stands.level, UNTRAINED, f"Not shown: {on}, training made no clear difference."),
        (stands.worse, BM25, f"No: {bm25}, is better."),
        (stands.level, BM25, f"Not shown: {on}, it cannot be told apart from {bm25}."),
        (stands.better, TEACHER, "Yes: it is better than its teacher on this task."),
        (stands.level, TEACHER, f"Yes: {on}, it cannot be told apart from its teacher."),
        (
            stands.worse,
            TEACHER,
            "It is useful, but behind its teacher. It is good enough if speed and size are worth "
            "the difference to you.",
        ),
    )
    beaten = _joined([in_a_sentence(BM25)] * (BM25 in stands.better) + ["itself before training"])
    without_teacher = (
        f"It is useful: it beats {beaten}. Its teacher cannot search, so the two cannot be "
        "compared."
    )
    answer = next((answer for names, name, answer in rules if name in names), without_teacher)
    if BM25 not in retrieval.not_applicable:
        return answer
    return (
        f"{answer} There is no BM25 to compare with: it is {retrieval.not_applicable[BM25].reason}."
    )


def probability(p: float | None) -> str:
    """A p-value as papers write it: "< .001", ".034", "1"."""
    if p is None:
        return "undefined"
    return "< .001" if p < 0.001 else "1" if p > 0.9995 else f"{p:.3f}".removeprefix("0")

"""What the evaluation measures, as values: the content of `evaluation.json`.

Everything is measured on held-out data. Keys of retrieval measures are the names of `ir-measures`
(`nDCG@10`); keys of systems are the names below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TEACHER, STUDENT, UNTRAINED, BM25 = "teacher", "student", "untrained student", "bm25"
"""The systems that are compared. The untrained student is the student before its training: without
it, every number looks better than it is.
"""
SYSTEMS = (TEACHER, STUDENT, UNTRAINED, BM25)
ALONE = "student alone"
"""A query encoder that embeds the documents, too. The student itself then searches the teacher's
embeddings of them, and so does the untrained one.
"""
ON_UTTERANCE, ON_QUERY = "student on utterance", "student on query"
READINGS = (ON_UTTERANCE, ON_QUERY)
"""Where the student reads another text than the teacher: the same student, given the bare utterance
of a conversation alone, and the query that the teacher reads.
"""
IN_ORDER = (TEACHER, STUDENT, ALONE, *READINGS, UNTRAINED, BM25)
"""All that there may be, in the order in which tables show them."""

UNANSWERED = 0.5
"""A system that finds no document for a larger share of the queries is not applicable."""
TRIVIAL = 0.5
"""Retrieval shows nothing where a larger share of queries are the text of their own document."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval.

    Attributes:
        value: None if it is undefined.
        low, high: The interval's ends; None if the value is undefined.
        n: How many queries or pairs it is measured on.
        undefined: Why there is no value, e.g. because constant scores have no correlation. None if
            there is one.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    undefined: str | None = None


@dataclass(frozen=True)
class Bootstrap:
    """How the intervals were made: `resamples` resamples, the confidence `level` (0.95), `seed`."""

    resamples: int
    level: float
    seed: int


@dataclass(frozen=True)
class NotApplicable:
    """A system that finds no document for most queries, such as BM25 where queries and documents
    share no words. Nothing is compared with it.

    Attributes:
        unanswered: Queries for which it finds no document.
        queries: All queries.
    """

    unanswered: int
    queries: int

    @property
    def reason(self) -> str:
        """Why it has no figures."""
        return (
            f"not applicable: finds no document for {self.unanswered:,} of {self.queries:,} queries"
        )


@dataclass(frozen=True)
class RetrievalResults:
    """Retrieval over a whole corpus: the held-out documents, or those of a further task.

    Attributes:
        num_queries: Judged queries; every system is measured on all of them.
        num_documents: Documents that each query searches.
        notes: What a reader should know about the task, e.g. judgements of missing documents.
        systems: System -> measure -> its mean over the queries; undefined for a system that is not
            applicable. A teacher that embeds no texts has no row.
        student_over_teacher: The student's nDCG@10 divided by the teacher's; None if the teacher
            embeds no texts or finds nothing.
        not_applicable: Systems that find no document for most queries.
        same_text: Queries that are the text of a document that is relevant to them.
        words: What BM25 took for words.
        searched: Whose embeddings of the documents student and untrained student search: each its
            own, or the teacher's.
    """

    num_queries: int
    num_documents: int
    notes: tuple[str, ...]
    systems: dict[str, dict[str, Estimate]]
    student_over_teacher: Estimate | None
    not_applicable: dict[str, NotApplicable]
    same_text: int
    words: str
    searched: Literal["own", "teacher"] = "own"

    @property
    def trivial(self) -> str | None:
        """Why these figures show nothing; None if they show something."""
        if self.same_text <= TRIVIAL * self.num_queries:
            return None
        return (
            f"{self.same_text:,} of {self.num_queries:,} queries are the text of their own "
            "document, which any system finds"
        )


@dataclass(frozen=True)
class SignificanceTest:
    """The two-sided test of one comparison.

    Attributes:
        statistic: The test's statistic; None if it is undefined.
        p: The p-value; None if it is undefined.
        p_holm: `p` corrected by Holm over the comparisons that were made together; None if `p` is
            undefined or was not corrected.
        undefined: Why there is no p-value; None if there is.
    """

    statistic: float | None
    p: float | None
    p_holm: float | None = None
    undefined: str | None = None


@dataclass(frozen=True)
class Comparison:
    """A system against another one on the same queries.

    Attributes:
        difference: Mean of the system's values minus the other's, query by query.
        tests: `paired_t_test`, `wilcoxon`, `randomisation` (sign flips) and `bootstrap`.
        cohens_dz: Mean of the differences divided by their standard deviation.
        smallest_detectable: The difference of means that a t-test on these queries finds with 80%
            probability; None if the variance of the differences is unknown.
        wins, ties, losses: Queries on which the system is better than, as good as and worse than
            the other.
    """

    difference: Estimate
    tests: dict[str, SignificanceTest]
    cohens_dz: Estimate
    smallest_detectable: float | None
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class Significance:
    """The student against every other system.

    Attributes:
        measure: What was compared: `nDCG@10`.
        num_queries: Queries that it was compared on.
        alpha, power: Level of the tests, and the probability behind `smallest_detectable`.
        randomisations: Random sign flips of the randomisation test, at most.
        comparisons: Other system -> the student minus that system. Holm's correction is over these.
    """

    measure: str
    num_queries: int
    alpha: float
    power: float
    randomisations: int
    comparisons: dict[str, Comparison]


@dataclass(frozen=True)
class CrossedInterval:
    """A mean difference over seeds and queries.

    Attributes:
        difference: With an interval over other queries and other seeds; n is seeds times queries.
        p: Two-sided; None if it is undefined.
        degrees_of_freedom: Satterthwaite's; None if every difference is the same.
    """

    difference: Estimate
    p: float | None
    degrees_of_freedom: float | None


@dataclass(frozen=True)
class SeedsComparison:
    """A recipe that was run with several seeds against a baseline.

    Attributes:
        num_seeds, num_queries: What was crossed.
        crossed: The difference that holds for other queries and other seeds.
        per_seed: The mean difference of each seed.
        sd_between_seeds: The standard deviation of these means.
        these_seeds: The mean over these seeds against the baseline: it holds for other queries
            only.
    """

    num_seeds: int
    num_queries: int
    crossed: CrossedInterval
    per_seed: tuple[float, ...]
    sd_between_seeds: float
    these_seeds: Comparison


@dataclass(frozen=True)
class PerQuery:
    """Values query by query: every test can be repeated from the file.

    Attributes:
        measure: `nDCG@10`.
        query_ids: The judged queries.
        systems: System -> its value for each of these queries.
    """

    measure: str
    query_ids: tuple[str, ...]
    systems: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Example:
    """One query of `WinsAndLosses`. Texts are cut to 300 characters.

    Attributes:
        query: The query's text.
        student_query: What the student reads in its place; None: the query.
        judged: The relevant document that the system ranks best; None if it is not in the corpus.
        first: The system's first document; None if that is the judged one, or if there is none.
        value, value_against: The measure of the system and of the other one.
        rank, rank_against: Where each ranks the judged document, from 1; None if it does not.
    """

    query: str
    judged: str | None
    first: str | None
    value: float
    value_against: float
    rank: int | None
    rank_against: int | None
    student_query: str | None = None


@dataclass(frozen=True)
class WinsAndLosses:
    """The queries on which `system` is most above (`wins`) and most below (`losses`) `against`, the
    largest differences first.
    """

    measure: str
    system: str
    against: str
    wins: tuple[Example, ...]
    losses: tuple[Example, ...]


@dataclass(frozen=True)
class Agreement:
    """How closely a system ranks like the teacher.

    Attributes:
        overlap: K -> share of the teacher's first K documents among the system's first K.
        rbo: Rank-biased overlap.
    """

    overlap: dict[int, Estimate]
    rbo: Estimate


@dataclass(frozen=True)
class RankingAgreement:
    """How closely student and untrained student rank like the teacher. Judgements play no part.

    Attributes:
        persistence: The p of rank-biased overlap.
        depth: Documents of a ranking that were compared: the shortest ranking's length.
        systems: System -> its agreement.
    """

    persistence: float
    depth: int
    systems: dict[str, Agreement]


@dataclass(frozen=True)
class ByRange:
    """Fidelity on the pairs whose teacher score is in [low, high).

    Attributes:
        low, high: The range.
        n: Pairs in it, at least one.
        teacher_mean, student_mean: Mean scores.
        pearson, spearman, kendall: None where undefined.
        mae, rmse, bias, calibration_error: As in `Fidelity`.
    """

    low: float
    high: float
    n: int
    teacher_mean: float
    student_mean: float
    pearson: float | None
    spearman: float | None
    kendall: float | None
    mae: float
    rmse: float
    bias: float
    calibration_error: float


@dataclass(frozen=True)
class CalibrationBin:
    """The `n` pairs that the student scores from `low` to `high`: its mean score of them, and the
    teacher's.
    """

    low: float
    high: float
    n: int
    student_mean: float
    teacher_mean: Estimate


@dataclass(frozen=True)
class Calibration:
    """The calibration curve, and its expected error: the mean distance of a bin's two means."""

    bins: tuple[CalibrationBin, ...]
    expected_error: Estimate


@dataclass(frozen=True)
class Decision:
    """The student as a classifier of "the teacher scores this pair at or above a threshold".

    Attributes:
        quantile: Where the teacher's scores are cut: 0.5 is their median.
        threshold: The score there.
        positives: Pairs that reach it.
        n: All pairs.
        f1: The student's scores are cut at the same threshold.
        roc_auc, average_precision: They depend on the student's order alone.
    """

    quantile: float
    threshold: float
    positives: int
    n: int
    f1: Estimate
    roc_auc: Estimate
    average_precision: Estimate


@dataclass(frozen=True)
class Fidelity:
    """How closely a student's scores follow the teacher's on the held-out pairs.

    Attributes:
        num_pairs: Pairs that the teacher scored.
        pearson, spearman, kendall: Correlations.
        mae, rmse: Mean absolute and root mean squared error.
        bias: Mean of student minus teacher.
        by_range: The same in each range of the teacher's score that holds pairs.
        calibration: The teacher's mean score of pairs that the student scores alike.
        decisions: `median` and `p80` (80th percentile) -> the student as a classifier.
    """

    num_pairs: int
    pearson: Estimate
    spearman: Estimate
    kendall: Estimate
    mae: Estimate
    rmse: Estimate
    bias: Estimate
    by_range: tuple[ByRange, ...]
    calibration: Calibration
    decisions: dict[str, Decision]


@dataclass(frozen=True)
class PaperFigures:
    """The figures of the paper's table. None: undefined.

    Attributes:
        pearson, mae: Between student and teacher scores.
        recall: K -> share of the teacher's K best pairs among the student's K best.
        ndcg: K -> nDCG of the student's K best pairs, with the teacher's scores as gains.
        f1: Both scores are cut at the teacher's median score.
        cohens_d: Teacher minus student, over the pooled standard deviation.
    """

    pearson: float | None
    mae: float
    recall: dict[int, float | None]
    ndcg: dict[int, float | None]
    f1: float
    cohens_d: float | None


@dataclass(frozen=True)
class PaperProtocol:
    """The paper's own protocol. It ranks pairs; that is not retrieval.

    Attributes:
        num_pairs: Held-out pairs.
        unranked: Why recall and ndcg are undefined, e.g. because all scores are equal. None if they
            are defined.
        student: This student's figures.
        published: The paper's, measured on its training pairs.
        median: The teacher's median score, where F1 cuts.
        paired_t_test, wilcoxon: Tests of teacher against student scores.
        teacher_mean, student_mean: Mean scores.
    """

    num_pairs: int
    unranked: str | None
    student: PaperFigures
    published: PaperFigures
    median: float
    paired_t_test: SignificanceTest
    wilcoxon: SignificanceTest
    teacher_mean: float
    student_mean: float


@dataclass(frozen=True)
class Cost:
    """What a model costs on this machine.

    Attributes:
        parameters: Number of parameters.
        megabytes: Size of the parameters in memory.
        bytes_on_disk: Size of the files that loading it reads; None if its folder is unknown.
        peak_megabytes: The most memory that tensors take while it embeds the 16 longest documents.
        dimension: Dimensions of an embedding.
        backend, dtype: What ran: `torch`, `float32`.
        documents_per_second: Median of three rounds.
        query_ms_p50, query_ms_p95: Milliseconds for one query.
    """

    parameters: int
    megabytes: float
    bytes_on_disk: int | None
    peak_megabytes: float
    dimension: int
    backend: str
    dtype: str
    documents_per_second: float
    query_ms_p50: float
    query_ms_p95: float


@dataclass(frozen=True)
class Efficiency:
    """Models measured side by side: how many documents and queries were timed, on which device, and
    system -> its cost. A teacher that is not a local bi-encoder has no row.
    """

    documents: int
    queries: int
    device: str
    systems: dict[str, Cost]


@dataclass(frozen=True)
class IndexRow:
    """An index at one precision.

    Attributes:
        bytes_per_million: Bytes for a million documents.
        ndcg: nDCG@10.
        minus_float32: nDCG@10 minus that of the float32 index.
        rescoring_bytes_per_million: Further bytes, which may stay on disk; None without rescoring.
    """

    bytes_per_million: int
    ndcg: Estimate
    minus_float32: Estimate
    rescoring_bytes_per_million: int | None = None


@dataclass(frozen=True)
class IndexSize:
    """The size of an index of a system's embeddings, and what smaller indexes lose.

    Attributes:
        dimension: Dimensions of the embeddings.
        rows: `float32`, `float16`, `int8`, `binary`, `binary_documents` (queries in float32),
            `binary_rescored` (by int8), `float32_half` and `float32_quarter` (of the dimensions,
            the first ones) -> the index. Empty if undefined.
        undefined: Why nothing was measured; None if it was.
    """

    dimension: int
    rows: dict[str, IndexRow]
    undefined: str | None = None


@dataclass(frozen=True)
class MixedIndex:
    """Whether the student's queries can search the teacher's index: nDCG@10 of queries of one over
    documents of the other. The teacher's embeddings are projected to its principal components.

    Attributes:
        undefined: Why it is not possible; then everything else is None. None if it is possible.
        dimension: Principal components.
        student_queries_teacher_index, teacher_queries_student_index,
        teacher_queries_teacher_index: nDCG@10.
        minus_teacher, minus_student: `student_queries_teacher_index` minus teacher and student,
            each in its own index.
    """

    undefined: str | None = None
    dimension: int | None = None
    student_queries_teacher_index: Estimate | None = None
    teacher_queries_student_index: Estimate | None = None
    teacher_queries_teacher_index: Estimate | None = None
    minus_teacher: Estimate | None = None
    minus_student: Estimate | None = None


@dataclass(frozen=True)
class PairScores:
    """The scores of the held-out pairs that the teacher scored, to five decimals."""

    pair_ids: tuple[str, ...]
    teacher: tuple[float, ...]
    student: tuple[float, ...]


@dataclass(frozen=True)
class SourceResults:
    """The figures of one source of the pairs. Its queries search all held-out documents.

    Attributes:
        num_queries: Held-out queries with a pair of this source.
        num_pairs: Its held-out pairs that the teacher scored.
        systems: System -> `nDCG@10` and `R@10` over these queries.
        pearson, mae: Between student and teacher on these pairs.
    """

    num_queries: int
    num_pairs: int
    systems: dict[str, dict[str, Estimate]]
    pearson: Estimate
    mae: Estimate


@dataclass(frozen=True)
class TaskResults:
    """A further task, out of domain: the test set of `test_path`, or one of `eval_tasks`.

    Attributes:
        named: What the recipe calls it.
        retrieval: Every system over the task's corpus. A teacher that cannot embed new texts has no
            row.
        significance: The student minus each other system; Holm's correction is within the task.
        per_query: nDCG@10 of each query.
    """

    named: str
    retrieval: RetrievalResults
    significance: Significance
    per_query: PerQuery


@dataclass(frozen=True)
class RankerResults:
    """The ranker on held-out queries: it puts the best documents of a first stage into another
    order. All figures are on the same queries.

    Attributes:
        name: The ranker's.
        first_stage: The system whose best documents it reads: `teacher`, or else `bm25`.
        depth: How many of them.
        num_queries, of: Queries that were drawn, and held-out queries that there are.
        ndcg: `ranker`, the first stage, the student and `student, reranked` (the ranker on the
            student's best documents) -> nDCG@10.
        student_minus_ranker: On the same queries.
        kendall: Kendall's tau-b between the student's scores of a list and the ranker's, its mean.
        ndcg_by_ranker: nDCG@10 of the student's order of a list by the ranker's scores (scaled to 0
            to 1 within the list), its mean.
        milliseconds: Median time of the ranker for the list of one query.
    """

    name: str
    first_stage: str
    depth: int
    num_queries: int
    of: int
    ndcg: dict[str, Estimate]
    student_minus_ranker: Comparison
    kendall: Estimate
    ndcg_by_ranker: Estimate
    milliseconds: float


@dataclass(frozen=True)
class Evaluation:
    """The content of `evaluation.json`.

    Attributes:
        key: The fingerprint of what it depends on.
        training: The key of the training that made the student.
        collection: The key of the collection that it was measured on.
        bootstrap: How the intervals were made.
        retrieval: Every system over the held-out corpus.
        significance: The student minus each other system.
        per_query: nDCG@10 of each query.
        wins_and_losses: The student against the first of teacher, BM25 and untrained student that
            can be compared.
        ranking_agreement: None if the teacher embeds no texts.
        fidelity, fidelity_untrained: Fidelity of the student and of the untrained student.
        paper_protocol: The paper's table.
        efficiency: Cost of student and teacher.
        index: `student`, and `teacher` if it embeds -> the sizes of an index.
        mixed_index: Whether the teacher's index can be kept.
        pairs: Scores of the held-out pairs.
        tasks: Name -> the figures of a further task.
        by_source: Source -> its figures, the largest first. Empty if the pairs have one source.
        student_query: What the student reads in place of the query, as the recipe says it; None:
            the query.
        ranker: The ranker of the lists; None if there are none.
    """

    key: str
    training: str
    collection: str
    bootstrap: Bootstrap
    retrieval: RetrievalResults
    significance: Significance
    per_query: PerQuery
    wins_and_losses: WinsAndLosses
    ranking_agreement: RankingAgreement | None
    fidelity: Fidelity
    fidelity_untrained: Fidelity
    paper_protocol: PaperProtocol
    efficiency: Efficiency
    index: dict[str, IndexSize]
    mixed_index: MixedIndex
    pairs: PairScores
    tasks: dict[str, TaskResults]
    by_source: dict[str, SourceResults]
    student_query: str | None = None
    ranker: RankerResults | None = None

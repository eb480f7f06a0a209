"""What a recipe can say: one dataclass for each stage. The help text is here, beside each option,
and nowhere else.

Objective and training are `hf_distill.recipe.config.DistillationConfig`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hf_distill.recipe.config import DistillationConfig
from hf_distill.recipe.kinds import FORMATS, RULES, SOURCES, TEACHERS, list_kinds
from hf_distill.recipe.option import option

STAGES = ("read", "score", "select", "train", "evaluate", "release")
"""In their order; `--until` names one of them."""

CONVERSATION, UTTERANCE = "conversation", "utterance"
"""Values of `student_query` that are no column."""

_NO_EFFECT_ON_STUDENT = (
    "output_dir", "logging", "report_to", "push_to_hub", "hub_", "disable_tqdm", "run_name",
    "local_rank", "resume_from", "save_total", "ddp_timeout",
    "dataloader_num_workers", "dataloader_persistent", "dataloader_prefetch", "dataloader_pin",
    "mine_again",
)  # fmt: skip
"""`mine_again` has none in the first stage, and those of the others are in the keys as texts."""

_NO_EFFECT_ON_RESULTS = (
    *_NO_EFFECT_ON_STUDENT, "run_dir", "until", "explain", "card_examples", "student_license",
    "dataset_license", "teacher_cache", "trust_remote_code", "chat_url",
)  # fmt: skip


@dataclass(frozen=True)
class RunArguments:
    """Where a run lives and how far it goes."""

    _argument_group_name = "run"

    run_dir: str | None = option(
        None, "Folder for everything the run writes. Default: runs/<recipe name>."
    )
    until: Literal["read", "score", "select", "train", "evaluate", "release"] = option(
        "release", "Stop after this stage. A later call with the same recipe continues from there."
    )
    explain: bool = option(
        False,
        "Show what the data was recognised as, and three rows of each of its tables. With --until "
        "read, no model is loaded.",
    )
    student_license: str | None = option(
        None, "Licence of the student, for its model card, e.g. apache-2.0."
    )
    card_examples: bool = option(
        True,
        "Show texts of pairs in the dataset card: examples, what rules dropped, disagreements.",
    )
    hub_dataset_id: str | None = option(
        None,
        "With --push_to_hub: also publish the scored pairs, as this data set, e.g. you/pairs.",
    )


@dataclass(frozen=True)
class DataArguments:
    """Where the (query, document) pairs come from and how they are split."""

    _argument_group_name = "data"

    dataset: str = option(
        "auto",
        f"{list_kinds(SOURCES)}; or package.module:name, a source of your own.",
    )
    dataset_path: str | None = option(
        None,
        "File or folder of the data (for pydocs: a source tree instead of what is installed).",
    )
    format: str = option(
        "auto",
        f"Format of the files. auto: recognised by their content; {list_kinds(FORMATS)}; or "
        "package.module:name, a format of your own.",
    )
    sources: list[str] = option(
        [],
        "Several sources in one run, NAME=PATH each, in place of dataset_path; each may have "
        "another format, e.g. faq=faq.jsonl docs=beir_folder.",
    )
    dataset_name: str | None = option(None, "Id of a data set on the Hugging Face Hub.")
    dataset_config: str | None = option(
        None, "Configuration of the data set, where it has several."
    )
    dataset_split: str | None = option(
        None, "Read this split alone. Default: train, validation and test, each for its purpose."
    )
    dataset_license: str | None = option(
        None, "Licence of the data, for the dataset card, e.g. cc-by-sa-4.0."
    )
    language: str = option(
        "en", "Language of the texts (ISO code): for BM25's words, and for the cards."
    )
    query_column: str | None = option(
        None, "Column with the query text. Default: what the format calls it."
    )
    document_column: str | None = option(
        None, "Column with the document text. Default: what the format calls it."
    )
    label_column: str | None = option(
        None,
        "Column with the grade of a pair: above 0 is relevant, 0 is judged not relevant. Default: "
        "label, grade or relevance, where there is one.",
    )
    score_column: str | None = option(
        None,
        "Column with the score that somebody gave a pair. Default: score or teacher_score, where "
        "there is one.",
    )
    group_column: str | None = option(
        None,
        "Column whose values train and test never share, e.g. a conversation id. Default: the "
        "query.",
    )
    source_column: str | None = option(
        None, "Column that says where a pair comes from, for rules with :by=source."
    )
    student_query: str | None = option(
        None,
        "What the student reads in place of the query. conversation: the utterance and the turns "
        "before it, where the teacher reads the rewritten question; utterance: the utterance "
        "alone; or a column, e.g. of queries as people type them. Default: what the teacher reads.",
    )
    text_column: str | None = option(
        None,
        "Column of texts without queries: what the teacher reads. Default: text, document, "
        "passage, content, sentence or body, where there is one.",
    )
    student_text_column: str | None = option(
        None,
        "Column with what the student reads in place of it: a translation, a noisy form. Default: "
        "the other one of english and non_english, english and translation, sentence1 and "
        "sentence2, text and student_text, source and target, en and another language.",
    )
    positives: str | None = option(
        None,
        "Which documents of a scored list without labels are relevant: best, first, all, or a "
        "score, e.g. 0.5: those with at least this score.",
    )
    pool_path: str | None = option(
        None,
        "Further texts, without queries: a folder of documents, or a file that --dataset texts "
        "reads. A third of the pool's passages (texts_per_pair) are of them.",
    )
    chat_url: str | None = option(
        None,
        "Base URL of the chat endpoint that writes queries for --dataset generate, e.g. "
        "http://localhost:8080/v1.",
    )
    chat_model: str | None = option(None, "The model's name there.")
    queries_per_document: int = option(
        4,
        "How many queries it writes for a document: a question, keywords, a title, a claim, and "
        "so on in turn.",
    )
    test_path: str | None = option(
        None,
        "A test set of your own, a file or folder in any format. It is measured beside the "
        "held-out pairs, and nothing of it is trained on.",
    )
    eval_tasks: list[str] = option(
        [],
        "Further retrieval tasks to measure on: a BEIR folder, nano:NAME or mteb:NAME, e.g. "
        "nano:SciFact.",
    )
    max_pairs: int | None = option(
        None,
        "Take whole groups, in an order drawn by the seed, until they hold this many pairs (or "
        "texts, where there are no pairs).",
    )
    test_fraction: float = option(0.1, "Share of the groups that is held out for the evaluation.")
    validation_fraction: float = option(
        0.05, "Share of the groups whose loss is watched during training."
    )
    held_out_queries: int | None = option(
        10_000,
        "The most queries that test and validation hold each, where they are drawn; the other "
        "groups are trained on. More make intervals hardly narrower, and the evaluation and the "
        "search for leaks longer. none: the shares alone decide.",
    )

    @property
    def source_paths(self) -> dict[str, Path]:
        """`sources` by name. Whoever reads a recipe refuses anything but NAME=PATH."""
        named = (source.partition("=") for source in self.sources)
        return {name: Path(path) for name, _, path in named}


@dataclass(frozen=True)
class TeacherArguments:
    """The teacher that scores the pairs."""

    _argument_group_name = "teacher"

    teacher: str = option(
        "sentence-transformers/all-MiniLM-L6-v2",
        "The teacher: a folder or a Hub id, the model's name at an endpoint, or a file of "
        "precomputed scores or embeddings.",
    )
    teacher_kind: str = option(
        "bi-encoder",
        f"{list_kinds(TEACHERS)}; or package.module:name, a teacher of your own.",
    )
    teacher_similarity: Literal["cosine", "dot", "euclidean", "manhattan", "declared"] = option(
        "cosine",
        "How the teacher's embeddings are compared. declared: as the model says. A regression "
        "needs cosine.",
    )
    teacher_activation: Literal["auto", "sigmoid", "identity"] = option(
        "auto",
        "Turns a ranker's logits, or precomputed scores, into scores. auto: a sigmoid for a "
        "cross-encoder's logits, nothing for others. A rerank endpoint is asked for its raw scores "
        "if this is sigmoid or identity.",
    )
    teacher_pooling: Literal["cls", "mean"] | None = option(
        None, "Pool the teacher's tokens like this. Default: as the model says."
    )
    teacher_max_length: int | None = option(
        None, "Cut the teacher's input after this many tokens. Default: the model's own limit."
    )
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "Precision of the teacher. auto: the fastest that the hardware supports.",
    )
    teacher_url: str | None = option(
        None,
        "Base URL of the endpoint, e.g. http://localhost:8080/v1; for a rerank endpoint, what "
        "/rerank follows, or the whole address.",
    )
    score_range: list[float] | None = option(
        None,
        "Lowest and highest score: of precomputed ones (default: -1 1), or of a rerank endpoint's "
        "(default: 0 1).",
    )
    ensemble: list[str] = option(
        [],
        "Members of the ensemble, KIND:TEACHER=WEIGHT, e.g. "
        "bi-encoder:sentence-transformers/all-MiniLM-L6-v2=0.5. Each member's scores are replaced "
        "by their quantiles among the training pairs before they are added.",
    )
    query_prompt: str | None = option(
        None, "Text before each query, for teacher and student. Default: the teacher's own prompt."
    )
    document_prompt: str | None = option(
        None,
        "Text before each document, for teacher and student. Default: the teacher's own prompt.",
    )
    teacher_cache: str | None = option(
        None,
        "Folder for what the teacher computed. Several runs can share it at the same time. "
        "Default: inside the run's own folder.",
    )
    trust_remote_code: bool = option(
        False, "Let the teacher run code from its repository. A student never needs any."
    )


@dataclass(frozen=True)
class CandidateArguments:
    """Lists of candidates for the training queries, and the ranker that scores them."""

    _argument_group_name = "candidates"

    candidates: list[str] = option(
        [],
        "Mine a list of candidates for each training query. given: what the data lists; teacher: "
        "its nearest documents; bm25; or the folder or Hub id of another bi-encoder. Several take "
        "turns. The hard negatives are then taken from the list.",
    )
    candidates_per_query: int = option(
        32, "Candidates in a list. Each one is a text that the ranker reads with the query."
    )
    candidates_from_rank: int = option(
        1,
        "Candidates begin at this rank of what a miner finds; what the data calls relevant does "
        "not count. 11 leaves out the ten best, which may be answers that nobody has judged, also "
        "where another miner finds them. What the data lists (given) has no such ranks.",
    )
    ranker: str | None = option(
        None,
        "What scores the lists, KIND:MODEL, e.g. "
        "cross-encoder:cross-encoder/ms-marco-MiniLM-L6-v2. Default: the teacher.",
    )
    ranker_activation: Literal["auto", "sigmoid", "identity"] = option(
        "identity",
        "Turns a cross-encoder's logits into scores. A list compares the scores of one query, so "
        "logits can stay as they are.",
    )
    rerank_queries: int = option(
        200,
        "Held-out queries, drawn by the seed, on which the ranker is measured beside the student: "
        "it reads the best 100 documents of the first stage and of the student for each, and five "
        "lists again for its time. 0: it is not measured.",
    )
    choose_candidates: Literal["top", "random", "stratified"] = option(
        "stratified",
        "Which of a list become hard negatives (hard_negatives_per_pair): those that the ranker "
        "scores highest, random ones, or some of each part of its scores.",
    )


@dataclass(frozen=True)
class SelectionArguments:
    """Which of the scored pairs the student is trained on."""

    _argument_group_name = "selection"

    selection: list[str] = option(
        [],
        f"Rules that drop pairs, applied in order ({list_kinds(RULES)}), or "
        "package.module:name[=VALUE], a rule of your own. With :weight=W after it, a rule keeps "
        "the pairs that it would drop and gives them the weight W in the objective; with "
        ":weight_ranking=W in its terms that compare queries with documents. With :relabel, the "
        "teacher's best document of the ranking pool takes the place of theirs.",
    )
    second_model: str | None = option(
        None,
        "Folder or Hub id of a second bi-encoder, whose scores the rules agreement and "
        "disagreement compare with the teacher's: another teacher, or the student of an earlier "
        "run.",
    )


@dataclass(frozen=True)
class StudentArguments:
    """What the student is built from."""

    _argument_group_name = "student"

    student_backbone: str = option(
        "teacher",
        "Transformer that the student starts from: teacher (a copy of it), a folder or a Hub id; "
        "or static: no transformer, one vector for each token of the teacher's vocabulary.",
    )
    student_layers: str | None = option(
        None,
        "Layers of the backbone to keep: 0,2,5, or every=2 (each second one), or search=3 (the "
        "three that rank most like the teacher before training). Default: all.",
    )
    student_vocabulary: Literal["all", "used"] = option(
        "all",
        "used: keep only tokens that occur in the training texts, special tokens and single "
        "characters. The student gets much smaller, and splits other words into shorter pieces.",
    )
    student_pooling: Literal["cls", "mean"] = option(
        "mean", "How token embeddings become a text embedding."
    )
    student_dim: int = option(
        256,
        "Dimensions of the L2-normalised embedding. In the teacher's space: the teacher's.",
    )
    student_init: Literal["random", "pca"] = option(
        "random",
        "How the head starts: random, or as the teacher's principal components. In the teacher's "
        "space (student_space) neither: it leads there from the start.",
    )
    student_max_length: int = option(256, "Longest input of the student, in tokens.")
    student_dropout: float | None = option(
        None, "Dropout inside the backbone. Default: the backbone's own."
    )
    head_dropout: float = option(0.0, "Dropout after the head, in training only.")


@dataclass(frozen=True)
class ScheduleArguments:
    """Further stages of the training, and how far the student goes with the last one."""

    _argument_group_name = "schedule"

    stages: list[str] = option(
        [],
        "Further stages of the training, in order. Each is a text of the keys that differ from the "
        'recipe\'s, e.g. "contrastive_weight=1, alignment_weight=5, max_steps=128". A stage has an '
        "optimiser and a schedule of its own.",
    )
    specialise: str | None = option(
        None,
        "How far the student goes from the stage before the last to the last one, in its weights: "
        "0 (not at all) to 1 (all the way), or auto: as far as it follows the teacher's scores "
        "nearly as closely as before the last stage, and ranks no validation queries worse. "
        "With one stage, auto chooses nothing. Default: all the way.",
    )


@dataclass(frozen=True)
class Recipe:
    """A recipe: the options of every stage, its name, and which keys were given.

    Attributes:
        training: The first stage of the training.
        further: The stages after it.
    """

    name: str
    run: RunArguments
    data: DataArguments
    teacher: TeacherArguments
    lists: CandidateArguments
    selection: SelectionArguments
    student: StudentArguments
    schedule: ScheduleArguments
    training: DistillationConfig
    given: frozenset[str]
    further: tuple[DistillationConfig, ...] = ()

    @property
    def stages(self) -> tuple[DistillationConfig, ...]:
        """Every stage of the training, in order."""
        return (self.training, *self.further)

    @property
    def specialise(self) -> str | None:
        """Where the student is between the last two stages; None: after the last one."""
        return self.schedule.specialise if self.further else None

    def of_each_stage(self) -> list[Recipe]:
        """A recipe for each stage of the training, without the others."""
        return [dataclasses.replace(self, training=stage, further=()) for stage in self.stages]

    @property
    def seed(self) -> int:
        """Seeds the split, the draws, the training and the bootstrap."""
        return int(self.training.seed)

    @property
    def run_dir(self) -> Path:
        """The run's folder: `--run_dir`, else `runs/<recipe name>`."""
        return Path(self.run.run_dir or Path("runs") / self.name)

    @property
    def cache(self) -> Path:
        """Where `datasets` prepares files for reading, inside the run's folder."""
        return self.run_dir / "cache"

    @property
    def reading(self) -> Path:
        """Where `datasets` prepares the files of a source. It goes when the pairs are written."""
        return self.cache / "reading"

    def training_keys(self, stages: int) -> dict[str, Any]:
        """Every option of the first `stages` stages of the training that can change the student."""
        training = {
            name: value
            for name, value in plain(self.training).items()
            if not name.startswith(_NO_EFFECT_ON_STUDENT)
        }
        return training | {"stages": self.schedule.stages[: stages - 1]}

    def keys(self) -> dict[str, Any]:
        """The recipe as flat keys: all options of this project, and those of the Trainer that were
        given. Tokens are left out.
        """
        own = {field.name for field in dataclasses.fields(DistillationConfig)} - trainer_names()
        parts = (
            self.run, self.data, self.teacher, self.lists, self.selection, self.student,
            self.schedule,
        )  # fmt: skip
        flat = {name: value for part in parts for name, value in vars(part).items()}
        training = plain(self.training)
        return flat | {
            name: value
            for name, value in training.items()
            if (name in own or name in self.given) and not name.endswith("_token")
        }


PARTS = (
    RunArguments, DataArguments, TeacherArguments, CandidateArguments, SelectionArguments,
    StudentArguments, ScheduleArguments,
)  # fmt: skip

STAGE_KEYS = (
    "temperature", "teacher_temperature", "ranker_temperature", "regression_on",
    "false_negative_margin", "positive_cut",
    "contrastive_symmetric", "texts_per_pair", "hard_negatives_per_pair", "mine_again",
    "grad_cache",
    "one_source_per_batch", "per_device_train_batch_size", "gradient_accumulation_steps",
    "learning_rate", "lr_scheduler_type", "weight_decay", "warmup_steps", "max_grad_norm",
    "max_steps", "num_train_epochs", "eval_strategy", "eval_steps", "save_strategy", "save_steps",
    "logging_steps", "load_best_model_at_end", "early_stopping_patience",
)  # fmt: skip
"""Keys that a stage of the training may have for itself, beside the weights of the terms. None of
them names code.
"""


def deciding(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `keys` that can change a pair, a score, the student or a figure."""
    return {
        name: value for name, value in keys.items() if not name.startswith(_NO_EFFECT_ON_RESULTS)
    }


def trainer_names() -> set[str]:
    """The options that `DistillationConfig` inherits."""
    return {field.name for field in dataclasses.fields(DistillationConfig.__mro__[1])}


def plain(training: DistillationConfig) -> dict[str, Any]:
    """The options of a training as values that YAML can hold."""
    values: dict[str, Any] = training.to_dict()  # type: ignore[no-untyped-call]  # untyped
    return values

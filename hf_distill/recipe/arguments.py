"""What a recipe can say: one dataclass per stage, read from a flat YAML file and the command line.

A key of the YAML file is the name of a command-line flag, and the command line wins. Help text
lives here, in the field metadata, and nowhere else.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args
from urllib.parse import urlsplit

import yaml
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import HfArgumentParser

from hf_distill.compute.device import (
    bfloat16_is_faster,
    device_type,
)
from hf_distill.errors import InputError

ENVIRONMENT_KEY = "environment"
"""The one key of a saved recipe that is no flag: what the run was made with. It is skipped when a
recipe is read.
"""

_NO_EFFECT_ON_STUDENT = (
    "output_dir", "logging", "report_to", "push_to_hub", "hub_", "disable_tqdm", "run_name", "local_rank", "resume_from", "save_total",
)  # fmt: skip

STAGES = ("score", "select", "train", "evaluate", "release")


def _option(default: Any, text: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class RunArguments:
    """Where a run lives and how far it goes."""

    _argument_group_name = "run"

    run_dir: str | None = _option(
        None, "Folder of the run's artefacts. Default: runs/<recipe name>."
    )
    until: Literal["score", "select", "train", "evaluate", "release"] = _option(
        "release", "Stop after this stage. A later call with the same recipe goes on from there."
    )
    student_license: str | None = _option(
        None, "Licence id of the student, for the model card, e.g. apache-2.0."
    )
    card_examples: bool = _option(True, "Show a few pairs as examples in the dataset card.")
    hub_dataset_id: str | None = _option(
        None, "With --push_to_hub: also publish the scored pairs as this dataset, e.g. you/pairs."
    )


@dataclass(frozen=True)
class DataArguments:
    """Where the (query, document) pairs come from and how they are split."""

    _argument_group_name = "data"

    dataset: Literal["pydocs", "qrecc", "beir", "files", "hub"] = _option(
        "pydocs",
        "pydocs: docstrings of the Python packages installed here; qrecc: a QReCC JSON file; beir: a BEIR folder; "
        "files: JSONL, CSV or Parquet; hub: a dataset on the Hugging Face Hub.",
    )
    dataset_path: str | None = _option(
        None,
        "File or folder of the data (qrecc, beir, files; for pydocs: a source tree instead of what is installed).",
    )
    dataset_name: str | None = _option(None, "Hub dataset id, with --dataset hub.")
    dataset_config: str | None = _option(None, "Configuration of the Hub dataset.")
    dataset_split: str = _option("train", "Split of the Hub dataset.")
    dataset_license: str | None = _option(
        None, "Licence id of the source data, for the dataset card, e.g. cc-by-sa-4.0."
    )
    language: str = _option("en", "Language of the texts (ISO code), for the cards.")
    query_column: str = _option("query", "Column of the query text (files, hub).")
    document_column: str = _option("document", "Column of the document text (files, hub).")
    group_column: str | None = _option(
        None,
        "Column whose values are never shared by train and test, e.g. a conversation id (files, hub).",
    )
    source_column: str | None = _option(
        None,
        "Column that says where a pair is from, for selection rules with :by=source (files, hub).",
    )
    max_pairs: int | None = _option(
        None, "Use at most this many pairs, in a seeded order of whole groups."
    )
    test_fraction: float = _option(0.1, "Share of the groups that is held out for the evaluation.")
    validation_fraction: float = _option(
        0.05, "Share of the groups whose loss is watched during training."
    )


TeacherKind = Literal["bi-encoder", "cross-encoder", "endpoint", "precomputed", "ensemble"]


@dataclass(frozen=True)
class TeacherArguments:
    """Who scores the pairs."""

    _argument_group_name = "teacher"

    teacher: str = _option(
        "sentence-transformers/all-MiniLM-L6-v2",
        "Who scores the pairs: a folder or a Hub id; the model's name at an endpoint; a file of precomputed scores or embeddings.",
    )
    teacher_kind: TeacherKind = _option(
        "bi-encoder",
        "bi-encoder: a SentenceTransformer; cross-encoder: a CrossEncoder with one output; endpoint: an OpenAI-compatible embeddings API "
        "(its key, if it needs one, in OPENAI_API_KEY); precomputed: a JSON, JSONL, CSV or Parquet file, e.g. a teacher_soft_labels.json; "
        "ensemble: several of these.",
    )
    teacher_similarity: Literal["cosine", "dot", "euclidean", "manhattan", "declared"] = _option(
        "cosine",
        "What a teacher's embeddings are compared by. declared: what the model says. Only cosines can be regressed on.",
    )
    teacher_activation: Literal["auto", "sigmoid", "identity"] = _option(
        "auto",
        "What turns a cross-encoder's logits, or precomputed scores, into scores. auto: sigmoid for logits, nothing for others.",
    )
    teacher_pooling: Literal["cls", "mean"] | None = _option(
        None, "Replace the teacher's own pooling."
    )
    teacher_max_length: int | None = _option(
        None, "Truncate the teacher's input to this many tokens. Default: its own limit."
    )
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] = _option(
        "auto",
        "Precision of the teacher. auto: bfloat16 where a quick check shows that it is faster, else float32.",
    )
    teacher_batch_tokens: int | None = _option(
        None, "Tokens in one forward pass of the teacher. Default: what suits the device."
    )
    teacher_url: str | None = _option(
        None, "Base URL of the endpoint, e.g. http://localhost:8080/v1."
    )
    endpoint_batch_size: int = _option(32, "Texts in one request to the endpoint.")
    endpoint_concurrency: int = _option(4, "Requests to the endpoint at a time.")
    score_column: str = _option(
        "teacher_score",
        "Column of the precomputed scores; texts are in query_column and document_column.",
    )
    score_range: list[float] | None = _option(
        None, "Least and greatest precomputed score, e.g. 0 1. Default: -1 1."
    )
    ensemble: list[str] = _option(
        [],
        "Members of the ensemble: KIND:TEACHER=WEIGHT, e.g. bi-encoder:sentence-transformers/all-MiniLM-L6-v2=0.5.",
    )
    ensemble_normalization: Literal["none", "minmax", "quantile"] = _option(
        "quantile",
        "How each member's scores are brought to [0, 1] before they are added, by those of the training pairs: their quantiles, their "
        "least and greatest, or not at all.",
    )
    query_prompt: str | None = _option(
        None, "Put before queries, for teacher and student. Default: the teacher's own."
    )
    document_prompt: str | None = _option(
        None, "Put before documents, for teacher and student. Default: the teacher's own."
    )
    shard_size: int = _option(
        4096, "Texts in one restartable shard of the scoring: what a killed run can lose."
    )
    teacher_cache: str | None = _option(
        None,
        "Folder of the teacher's shards, which several runs may share, also at the same time. Default: the run's own.",
    )
    pool_size: int = _option(
        100_000,
        "Documents that a pair's own is ranked among: those of the training pairs, or a seeded sample of this size.",
    )
    hard_negatives: int = _option(
        4, "Best other documents of that pool to note for each training pair."
    )
    trust_remote_code: bool = _option(
        False, "Let a teacher run code from its repository. A student never needs any."
    )


@dataclass(frozen=True)
class SelectionArguments:
    """Which of the scored pairs are trained on."""

    _argument_group_name = "selection"

    selection: list[str] = _option(
        [],
        "Rules, applied in order: invalid, echo, near_echo=S, duplicate, near_duplicate[=N], percentile=P, threshold=T, top_k=N, rank=K, "
        "margin=M, stratified=F, random=F; or none. percentile and top_k take :by=group or :by=source, stratified takes :on=margin, and "
        ":weight=W after any rule lets what it would drop weigh W in the objective.",
    )


@dataclass(frozen=True)
class StudentArguments:
    """What the student is built from."""

    _argument_group_name = "student"

    student_backbone: str = _option(
        "teacher",
        "Transformer that the student starts from: teacher (a copy of it), a folder or a Hub id; or static: no transformer, a vector for "
        "each token of the teacher's vocabulary.",
    )
    student_layers: str | None = _option(
        None,
        "Layers of the backbone to keep: 0,2,5, or every=2 (each second one), or search=3 (those three that rank most as the teacher does, "
        "before training). Default: all.",
    )
    student_vocabulary: Literal["all", "used"] = _option(
        "all",
        "used: keep the tokens that the training texts use, special tokens and single characters; a far smaller student, which spells "
        "words that it has not seen.",
    )
    student_pooling: Literal["cls", "mean"] = _option(
        "mean", "How token embeddings become a text embedding."
    )
    student_dim: int = _option(256, "Dimensions of the L2-normalised embedding.")
    student_init: Literal["random", "pca"] = _option(
        "random", "Initial head: random, or the principal components of the teacher's embeddings."
    )
    student_max_length: int = _option(256, "Longest input of the student, in tokens.")
    student_dropout: float | None = _option(
        None, "Dropout inside the backbone. Default: the backbone's own."
    )
    head_dropout: float = _option(0.0, "Dropout after the head, in training only.")


@dataclass(frozen=True)
class ObjectiveArguments:
    """The hybrid objective: a weighted sum of named terms (see `hf_distill.training.terms`)."""

    _argument_group_name = "objective"

    contrastive_weight: float = _option(1.0, "Weight of InfoNCE over the in-batch cosine matrix.")
    regression_weight: float = _option(
        0.1, "Weight of the mean squared error to the teacher's scores."
    )
    regression_on: Literal["diagonal", "matrix"] = _option(
        "diagonal",
        "Regress on the scores of the pairs (the paper), or on every known cell of the in-batch matrix.",
    )
    regression_loss: Literal["mse", "mae", "huber"] = _option(
        "mse", "Error that the regression takes the mean of: squared, absolute, Huber."
    )
    distribution_weight: float = _option(
        0.0, "Weight of the KL divergence between in-batch score distributions."
    )
    margin_weight: float = _option(
        0.0,
        "Weight of MarginMSE: the squared error of each other document's margin to the pair's own.",
    )
    alignment_weight: float = _option(
        0.0, "Weight of 1 - cosine to the teacher's embedding on its principal components."
    )
    temperature: float = _option(0.1, "Temperature of the contrastive and the distribution term.")
    teacher_temperature: float | None = _option(
        None,
        "Temperature of the teacher's scores in the distribution term. Default: the student's.",
    )
    final_weights: list[str] = _option(
        [],
        "Terms whose weight moves in a straight line over the training, with its last value, e.g. contrastive=1 alignment=2.",
    )
    false_negative_margin: float | None = _option(
        None,
        "Documents of the batch that the teacher scores above a pair's own less this margin are no negatives of the contrastive term. "
        "Default: only equal texts are none.",
    )
    false_negative_groups: bool = _option(
        False,
        "Documents of the batch that share a pair's group are no negatives of it (a conversation, a module; see group_column).",
    )
    contrastive_symmetric: bool = _option(
        False, "Contrast each document with the batch's queries, too: the mean of both directions."
    )
    matryoshka_dims: list[int] = _option(
        [],
        "Train embeddings that may be cut to these dimensions: the objective is the mean over them and student_dim, e.g. 64 128.",
    )
    log_gradient_norms: bool = _option(
        False,
        "Log the norm of each term's gradient by the batch's embeddings: weights depend on scales, this shows them.",
    )


@dataclass(frozen=True)
class TrainerArguments:
    """What the trainer needs beyond the arguments of SentenceTransformerTrainer."""

    _argument_group_name = "training"

    hard_negatives_per_pair: int = _option(
        0,
        "Train each pair with so many of its hard_negatives as further documents of the batch (the pair costs that many texts more).",
    )
    augmented_texts_per_pair: int = _option(
        0,
        "Align, beside each pair, so many passages of other pairs, half of them with words exchanged for others of the vocabulary. They "
        "keep what the training domain does not speak of; new ones in each epoch.",
    )
    grad_cache: bool = _option(
        False,
        "Batches of thousands of pairs in the memory of few texts, by a second forward pass (GradCache): more in-batch negatives.",
    )
    early_stopping_patience: int | None = _option(
        None,
        "Stop after this many evaluations without a better validation loss; needs eval_strategy and save_strategy.",
    )


def _plain(training: SentenceTransformerTrainingArguments) -> dict[str, Any]:
    """The training arguments as values that YAML can hold."""
    plain: dict[str, Any] = training.to_dict()  # type: ignore[no-untyped-call]  # transformers has no type for it
    return plain


RECIPE_PARTS = (
    RunArguments,
    DataArguments,
    TeacherArguments,
    SelectionArguments,
    StudentArguments,
    ObjectiveArguments,
    TrainerArguments,
)


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe: every stage's arguments, the recipe's name, and which keys were given
    rather than defaulted.
    """

    name: str
    run: RunArguments
    data: DataArguments
    teacher: TeacherArguments
    selection: SelectionArguments
    student: StudentArguments
    objective: ObjectiveArguments
    trainer: TrainerArguments
    training: SentenceTransformerTrainingArguments
    given: frozenset[str]

    @property
    def run_dir(self) -> Path:
        """The run's folder: `--run_dir`, else `runs/<recipe name>`."""
        return Path(self.run.run_dir or Path("runs") / self.name)

    @property
    def of_student(self) -> tuple[StudentArguments, ObjectiveArguments, TrainerArguments]:
        """What, beside the training arguments, decides about the student."""
        return self.student, self.objective, self.trainer

    def training_keys(self) -> dict[str, Any]:
        """Every training argument that can change the student, for its fingerprint."""
        plain: dict[str, Any] = _plain(self.training)
        return {
            key: value for key, value in plain.items() if not key.startswith(_NO_EFFECT_ON_STUDENT)
        }

    def keys(self) -> dict[str, Any]:
        """The recipe as flat keys: every key of this project, and the training arguments that were
        given.
        """
        parts = (
            self.run,
            self.data,
            self.teacher,
            self.selection,
            self.student,
            self.objective,
            self.trainer,
        )
        flat = {k: v for part in parts for k, v in dataclasses.asdict(part).items()}
        plain: dict[str, Any] = _plain(self.training)
        flat |= {
            key: plain[key]
            for key in sorted(self.given)
            if key in plain and not key.endswith("_token")
        }
        return flat


class _TrainingArguments(SentenceTransformerTrainingArguments):
    """The same, under a heading of its own in `--help`."""

    _argument_group_name = "every argument of SentenceTransformerTrainer"


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """One spelling of each flag, and no list of fifty optimizers."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        values = (
            ""
            if action.nargs == 0
            else " " + (action.metavar if isinstance(action.metavar, str) else "VALUE")
        )
        if action.choices:
            shown = [str(choice) for choice in action.choices]
            values = " {" + ",".join(shown[:6]) + (",...}" if len(shown) > 6 else "}")
        return action.option_strings[-1 if action.dest == "help" else 0] + values


class _RecipeParser(HfArgumentParser):
    """argparse, but an error is one `InputError` instead of a usage text of two hundred flags."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}\n  See: {self.prog} --help")


def _parser() -> _RecipeParser:
    return _RecipeParser(
        [*RECIPE_PARTS, _TrainingArguments],  # type: ignore[list-item]  # its DataClassType is a NewType of Any
        prog="train.py",
        usage="accelerate launch train.py [RECIPE] [--key value ...]",
        description=(
            "From pairs to a released student. RECIPE is a YAML file of the keys below (default: recipes/quickstart.yaml); "
            "a key on the command line wins over the file. The last group holds every argument of "
            "SentenceTransformerTrainer."
        ),
        allow_abbrev=False,
        formatter_class=_Help,
    )


def _nearest(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "train.py --help lists the keys."


def _flatten(keys: dict[str, Any], source: Path, known: Sequence[str]) -> list[str]:
    """The command line that says what the YAML file says (argparse then converts 2e-5, which YAML
    reads as text).
    """
    own = {field.name for part in RECIPE_PARTS for field in dataclasses.fields(part)}
    argv: list[str] = []
    for key, value in keys.items():
        if key == ENVIRONMENT_KEY:
            continue
        if key not in known:
            raise InputError(f"{source}: unknown key {key!r}; {_nearest(str(key), known)}")
        if value is None or (value == [] and key in own):
            continue  # every list of this project is empty by default
        argv.append(f"--{key}")
        if isinstance(value, list):
            argv += [str(item) for item in value] or ["none"]
        elif isinstance(value, dict):
            argv.append(json.dumps(value))
        else:
            argv.append(str(value))
    return argv


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        beside = sorted(str(p) for p in path.parent.glob("*.yaml")) or sorted(
            str(p) for p in Path("recipes").glob("*.yaml")
        )
        raise InputError(
            f"no recipe at {path}" + (f"; there are: {', '.join(beside)}" if beside else "")
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a YAML file: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: a recipe is a mapping of keys to values, this is a {type(content).__name__}"
        )
    return content


def read_recipe(argv: Sequence[str] | None = None, default_recipe: Path | None = None) -> Recipe:
    """Read `[RECIPE] [--key value ...]` into a :class:`Recipe`.

    Args:
        argv: The command line without the program's name; `sys.argv[1:]` when left out.
        default_recipe: The YAML file that is read when the command line names none.

    Raises:
        InputError: A missing or malformed recipe, an unknown key (the nearest known one is
            suggested), or a value that does not fit its key.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    path = (
        Path(arguments.pop(0)) if arguments and not arguments[0].startswith("-") else default_recipe
    )
    parser = _parser()
    known = sorted({action.dest for action in parser._actions} - {"help"})
    content = _read_yaml(path) if path else {}
    file_argv = _flatten(content, path, known) if path else []
    name = path.stem if path else "recipe"
    if path and path.name == "recipe.yaml":  # a run's own resolved recipe: the run keeps its name
        name = (content.get(ENVIRONMENT_KEY) or {}).get("recipe") or path.resolve().parent.name
    line = [*file_argv, *arguments]
    given = {
        token[2:].split("=", 1)[0].replace("-", "_") for token in line if token.startswith("--")
    }
    given = {key.removeprefix("no_") if key not in known else key for key in given}
    for key in sorted(given - set(known) - {"help"}):
        raise InputError(f"unknown key --{key}; {_nearest(key, known)}")
    if "output_dir" not in given:
        line += ["--output_dir", "unused"]
    if "use_cpu" not in given and device_type() == "cpu":
        line += [
            "--use_cpu",
            "true",
        ]  # without it, the processes of `torchrun` do not find each other
    if not given & {"bf16", "fp16", "help"} and bfloat16_is_faster(device_type()):
        line += ["--bf16", "true"]
    try:
        *parts, training, stray = parser.parse_args_into_dataclasses(
            line, look_for_args_file=False, return_remaining_strings=True
        )
    except (ValueError, ImportError, RuntimeError) as error:
        raise (
            error
            if isinstance(error, InputError)
            else InputError(f"the training arguments do not fit: {error}")
        ) from error
    if stray:
        raise InputError(
            f"{stray[0]!r} belongs to no key; flags look like --key value. See: train.py --help"
        )
    run, data, teacher, selection, student, objective, trainer = parts
    recipe = Recipe(
        name, run, data, teacher, selection, student, objective, trainer, training, frozenset(given)
    )
    if recipe.selection.selection == ["none"]:
        recipe = dataclasses.replace(recipe, selection=SelectionArguments([]))
    if recipe.objective.final_weights == ["none"]:
        recipe = dataclasses.replace(
            recipe, objective=dataclasses.replace(recipe.objective, final_weights=[])
        )
    if recipe.teacher.ensemble == ["none"]:
        recipe = dataclasses.replace(
            recipe, teacher=dataclasses.replace(recipe.teacher, ensemble=[])
        )
    if "output_dir" not in given:
        recipe.training.output_dir = str(recipe.run_dir / "checkpoints")
    _check(recipe)
    return recipe


def parse_final_weights(texts: Sequence[str]) -> dict[str, float]:
    """Read `final_weights`, e.g. `contrastive=1`.

    Raises:
        InputError: A term that there is not, or a weight that is no number of at least 0.
    """
    terms = [
        f.name.removesuffix("_weight")
        for f in dataclasses.fields(ObjectiveArguments)
        if f.name.endswith("_weight")
    ]
    found: dict[str, float] = {}
    for text in texts:
        term, _, value = text.partition("=")
        try:
            weight = float(value)
        except ValueError:
            weight = -1.0
        if term not in terms or not 0 <= weight < float("inf"):
            raise InputError(
                f"final_weights: {text!r} is no TERM=WEIGHT with a term of {', '.join(terms)} and a weight of at least 0"
            )
        found[term] = weight
    return found


def parse_member(text: str) -> tuple[TeacherKind, str, float]:
    """Read a member of an ensemble, `KIND:TEACHER=WEIGHT`.

    Raises:
        InputError: Not of this form, an unknown kind, or a weight that is not above 0.
    """
    kind, colon, rest = text.partition(":")
    name, equals, weight = rest.rpartition("=")
    kinds = [k for k in get_args(TeacherKind) if k != "ensemble"]
    try:
        number = float(weight)
    except ValueError:
        number = 0.0
    if kind not in kinds or not (colon and equals and name) or not 0 < number < float("inf"):
        raise InputError(
            f"ensemble: {text!r} is no KIND:TEACHER=WEIGHT with a kind of {', '.join(kinds)} and a weight above 0, "
            "as in cross-encoder:cross-encoder/ms-marco-MiniLM-L6-v2=0.5"
        )
    return kind, name, number  # type: ignore[return-value]  # it is one of `kinds`


def _check_teacher(teacher: TeacherArguments) -> None:
    """What each kind of teacher needs, and what would have no effect on it."""
    kinds = {teacher.teacher_kind, *(parse_member(text)[0] for text in teacher.ensemble)}
    if (teacher.teacher_kind == "ensemble") != bool(teacher.ensemble):
        raise InputError(
            "--teacher_kind ensemble and --ensemble KIND:TEACHER=WEIGHT ... go together; one of them is missing"
        )
    if ("endpoint" in kinds) != (teacher.teacher_url is not None):
        raise InputError(
            "--teacher_kind endpoint and --teacher_url go together; one of them is missing"
        )
    if teacher.teacher_url is not None:
        address = urlsplit(teacher.teacher_url)
        if address.username or address.password or address.query:
            raise InputError(
                "--teacher_url holds a user, a password or a query, and is saved with the recipe; put the key in OPENAI_API_KEY"
            )
        if address.scheme not in ("http", "https") or not address.hostname:
            raise InputError(
                f"--teacher_url {teacher.teacher_url!r} is no address like http://localhost:8080/v1"
            )
    if teacher.score_range is not None and "precomputed" not in kinds:
        raise InputError(
            "--score_range declares the scale of precomputed scores; this teacher knows its own"
        )
    bounds = teacher.score_range
    if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
        raise InputError(
            f"--score_range {' '.join(map(str, bounds))}: two numbers, the lesser first"
        )
    if teacher.teacher_similarity != "cosine" and not kinds & {
        "bi-encoder",
        "endpoint",
        "precomputed",
    }:
        raise InputError("--teacher_similarity compares embeddings; a cross-encoder has none")
    if teacher.teacher_activation != "auto" and not kinds & {"cross-encoder", "precomputed"}:
        raise InputError(
            "--teacher_activation is for cross-encoders and precomputed scores; a score of embeddings has none"
        )


def _check_ranges(recipe: Recipe) -> None:
    """Every number within what it can mean."""
    data, teacher, student = recipe.data, recipe.teacher, recipe.student
    weights = {
        k: v for k, v in dataclasses.asdict(recipe.objective).items() if k.endswith("_weight")
    }
    if not any(weights.values()) and not any(
        parse_final_weights(recipe.objective.final_weights).values()
    ):
        raise InputError(
            f"every weight of the objective is 0 ({', '.join(weights)}): there is nothing to train on"
        )
    wanted = recipe.trainer.hard_negatives_per_pair
    if wanted > teacher.hard_negatives:
        raise InputError(
            f"hard_negatives_per_pair is {wanted}, but hard_negatives says to note {teacher.hard_negatives} for a pair"
        )
    positive = {
        "temperature": recipe.objective.temperature,
        "teacher_temperature": recipe.objective.teacher_temperature,
        "student_dim": student.student_dim,
        "student_max_length": student.student_max_length,
        "shard_size": teacher.shard_size,
        "max_pairs": data.max_pairs,
        "endpoint_batch_size": teacher.endpoint_batch_size,
        "endpoint_concurrency": teacher.endpoint_concurrency,
        "pool_size": teacher.pool_size,
        "teacher_max_length": teacher.teacher_max_length,
        "teacher_batch_tokens": teacher.teacher_batch_tokens,
    }
    fractions = {
        "test_fraction": data.test_fraction,
        "validation_fraction": data.validation_fraction,
        "head_dropout": student.head_dropout,
        "student_dropout": student.student_dropout,
    }
    for dimension in recipe.objective.matryoshka_dims:
        if not 0 < dimension < student.student_dim:
            raise InputError(
                f"matryoshka_dims: {dimension} is not between 1 and student_dim - 1 ({student.student_dim - 1})"
            )
    augmented = recipe.trainer.augmented_texts_per_pair
    counts = {
        **weights,
        "hard_negatives": teacher.hard_negatives,
        "hard_negatives_per_pair": wanted,
        "augmented_texts_per_pair": augmented,
    }
    ranges: tuple[tuple[Mapping[str, float | None], Callable[[float], bool], str], ...] = (
        (positive, lambda x: x > 0, "must be above 0"),
        (fractions, lambda x: 0 <= x < 1, "must lie in [0, 1)"),
        (counts, lambda x: x >= 0, "must be at least 0"),
    )
    for values, holds, says in ranges:
        for name, value in values.items():
            if value is not None and not holds(value):
                raise InputError(f"{name} is {value}, but {says}")


def _check(recipe: Recipe) -> None:
    """What argparse cannot judge, said before any work is done."""
    _check_ranges(recipe)
    _check_teacher(recipe.teacher)
    data = recipe.data
    if data.test_fraction == 0 or data.test_fraction + data.validation_fraction >= 1:
        raise InputError(
            f"test_fraction {data.test_fraction} and validation_fraction {data.validation_fraction} must leave groups "
            "for training and for the evaluation"
        )
    if data.dataset in ("qrecc", "beir", "files") and not data.dataset_path:
        raise InputError(f"--dataset {data.dataset} needs --dataset_path")
    if data.dataset == "hub" and not data.dataset_name:
        raise InputError(
            "--dataset hub needs --dataset_name, e.g. sentence-transformers/natural-questions"
        )
    if recipe.trainer.early_stopping_patience is not None and recipe.training.eval_strategy == "no":
        raise InputError(
            "early_stopping_patience needs eval_strategy: steps or epoch (there is no validation loss to watch)"
        )
    if recipe.run.hub_dataset_id and not recipe.training.push_to_hub:
        raise InputError("hub_dataset_id is given without push_to_hub: nothing would be published")

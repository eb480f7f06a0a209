"""What can be refused by looking at the keys of a recipe alone, before any work."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import (
    CandidateArguments,
    DataArguments,
    Recipe,
    ScheduleArguments,
)
from hf_distill.recipe.config import DistillationConfig
from hf_distill.recipe.kinds import FORMATS, PLUGIN, SOURCES, TEACHERS, check_kind
from hf_distill.recipe.no_effect import check_effect

ALIGNMENT = "alignment_weight"
"""The weight of the term that needs no pairs."""

_MAY_BE_EMPTY = ("query_prompt", "document_prompt")
"""Texts that are read, not names: an empty prompt is none."""

_WRITTEN = ("run_dir", "output_dir", "teacher_cache")
"""Folders that are tried when the run is opened."""

_LONGEST, _LONGEST_PATH = 255, 4095
"""Bytes of a name and characters of a path that a file system can hold."""

_SHOWN = 500
"""Characters of such a name that a message shows."""

_NAMES = (
    "output_dir", "run_name", "hub_model_id", "hub_revision", "hub_token", "terms",
    "source_shares", "resume_from_checkpoint", "metric_for_best_model",
)  # fmt: skip
"""Names among the keys of the training."""


_LARGEST = 2**31
"""Above all numbers of a recipe but seeds: no table has as many rows, and no training as many
steps."""

Range = tuple[str, Callable[[float], bool]]
_COUNT: Range = "must be a number of at least 0", lambda x: x >= 0
_POSITIVE: Range = "must be above 0", lambda x: x > 0
_SHARE: Range = "must be at least 0 and below 1", lambda x: 0 <= x < 1
_WEIGHT: Range = "must be a number from 0 to 1,000,000", lambda x: 0 <= x <= 1e6
_TEMPERATURE: Range = "must be above 0, from 0.000001 to 1,000,000", lambda x: 1e-6 <= x <= 1e6
_FEW: Range = "must be a number from 0 to 1,000", lambda x: 0 <= x <= 1000
_SEED: Range = "must be a number from 0 to 4,294,967,295", lambda x: 0 <= x < 2**32

_RANGES: Mapping[str, Range] = {
    **dict.fromkeys(
        ("temperature", "teacher_temperature", "ranker_temperature"), _TEMPERATURE
    ),
    **dict.fromkeys(
        ("student_max_length", "teacher_max_length", "max_pairs", "per_device_train_batch_size",
         "candidates_per_query", "candidates_from_rank", "held_out_queries",
         "per_device_eval_batch_size", "gradient_accumulation_steps", "save_total_limit",
         "early_stopping_patience", "ddp_timeout", "ddp_bucket_cap_mb", "torch_empty_cache_steps"),
        _POSITIVE,
    ),
    **dict.fromkeys(
        ("test_fraction", "validation_fraction", "head_dropout", "student_dropout", "adam_beta1",
         "adam_beta2"),
        _SHARE,
    ),
    **dict.fromkeys(
        ("hard_negatives_per_pair", "texts_per_pair", "dataloader_num_workers",
         "dataloader_prefetch_factor"),
        _FEW,
    ),
    **dict.fromkeys(
        ("weight_decay", "max_grad_norm", "warmup_steps", "warmup_ratio", "eval_delay",
         "adam_epsilon"),
        _COUNT,
    ),
    "student_dim": ("must be above 0, and at most 65,536", lambda x: 0 < x <= 2**16),
    "learning_rate": ("must be above 0, and at most 1,000", lambda x: 0 < x <= 1000),
    "source_alpha": (
        "must be between 0 (every source as often) and 1", lambda x: 0 <= x <= 1
    ),
    "positive_cut": ("must be above 0, and at most 1", lambda x: 0 < x <= 1),
    "queries_per_document": ("must be a number from 1 to 20", lambda x: 1 <= x <= 20),
    "seed": _SEED,
    "data_seed": _SEED,
}  # fmt: skip
"""Key -> what its number must be. Weights of the objective are in `_WEIGHT`, and steps are positive
where something happens at steps. Whatever is not here is a finite number below `_LARGEST`.
"""


def _check_numbers(recipe: Recipe) -> None:
    """Every number of the recipe, this package's and the Trainer's, is one that a run can have."""
    parts = (
        recipe.run, recipe.data, recipe.teacher, recipe.lists, recipe.student, recipe.training,
    )  # fmt: skip
    values = {name: value for part in parts for name, value in vars(part).items()}
    ranges = {**_RANGES, **dict.fromkeys(weights_of(recipe), _WEIGHT)}
    for name in ("save", "eval", "logging"):
        strategy = getattr(recipe.training, f"{name}_strategy")
        if str(getattr(strategy, "value", strategy)) == "steps":
            ranges[f"{name}_steps"] = _POSITIVE
    for name, value in values.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                continue
            says, holds = ranges.get(name, ("", lambda _: True))
            if not holds(number):
                raise InputError(f"--{name} {number}: it {says}")
            if not abs(number) < _LARGEST and ranges.get(name) is not _SEED:
                raise InputError(
                    f"--{name} {number}: it must be a finite number below {_LARGEST:,}"
                )


def weights_of(recipe: Recipe) -> dict[str, float]:
    """The key of each term of the objective, and its weight."""
    names = [field.name for field in dataclasses.fields(recipe.training)]
    return {name: getattr(recipe.training, name) for name in names if name.endswith("_weight")}


def check_recipe(recipe: Recipe) -> None:
    """Check what argparse cannot judge.

    Raises:
        InputError: A number outside its range, keys that exclude or need each other, or nothing to
            train on.
    """
    _check_numbers(recipe)
    _check_names(recipe)
    check_kind(recipe.data.dataset, SOURCES, "dataset")
    if recipe.data.format != "auto":
        check_kind(recipe.data.format, FORMATS, "format")
    check_kind(recipe.teacher.teacher_kind, TEACHERS, "teacher_kind")
    check_effect(recipe.training, recipe.given)
    _check_objective(recipe)
    _check_split(recipe.data, recipe.training)
    _check_columns(recipe.data)
    _check_sources(recipe.data, recipe.training)
    _check_generated(recipe.data)
    _check_training(recipe.training, recipe.given)
    _check_schedule(recipe.schedule, recipe.data)
    if recipe.data.dataset == "texts":
        check_without_pairs(recipe)
    if recipe.run.hub_dataset_id and not recipe.training.push_to_hub:
        raise InputError(
            f"--hub_dataset_id {recipe.run.hub_dataset_id}: nothing is published without "
            "--push_to_hub; add it, or set --hub_dataset_id none"
        )


def _check_names(recipe: Recipe) -> None:
    """An empty text names nothing, nor does one that no file system can look up: no column, no
    file, no model.
    """
    parts = (
        recipe.run, recipe.data, recipe.teacher, recipe.lists, recipe.selection, recipe.student,
        recipe.schedule,
    )  # fmt: skip
    values = {name: value for part in parts for name, value in vars(part).items()}
    values |= {name: getattr(recipe.training, name) for name in _NAMES}
    for name, value in values.items():
        texts = value if isinstance(value, list) else [value]
        texts = [text for text in texts if isinstance(text, str)]
        empty = [text for text in texts if not text.strip()]
        if empty and name in recipe.given and name not in _MAY_BE_EMPTY:
            raise InputError(
                f"--{name} {empty[0]!r}: an empty text is no name; give one, or leave --{name} out"
            )
        if name in (*_MAY_BE_EMPTY, *_WRITTEN) or name.endswith("_column"):
            continue
        for text in texts:
            if max(map(len, text.encode().split(b"/"))) > _LONGEST or len(text) > _LONGEST_PATH:
                shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
                raise InputError(
                    f"--{name} {shown}: no file, model or data set has a name of "
                    f"{len(text):,} characters; name another one"
                )


def _check_objective(recipe: Recipe) -> None:
    training = recipe.training
    if not any(weights_of(recipe).values()) and not training.terms:
        raise InputError(
            f"every weight of the objective is 0 ({', '.join(weights_of(recipe))}), so there is "
            "nothing to train on; set one above 0"
        )
    if training.student_space == "own" or "student_dim" in recipe.given:
        check_matryoshka(recipe)


def check_matryoshka(recipe: Recipe) -> None:
    """Raise InputError if the student is cut to more dimensions than it has."""
    for dimension in recipe.training.matryoshka_dims:
        if not 0 < dimension < recipe.student.student_dim:
            raise InputError(
                f"--matryoshka_dims {dimension}: it must be between 1 and student_dim - 1 "
                f"({recipe.student.student_dim - 1})"
            )


def check_each_stage(recipe: Recipe, check: Callable[[Recipe], object]) -> None:
    """Check every stage of the training. A message says which of the further ones it is about."""
    for text, of_stage in zip(["", *recipe.schedule.stages], recipe.of_each_stage(), strict=True):
        try:
            check(of_stage)
        except InputError as error:
            if not text:
                raise
            raise InputError(
                f"--stages {text!r}: {error}; or leave this stage out (--stages none)"
            ) from error


def check_without_pairs(recipe: Recipe, source: str = "what --dataset texts reads") -> None:
    """Refuse what needs pairs of a query and a document, where `source` has only texts.

    Raises:
        InputError: Which keys do, all of them.
    """
    training, student = recipe.training, recipe.student
    searches = student.student_layers if "search" in (student.student_layers or "") else None
    metric = training.metric_for_best_model
    needed: dict[str, object] = {
        **{name: weight for name, weight in weights_of(recipe).items() if name != ALIGNMENT},
        "hard_negatives_per_pair": training.hard_negatives_per_pair,
        "candidates": " ".join(recipe.lists.candidates),
        "selection": " ".join(recipe.selection.selection),
        "student_layers": searches,
        "specialise": "auto" if recipe.specialise == "auto" else None,
        "student_space": None if training.student_space == "own" else training.student_space,
        "student_query": recipe.data.student_query,
        "hub_dataset_id": recipe.run.hub_dataset_id,
        "metric_for_best_model": None if metric in (None, "loss", "eval_loss") else metric,
    }
    if used := [f"--{name} {value}" for name, value in needed.items() if value]:
        raise InputError(
            f"{', '.join(used)}: there are no pairs of a query and a document in {source}, only "
            "texts, and a student is aligned to the teacher's embeddings of these; use the recipe "
            "texts (or multilingual), or set these keys to 0 or none"
        )


def _check_split(data: DataArguments, training: DistillationConfig) -> None:
    if data.test_fraction == 0 or data.test_fraction + data.validation_fraction >= 1:
        raise InputError(
            f"--test_fraction {data.test_fraction} and --validation_fraction "
            f"{data.validation_fraction}: both training and evaluation need some groups; the first "
            "must be above 0 and their sum below 1"
        )
    if training.eval_strategy != "no" and not data.validation_fraction:
        raise InputError(
            "--validation_fraction 0: --eval_strategy steps or epoch needs "
            "validation pairs; set --eval_strategy no, or a fraction above 0"
        )


def _check_columns(data: DataArguments) -> None:
    """No column can be two things, and a score decides what is relevant only if it is a number."""
    roles = (
        "query_column", "document_column", "label_column", "score_column", "text_column",
        "student_text_column",
    )  # fmt: skip
    named: dict[str, str] = {}
    for role in roles:
        column = getattr(data, role)
        first = named.setdefault(column, role) if column is not None else role
        if first != role and {first, role} == {"query_column", "document_column"}:
            raise InputError(
                f"--query_column {column} and --document_column {column}: every text would search "
                "for itself, and find itself; name another column for one of them, or leave both "
                "out and set --dataset texts, if the file holds texts without queries"
            )
        if first != role:
            raise InputError(
                f"--{role} {column}: --{first} names this column already; name another one, or set "
                f"--{role} none"
            )
    rule = data.positives
    if rule not in (None, "best", "first", "all") and not math.isfinite(_number(rule)):
        raise InputError(f"--positives {rule}: it must be best, first, all, or a score, e.g. 0.5")


def _number(text: str) -> float:
    """`text` as a number; NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _named(texts: list[str], key: str, example: str) -> dict[str, str]:
    """NAME=VALUE texts as a mapping."""
    values: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value:
            raise InputError(f"--{key} {text}: it must read {example}")
        if name in values:
            raise InputError(f"--{key} {text}: there is another one named {name}; rename it")
        values[name] = value
    return values


def _check_sources(data: DataArguments, training: DistillationConfig) -> None:
    """One place says where the pairs are, and what mixes sources names them."""
    places = {
        name: value if isinstance(value, str) else " ".join(value)
        for name in ("sources", "dataset_path", "dataset_name")
        if (value := getattr(data, name))
    }
    if len(places) > 1:
        first, second = list(places.items())[:2]
        raise InputError(
            f"--{second[0]} {second[1]}: --{first[0]} {first[1]} says already where the data is; "
            f"set one of them to none, or name both as --sources NAME=PATH NAME=PATH"
        )
    if data.sources and data.dataset not in ("auto", "texts"):
        raise InputError(
            f"--dataset {data.dataset}: --sources says already where the data is; set --dataset "
            "auto, or name one path with --dataset_path"
        )
    sources = _named(data.sources, "sources", "NAME=PATH, e.g. faq=faq.jsonl")
    shares = _named(training.source_shares, "source_shares", "NAME=SHARE, e.g. faq=0.7")
    for name, share in shares.items():
        if not 0 <= _number(share) < math.inf:
            raise InputError(
                f"--source_shares {name}={share}: a share is a number of at least 0, e.g. "
                f"{name}=0.5"
            )
    if shares and not sum(map(float, shares.values())):
        raise InputError(
            f"--source_shares {' '.join(training.source_shares)}: they sum to 0, so there is "
            "nothing to train on; set one above 0"
        )
    if shares and training.source_alpha != 1:
        raise InputError(
            f"--source_alpha {training.source_alpha}: --source_shares says already how often each "
            "source is drawn; set --source_shares none, or leave --source_alpha at 1"
        )
    if sources and shares and sources.keys() != shares.keys():
        unknown = sorted(shares.keys() - sources.keys())
        missing = sorted(sources.keys() - shares.keys())
        says = f"there is no source {unknown[0]}" if unknown else f"{missing[0]} has no share"
        raise InputError(
            f"--source_shares {' '.join(training.source_shares)}: {says}; give one share to each "
            f"of {', '.join(sources)}"
        )
    if len(sources) == 1 and (shares or training.one_source_per_batch):
        raise InputError(
            f"--sources {data.sources[0]}: there is one source, so nothing can be mixed; remove "
            "--source_shares and --one_source_per_batch, or name more sources"
        )
    for task in data.eval_tasks:
        kind, colon, name = task.partition(":")
        if not task.strip() or (colon and kind in ("nano", "mteb") and not name):
            raise InputError(
                f"--eval_tasks {task!r}: it must be a folder, nano:NAME or mteb:NAME, e.g. "
                "nano:SciFact"
            )


def _check_generated(data: DataArguments) -> None:
    """What is about written queries has an effect where queries are written, and they are their own
    sources.
    """
    if data.dataset == "generate":
        if data.source_column is not None:
            raise InputError(
                f"--source_column {data.source_column} has no effect with --dataset generate: the "
                "source of a pair is the kind of its query; leave it out"
            )
        return
    if PLUGIN.fullmatch(data.dataset):
        return
    for name in ("chat_url", "chat_model", "queries_per_document"):
        value = getattr(data, name)
        if value != getattr(DataArguments(), name):
            raise InputError(
                f"--{name} {value} has no effect with --dataset {data.dataset}: no query is "
                "written; set --dataset generate, or leave it out"
            )


def _check_schedule(schedule: ScheduleArguments, data: DataArguments) -> None:
    """A place between two stages needs two, and lies between them."""
    place = schedule.specialise
    if place is None or (place == "auto" and not schedule.stages):
        return
    if not schedule.stages:
        raise InputError(
            f"--specialise {place}: there is one stage of training, so there is nothing between; "
            "add one with --stages, or set --specialise none"
        )
    if place != "auto" and not 0 <= _number(place) <= 1:
        raise InputError(
            f"--specialise {place}: it must be auto, or a number between 0 (general) and 1 (the "
            "last stage)"
        )
    if place == "auto" and not data.validation_fraction:
        raise InputError(
            "--specialise auto: validation queries choose the place, and --validation_fraction 0 "
            "leaves none; set it above 0, or name a place from 0 to 1"
        )


def _check_unused(stage: DistillationConfig, mined: bool) -> None:
    """Keys of lists in a stage of the training that has none."""
    default = {field.name: field.default for field in dataclasses.fields(stage)}
    temperature, cut = stage.ranker_temperature, stage.positive_cut
    learns = stage.list_kl_weight or stage.list_margin_weight
    if temperature != default["ranker_temperature"] and not learns:
        raise InputError(
            f"--ranker_temperature {temperature}: only the terms over lists read it; give one a "
            "weight, e.g. --list_kl_weight 1, or leave it out"
        )
    if cut != default["positive_cut"] and not mined:
        raise InputError(
            f"--positive_cut {cut}: it is about mined candidates; name a miner, e.g. --candidates "
            "bm25, or leave it out"
        )


def _check_mine_again(recipe: Recipe) -> None:
    """Where the student cannot mine, or nothing uses what it mines."""
    if recipe.training.mine_again:
        raise InputError(
            "--mine_again: before the first stage of the training there is no student to mine; "
            'name it in a further one, e.g. --stages "mine_again=true, num_train_epochs=1"'
        )
    for stage in recipe.further:
        if stage.mine_again and recipe.data.student_query:
            raise InputError(
                "--stages mine_again=true: the student would mine for the queries of the teacher, "
                f"and learns to read {recipe.data.student_query}; leave one of them out"
            )
        if stage.mine_again and stage.student_space == "teacher":
            raise InputError(
                "--stages mine_again=true: with --student_space teacher the student embeds queries "
                "alone, and mining embeds documents, too; leave one of them out"
            )
        if stage.mine_again and not (recipe.lists.candidates and stage.hard_negatives_per_pair):
            raise InputError(
                "--stages mine_again=true: it mines lists again, and this stage has none; set "
                "--candidates, and --hard_negatives_per_pair above 0"
            )


def check_lists(recipe: Recipe) -> None:
    """Check the keys of mined lists against those that use them, in any stage of the training.

    Raises:
        InputError: A key of lists without lists, lists that nothing uses, or a list that is shorter
            than what is taken of it.
    """
    lists, defaults = recipe.lists, CandidateArguments()
    taken = max(stage.hard_negatives_per_pair for stage in recipe.stages)
    if not lists.candidates:
        for name, value in vars(lists).items():
            if value != getattr(defaults, name):
                raise InputError(
                    f"--{name} {value}: there are no lists without --candidates; name a miner, "
                    f"e.g. --candidates bm25, or leave --{name} out"
                )
    if lists.candidates and len(set(lists.candidates)) < len(lists.candidates):
        raise InputError(f"--candidates {' '.join(lists.candidates)}: it names a miner twice")
    ranks = any(rule.startswith(("rank=", "margin=")) for rule in recipe.selection.selection)
    if lists.candidates and not taken and not ranks:
        raise InputError(
            f"--candidates {' '.join(lists.candidates)}: nothing uses the lists; set "
            "--hard_negatives_per_pair, or select with rank=K or margin=M, or set it to none"
        )
    if lists.candidates and taken > lists.candidates_per_query:
        raise InputError(
            f"--hard_negatives_per_pair {taken}: a list has {lists.candidates_per_query} "
            "candidates; raise --candidates_per_query, or lower it"
        )
    if lists.ranker_activation != defaults.ranker_activation and lists.ranker is None:
        raise InputError(
            f"--ranker_activation {lists.ranker_activation}: there is no --ranker; for a teacher "
            "that scores the lists itself it is --teacher_activation"
        )
    if lists.choose_candidates != defaults.choose_candidates and not taken:
        raise InputError(
            f"--choose_candidates {lists.choose_candidates}: no candidate is taken, because "
            "--hard_negatives_per_pair is 0; set it above 0"
        )
    _check_mine_again(recipe)
    for stage in recipe.stages:
        _check_unused(stage, bool(lists.candidates))
        for name in ("list_kl_weight", "list_margin_weight"):
            if (weight := getattr(stage, name)) and not stage.hard_negatives_per_pair:
                raise InputError(
                    f"--{name} {weight}: a list is a query's own document and its hard negatives, "
                    "and --hard_negatives_per_pair is 0; set it above 0"
                )


def _check_training(training: DistillationConfig, given: frozenset[str]) -> None:
    """What the Trainer would find out later, or never say."""
    steps, epochs = training.max_steps, training.num_train_epochs
    if steps == 0 or steps < -1:
        raise InputError(
            f"--max_steps {steps}: nothing would be trained; name a number of steps, or set "
            "--max_steps -1 and --num_train_epochs"
        )
    if steps == -1 and not 0 < epochs < math.inf:
        raise InputError(
            f"--num_train_epochs {epochs}: nothing would be trained; name a number above 0"
        )
    if str(getattr(training.batch_sampler, "value", training.batch_sampler)) == "group_by_label":
        raise InputError(
            "--batch_sampler group_by_label: pairs have no labels to group by; use batch_sampler "
            "or no_duplicates, or --one_source_per_batch for batches of one source"
        )
    patience, metric = training.early_stopping_patience, training.metric_for_best_model
    if training.eval_strategy == "no":
        for name in ("early_stopping_patience", "load_best_model_at_end", "metric_for_best_model"):
            if value := getattr(training, name):
                raise InputError(
                    f"--{name} {value}: it watches the evaluations during training, and "
                    "--eval_strategy no makes none; set --eval_strategy steps or epoch"
                )
    if patience is not None and metric is None:
        raise InputError(
            f"--early_stopping_patience {patience}: it compares with the "
            "best evaluation, and none is kept; set --load_best_model_at_end true"
        )
    if "output_dir" in given and training.save_strategy == "no":
        raise InputError(
            f"--output_dir {training.output_dir}: it is the folder of checkpoints, and "
            "--save_strategy no writes none; everything else is written to --run_dir"
        )

"""Before, not after: what a run will need is checked before any work, in one line."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import math
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import call, recipe_of, run_tiny
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tiny_training import Tiny, tiny

import hf_distill.evaluation.validation as validation_module
from hf_distill.compute.search import search
from hf_distill.data.collection import Collection
from hf_distill.data.load import open_collection
from hf_distill.errors import InputError, WriteError
from hf_distill.evaluation.evaluate import embed_task
from hf_distill.evaluation.retrieval import parse_measures, per_query
from hf_distill.evaluation.validation import (
    ValidationRetrieval,
    validation_evaluator,
    validation_task,
    watched_measure,
)
from hf_distill.pipeline import Run
from hf_distill.recipe.arguments import PARTS
from hf_distill.recipe.config import DistillationConfig
from hf_distill.recipe.no_effect import NO_EFFECT, OTHER_NAMES
from hf_distill.recipe.read import read_recipe
from hf_distill.run import disk
from hf_distill.run.disk import Sizes, check_folders, check_space, plan, size_text
from hf_distill.run.folder import RunFolder
from hf_distill.run.full_disk import naming
from hf_distill.run.stage import read_json, write_json, written_whole
from hf_distill.student.save import save_student
from hf_distill.training.checkpoints import check_checkpoint, wanted_checkpoint
from hf_distill.training.rehearsal import check_training
from hf_distill.training.stages import check_batch, check_validation
from hf_distill.training.train import (
    TrainingRecord,
    check_amounts,
    sizes_with,
    student_sizes,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*checkpointing.*:FutureWarning"),
]

KEYS = {name for part in (*PARTS, DistillationConfig) for name in part.__dataclass_fields__}
EFFECTIVE = set(
    """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate
    lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1
    adam_beta2 adam_epsilon optim_target_modules gradient_accumulation_steps max_grad_norm bf16 fp16
    tf32 activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
    gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode
    torch_empty_cache_steps auto_find_batch_size logging_strategy logging_steps logging_first_step
    log_on_each_node log_level log_level_replica disable_tqdm report_to
    run_name project trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy
    eval_steps eval_delay per_device_eval_batch_size eval_on_start save_only_model save_strategy
    save_steps save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub hub_token
    hub_private_repo hub_model_id hub_revision load_best_model_at_end metric_for_best_model
    greater_is_better ignore_data_skip restore_callback_states_from_checkpoint full_determinism seed
    data_seed use_cpu accelerator_config parallelism_config dataloader_drop_last
    dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    dataloader_prefetch_factor ddp_find_unused_parameters ddp_bucket_cap_mb ddp_static_graph
    ddp_backend ddp_timeout fsdp fsdp_config deepspeed debug skip_memory_metrics
    resume_from_checkpoint local_rank batch_sampler learning_rate_mapping
    """.split()  # noqa: SIM905  (a list of a hundred strings reads worse)
)
"""Arguments of the Trainer that do something here. Launchers give `local_rank`."""


@pytest.fixture(scope="module")
def parts(teacher_dir: Path) -> Tiny:
    return tiny(teacher_dir)


# --- flags without effect -------------------------------------------------------------------------


def test_every_argument_of_the_trainer_has_an_effect_or_is_refused() -> None:
    """A new version with a new argument fails here: find out which it is."""
    names = {field.name for field in dataclasses.fields(SentenceTransformerTrainingArguments)}
    assert EFFECTIVE | NO_EFFECT.keys() == names
    assert not EFFECTIVE & NO_EFFECT.keys()


SAME: dict[str, Any] = {
    "average_tokens_across_devices": False, "label_smoothing_factor": 0.5, "bf16_full_eval": True,
    "fp16_full_eval": True, "use_cache": True, "prediction_loss_only": False,
    "eval_do_concat_batches": False, "eval_use_gather_object": True, "eval_accumulation_steps": 1,
    "include_for_metrics": ["loss"], "batch_eval_metrics": True, "dataloader_in_order": False,
    "dataloader_multiprocessing_context": "spawn", "remove_unused_columns": False,
    "train_sampling_strategy": "group_by_length", "length_column_name": "x",
    "ddp_broadcast_buffers": True, "do_train": True, "do_eval": True, "do_predict": True,
    "prompts": {"query": "ask ", "document": "read "}, "multi_dataset_batch_sampler": "round_robin",
    "router_mapping": {"query": "query"}, "hub_strategy": "end", "hub_always_push": True,
    "liger_kernel_config": {"rope": True}, "include_num_input_tokens_seen": True,
    "logging_nan_inf_filter": False,
}  # fmt: skip
"""Values that are not the default and train the same student, to the last bit."""
FAILS = {"neftune_noise_alpha": 5.0, "label_names": ["x"], "use_liger_kernel": True}
"""Those that end a training."""
ELSEWHERE = {"warmup_ratio": 0.5}
"""Those that have no effect beside another key of every recipe here."""


def trained(parts: Tiny, folder: Path, **settings: Any) -> tuple[torch.Tensor, list[float]]:
    """Every parameter of a student after three steps, and its validation losses."""
    trainer = parts.trainer(
        folder, max_steps=3, warmup_steps=2, eval_strategy="steps", eval_steps=2, **settings
    )
    trainer.train()
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()]), losses


def test_what_is_refused_as_without_effect_has_none(parts: Tiny, tmp_path: Path) -> None:
    assert SAME.keys() | FAILS.keys() | ELSEWHERE.keys() == NO_EFFECT.keys()
    before, losses = trained(parts, tmp_path)

    def has_effect(settings: dict[str, Any]) -> bool:
        after, losses_after = trained(parts, tmp_path, **settings)
        return not torch.equal(before, after) or losses != losses_after

    alone = {"fp16_full_eval"}  # it excludes another one
    everything = {key: value for key, value in (SAME | ELSEWHERE).items() if key not in alone}
    assert not any(has_effect({name: SAME[name]}) for name in alone)
    if has_effect(everything):  # which one is it?
        names = [name for name, value in everything.items() if has_effect({name: value})]
        pytest.fail(f"these have an effect: {names or 'two of them together'}")
    other, _ = trained(parts, tmp_path, data_seed=9)
    assert not torch.equal(before, other)


def flag(name: str, value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]


@pytest.mark.parametrize("name", sorted(NO_EFFECT))
def test_a_flag_without_effect_is_refused_by_its_name(name: str) -> None:
    if name == "liger_kernel_config":
        return  # argparse takes no value for it
    line = flag(name, (SAME | FAILS | ELSEWHERE)[name])
    with pytest.raises(InputError, match=rf"^--{name} .*no effect"):
        read_recipe(["quickstart", *line])


def test_a_flag_without_effect_may_say_what_is_the_default() -> None:
    line = ["--do_train", "false", "--label_smoothing_factor", "0.0", "--prompts", "none"]
    assert read_recipe(["quickstart", *line]).given >= {"do_train", "prompts"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["--optim_args", "lr_decay=1"], "^--optim_args lr_decay=1.*adamw_torch_fused"),
        (["--optim_target_modules", "attn"], "^--optim_target_modules"),
        (["--output_dir", "x", "--save_strategy", "no"], "^--output_dir x.*--run_dir"),
        (["--batch_sampler", "group_by_label"], "^--batch_sampler group_by_label"),
    ],
)
def test_a_flag_that_needs_another_one_is_refused_without_it(line: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_recipe(["quickstart", *line])


def test_a_warmup_ratio_counts_where_no_steps_are_given(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("warmup_ratio: 0.25\n")
    assert read_recipe([str(path)]).training.warmup_steps == 0.25


# --- names and values ----------------------------------------------------------------------------


def test_names_of_other_programs_lead_to_keys() -> None:
    assert set(OTHER_NAMES.values()) <= KEYS
    assert not OTHER_NAMES.keys() & KEYS


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["--max_seq_length", "64"], "--max_seq_length.*'student_max_length'"),
        (["--evaluation_strategy", "epoch"], "--evaluation_strategy.*'eval_strategy'"),
        (["--per_gpu_train_batch_size", "8"], "'per_device_train_batch_size'"),
        (["--bf16", "maybe"], "^--bf16 maybe: .*true or false"),
        (["--max_steps", "many"], "^--max_steps many: .*whole number"),
        (["--learning_rate", "fast"], "^--learning_rate fast: .*a number"),
        (["--until", "dawn"], "^--until dawn: .*read, score"),
        (["--optim", "adam"], "^--optim adam: .*adam"),
        (["--max_steps"], "^--max_steps: "),
        (["--student_pooling", "max"], "^--student_pooling max: .*cls, mean"),
        (["--lr_scheduler_kwargs", "{bad"], "training arguments"),
        (["--accelerator_config", "no_such_file.json"], "no_such_file"),
        (["--deepspeed", '{"zero_optimization": {"stage": 2}}'], "deepspeed"),
        (["--fsdp", "half"], "fsdp|half"),
        (
            ["--load_best_model_at_end", "true", "--save_strategy", "epoch"],
            "^--load_best_model_at_end.*steps.*epoch",
        ),
        (["--fp16", "true", "--bf16", "true"], "fp16 and bf16"),
    ],
)
def test_an_error_of_a_flag_is_one_line(line: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read_recipe(["quickstart", *line])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--max_steps 0", "^--max_steps 0: nothing"),
        ("--max_steps -7", "^--max_steps -7"),
        ("--num_train_epochs 0", r"^--num_train_epochs 0\.0: nothing"),
        ("--num_train_epochs -1", r"^--num_train_epochs -1\.0: nothing"),
        ("--per_device_train_batch_size 0", "^--per_device_train_batch_size 0"),
        ("--per_device_eval_batch_size -2", "^--per_device_eval_batch_size -2"),
        ("--gradient_accumulation_steps 0", "^--gradient_accumulation_steps 0"),
        ("--learning_rate -0.1", r"^--learning_rate -0\.1"),
        ("--learning_rate nan", "^--learning_rate nan"),
        ("--hard_negatives_per_pair -1", "^--hard_negatives_per_pair -1"),
        ("--save_total_limit 0", "^--save_total_limit 0"),
        ("--dataset fils", "^--dataset 'fils'.*'files'"),
        ("--format pears", "^--format 'pears'.*'pairs'"),
        ("--teacher_kind biencoder", "^--teacher_kind 'biencoder'.*'bi-encoder'"),
        ("--query_column text --document_column text", "^--query_column text.*find itself"),
        ("--query_column q --label_column q", "^--label_column q: --query_column"),
        ("--label_column s --score_column s", "^--score_column s: --label_column"),
        ("--positives most", "^--positives most"),
        ("--positives nan", "^--positives nan"),
        ("--dataset_path a --dataset_name b/c", "^--dataset_name b/c: --dataset_path a"),
        ("--dataset_path a --sources x=b", "^--dataset_path a: --sources x=b"),
        ("--sources faq.jsonl", "^--sources faq.jsonl: .*NAME=PATH"),
        ("--sources a=x a=y", "^--sources a=y: .*named a"),
        ("--sources a=x b=y --source_shares a=0.7 c=0.3", "^--source_shares .*no source c"),
        ("--sources a=x b=y --source_shares a=0.7", "^--source_shares a=0.7: b has no share"),
        ("--sources a=x b=y --source_shares a=-1 b=2", "^--source_shares a=-1"),
        ("--sources a=x b=y --source_shares a=much b=2", "^--source_shares a=much"),
        ("--source_shares a=0 b=0", "^--source_shares a=0 b=0: they sum to 0"),
        ("--source_shares a", "^--source_shares a: .*NAME=SHARE"),
        ("--source_shares a=1 b=1 --source_alpha 0.5", "^--source_alpha 0.5"),
        ("--source_alpha 2", "^--source_alpha 2"),
        ("--source_alpha -0.5", "^--source_alpha -0.5"),
        ("--sources a=x --one_source_per_batch true", "^--sources a=x: there is one"),
        ("--eval_tasks nano:", "^--eval_tasks 'nano:'"),
        (
            "--eval_strategy no --metric_for_best_model eval_ndcg@10",
            "^--metric_for_best_model eval_ndcg@10: .*--eval_strategy no",
        ),
        (
            "--eval_strategy no --save_strategy no --load_best_model_at_end true",
            "^--load_best_model_at_end True: .*--eval_strategy no",
        ),
    ],
)
def test_keys_that_contradict_themselves_are_refused(line: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_recipe(["quickstart", *line.split()])


@pytest.mark.parametrize(
    "line",
    [
        "--sources a=x b=y=z --source_shares a=2 b=3 --one_source_per_batch true",
        "--positives 0.5 --score_column s --label_column l --group_column q --query_column q",
        "--eval_tasks nano:SciFact some/folder mteb:NFCorpus --source_alpha 0",
        "--max_steps 3 --num_train_epochs 0",
        "--format my_package.my_module:FORMAT",
    ],
)
def test_keys_that_fit_are_not_refused(line: str) -> None:
    read_recipe(["quickstart", *line.split()])


# --- the training is tried -----------------------------------------------------------------------


def tried(parts: Tiny, **keys: Any) -> None:
    check_training(recipe_of("recommended", **keys), copy.deepcopy(parts.student))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"report_to": "wandb"}, "^--report_to wandb: .*pip install wandb"),
        ({"report_to": ["none", "codecarbon"]}, "^--report_to none"),
        ({"report_to": ["wandb", "codecarbon"]}, "^--report_to wandb"),
        ({"report_to": "tensorboard"}, "^--report_to tensorboard"),
        ({"report_to": "no_such_tracker"}, "^--report_to no_such_tracker: .*wandb"),
        ({"optim": "adamw_bnb_8bit"}, "^--optim adamw_bnb_8bit: .*bitsandbytes"),
        ({"optim": "galore_adamw", "optim_target_modules": "attn"}, "^--optim galore_adamw"),
        ({"optim": "sgd", "optim_args": "momentum=much"}, "^--optim sgd"),
        ({"lr_scheduler_kwargs": '{"bogus": 2}'}, "^--lr_scheduler_type linear .*bogus"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "^--lr_scheduler_type warmup_stable_decay"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "^--lr_scheduler_type .*min_lr"),
        ({"learning_rate_mapping": '{"nothing": 1.0}'}, "^--learning_rate_mapping nothing: "),
        ({"fp16": True}, "^--fp16 true: .*CPU"),
        (
            {"torch_compile": True, "torch_compile_backend": "nothing"},
            "^--torch_compile True: .*NOTHING",
        ),
    ],
)
def test_settings_that_cannot_train_here_are_refused(
    parts: Tiny, keys: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        tried(parts, **keys)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"report_to": "all"},
        {"report_to": "none", "optim": "adafactor", "gradient_checkpointing": True},
        {"optim": "sgd", "optim_args": "momentum=0.9", "lr_scheduler_type": "cosine"},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "grad_cache": True},
        {"learning_rate_mapping": '{"linear": 0.01}', "gradient_accumulation_steps": 8},
        {"dataloader_num_workers": 1, "batch_sampler": "no_duplicates"},
        {"bf16": True, "auto_find_batch_size": True},
        {"terms": "no_such_module:term=1", "texts_per_pair": 4, "hard_negatives_per_pair": 3},
    ],
)
def test_settings_that_can_train_here_are_not_refused(
    parts: Tiny, keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    tried(parts, **keys)
    assert not list(tmp_path.iterdir())
    assert not capfd.readouterr().out


def test_a_student_without_layers_has_nothing_to_recompute(parts: Tiny) -> None:
    static = SentenceTransformer(
        modules=[StaticEmbedding(parts.student.tokenizer, embedding_dim=8), Normalize()],
        device="cpu",
    )
    with pytest.raises(InputError, match=r"^--gradient_checkpointing true"):
        check_training(recipe_of("recommended", gradient_checkpointing=True), static)


def test_a_student_of_nans_is_refused(parts: Tiny) -> None:
    broken = copy.deepcopy(parts.student)
    with torch.no_grad():
        broken[2].linear.weight[3, 5] = torch.nan
    with pytest.raises(InputError, match=r"^--student_backbone teacher: 1 .* 2\.linear\.weight"):
        check_training(recipe_of("recommended"), broken)


# --- checkpoints ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(parts: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of trainings, one of which wrote a checkpoint every second step."""
    folder = tmp_path_factory.mktemp("checkpoints")
    parts.trainer(folder / "key", max_steps=4, save_strategy="steps", save_steps=2).train()
    return folder


def test_the_checkpoint_to_begin_with(checkpoints: Path, tmp_path: Path) -> None:
    own, last = checkpoints / "key", str(checkpoints / "key" / "checkpoint-4")

    def wanted(value: str | None, folder: Path = own) -> str | None:
        return wanted_checkpoint(DistillationConfig("x", resume_from_checkpoint=value), folder)

    assert wanted(None) == wanted("true") == wanted("True") == last
    assert wanted("false") is None
    assert wanted("some/where") == "some/where"
    assert wanted(None, tmp_path) is None
    with pytest.raises(InputError, match=r"^--resume_from_checkpoint true"):
        wanted("true", tmp_path)
    copied = tmp_path / "copied"
    shutil.copytree(own, copied)
    (copied / "checkpoint-4" / "complete.json").unlink()  # it is written last
    assert wanted(None, copied) == str(copied / "checkpoint-2")
    only_models = DistillationConfig("x", save_only_model=True)
    assert wanted_checkpoint(only_models, own) is None, "it would train another student"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"]
)
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_is_taken(
    parts: Tiny, checkpoints: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(checkpoints / "key", copied)
    damaged = copied / "checkpoint-4" / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    config = DistillationConfig("x")
    with caplog.at_level(logging.WARNING):
        assert wanted_checkpoint(config, copied) == str(copied / "checkpoint-2")
    assert str(damaged) in caplog.text
    named = recipe_of("recommended", resume_from_checkpoint=copied / "checkpoint-4")
    with pytest.raises(InputError, match=f"{damaged} is damaged"):
        check_checkpoint(named, parts.student)
    shutil.rmtree(copied / "checkpoint-2")
    assert wanted_checkpoint(config, copied) is None


def test_the_best_checkpoint_is_whole_too(parts: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    keys: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps"}
    keys |= {"eval_steps": 1, "max_steps": 4, "load_best_model_at_end": True}
    keys |= {"metric_for_best_model": "eval_loss", "learning_rate": 1.0}  # the first is the best
    trainer = parts.trainer(folder, **keys)
    trainer.train()
    assert trainer.state.best_global_step == 1
    assert wanted_checkpoint(trainer.args, folder) == str(folder / "checkpoint-4")
    (folder / "checkpoint-1" / "model.safetensors").write_bytes(b"")
    assert wanted_checkpoint(trainer.args, folder) is None


def test_a_checkpoint_is_looked_at_before_any_work(
    parts: Tiny, checkpoints: Path, tmp_path: Path
) -> None:
    student = parts.student
    there = checkpoints / "key" / "checkpoint-2"

    def check(value: object, folder: Path = tmp_path, **keys: Any) -> None:
        recipe = recipe_of("recommended", resume_from_checkpoint=value, output_dir=folder, **keys)
        check_checkpoint(recipe, student)

    check(there)
    check("true", checkpoints)
    check("false")
    for wrong in ("true", tmp_path / "nowhere", checkpoints, "none/such"):
        with pytest.raises(InputError, match=f"^--resume_from_checkpoint {wrong}: "):
            check(wrong)
    other = tmp_path / "other"
    shutil.copytree(there, other)
    shutil.copytree(there / "2_Dense", other / "4_Dense")
    modules = json.loads((other / "modules.json").read_text())
    (other / "modules.json").write_text(json.dumps(modules[:2]))
    (other / "complete.json").unlink()  # as other programs write one
    with pytest.raises(InputError, match=r"another student: 1 of \d+ parameters .*2\.linear"):
        check(other)


# --- amounts --------------------------------------------------------------------------------------


def config(**settings: Any) -> DistillationConfig:
    own = {"use_cpu": True, "bf16": False, "report_to": "none", **settings}
    return DistillationConfig("unused", **own)


def test_a_step_is_never_larger_than_an_epoch() -> None:
    settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3}
    check_batch(17, config(**settings))
    check_batch(24, config(**settings, dataloader_drop_last=True))
    for pairs, drops in ((16, False), (23, True)):
        with pytest.raises(InputError, match=r"^--gradient_accumulation_steps 3: .*2 batches"):
            check_batch(pairs, config(**settings, dataloader_drop_last=drops))


def test_an_evaluation_has_pairs_and_a_batch_of_them() -> None:
    settings = {"eval_strategy": "epoch", "per_device_eval_batch_size": 8}
    check_validation(0, config())
    check_validation(3, config(**settings))
    check_validation(8, config(**settings, dataloader_drop_last=True))
    with pytest.raises(InputError, match=r"^--eval_strategy epoch: .*--validation_fraction"):
        check_validation(0, config(**settings))
    with pytest.raises(InputError, match=r"^--per_device_eval_batch_size 8: 7 .* lower it to 7 "):
        check_validation(7, config(**settings, dataloader_drop_last=True))


def test_there_are_more_documents_than_hard_negatives(collection: Collection) -> None:
    documents = len(collection.documents)
    check_amounts(collection, config(hard_negatives_per_pair=documents - 1))
    with pytest.raises(InputError, match=f"^--hard_negatives_per_pair {documents}: "):
        check_amounts(collection, config(hard_negatives_per_pair=documents))


# --- folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["run_dir", "teacher_cache", "output_dir"])
def test_a_folder_that_cannot_be_written_is_refused(key: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    places = [tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing/here")]
    places.append(tmp_path / ("long" * 100))
    if os.geteuid():
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        places.append(closed / "below")
    free = {"run_dir": tmp_path / "free", "save_strategy": "epoch", "eval_strategy": "epoch"}
    for place in places:
        with pytest.raises(InputError, match=f"^--{key} {place}: "):
            check_folders(recipe_of("recommended", **free | {key: place}))
    check_folders(recipe_of("recommended", **free | {key: tmp_path / "new" / "folder"}))
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "closed"}


# --- disk -----------------------------------------------------------------------------------------


def test_the_estimate_is_within_a_factor_of_two_of_what_a_run_writes(
    finished_run: tuple[Path, str],
) -> None:
    folder = RunFolder(finished_run[0])
    recipe = read_recipe([str(folder.recipe), "--run_dir", str(folder.path), "--bf16", "false"])
    student = SentenceTransformer(str(folder.student), device="cpu")
    teacher = SentenceTransformer(recipe.teacher.teacher, device="cpu")
    teacher.embeds, teacher.dimension = True, 32
    sizes = sizes_with(
        student_sizes(student), open_collection(folder), teacher,  # type: ignore[arg-type]
        recipe,
    )  # fmt: skip
    parts = plan(recipe, sizes)
    needed: dict[str, float] = {}
    for part in parts:
        needed[part.what] = needed.get(part.what, 0) + part.size
    paths = {
        "soft labels": [folder.soft_labels, folder.soft_labels_json],
        "checkpoints": [folder.path / "checkpoints"],
        "student": [folder.student],
        "evaluation": [folder.retrieval, folder.report, folder.evaluation],
        "index": [folder.search],
        "data set": [folder.dataset],
    }
    assert needed.keys() == paths.keys()
    actual = {
        what: sum(disk._size_of(p) if p.is_dir() else p.stat().st_size for p in places)
        for what, places in paths.items()
    }
    for what, size in actual.items():
        assert size / 2 < needed[what] < size * 2, (what, size, needed[what])
    largest = max(p.stat().st_size for p in folder.path.rglob("optimizer.pt"))
    (checkpoint,) = (part.largest for part in parts if part.what == "checkpoints")
    assert checkpoint == pytest.approx(largest, rel=0.3)
    (said,) = [line for line in finished_run[1].splitlines() if line.startswith("Disk ")]
    assert "checkpoints " in said
    assert " free" in said


def test_a_stage_that_is_not_wanted_needs_nothing() -> None:
    sizes = Sizes(
        student=1000, pairs=10, train=8, texts=20, text_bytes=400, documents=9, dimension=4
    )
    whats = {
        until: {part.what for part in plan(recipe_of("recommended", until=until), sizes)}
        for until in ("score", "train", "release")
    }
    assert whats["score"] == {"soft labels"}
    between = "students between stages"
    assert whats["train"] == {"soft labels", "checkpoints", between, "student"}
    assert whats["release"] == whats["train"] | {"evaluation", "index", "data set"}
    many = dataclasses.replace(sizes, documents=disk.MOST_INDEXED + 1)
    assert "index" not in {part.what for part in plan(recipe_of("recommended"), many)}


def test_lists_are_counted() -> None:
    """10 queries have 32 candidates, and 12 pairs; 20 texts are embedded by a miner, too."""
    sizes = Sizes(texts=20, dimension=4, listed=10, listed_pairs=12, mined=2 * 6 + 8, tested=500)
    keys = {"candidates": ["bm25"], "hard_negatives_per_pair": 2, "candidates_per_query": 32}

    def size(parts: list[disk.Part], stage: str) -> int:
        return sum(part.size for part in parts if (part.what, part.stage) == ("lists", stage))

    ranker = recipe_of("recommended", ranker="cross-encoder:m", **keys)
    parts = plan(ranker, sizes)
    in_run, in_shards = 4 * 12 + 13 * 320, 12 * (320 + 12)
    assert size(parts, "select") == in_run + in_shards + 20 * 20
    assert size(parts, "evaluate") == 2 * 12 * 500, "what the ranker is measured on"
    by_teacher = plan(recipe_of("recommended", **keys), sizes)
    assert size(by_teacher, "select") == in_run + 20 * 20, "its embeddings say the scores"
    stages = ["num_train_epochs=1", "mine_again=true, num_train_epochs=1"]
    again = plan(recipe_of("recommended", ranker="cross-encoder:m", stages=stages, **keys), sizes)
    of_student = 20 * (2 * 256 + 8)
    assert size(again, "train") == of_student + in_run + 12 * 320
    assert size(again, "select") == size(parts, "select")
    assert not any(part.what == "lists" for part in plan(recipe_of("recommended"), Sizes(texts=9)))


@pytest.mark.parametrize(
    ("keys", "checkpoints"),
    [
        ({"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False,
          "early_stopping_patience": None}, 0),
        ({"save_total_limit": None}, 5),
        ({"save_total_limit": 2}, 3),
        ({"save_total_limit": None, "save_strategy": "steps", "save_steps": 7,
          "eval_strategy": "steps", "eval_steps": 7}, 8),
        ({"save_total_limit": None, "max_steps": 20}, 2),
    ],
)  # fmt: skip
def test_checkpoints_are_counted(keys: dict[str, Any], checkpoints: int) -> None:
    """160 pairs in batches of 16: ten steps an epoch, for five epochs."""
    recipe = recipe_of("recommended", stages=None, num_train_epochs=5, **keys)
    parts = {part.what: part for part in plan(recipe, Sizes(student=10**6, train=160))}
    if not checkpoints:
        assert "checkpoints" not in parts
        return
    assert parts["checkpoints"].size == checkpoints * (3 * 10**6 + 40_000)


def test_a_disk_that_is_too_small_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("recommended", stages=None, run_dir=tmp_path / "run", until="train")
    parts = plan(recipe, Sizes(student=10**9))
    free = [10**13]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free[0]))
    said = check_space(recipe, parts)
    assert f"about 10 GB in {tmp_path / 'run'}: checkpoints 9.0 GB, student 1.0 GB" in said
    assert said.endswith("; 10000 GB free")
    free[0] = 9 * 10**9
    with pytest.raises(InputError, match=r"^--run_dir .*10 GB.*only 9\.0 GB are free"):
        check_space(recipe, parts)


def test_what_an_earlier_call_wrote_makes_room_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("recommended", stages=None, run_dir=tmp_path, until="train",
                       save_strategy="no", eval_strategy="no", load_best_model_at_end=False,
                       early_stopping_patience=None)  # fmt: skip
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=400))
    parts = plan(recipe, Sizes(student=1000))
    with pytest.raises(InputError, match="only 400 bytes are free"):
        check_space(recipe, parts)
    (tmp_path / "student").write_bytes(bytes(700))
    check_space(recipe, parts)


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Within the context, no file of this process can become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_on_the_size_of_files_is_read_before_any_work(tiny: Path, tmp_path: Path) -> None:
    with files_of_at_most(50_000):
        said = call([tiny, "--run_dir", tmp_path / "run"])
    assert said.code == 2
    assert "(ulimit -f)" in said.err
    assert "50 kB" in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, [1])
    with files_of_at_most(10_000), pytest.raises(WriteError, match=f"^{path} cannot be written"):
        write_json(path, list(range(10_000)))
    assert read_json(path, list) == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_other_errors_are_left_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "a"):
        _ = 1 / 0
    with pytest.raises(FileNotFoundError), naming(tmp_path):
        (tmp_path / "nowhere" / "file").read_text()


def test_a_student_is_saved_whole_or_not_at_all(parts: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "student"
    path.mkdir()
    (path / "old").write_text("old")
    with files_of_at_most(50_000), pytest.raises(WriteError, match=f"^{path} cannot be written"):
        save_student(parts.student, path)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == [
        "student", "student/old",
    ]  # fmt: skip


@pytest.mark.parametrize("limit", [50_000, 150_000], ids=["the model", "the optimizer"])
def test_a_checkpoint_that_does_not_fit_is_removed(parts: Tiny, tmp_path: Path, limit: int) -> None:
    trainer = parts.trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    with files_of_at_most(limit), pytest.raises(WriteError, match="checkpoint-2 cannot be"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_disk_that_fills_anyway_is_one_line(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "largest_file", lambda: math.inf)
    with files_of_at_most(80_000):
        said = call([
            tiny, "--run_dir", tmp_path / "run", "--until", "train", "--save_strategy", "no",
            "--eval_strategy", "no", "--load_best_model_at_end", "false",
            "--early_stopping_patience", "none", "--disable_tqdm", "true",
        ])  # fmt: skip
    assert said.code == 1
    (line,) = [line for line in said.err.splitlines() if "error" in line]
    assert f"{tmp_path / 'run' / 'student_model_sd'} cannot be written: File too large" in line
    assert "Traceback" not in said.err
    assert not (tmp_path / "run" / "student_model_sd").exists()
    assert not (tmp_path / "run" / "training.json").exists()


def test_sizes_are_said_for_people() -> None:
    said = [size_text(size) for size in (12, 1500, 15_000, 1.25e9, 44e9, 3e6)]
    assert said == ["12 bytes", "1.5 kB", "15 kB", "1.2 GB", "44 GB", "3.0 MB"]


# --- retrieval measures while training -----------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "measure"),
    [
        ("eval_ndcg@10", "nDCG@10"), ("ndcg@10", "nDCG@10"), ("eval_nDCG@5", "nDCG@5"),
        ("eval_mrr@10", "RR@10"), ("eval_rr@10", "RR@10"), ("eval_r@10", "R@10"),
        ("eval_recall@100", "R@100"), ("eval_map@100", "AP@100"), ("eval_p@1", "P@1"),
        ("eval_ap(rel=2)@10", "AP(rel=2)@10"),
        ("loss", None), ("eval_loss", None),
    ],
)  # fmt: skip
def test_the_best_model_can_be_chosen_by_a_measure_in_any_spelling(
    named: str, measure: str | None
) -> None:
    found = watched_measure(recipe_of("recommended", metric_for_best_model=named))
    assert (None if found is None else str(found)) == measure


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"metric_for_best_model": "eval_bogus"}, "^--metric_for_best_model eval_bogus: .*eval_lo"),
        ({"metric_for_best_model": "accuracy_score"}, "^--metric_for_best_model accuracy_score"),
        ({"metric_for_best_model": "ndcg@x"}, "^--metric_for_best_model ndcg@x"),
        (
            {"metric_for_best_model": "ndcg@10", "greater_is_better": False},
            "^--greater_is_better False: .*greatest",
        ),
        ({"greater_is_better": True}, "^--greater_is_better True: .*loss the least"),
        (
            {"metric_for_best_model": "r@10", "lr_scheduler_type": "reduce_lr_on_plateau"},
            "^--lr_scheduler_type reduce_lr_on_plateau",
        ),
    ],
)
def test_a_measure_that_will_not_exist_is_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        watched_measure(recipe_of("recommended", **keys))


def test_validation_queries_search_their_own_documents_and_others(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = collection.pairs("validation")
    own = set(collection.document_texts(np.unique(pairs.documents)))
    task = validation_task(collection, 3)
    assert set(task.queries.values()) == set(collection.query_texts(np.unique(pairs.queries)))
    assert len(task.documents) == len(collection.documents)
    assert sum(map(len, task.qrels.values())) == len(pairs)
    monkeypatch.setattr(validation_module, "MOST_DOCUMENTS", len(own) + 5)
    first, again, other = (
        set(validation_task(collection, s).documents.values()) for s in (3, 3, 4)
    )
    assert len(first) == len(other) == len(own) + 5
    assert own <= first & other
    assert first == again
    assert first != other


def test_the_watched_figure_is_that_of_the_evaluation(
    collection: Collection, teacher_dir: Path
) -> None:
    recipe = recipe_of("recommended", metric_for_best_model="eval_rr@100", seed=5)
    evaluator = validation_evaluator(recipe, collection)
    assert isinstance(evaluator, ValidationRetrieval)
    model = SentenceTransformer(str(teacher_dir), device="cpu").train()
    figure = evaluator(model, output_path="unused", epoch=1, steps=2)
    assert model.training
    queries, documents = embed_task(model.eval(), evaluator.task)
    run = evaluator.task.run(search(queries, documents, 100))
    values = per_query(run, evaluator.task.qrels, parse_measures(["RR@100"]))
    assert figure == {"RR@100": float(values["RR@100"].mean())}
    assert 0 < figure["RR@100"] < 1
    assert (
        str(evaluator)
        == f"RR@100 of {len(evaluator.task.queries)} validation queries among 200 documents"
    )
    assert validation_evaluator(recipe_of("recommended"), collection) is None


def test_a_run_keeps_the_student_that_retrieves_best(tiny: Path, tmp_path: Path) -> None:
    """It trains at a rate at which the first of four evaluations is not the last one's equal."""
    run_tiny(
        tiny, tmp_path / "run", "--until", "train", "--metric_for_best_model", "eval_ndcg@10",
        "--num_train_epochs", 4, "--early_stopping_patience", 1, "--disable_tqdm", "true",
    )  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    record = read_json(folder.training, TrainingRecord)
    logged = {int(row["step"]): row["eval_nDCG@10"] for row in record.log if "eval_nDCG@10" in row}
    best = max(logged, key=lambda step: (logged[step], -step))
    assert record.best_step == best
    assert len(logged) <= min(4, 1 + list(logged).index(best) + 1)  # it stopped one later
    assert record.watched == "nDCG@10 of 20 validation queries among 200 documents"
    assert "watched: nDCG@10 of 20" in record.summary()
    student = SentenceTransformer(str(folder.student), device="cpu")
    recipe = read_recipe([str(folder.recipe), "--bf16", "false"])
    evaluator = validation_evaluator(recipe, open_collection(folder))
    assert evaluator is not None
    assert evaluator(student)["nDCG@10"] == pytest.approx(logged[best], abs=1e-6)


# --- the whole command ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["--report_to", "wandb"], "--report_to wandb"),
        (["--resume_from_checkpoint", "true"], "--resume_from_checkpoint true"),
        (["--prompts", '{"query": "query: "}'], "--query_prompt"),
        (["--metric_for_best_model", "eval_accuracy_x"], "--metric_for_best_model"),
        (["--optim", "lion_8bit"], "--optim lion_8bit"),
        (["--teacher_cache", "/proc/nothing"], "--teacher_cache /proc/nothing"),
    ],
)
def test_a_run_that_cannot_end_does_not_begin(
    tiny: Path, tmp_path: Path, line: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "collection", property(lambda run: pytest.fail("it read the data")))
    said = call([tiny, "--run_dir", tmp_path / "run", *line])
    assert said.code == 2
    assert says in said.err
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    assert not list(tmp_path.iterdir())

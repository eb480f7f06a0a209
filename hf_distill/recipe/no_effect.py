"""Arguments of `SentenceTransformerTrainer` that change nothing here, each with the reason and with
what to use instead; and what other programs call the keys of a recipe.

An argument that is given and does nothing is a mistake that nobody sees. So it is refused, unless
its value is the default.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping

from hf_distill.errors import InputError
from hf_distill.recipe.config import DistillationConfig

_ALWAYS_TRAINS = "a run always goes through its stages in order; --until says where it stops"
_NO_METRICS = (
    "the evaluation during training computes losses and no predictions; name a retrieval measure "
    "with --metric_for_best_model, e.g. eval_ndcg@10"
)
_NO_LENGTHS = (
    "batches are drawn by --batch_sampler, and padding is avoided without it; remove the flag"
)
_NO_LIGER = (
    "these kernels replace layers of language models that generate, and a student is an encoder; "
    "remove the flag"
)
_OWN_LOADER = "the data loader of sentence-transformers does not read it; remove the flag"
_RELEASE = (
    "a run publishes once, when everything is measured; --push_to_hub and --hub_model_id are enough"
)
_ALWAYS_SAME = "sentence-transformers sets it itself, whatever is given; remove the flag"
_PRECISION = "the evaluation during training uses the precision of the training; see --bf16"

NO_EFFECT: Mapping[str, str] = {
    "average_tokens_across_devices": "the loss is a mean over pairs, not tokens; remove the flag",
    "label_smoothing_factor": (
        "the targets are the teacher's scores and embeddings; soften them with "
        "--teacher_temperature or --false_negative_margin"
    ),
    "logging_nan_inf_filter": "a loss that is not finite ends the training; remove the flag",
    "bf16_full_eval": _PRECISION,
    "fp16_full_eval": _PRECISION,
    "use_liger_kernel": _NO_LIGER,
    "liger_kernel_config": _NO_LIGER,
    "use_cache": "only a model that generates has such a cache; remove the flag",
    "neftune_noise_alpha": (
        "the Trainer cannot add noise to the embeddings of a SentenceTransformer; use "
        "--student_dropout or --head_dropout"
    ),
    "include_num_input_tokens_seen": (
        "the batches are not token matrices that the Trainer can count; the training's record "
        "counts pairs"
    ),
    "prediction_loss_only": _ALWAYS_SAME,
    "eval_do_concat_batches": _NO_METRICS,
    "eval_use_gather_object": _NO_METRICS,
    "eval_accumulation_steps": _NO_METRICS,
    "include_for_metrics": _NO_METRICS,
    "batch_eval_metrics": _NO_METRICS,
    "label_names": (
        "the teacher's scores are the labels, and the trainer knows their columns; for a column of "
        "your data, use --label_column or --score_column"
    ),
    "hub_strategy": _RELEASE,
    "hub_always_push": _RELEASE,
    "dataloader_multiprocessing_context": _OWN_LOADER,
    "dataloader_in_order": _OWN_LOADER,
    "remove_unused_columns": (
        "the rows hold what the objective needs and nothing else; remove the flag"
    ),
    "train_sampling_strategy": _NO_LENGTHS,
    "length_column_name": _NO_LENGTHS,
    "ddp_broadcast_buffers": _ALWAYS_SAME,
    "do_train": _ALWAYS_TRAINS,
    "do_eval": "--eval_strategy says when the training evaluates, and --until where a run stops",
    "do_predict": _ALWAYS_TRAINS,
    "prompts": "use --query_prompt and --document_prompt, which teacher and student share",
    "multi_dataset_batch_sampler": (
        "all pairs are one data set; --source_shares, --source_alpha and --one_source_per_batch "
        "say how several sources are mixed"
    ),
    "router_mapping": (
        "a student is one encoder for queries and documents; if they differ, use --query_prompt "
        "and --document_prompt"
    ),
    "warmup_ratio": "--warmup_steps wins over it; below 1, --warmup_steps is such a share",
}
"""Name -> why it has no effect, and what has. `warmup_ratio` is here if `warmup_steps` is set, too:
otherwise the arguments move its value there.
"""

_READS_OPTIM_ARGS = (
    "ademamix", "rmsprop", "anyprecision", "sgd", "adagrad", "galore", "apollo", "grokadamw",
    "torch_4bit", "torch_8bit", "schedule_free", "stable_adamw",
)  # fmt: skip
_READS_TARGETS = ("galore", "apollo")

OTHER_NAMES: Mapping[str, str] = {
    "max_seq_length": "student_max_length",
    "max_length": "student_max_length",
    "query_max_len": "student_max_length",
    "passage_max_len": "student_max_length",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "lr": "learning_rate",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "cpu": "use_cpu",
    "overwrite_output_dir": "run_dir",
    "logging_dir": "run_dir",
    "group_by_length": "batch_sampler",
    "include_inputs_for_metrics": "metric_for_best_model",
    "include_tokens_per_second": "logging_steps",
    "model": "student_backbone",
    "model_name": "student_backbone",
    "model_name_or_path": "student_backbone",
    "student": "student_backbone",
    "student_model": "student_backbone",
    "teacher_model": "teacher",
    "teacher_model_name_or_path": "teacher",
    "data": "dataset_path",
    "train_data": "dataset_path",
    "train_file": "dataset_path",
    "data_path": "dataset_path",
    "validation_file": "validation_fraction",
    "test_file": "test_path",
    "eval_data": "test_path",
    "pooling": "student_pooling",
    "pooling_mode": "student_pooling",
    "sentence_pooling_method": "student_pooling",
    "truncate_dim": "student_dim",
    "output_dim": "student_dim",
    "embedding_dim": "student_dim",
    "train_group_size": "hard_negatives_per_pair",
    "num_negatives": "hard_negatives_per_pair",
    "query_instruction_for_retrieval": "query_prompt",
    "query_prefix": "query_prompt",
    "passage_prefix": "document_prompt",
    "document_prefix": "document_prompt",
    "gradient_cache": "grad_cache",
    "use_grad_cache": "grad_cache",
    "patience": "early_stopping_patience",
    "resume": "resume_from_checkpoint",
}
"""What other programs call something -> the key of a recipe that says it."""


def nearest(key: str, keys: Collection[str]) -> str:
    """A hint for an unknown key: the key that says the same, or the one that is spelled alike."""
    name = key.replace("-", "_").lower()
    close = [OTHER_NAMES[name]] if name in OTHER_NAMES else []
    close += difflib.get_close_matches(name, sorted(keys), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "--help lists the keys."


def _value(field: dataclasses.Field[object]) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def check_effect(training: DistillationConfig, given: Collection[str]) -> None:
    """Refuse what has no effect.

    Args:
        training: The arguments.
        given: Names of those that the recipe or the command line gave.

    Raises:
        InputError: One of `given` does nothing, and has another value than its default.
    """
    for field in dataclasses.fields(training):
        value = getattr(training, field.name)
        if field.name in NO_EFFECT and field.name in given and value != _value(field):
            said = str(getattr(value, "value", value))
            raise InputError(
                f"--{field.name} {said}: it has no effect here: {NO_EFFECT[field.name]}"
            )
    optim = str(getattr(training.optim, "value", training.optim))
    for name, readers in {
        "optim_args": _READS_OPTIM_ARGS, "optim_target_modules": _READS_TARGETS,
    }.items():  # fmt: skip
        value = getattr(training, name)
        if value and not any(reader in optim for reader in readers):
            raise InputError(
                f"--{name} {value}: the optimizer {optim} does not read it; name another --optim, "
                f"or set --{name} none"
            )

"""The Trainer: SentenceTransformerTrainer with the hybrid objective as its loss."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_distill.compute.device import give_back_freed_memory
from hf_distill.errors import InputError, WriteError
from hf_distill.recipe.config import DistillationConfig
from hf_distill.run.full_disk import naming
from hf_distill.teachers.base import SCALES, Scale
from hf_distill.training.checkpoints import seal
from hf_distill.training.collator import DistillationCollator
from hf_distill.training.in_batch import in_batches
from hf_distill.training.packing import Packer, fast_on_cpu
from hf_distill.training.rows import Lookup
from hf_distill.training.sources import SourceBatches, plan_of
from hf_distill.training.terms import TERMS, parse_terms, weighted_terms

_PACKED_GROUP, _CACHED_GROUP, _PADDED_GROUP = 512, 64, 16
"""Texts of a group on a CPU. Packed: enough for a whole batch of common size. With GradCache: as
many as it holds at a time. Padded: few, so that padding wastes little and they stay in the caches.
"""

_GROUP_CHARACTERS = 57_344
"""Of a group on an accelerator, padding included: some 16,384 tokens."""

_GIVE_BACK_STEPS = 32

LOSS_SCALE = 256.0
"""What fp16 begins with. The default of torch, 65,536, times the weights of the recommended recipe
(540 for the alignment) is beyond what float16 holds, and the first seven steps would be skipped.
"""

_CHECK_STEPS = 16
"""On an accelerator, so many losses are fetched together: each fetch waits for the device. With a
loss scale, so many steps that follow one another may be skipped.
"""


class _TellEpoch(TrainerCallback):
    """Tells the collator, and the sampler of several sources, which epoch begins, also if a
    training resumes from a checkpoint.
    """

    def __init__(self, epochs: list[Tensor]) -> None:
        self._epochs = epochs

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called by the Trainer, before the data loader reads ahead."""
        for epoch in self._epochs:
            epoch.fill_(int(state.epoch or 0))


class _GiveBackMemory(TrainerCallback):
    """Gives freed memory back now and then. Every batch has other lengths, so the memory that is
    kept for the next step falls apart: 1.5 GB in 400 steps of the quickstart.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called by the Trainer."""
        if state.global_step % _GIVE_BACK_STEPS == 0:
            give_back_freed_memory()


class _LogAtCheckpoints(TrainerCallback):
    """Logs at each checkpoint. A row of the log is a mean since the row before, which a training
    that resumes from a checkpoint would otherwise know only a part of.
    """

    def _log(self, args: TrainingArguments, control: TrainerControl) -> None:
        if args.logging_strategy != IntervalStrategy.NO:
            best = args.save_strategy == SaveStrategy.BEST and control.should_evaluate
            control.should_log |= control.should_save or best

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called by the Trainer, after it has decided whether to save."""
        self._log(args, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called by the Trainer, after it has decided whether to save."""
        self._log(args, control)


class DistillationTrainer(SentenceTransformerTrainer):
    """Trains a student on a teacher's scores and embeddings (see `hf_distill.training.rows` for the
    rows).

    All of `SentenceTransformerTrainer` works: evaluation, checkpoints, resume, mixed precision,
    several processes. Every query is compared with the documents of all processes, so N processes
    with batches of B train like one with batches of N * B.

    Args:
        model: The student, trained in place.
        args: The objective, and how it is trained.
        train_dataset: The rows, or a stream of them (with `max_steps`), which the processes share
            and repeat in the same order.
        components: (student dimension, teacher dimension) orthonormal rows: the alignment's targets
            are the teacher's embeddings in these coordinates. None: the embeddings as they are.
        scale: What the teacher's scores mean. Regression is refused if a cosine cannot take their
            values.
        lookup: Where rows by number find their texts and embeddings, and the pool of texts. Rows
            that hold their texts need none.
        **trainer: As for `SentenceTransformerTrainer`, except `loss`.

    Raises:
        InputError: `args` is not a `DistillationConfig`, a term cannot be read, the scores lie
            outside the scale, the rows do not have the sources that `args` speaks of, or they are a
            stream and there is a pool.
    """

    data_collator_class = DistillationCollator
    training_args_class = DistillationConfig
    args: DistillationConfig

    def __init__(
        self,
        model: SentenceTransformer | None = None,
        args: DistillationConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        components: Tensor | np.ndarray | None = None,
        scale: Scale = SCALES["cosine"],
        lookup: Lookup | None = None,
        **trainer: Any,
    ) -> None:
        if not isinstance(args, DistillationConfig):
            raise InputError(
                f"args is a {type(args).__name__}, but DistillationTrainer reads the objective "
                "from it; pass a DistillationConfig, which takes the same arguments and more"
            )
        self.terms = parse_terms(args)
        check_rows(train_dataset, self.terms)
        check_scale(args, scale, "the training rows")
        for rows in (train_dataset, trainer.get("eval_dataset")):
            if isinstance(rows, Dataset) and "teacher_score" in rows.column_names:
                scores = np.asarray(rows.with_format("numpy")["teacher_score"])
                scale.check(scores, "teacher_score of the training rows")
        self.lookup = lookup or Lookup()
        if isinstance(train_dataset, IterableDataset) and self.lookup.pool is not None:
            raise InputError(
                "the training rows are a stream, and there is a pool of texts: nobody knows how "
                "many rows the texts are dealt out to; leave out the pool, or load the rows"
            )
        self.components = None if components is None else torch.as_tensor(components)
        if isinstance(train_dataset, IterableDataset):
            # One pass without end: nobody knows where a pass ends, and a training that resumes
            # would count its batches from the beginning of the one before.
            train_dataset = train_dataset.repeat(None)
        self._measure = scale.similarity if scale.similarity in SCALES else "cosine"
        self._pairs = len(train_dataset) if isinstance(train_dataset, Dataset) else 0
        self.plan = plan_of(train_dataset, args)
        # A loss that is not finite ends the training. The parent would wait for the device to look
        # at each term of each step.
        args.logging_nan_inf_filter = False
        # Rows that stream: accelerate would cut a batch into slices, but it is no table of rows.
        cast(AcceleratorConfig, args.accelerator_config).dispatch_batches = False
        super().__init__(model=model, args=args, train_dataset=train_dataset, **trainer)
        self._losses: list[tuple[int, Tensor]] = []
        self._skipped = 0
        self._set_loss_scale()
        self._epochs: list[Tensor] = []
        if isinstance(self.data_collator, DistillationCollator):
            self._epochs.append(self.data_collator.epoch)
        self.add_callback(_TellEpoch(self._epochs))
        self.add_callback(_LogAtCheckpoints())
        if args.device.type == "cpu":
            self.add_callback(_GiveBackMemory())
        # The loss is a mean over the batch: the Trainer must divide by the accumulation steps, not
        # by a token count.
        self.model_accepts_loss_kwargs = False

    def _set_loss_scale(self) -> None:
        """Let fp16 begin with `LOSS_SCALE`. Nothing else has a scale."""
        scaler = self.accelerator.scaler
        if scaler is not None and scaler.is_enabled():
            scaler.load_state_dict({**scaler.state_dict(), "scale": LOSS_SCALE})

    def get_default_loss(self, model: BaseModel) -> nn.Module:
        """The student, because the parent class looks here for parameters to optimise. The
        objective is in `compute_loss`.
        """
        return nn.ModuleDict({"model": model})

    def get_data_collator(
        self, model: BaseModel, args: Any, processing_class: Any = None
    ) -> DistillationCollator:
        """The collator, with the student's own prompts."""
        on_cpu = args.device.type == "cpu"
        packer = Packer.of(model) if on_cpu else None
        if packer is not None:
            group_size = _CACHED_GROUP if args.grad_cache else _PACKED_GROUP
        elif on_cpu and isinstance(model[0], Transformer):
            group_size = _PADDED_GROUP
        else:  # a static student has no padding to waste
            group_size = max(_PADDED_GROUP, args.train_batch_size)
        pads = not on_cpu and isinstance(model[0], Transformer)
        return DistillationCollator(
            preprocess_fn=model.preprocess,
            query_prompt=model.prompts.get("query") or "",
            document_prompt=model.prompts.get("document") or "",
            group_size=group_size,
            group_characters=_GROUP_CHARACTERS if pads else None,
            packer=packer,
            lookup=self.lookup,
            texts_per_pair=args.texts_per_pair,
            pairs=self._pairs,
        )

    def get_batch_sampler(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Any:
        """The batches of several sources, if the config says how they are drawn. Else the stock
        samplers, on the two text columns alone, because `no_duplicates` compares all columns.
        """
        if self.plan is not None and dataset is self.train_dataset:
            batches = SourceBatches(self.plan, kwargs["batch_size"], kwargs["drop_last"])
            self._epochs.append(batches.epoch)
            return batches
        texts = ["text"] if "text" in dataset.column_names else ["query", "document"]
        return super().get_batch_sampler(dataset.select_columns(texts), *args, **kwargs)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No callback: the release writes the card, from measured results and without printing
        training rows.
        """

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """A checkpoint without a README: to write one, the parent class asks the Hub about the base
        model each time.
        """
        path = str(output_dir or self.args.output_dir)
        self.model.save_pretrained(path, create_model_card=False)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer does, and seals it when every process has written its part. What an
        earlier call left of it is removed before, and on a full disk what was written of it.
        """
        self._check_losses()
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        try:
            with naming(folder):
                super()._save_checkpoint(*args, **kwargs)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    seal(folder, self.state.global_step)
        except WriteError:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _fast(self) -> contextlib.AbstractContextManager[None]:
        """A context within which the student is fast on this device."""
        if self.args.device.type != "cpu":
            return contextlib.nullcontext()
        return fast_on_cpu(self.model)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer does. The student's modules are the same before and after."""
        with self._fast():
            output = super().train(*args, **kwargs)
            self._check_losses()
            return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the Trainer does."""
        with self._fast():
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
            return metrics

    def _embed(self, model: nn.Module, group: dict[str, Tensor]) -> Tensor:
        """Embeddings (n, d) of a group of tokenised texts, float32."""

        def forward(features: dict[str, Tensor]) -> Tensor:
            with self._fast():  # here, because GradCache calls this again while it goes backward
                embeddings: Tensor = model(features)["sentence_embedding"]
            return embeddings.float()

        if self.args.grad_cache and torch.is_grad_enabled():
            # GradCache (Gao et al. 2021, arXiv:2101.06983): forward for the loss alone, and once
            # more, group by group, to go backward.
            embeddings: Tensor = checkpoint(forward, group, use_reentrant=False)
            return embeddings
        return forward(group)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The hybrid objective on one batch; each weighted term is logged under its name.

        Raises:
            FloatingPointError: A term is NaN or infinite, with its name and the step. On an
                accelerator it comes some steps later, but before anything is saved; with a loss
                scale, if the scale cannot help.
        """
        groups, _ = self.collect_features(inputs)
        texts = torch.cat([self._embed(model, group) for group in groups])[inputs["place"]]
        if self.components is not None:
            self.components = self.components.to(texts.device)
        with torch.autocast(device_type=texts.device.type, enabled=False):
            batches = in_batches(texts, inputs, self.components, self._measure, self.args)
            terms = weighted_terms(batches, self.terms, self.args)
        logged = dict(terms)
        if self.args.false_negative_margin is not None and batches[0].ignore.numel():
            logged["ignored_cells"] = batches[0].ignore.float().mean()
        self.track_loss_components(logged)
        values = torch.stack(list(terms.values()))
        trains = torch.is_grad_enabled()
        if not trains:
            self._check_losses()
        self._losses.append((self.state.global_step, values.detach()))
        if values.device.type == "cpu" or not trains or len(self._losses) >= _CHECK_STEPS:
            self._check_losses(may_skip=trains)
        loss = values.sum()
        return (loss, {}) if return_outputs else loss

    def log(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer does. It waits for the device anyway, so the losses are looked at, too."""
        self._check_losses()
        super().log(*args, **kwargs)

    def _check_losses(self, may_skip: bool = True) -> None:
        """Look at the losses since the last look. A step of the training is skipped where there is
        a loss scale (`may_skip`).

        Raises:
            FloatingPointError: As `compute_loss`.
        """
        if not self._losses:
            return
        steps = [step for step, _ in self._losses]
        every = torch.stack([values for _, values in self._losses]).cpu()
        self._losses.clear()
        for step, values in zip(steps, every, strict=True):
            if torch.isfinite(values).all():
                self._skipped = 0
                continue
            self._skipped += 1
            scales = may_skip and self.accelerator.scaler is not None
            if scales and self._skipped < _CHECK_STEPS:
                continue  # it skips the step and lowers its scale
            broken = {
                name: value
                for name, value in zip(self.terms, values.tolist(), strict=True)
                if not math.isfinite(value)
            }
            raise FloatingPointError(
                f"step {step}: the objective is not finite ({broken}). The last checkpoint is "
                "kept; try a lower --learning_rate, or float32 (--bf16 false --fp16 false)"
            )


def check_rows(rows: object, terms: Collection[str]) -> None:
    """Raise InputError if the rows are texts without pairs, and a term compares pairs."""
    of_pairs = [name for name in terms if name in TERMS and name != "alignment"]
    if isinstance(rows, Dataset) and "text" in rows.column_names and of_pairs:
        raise InputError(
            f"--{of_pairs[0]}_weight: the training rows are texts without pairs, and this term "
            "compares queries with documents; set it to 0, and --alignment_weight above 0"
        )


def check_scale(config: DistillationConfig, scale: Scale, of: str) -> None:
    """Raise InputError if the objective regresses cosines on scores outside [-1, 1]. `of` says in
    the message whose scores they are.
    """
    if config.regression_weight and not scale.is_bounded:
        raise InputError(
            f"--regression_weight {config.regression_weight}: the scores of {of} are {scale}, and "
            "a student's cosine, in [-1, 1], cannot follow them. Bring them to that range "
            "(--teacher_activation sigmoid for a cross-encoder, --teacher_similarity cosine for "
            "embeddings), or set --regression_weight 0"
        )

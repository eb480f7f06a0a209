"""The Trainer: SentenceTransformerTrainer with the hybrid objective as its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed.nn.functional as distributed
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_distill.errors import InputError
from hf_distill.teachers.base import (
    SCALES,
    Scale,
)
from hf_distill.training.collator import (
    SIDE_COLUMNS,
    DistillationCollator,
    InBatch,
    in_batch_matrices,
    reversed_roles,
)
from hf_distill.training.packing import (
    can_pack,
    first_position_of,
    prepare_to_pack,
)
from hf_distill.training.terms import (
    Weights,
    hybrid,
    truncate,
)


def _gather(tensor: Tensor) -> Tensor:
    """`tensor` of every process, in order of rank, with gradients to all of them where it carries
    any.
    """
    if tensor.requires_grad:
        return torch.cat(distributed.all_gather(tensor))  # type: ignore[no-untyped-call]  # torch gives this module no types
    parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def _by_pair(further: Sequence[Tensor], pairs: int) -> list[Tensor]:
    """Embeddings (B, n, d) or (B * n, d) of several kinds of further texts as one (B * N, d), those
    of each pair in turn; or none.
    """
    together = (
        torch.cat([part.reshape(pairs, -1, part.shape[-1]) for part in further], dim=1)
        if further
        else torch.empty(pairs, 0, 0)
    )
    return [together.flatten(0, 1)] if together.shape[1] else []


class _TellEpoch(TrainerCallback):
    """Tells the collator which epoch begins: whose turn it is of the augmented texts, also where a
    training goes on.
    """

    def __init__(self, collator: DistillationCollator) -> None:
        self._collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called by the Trainer."""
        self._collator.epoch = int(state.epoch or 0)


@dataclass(frozen=True)
class _Batch:
    """Student embeddings of a batch, (B, d) of this process and (P or N, d) of all, and the
    teacher's view of both directions.
    """

    queries: Tensor
    documents: Tensor
    every_query: Tensor
    every_document: Tensor
    matrices: InBatch
    reverse: InBatch | None

    def terms(
        self, dimension: int, weights: Weights, embeddings: Tensor | None, targets: Tensor | None
    ) -> dict[str, Tensor]:
        """The objective's terms on embeddings cut to `dimension`."""
        reverse = None
        if self.reverse is not None:
            reverse = (
                truncate(self.documents, dimension) @ truncate(self.every_query, dimension).T,
                self.reverse,
            )
        if embeddings is not None and targets is not None:
            # The target's dimensions are principal components, the largest first: its beginning is
            # what the student's should say.
            embeddings, targets = embeddings[:, :dimension], targets[:, :dimension]
        student = truncate(self.queries, dimension) @ truncate(self.every_document, dimension).T
        return hybrid(student, self.matrices, weights, embeddings, targets, reverse)


class DistillationTrainer(SentenceTransformerTrainer):
    """Trains a student on rows that carry the teacher's scores and embeddings (see
    :class:`DistillationCollator`).

    Everything of `SentenceTransformerTrainer` works: evaluation, checkpoints, resume, mixed
        precision, several processes.
    Under several processes every query is contrasted with the documents of all of them, so that N
    processes with batches of B train like one with N * B.

    Args:
        weights: The objective, as it begins.
        final_weights: Terms and what their weights have become, in a straight line, by the last
            step.
        components: (student dimension, teacher dimension) orthonormal rows; the alignment term's
            target is the teacher's embedding in these coordinates. Needed only if that term has a
            weight.
        scale: What the teacher's scores mean. Regression is refused where they are no numbers that
            a cosine could take.
        false_negative_margin: See `hf_distill.in_batch_matrices`. The share of cells that are so
            ignored is logged.
        false_negative_groups: Pairs of a `group` are no negatives of each other; counted in the
            same share.
        grad_cache: Hold the activations of one group of texts at a time instead of the whole
            batch's, at the price of a second forward pass: batches of thousands of pairs in little
            memory, with the same gradients.
        symmetric: Contrast documents with the batch's queries, too (see `hf_distill.hybrid`).
        matryoshka_dims: The objective is the mean of itself over embeddings cut to these many
            dimensions and over the whole ones (Kusupati et al. 2022, arXiv:2205.13147), so that a
            user may cut them, too.
        augmented_each: How many of the rows' `augmented` texts, which are aligned alone, stand
            beside a pair at a time.
        log_gradient_norms: Log, as `<term>_gradient`, the norm of each weighted term's gradient by
            the embeddings of the batch.
        **trainer: As for `SentenceTransformerTrainer`, less `loss`.
    """

    data_collator_class = DistillationCollator

    def __init__(
        self,
        *,
        weights: Weights,
        final_weights: Mapping[str, float] | None = None,
        components: Tensor | None = None,
        scale: Scale = SCALES["cosine"],
        false_negative_margin: float | None = None,
        false_negative_groups: bool = False,
        symmetric: bool = False,
        matryoshka_dims: Sequence[int] = (),
        log_gradient_norms: bool = False,
        grad_cache: bool = False,
        augmented_each: int = 0,
        **trainer: Any,
    ) -> None:
        self._measure = scale.measure if scale.measure in SCALES else "cosine"
        self._false_negative_margin = false_negative_margin
        self._false_negative_groups = false_negative_groups
        self._symmetric = symmetric
        self._matryoshka_dims = tuple(matryoshka_dims)
        self._log_gradient_norms = log_gradient_norms
        self._grad_cache = grad_cache
        self._augmented_each = augmented_each
        self._final_weights = dict(final_weights or {})
        check_scale(weights.towards(self._final_weights, 0.5), scale, "the training rows")
        super().__init__(**trainer)
        for rows in (self.train_dataset, self.eval_dataset):
            if isinstance(rows, Dataset):
                scale.check(
                    np.asarray(rows.with_format("numpy")["teacher_score"]),
                    "teacher_score of the training rows",
                )
        if augmented_each and isinstance(self.data_collator, DistillationCollator):
            self.add_callback(_TellEpoch(self.data_collator))
        self.weights = weights
        self.components = components
        # The loss is a mean over the batch: the Trainer must divide by the accumulation steps, not
        # by a token count.
        self.model_accepts_loss_kwargs = False
        self._distributed = self.args.world_size > 1 and torch.distributed.is_initialized()

    def get_default_loss(self, model: BaseModel) -> nn.Module:
        """The student, held where the parent looks for what to optimise; `compute_loss` is the
        objective.
        """
        return nn.ModuleDict({"model": model})

    def get_data_collator(
        self, model: BaseModel, args: Any, processing_class: Any = None
    ) -> DistillationCollator:
        """The collator, with the student's own prompts."""
        on_cpu = args.device.type == "cpu"
        packs = on_cpu and can_pack(model)
        if packs:
            prepare_to_pack(model)
            group_size = (
                64 if self._grad_cache else 512
            )  # texts: what GradCache holds at a time, else a whole batch of common size
        else:
            # Small groups waste little padding and stay in a CPU's caches; a GPU would rather have
            # few large ones, and a static student has no padding to waste.
            group_size = (
                16
                if on_cpu and isinstance(model[0], Transformer)
                else max(16, args.train_batch_size)
            )
        return DistillationCollator(
            preprocess_fn=model.preprocess,
            query_prompt=model.prompts.get("query") or "",
            document_prompt=model.prompts.get("document") or "",
            measure=self._measure,
            false_negative_margin=self._false_negative_margin,
            false_negative_groups=self._false_negative_groups,
            augmented_each=self._augmented_each,
            group_size=group_size,
            first_position=first_position_of(model) if packs else None,
        )

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None: the release writes the card, from measured results and without printing training
        rows.
        """

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """A checkpoint without a README: the stock one asks the Hub about the base model each
        time.
        """
        path = str(output_dir or self.args.output_dir)
        self.model.save_pretrained(path, create_model_card=False)

    def in_batch(
        self, inputs: dict[str, Tensor], queries: Tensor, documents: Tensor, negatives: Tensor
    ) -> _Batch:
        """What this process's queries and documents are compared with: those of all processes, in
        order of rank.
        """
        rows = {name: inputs[name] for name in SIDE_COLUMNS if name in inputs}
        if not self._distributed:
            local = InBatch(
                inputs["teacher_matrix"],
                inputs["positives"],
                inputs["ignore"],
                inputs.get("weight"),
            )
            every_query, every_document, columns, offset = (
                queries,
                torch.cat([documents, negatives]),
                rows,
                0,
            )
        else:
            columns = {name: _gather(value) for name, value in rows.items()}
            offset = torch.distributed.get_rank() * len(queries)
            # Column by column, then together: documents of all ranks come before negatives of all
            # ranks.
            every_document = (
                torch.cat([_gather(documents), _gather(negatives)])
                if len(negatives)
                else _gather(documents)
            )
            every_query = _gather(queries) if self._symmetric else queries
            local = in_batch_matrices(
                rows, columns, offset, self._measure, self._false_negative_margin
            )
        reverse = None
        if self._symmetric:
            reverse = in_batch_matrices(
                reversed_roles(rows),
                reversed_roles(columns),
                offset,
                self._measure,
                self._false_negative_margin,
            )
        return _Batch(queries, documents, every_query, every_document, local, reverse)

    def _embed(self, model: nn.Module, group: dict[str, Tensor]) -> Tensor:
        """Embeddings (n, d) of a group of tokenised texts, float32."""

        def forward(features: dict[str, Tensor]) -> Tensor:
            embeddings: Tensor = model(features)["sentence_embedding"]
            return embeddings.float()

        if self._grad_cache and torch.is_grad_enabled():
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
            FloatingPointError: A term is NaN or infinite, with its name and the step.
        """
        groups, _ = self.collect_features(inputs)
        texts = torch.cat([self._embed(model, group) for group in groups])[inputs["place"]]
        pairs = len(inputs["query_key"])
        negatives_each = inputs["negative_key"].shape[1] if "negative_key" in inputs else 0
        queries, documents, negatives, augmented = texts.tensor_split(
            [pairs, 2 * pairs, (2 + negatives_each) * pairs]
        )
        with torch.autocast(device_type=queries.device.type, enabled=False):
            batch = self.in_batch(inputs, queries, documents, negatives)
            embeddings, targets = None, None
            weights = self.weights
            if self._final_weights and self.model.training:
                progress = self.state.global_step / max(1, self.state.max_steps - 1)
                weights = weights.towards(self._final_weights, min(1.0, progress))
            elif self._final_weights:
                weights = weights.towards(
                    self._final_weights, 1.0
                )  # validation losses are compared with each other
            if (
                weights.alignment
                and self.components is not None
                and "teacher_query_embedding" in inputs
            ):
                further = [
                    inputs[name]
                    for name in ("teacher_negative_embedding", "teacher_augmented_embedding")
                    if name in inputs
                ]
                parts = [
                    inputs["teacher_query_embedding"],
                    inputs["teacher_document_embedding"],
                    *_by_pair(further, pairs),
                ]
                teacher = torch.cat(parts).float()
                embeddings = torch.cat(
                    [queries, documents, *_by_pair([negatives, augmented], pairs)]
                )
                targets = teacher @ self.components.to(teacher.device).T
            dimensions = sorted({*self._matryoshka_dims, texts.shape[1]})
            cuts = [
                batch.terms(dimension, weights, embeddings, targets) for dimension in dimensions
            ]
            terms = {name: torch.stack([cut[name] for cut in cuts]).mean() for name in cuts[0]}
        logged = dict(terms)
        if self._false_negative_margin is not None or self._false_negative_groups:
            logged["ignored_cells"] = batch.matrices.ignore.float().mean()
        if self._log_gradient_norms and texts.requires_grad:
            for name, term in terms.items():
                (gradient,) = torch.autograd.grad(term, texts, retain_graph=True)
                logged[f"{name}_gradient"] = gradient.norm()
        self.track_loss_components(logged)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            broken = {
                name: float(value.detach())
                for name, value in terms.items()
                if not torch.isfinite(value)
            }
            raise FloatingPointError(
                f"step {self.state.global_step}: the objective is not finite ({broken}). The last checkpoint is kept; try a lower "
                "learning_rate, or fp32 (--bf16 false --fp16 false)"
            )
        return (loss, {}) if return_outputs else loss


def check_scale(weights: Weights, scale: Scale, of: str) -> None:
    """Raise InputError if cosines are to be regressed on scores `of` something that are not within
    [-1, 1].
    """
    if weights.regression and not scale.is_bounded:
        raise InputError(
            f"regression_weight is {weights.regression}, but the scores of {of} are {scale}: a student's cosine, in [-1, 1], cannot "
            "follow them. Bring them to that scale (teacher_activation: sigmoid for a cross-encoder, teacher_similarity: cosine for "
            "embeddings), or set regression_weight: 0"
        )

"""The ways to train a student that `quality.py` compares."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from datasets import Dataset
from quality_lists import PeerMiner
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer import losses
from torch import nn

from hf_distill.compute.device import device_type
from hf_distill.errors import InputError
from hf_distill.pipeline import Run
from hf_distill.training.rows import Examples, examples, training_rows

RECOMMENDED = "recommended"
TEMPERATURE = 0.05
"""Of DistillKLDivLoss: what the recommended recipe has."""
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Arm:
    """A way to train the student: a loss of sentence-transformers (`loss` with its `columns`), or
    an objective of this project.

    Attributes:
        name: What the table calls it.
        keys: The recipe's keys that differ from the recommended ones, as a command line.
        loss: Of sentence-transformers, made from the student and the teacher; None: this project's
            trainer.
        columns: Makes what that loss reads from the training pairs of a run.
        asks: What the teacher embeds beforehand: nothing, or the texts of the pairs. (An arm of
            this project also has it embed its pool.)
        own: Whether it is this project's, to be compared with the best peer.
        epochs: It sees each pair at most so often, even if there is time for more.
        miner: Mines what `columns` reads, at this arm's expense.
    """

    name: str
    keys: tuple[str, ...] = ()
    loss: Callable[[SentenceTransformer, SentenceTransformer], nn.Module] | None = None
    columns: Callable[[Examples, Run], dict[str, Any]] | None = None
    asks: Literal["nothing", "pairs"] = "pairs"
    own: bool = False
    epochs: float | None = None
    miner: PeerMiner | None = None


def _pair(pairs: Examples, _: Run) -> dict[str, Any]:
    return {"query": pairs.queries, "document": pairs.documents}


def _scored_pair(pairs: Examples, run: Run) -> dict[str, Any]:
    return {**_pair(pairs, run), "label": pairs.sides.teacher_score.tolist()}


def _coordinates(pairs: Examples, run: Run) -> torch.Tensor:
    """The teacher's embeddings (n, 2, d) of queries and documents, in the coordinates of the
    student's head: the best case of a loss that would otherwise learn a projection.
    """
    sides = pairs.sides
    assert sides.query_embedding is not None
    assert sides.document_embedding is not None
    both = torch.stack([sides.query_embedding, sides.document_embedding], dim=1).float()
    return both @ torch.as_tensor(run.initialisation.components).T


def _embedded_pair(pairs: Examples, run: Run) -> dict[str, Any]:
    return {**_pair(pairs, run), "label": _coordinates(pairs, run).tolist()}


def _embedded_text(pairs: Examples, run: Run) -> dict[str, Any]:
    """The same, each text by itself, as sentence-transformers' example `model_distillation`."""
    labels = _coordinates(pairs, run).transpose(0, 1).flatten(0, 1)
    texts = dict(zip([*pairs.queries, *pairs.documents], labels.tolist(), strict=True))
    return {"sentence": list(texts), "label": list(texts.values())}


def _scored_triple(pairs: Examples, run: Run) -> dict[str, Any]:
    """With one hard negative each."""
    assert pairs.sides.negative_score is not None
    scores = torch.stack([pairs.sides.teacher_score, pairs.sides.negative_score[:, 0]], dim=1)
    return {**_pair(pairs, run), "negative": pairs.negatives, "label": scores.tolist()}


def _margin_triple(pairs: Examples, run: Run) -> dict[str, Any]:
    columns = _scored_triple(pairs, run)
    return {**columns, "label": [own - other for own, other in columns["label"]]}


def _ranking(student: SentenceTransformer, _: SentenceTransformer) -> nn.Module:
    return losses.MultipleNegativesRankingLoss(student)


def _guided(student: SentenceTransformer, teacher: SentenceTransformer) -> nn.Module:
    return losses.GISTEmbedLoss(student, guide=teacher)


def _cosine(student: SentenceTransformer, _: SentenceTransformer) -> nn.Module:
    return losses.CosineSimilarityLoss(student)


def _embedding(student: SentenceTransformer, _: SentenceTransformer) -> nn.Module:
    return losses.EmbedDistillLoss(student)


def _squares(student: SentenceTransformer, _: SentenceTransformer) -> nn.Module:
    return losses.MSELoss(student)


def divergence(student: SentenceTransformer, _: SentenceTransformer) -> nn.Module:
    """KL over the columns of a row. Both sides are divided by `TEMPERATURE`."""
    return losses.DistillKLDivLoss(student, temperature=TEMPERATURE)


def margin(student: SentenceTransformer, _: SentenceTransformer) -> nn.Module:
    """MarginMSE of the columns of a row."""
    return losses.MarginMSELoss(student)


ONE_STAGE = ("--stages", "none")
PLAIN = (
    "--contrastive_weight", "1", "--temperature", "0.1", "--false_negative_margin", "none",
    "--regression_weight", "0", "--alignment_weight", "0", "--texts_per_pair", "0",
    *ONE_STAGE,
)  # fmt: skip
"""Nothing of the recommended objective, so that what a peer depends on does not change with it."""
NEGATIVE = ("--hard_negatives_per_pair", "1")
_BATCH = ("--per_device_train_batch_size", "64")
SLOW, FAST = (*_BATCH, "--learning_rate", "1e-4"), (*_BATCH, "--learning_rate", "4e-4")
"""Contrast forgets more at a higher rate, and alignment learns more (benchmarks/QUALITY.md): each
peer has the rate that suits it.
"""
SMALL = ("--per_device_train_batch_size", "16", "--learning_rate", "2e-4")
PAPER = (
    *PLAIN, "--regression_weight", "0.1", "--head_dropout", "0.1",
    "--selection", "invalid", "echo", "duplicate", "percentile=80",
)  # fmt: skip
ARMS = {
    arm.name: arm
    for arm in (
        Arm("MultipleNegativesRankingLoss", (*PLAIN, *SLOW), _ranking, _pair, "nothing"),
        Arm(
            "MultipleNegativesRankingLoss, 8 epochs",
            (*PLAIN, *SLOW),
            _ranking,
            _pair,
            "nothing",
            epochs=8,
        ),
        Arm("GISTEmbedLoss", (*PLAIN, *SLOW), _guided, _pair, "nothing"),
        Arm("CosineSimilarityLoss", (*PLAIN, *FAST), _cosine, _scored_pair),
        Arm("EmbedDistillLoss", (*PLAIN, *FAST), _embedding, _embedded_pair),
        Arm("EmbedDistillLoss, batch 16", (*PLAIN, *SMALL), _embedding, _embedded_pair),
        Arm("MSELoss on texts", (*PLAIN, *SMALL), _squares, _embedded_text),
        Arm("DistillKLDivLoss", (*PLAIN, *SLOW, *NEGATIVE), divergence, _scored_triple),
        Arm(
            "DistillKLDivLoss, 8 epochs",
            (*PLAIN, *SLOW, *NEGATIVE),
            divergence,
            _scored_triple,
            epochs=8,
        ),
        Arm("MarginMSELoss", (*PLAIN, *FAST, *NEGATIVE), margin, _margin_triple),
        Arm("the paper", (*PAPER, *SLOW)),
        Arm(RECOMMENDED, own=True),
        Arm("recommended, first stage alone", ONE_STAGE, own=True),
    )
}
"""A budget is more than contrast needs on few pairs: it forgets more the longer it trains. So there
are two of a few epochs.
"""


_SEVERAL = ("stages", "candidates", "selection")


def parse_try(text: str) -> Arm:
    """`NAME: key=value key=value ...` as an arm of this project. Where a key takes several values,
    such as `stages` and `candidates`, `;` stands between them; the keys of a stage are separated by
    commas.

    Raises:
        InputError: Another form.
    """
    name, colon, keys = text.partition(":")
    pairs = [key.partition("=") for key in keys.split()]
    if not colon or not name.strip() or not all(equals for _, equals, _ in pairs):
        raise InputError(f'--try {text!r}: expected "NAME: key=value key=value ..."')
    line = [
        part
        for key, _, value in pairs
        for part in (f"--{key}", *(value.split(";") if key in _SEVERAL else [value]))
    ]
    return Arm(name.strip(), tuple(line), own=True)


def further_arm(text: str, arms: Mapping[str, Arm]) -> Arm:
    """The arm of `parse_try`; if it has the name of a peer among `arms`, this peer with its keys.

    Raises:
        InputError: As `parse_try`.
    """
    tried = parse_try(text)
    peer = arms.get(tried.name)
    if peer is None or peer.loss is None:
        return tried
    name = ", ".join([peer.name, *text.partition(":")[2].split()])
    return dataclasses.replace(peer, name=name, keys=(*peer.keys, *tried.keys))


def train_peer(arm: Arm, run: Run, output_dir: str) -> tuple[SentenceTransformer, float]:
    """A student trained with a loss of sentence-transformers, and the seconds of the training
    alone.
    """
    assert arm.loss is not None
    assert arm.columns is not None
    assert run.teacher.backbone is not None
    student = run.untrained()
    if device_type() == "cpu" and isinstance(student[0], Transformer):
        # The same mathematics, and faster there: a peer at its best.
        student[0].auto_model.set_attn_implementation("eager")
    rows = training_rows(run, run.selection, student)
    pairs = examples(list(rows.train), rows.lookup)
    teacher = copy.deepcopy(run.teacher.backbone)  # later jobs need it as it is
    trainer = SentenceTransformerTrainer(
        model=student,
        args=dataclasses.replace(run.recipe.training, output_dir=output_dir),
        train_dataset=Dataset.from_dict(arm.columns(pairs, run)),
        loss=arm.loss(student, teacher),
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    return student.eval(), seconds

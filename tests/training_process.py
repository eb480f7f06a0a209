"""Train the tiny student for some steps, on as many processes as there are, and save it. On rows
with texts, on rows by number, on rows of two sources that never share a batch, as a query encoder,
and on texts without pairs.
"""

import copy
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import torch
from conftest import sentences
from datasets import Dataset
from sentence_transformers.base.modules import Dense
from tiny_training import Tiny, tiny
from torch import nn

WEIGHTS = [0.25 if i % 3 else 1.0 for i in range(64)]


def list_scores(pairs: int) -> np.ndarray:
    """(pairs, 3): a ranker's logits of the document and two hard negatives."""
    scores = np.random.default_rng(3).normal(size=(pairs, 3)).astype(np.float32)
    return scores + np.array([2.0, 0.0, 0.0], dtype=np.float32)


def rows_by_number(parts: Tiny) -> Dataset:
    """64 pairs with two hard negatives and two texts of the pool each."""
    rows = parts.numbers.add_column("weight", WEIGHTS)
    return rows.add_column("list_scores", list_scores(64).tolist()).with_format("numpy")


def rows_with_texts(parts: Tiny) -> Dataset:
    """64 pairs with two hard negatives each; some texts occur twice."""
    columns = parts.texts.with_format(None).to_dict()
    columns["document"][5] = columns["document"][40]  # perhaps on different processes
    negatives = [sentences(2, 900 + 2 * i) for i in range(64)]
    negatives[7][1] = columns["document"][9]  # a negative that is another pair's document
    n = np.stack([parts.embed(row) for row in negatives])
    scores = np.einsum("bd,bkd->bk", np.array(columns["teacher_query_embedding"]), n)
    further = {
        "weight": WEIGHTS, "negatives": negatives, "negative_scores": scores,
        "teacher_negative_embeddings": n, "list_scores": list_scores(64),
    }  # fmt: skip
    return Dataset.from_dict({**columns, **further}).with_format("numpy")


def rows_of_sources(parts: Tiny) -> Dataset:
    """The same as `rows_by_number`; a quarter of them is from `a`."""
    names = ["a" if i % 4 == 0 else "b" for i in range(64)]
    return rows_by_number(parts).add_column("source", names).with_format("numpy")


def rows_of_texts_alone(parts: Tiny) -> Dataset:
    """64 texts without pairs, which the student reads in two forms, with two texts of the pool."""
    columns = parts.texts.with_format(None).to_dict()
    return Dataset.from_dict(
        {
            "text": columns["query"], "student_text": columns["document"],
            "teacher_text_embedding": columns["teacher_query_embedding"], "row": list(range(64)),
        }
    ).with_format("numpy")  # fmt: skip


ENCODER, ALONE = "encoder", "texts alone"
FORMS = {
    "texts": rows_with_texts, "numbers": rows_by_number, "sources": rows_of_sources,
    ENCODER: rows_by_number, ALONE: rows_of_texts_alone,
}  # fmt: skip


def as_encoder(parts: Tiny) -> Tiny:
    """The same with a student in the teacher's space."""
    student = copy.deepcopy(parts.student)
    student[2] = Dense(32, 32, bias=False, activation_function=nn.Identity())
    student[2].linear.weight.data = torch.eye(32)
    return dataclasses.replace(parts, student=student)


def train(teacher: Path, batch: int, out: Path) -> None:
    """Train on each form of rows; the student and its gradient norms go to `out`/FORM."""
    parts = tiny(teacher, pairs=64, pool=512)
    weights = {
        "contrastive_weight": 1.0, "regression_weight": 2.0, "kl_weight": 0.5,
        "margin_weight": 0.5, "spread_out_weight": 2.0,
        "list_kl_weight": 0.5, "list_margin_weight": 2.0,
    }  # fmt: skip
    for form, rows_of in FORMS.items():
        encodes = form == ENCODER
        # SGD: Adam divides what is 0 but for rounding by its own size.
        trainer = (as_encoder(parts) if encodes else parts).trainer(
            out / form, rows_of(parts), per_device_train_batch_size=batch, num_train_epochs=2,
            learning_rate=0.05, optim="sgd", max_grad_norm=1.0,
            **(dict.fromkeys(weights, 0.0) if form == ALONE else weights),
            regression_on="matrix", alignment_weight=3, false_negative_margin=0.05,
            contrastive_symmetric=True, matryoshka_dims=[8], texts_per_pair=2,
            components=None if encodes else parts.components,
            student_space="teacher" if encodes else "own",
            lookup=parts.lookup, one_source_per_batch=form == "sources",
        )  # fmt: skip
        trainer.train()
        if trainer.is_world_process_zero():
            trainer.model.save_pretrained(str(out / form), create_model_card=False)
            norms = [row["grad_norm"] for row in trainer.state.log_history if "loss" in row]
            log = {"world": int(os.environ.get("WORLD_SIZE", "1")), "grad_norms": norms}
            (out / form / "log.json").write_text(json.dumps(log))

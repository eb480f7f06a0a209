"""Train the tiny student for some steps, on as many processes as there are, and save it:
`training_process.py TEACHER BATCH OUT`.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from conftest import sentences
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainingArguments

from hf_distill.recipe.arguments import (
    StudentArguments,
    TeacherArguments,
)
from hf_distill.student.build import (
    Blueprint,
    build_student,
)
from hf_distill.student.head import principal_components
from hf_distill.teachers.bi_encoder import load_bi_encoder
from hf_distill.training.terms import Weights
from hf_distill.training.trainer import DistillationTrainer

teacher = load_bi_encoder(TeacherArguments(teacher=sys.argv[1], teacher_dtype="float32"))
queries, documents = sentences(64), sentences(64, 400)
documents[5] = documents[40]  # the same document twice, perhaps on different processes
negatives = [sentences(2, 900 + 2 * i) for i in range(64)]
negatives[7][1] = documents[9]  # a negative that is another pair's document
q, d = teacher.embed(queries), teacher.embed(documents)
n = np.stack([teacher.embed(row) for row in negatives])
rows = Dataset.from_dict(
    {
        "query": queries, "document": documents, "teacher_score": (q * d).sum(1), "teacher_query_embedding": q,
        "teacher_document_embedding": d, "group": [str(i // 3) for i in range(64)],
        "weight": [0.25 if i % 3 else 1.0 for i in range(64)],
        "negatives": negatives, "teacher_negative_embeddings": n,
        "negative_scores": np.einsum("bd,bkd->bk", q, n),
    }
).with_format("numpy")  # fmt: skip
components = principal_components(np.concatenate([q, d]), 16)
arguments = StudentArguments(
    student_layers="0,2",
    student_dim=16,
    student_max_length=32,
    student_init="pca",
    student_dropout=0.0,
)
out = Path(sys.argv[3])
trainer = DistillationTrainer(
    weights=Weights(contrastive=1, regression=2, regression_on="matrix", distribution=0.5, margin=0.5, alignment=3),
    final_weights={"alignment": 1.0},
    false_negative_margin=0.05,
    false_negative_groups=True,
    symmetric=True,
    matryoshka_dims=[8],
    components=torch.from_numpy(components),
    model=build_student(arguments, teacher, Blueprint(components), 0),
    args=SentenceTransformerTrainingArguments(
        output_dir=str(out), per_device_train_batch_size=int(sys.argv[2]), num_train_epochs=2, learning_rate=0.05, optim="sgd",
        max_grad_norm=1.0, save_strategy="no", logging_steps=1, disable_tqdm=True, use_cpu=True, seed=3, report_to="none",
    ),
    train_dataset=rows,
)  # fmt: skip
trainer.train()
if trainer.is_world_process_zero():
    trainer.model.save_pretrained(str(out), create_model_card=False)
    losses = [row["grad_norm"] for row in trainer.state.log_history if "loss" in row]
    (out / "log.json").write_text(
        json.dumps({"world": int(os.environ.get("WORLD_SIZE", "1")), "grad_norms": losses})
    )

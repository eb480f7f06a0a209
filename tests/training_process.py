"""Train the tiny student for some steps, on as many processes as there are, and save it:
`training_process.py TEACHER BATCH OUT FORM`, where FORM is texts or numbers.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from conftest import sentences
from datasets import Dataset
from tiny_training import tiny

from hf_distill.recipe.config import DistillationConfig
from hf_distill.training.trainer import DistillationTrainer

folder, batch, out, form = sys.argv[1:]
parts = tiny(Path(folder), pairs=64, pool=512)
weights = [0.25 if i % 3 else 1.0 for i in range(64)]
if form == "numbers":
    rows, lookup = parts.numbers.add_column("weight", weights), parts.lookup
    rows = rows.with_format("numpy")
else:
    columns = parts.texts.with_format(None).to_dict()
    columns["document"][5] = columns["document"][40]  # perhaps on different processes
    negatives = [sentences(2, 900 + 2 * i) for i in range(64)]
    negatives[7][1] = columns["document"][9]  # a negative that is another pair's document
    n = np.stack([parts.embed(row) for row in negatives])
    scores = np.einsum("bd,bkd->bk", np.array(columns["teacher_query_embedding"]), n)
    further = {
        "weight": weights, "negatives": negatives, "negative_scores": scores,
        "teacher_negative_embeddings": n,
    }  # fmt: skip
    rows, lookup = Dataset.from_dict({**columns, **further}).with_format("numpy"), None
trainer = DistillationTrainer(
    parts.student,
    DistillationConfig(
        out, per_device_train_batch_size=int(batch), num_train_epochs=2, learning_rate=0.05,
        optim="sgd", max_grad_norm=1.0, save_strategy="no", logging_steps=1, disable_tqdm=True,
        use_cpu=True, seed=3, report_to="none", contrastive_weight=1, regression_weight=2,
        regression_on="matrix", kl_weight=0.5, margin_weight=0.5, alignment_weight=3,
        false_negative_margin=0.05, contrastive_symmetric=True, matryoshka_dims=[8],
        texts_per_pair=2 if form == "numbers" else 0,
    ),
    rows,
    components=torch.from_numpy(parts.components),
    lookup=lookup,
)  # fmt: skip
trainer.train()
if trainer.is_world_process_zero():
    trainer.model.save_pretrained(out, create_model_card=False)
    norms = [row["grad_norm"] for row in trainer.state.log_history if "loss" in row]
    world = int(os.environ.get("WORLD_SIZE", "1"))
    Path(out, "log.json").write_text(json.dumps({"world": world, "grad_norms": norms}))

"""The training stage: rows with hard negatives, and what is refused before it begins."""

from __future__ import annotations

import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainingArguments

from hf_distill.errors import InputError
from hf_distill.training.train import (
    check_batch,
    with_hard_negatives,
)


def test_fewer_pairs_than_a_batch_is_said() -> None:
    args = SentenceTransformerTrainingArguments(
        output_dir="unused", per_device_train_batch_size=16, use_cpu=True
    )
    with pytest.raises(
        InputError, match="15 training pairs do not fill one batch of 16 on 1 process"
    ):
        check_batch(15, args)
    check_batch(16, args)


def test_hard_negatives_come_from_all_scored_pairs() -> None:
    everything = Dataset.from_dict(
        {"pair_id": ["a", "b", "c"], "document": ["da", "db", "dc"], "document_id": ["1", "2", "3"]}
    )
    selected = Dataset.from_dict(
        {
            "pair_id": ["c", "a"],
            "hard_negatives": [["b", "a"], ["c"]],
            "hard_negative_scores": [[0.5, 0.25], [0.125]],
        }
    )
    made = with_hard_negatives(selected, everything, 2)
    assert made["negatives"][:] == [["db", "da"], ["dc", "dc"]], (
        "the last one is repeated where there are fewer"
    )
    assert made["negative_ids"][:] == [["2", "1"], ["3", "3"]]
    assert made["negative_scores"][:] == [[0.5, 0.25], [0.125, 0.125]]
    assert with_hard_negatives(selected, everything, 0) is selected
    none = Dataset.from_dict(
        {"pair_id": ["c"], "hard_negatives": [[]], "hard_negative_scores": [[]]}
    )
    with pytest.raises(InputError, match="the pair c has no other document"):
        with_hard_negatives(none, everything, 1)
    with pytest.raises(InputError, match="this one scores pairs only"):
        with_hard_negatives(everything, everything, 1)

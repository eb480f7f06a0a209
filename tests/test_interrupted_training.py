"""A training that is interrupted anywhere and called again is the uninterrupted one."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
from accelerate.data_loader import prepare_data_loader
from datasets import IterableDataset, load_dataset
from tiny_training import Tiny, tiny
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_distill.errors import InputError
from hf_distill.training.checkpoints import wanted_checkpoint


class KilledError(Exception):
    """The process is killed."""


class Killer(TrainerCallback):
    """Raises at the `count`-th call of one of the Trainer's events."""

    def __init__(self, event: str, count: int) -> None:
        self.left = count
        setattr(self, event, self._called)

    def _called(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if not self.left:
            raise KilledError


@pytest.fixture(scope="module")
def parts(teacher_dir: Path) -> Tiny:
    """32 pairs: four batches of eight."""
    return tiny(teacher_dir)


def untimed(log: list[dict[str, float]]) -> list[dict[str, float]]:
    timed = ("runtime", "per_second", "train_")
    return [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in log]


def again_of(callbacks: list[EarlyStoppingCallback]) -> list[TrainerCallback]:
    """New ones: they count."""
    return [EarlyStoppingCallback(c.early_stopping_patience) for c in callbacks]


SETTINGS: dict[str, dict[str, Any]] = {
    "max_steps inside an epoch": {"save_strategy": "steps", "save_steps": 3, "max_steps": 6},
    "evaluations at epochs": {
        "save_strategy": "epoch", "eval_strategy": "epoch", "max_steps": 6,
        "load_best_model_at_end": True, "metric_for_best_model": "eval_loss",
    },
    "evaluations between": {
        "save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3,
        "num_train_epochs": 2, "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
    },
    "evaluation after the last checkpoint": {
        "save_strategy": "steps", "save_steps": 1, "eval_strategy": "epoch", "max_steps": 6,
    },
    "the epoch ends with a checkpoint": {
        "save_strategy": "steps", "save_steps": 4, "eval_strategy": "epoch", "num_train_epochs": 2,
    },
    "stopped early": {
        "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1,
        "num_train_epochs": 3, "learning_rate": 0.5, "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
    },
    "accumulation": {
        "save_strategy": "steps", "save_steps": 1, "max_steps": 3,
        "gradient_accumulation_steps": 2,
    },
    "the log has steps of its own": {
        "save_strategy": "steps", "save_steps": 2, "logging_steps": 3, "num_train_epochs": 2,
    },
    "the better students are kept": {
        "save_strategy": "best", "eval_strategy": "steps", "eval_steps": 2, "logging_steps": 5,
        "num_train_epochs": 2, "metric_for_best_model": "eval_loss",
    },
}  # fmt: skip

MOMENTS = [
    ("on_step_end", 5), ("on_save", 1), ("on_prediction_step", 7), ("on_evaluate", 2),
    ("on_train_end", 1),
]  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_killed_at_any_moment_it_ends_as_if_nothing_had_happened(
    parts: Tiny, tmp_path: Path, name: str
) -> None:
    settings = {"restore_callback_states_from_checkpoint": True, **SETTINGS[name]}
    stopping = [EarlyStoppingCallback(2)] if name == "stopped early" else []
    whole = parts.trainer(tmp_path / "whole", callbacks=stopping, **settings)
    whole.train()
    happened = 0
    for event, count in MOMENTS:
        folder = tmp_path / "killed"
        killed = parts.trainer(
            folder, callbacks=[*again_of(stopping), Killer(event, count)], **settings
        )
        try:
            killed.train()
        except KilledError:
            happened += 1
        else:
            shutil.rmtree(folder, ignore_errors=True)
            continue  # there is no such moment in this training
        again = parts.trainer(folder, callbacks=again_of(stopping), **settings)
        again.train(resume_from_checkpoint=wanted_checkpoint(again.args, folder))
        moment = f"{name}, {event} {count}"
        assert again.state.global_step == whole.state.global_step, moment
        assert untimed(again.state.log_history) == untimed(whole.state.log_history), moment
        ours, theirs = again.model.state_dict(), whole.model.state_dict()
        assert all(ours[key].equal(value) for key, value in theirs.items()), moment
        shutil.rmtree(folder)
    assert happened >= 2


@pytest.fixture
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """datasets waits five seconds for its threads whenever a shuffled stream is left."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


@pytest.fixture(scope="module")
def parquet(parts: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 32 pairs in four files."""
    folder = tmp_path_factory.mktemp("rows")
    for number in range(4):
        parts.texts.shard(4, number).to_parquet(folder / f"part-{number}.parquet")
    return folder


def stream(parquet: Path) -> IterableDataset:
    rows = load_dataset(
        "parquet", data_files=f"{parquet}/*.parquet", split="train", streaming=True
    )  # fmt: skip
    return rows.shuffle(seed=3, buffer_size=16).with_format("numpy")


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("saved", [3, 5], ids=["in the first pass", "in the second"])
def test_rows_that_stream_are_the_same_after_an_interruption(
    parts: Tiny, parquet: Path, tmp_path: Path, saved: int
) -> None:
    settings = {"max_steps": 7, "save_strategy": "steps", "save_steps": saved}
    whole = parts.trainer(tmp_path / "whole", stream(parquet), **settings)
    whole.train()
    folder = tmp_path / "killed"
    killer = Killer("on_step_end", saved + 1)
    with pytest.raises(KilledError):
        parts.trainer(folder, stream(parquet), callbacks=[killer], **settings).train()
    again = parts.trainer(folder, stream(parquet), **settings)
    again.train(resume_from_checkpoint=str(folder / f"checkpoint-{saved}"))
    assert untimed(again.state.log_history) == untimed(whole.state.log_history)
    ours, theirs = again.model.state_dict(), whole.model.state_dict()
    assert all(ours[key].equal(value) for key, value in theirs.items())
    other = parts.trainer(tmp_path / "other", stream(parquet).shuffle(seed=4), **settings)
    other.train()
    assert untimed(other.state.log_history) != untimed(whole.state.log_history)


@pytest.mark.usefixtures("_no_waiting")
def test_rows_that_stream_are_shared_by_the_processes(
    parts: Tiny, parquet: Path, tmp_path: Path
) -> None:
    """As accelerate deals out what the trainer gives it."""
    rows = parts.trainer(tmp_path, stream(parquet), max_steps=1).train_dataset
    loaders = [
        prepare_data_loader(
            DataLoader(rows, batch_size=4, collate_fn=list),
            num_processes=2, process_index=rank, put_on_device=False, dispatch_batches=False,
        )
        for rank in range(2)
    ]  # fmt: skip
    passes = [[row["query"] for batch in islice(each, 8) for row in batch] for each in loaders]
    assert all(own[:16] == own[16:] for own in passes), "the second pass is as the first"
    assert len({*passes[0], *passes[1]}) == 32


def test_rows_that_stream_have_no_pool_and_no_shares(
    parts: Tiny, parquet: Path, tmp_path: Path
) -> None:
    for settings, says in (
        ({"lookup": parts.lookup}, "a stream, and there is a pool"),
        ({"source_alpha": 0.5}, "or are a stream"),
    ):
        with pytest.raises(InputError, match=says):
            parts.trainer(tmp_path, stream(parquet), max_steps=1, **settings)

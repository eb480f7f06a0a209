"""The training's line on a terminal."""

from __future__ import annotations

from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

_SHOWN = {"loss": "loss", "eval_loss": "validation"}
"""Name of a loss in the log -> in the bar."""


class TrainingBar(ProgressCallback):
    """One bar with the last losses behind it. What is logged is not printed between: the run keeps
    it in `training.json`, and the report draws it.
    """

    training_bar: Any

    def __init__(self) -> None:
        super().__init__()
        self._losses: dict[str, str] = {}

    def on_train_begin(self, *arguments: Any, **named: Any) -> None:
        super().on_train_begin(*arguments, **named)  # type: ignore[no-untyped-call]  # untyped
        if self.training_bar is not None:
            self.training_bar.leave = False  # the stage's summary stands there afterwards
            self.training_bar.set_description("Training")
            self.training_bar.unit = "step"

    def on_prediction_step(self, *arguments: Any, **named: Any) -> None:
        """No second bar below the first: a validation is short beside what lies around it."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value in (logs or {}).items():
            if name in _SHOWN:
                self._losses[_SHOWN[name]] = f"{value:.4g}"
        if self.training_bar is not None:
            self.training_bar.set_postfix(self._losses)


def show_one_bar(trainer: Trainer) -> None:
    """Let `trainer` show one bar, or nothing where bars are off (`disable_tqdm`)."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(TrainingBar())

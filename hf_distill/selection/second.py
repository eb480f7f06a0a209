"""The second model of a selection: which rules read what it says."""

from __future__ import annotations

from collections.abc import Sequence

from hf_distill.errors import InputError
from hf_distill.selection.rules import Rule, needed_columns

COLUMN = "disagreement"


def check_second_model(rules: Sequence[Rule], model: str | None) -> None:
    """Check the key `second_model` against the rules that read it.

    Raises:
        InputError: A rule needs a second model and there is none, or no rule needs the one named.
    """
    reading = [rule for rule in rules if COLUMN in needed_columns([rule])]
    if reading and model is None:
        raise InputError(
            f"the selection rule {reading[0]} compares the teacher with a second model, and none "
            "is named; name a bi-encoder, or the student of an earlier run, with --second_model"
        )
    if model is not None and not reading:
        raise InputError(
            f"--second_model {model}: no selection rule reads it; add agreement=F or "
            "disagreement=F, or set --second_model none"
        )

"""What a study trains on: selections and their controls, each with the same number of examples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe
from hf_distill.recipe.config import DistillationConfig
from hf_distill.selection.rules import (
    UNSCORED,
    Columns,
    Outcome,
    Rule,
    RuleKind,
    apply_rules,
    parse_rules,
    rule,
)

FULL = "all pairs"
ORACLE = "oracle: the clean pairs"
SAME_SIZE = 0.1
"""Selections whose sizes differ by at most this share have the same random control. A selection
whose size is this near to that of all pairs needs none.
"""


@rule(low=1, whole=True)
def sample(columns: Columns, rule: Rule) -> Outcome:
    """Keep `value` random pairs."""
    return Outcome(columns.order < rule.number)


@rule(low=1, whole=True)
def lowest(columns: Columns, rule: Rule) -> Outcome:
    """Keep the `value` lowest scores. The seed breaks ties."""
    keep = np.zeros(len(columns), dtype=bool)
    keep[np.lexsort((columns.order, columns.score))[: int(rule.number)]] = True
    return Outcome(keep)


def clean(rows: np.ndarray) -> Rule:
    """A rule that keeps the pairs that noise has left alone.

    Args:
        rows: (m,) int64, the rows of the others among the judgements.
    """

    def apply(columns: Columns, _: Rule) -> Outcome:
        return Outcome(~np.isin(columns.pairs.rows, rows))

    return Rule("clean", RuleKind(apply))


@dataclass(frozen=True)
class Arm:
    """A way to choose the pairs that a student is trained on.

    Attributes:
        name: Identifies it: the text of the rules, or the name of the control.
        rules: The selection.
        kind: A control is all pairs, random ones or those with the lowest scores.
        control: The name of the random control of its size; None if the selection is (nearly) all
            pairs, or a control itself.
    """

    name: str
    rules: tuple[Rule, ...]
    kind: Literal["all", "random", "bottom", "selection"] = "selection"
    control: str | None = None

    def rows(self, columns: Columns) -> np.ndarray:
        """(k,) int64, ascending: the pairs to train on. Each has a score."""
        return apply_rules(columns, [UNSCORED, *self.rules]).kept


def parse_selections(texts: Sequence[str]) -> dict[str, tuple[Rule, ...]]:
    """Read lists of rules, each one text with spaces between the rules. Returns name -> rules.

    Raises:
        InputError: No selection, one given twice, one without a rule, or a bad rule.
    """
    if not texts:
        raise InputError(
            '--rules: name at least one selection to try, e.g. --rules "echo percentile=80"'
        )
    selections: dict[str, tuple[Rule, ...]] = {}
    for text in texts:
        rules = tuple(parse_rules(text.split(), "rules"))
        name = " ".join(map(str, rules))
        if not rules:
            raise InputError(f"--rules {text!r} names no rule; all pairs are a control anyway")
        if name in selections:
            raise InputError(f"--rules {text!r} is given twice; leave one out")
        selections[name] = rules
    return selections


def plan_arms(selections: Mapping[str, tuple[Rule, ...]], columns: Columns) -> list[Arm]:
    """All pairs, random pairs of each size, the lowest scores of the first size, and the
    selections, in the order given.

    Args:
        selections: As from `parse_selections`.
        columns: The scored training pairs.

    Raises:
        InputError: A selection keeps nothing.
    """
    full = Arm(FULL, (), "all")
    available = len(full.rows(columns))
    random: dict[int, Arm] = {}
    arms: list[Arm] = []
    for name, rules in selections.items():
        size = len(Arm(name, rules).rows(columns))
        if not size:
            raise InputError(
                f"--rules {name!r} keeps none of {available} pairs, so there is nothing to train "
                "on; relax a rule"
            )
        control = None
        if size < (1 - SAME_SIZE) * available:
            near = next((n for n in random if abs(n - size) <= SAME_SIZE * n), size)
            of_size = (Rule("sample", sample, float(near)),)
            control = random.setdefault(near, Arm(f"random {near:,}", of_size, "random")).name
        arms.append(Arm(name, rules, control=control))
    bottom = [
        Arm(f"bottom {size:,}", (Rule("lowest", lowest, float(size)),), "bottom")
        for size in list(random)[:1]
    ]
    return [full, *random.values(), *bottom, *arms]


def matched_recipe(recipe: Recipe, examples: int, seed: int) -> Recipe:
    """`recipe` with `seed` and this number of training `examples`, rounded up to whole batches;
    without validation and checkpoints. Its further stages become longer or shorter in the same
    proportion, unless they have `max_steps`.

    Incomplete batches are dropped. A small selection has many epochs, and would otherwise end each
    of them with an incomplete batch and see fewer examples.
    """

    def matched(config: DistillationConfig, max_steps: int) -> DistillationConfig:
        return dataclasses.replace(
            config,
            max_steps=max_steps,
            seed=seed,
            data_seed=None,
            eval_strategy="no",
            logging_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            early_stopping_patience=None,
            dataloader_drop_last=True,
            resume_from_checkpoint=None,
        )

    def steps(config: DistillationConfig, examples: float) -> int:
        each = config.train_batch_size * config.gradient_accumulation_steps
        return math.ceil(examples / int(each * config.world_size))

    epochs = recipe.training.num_train_epochs
    return dataclasses.replace(
        recipe,
        training=matched(recipe.training, steps(recipe.training, examples)),
        further=tuple(
            matched(
                stage,
                stage.max_steps
                if stage.max_steps > 0
                else steps(stage, examples * stage.num_train_epochs / epochs),
            )
            for stage in recipe.further
        ),
    )

"""Which layers of the backbone the student keeps: those named, or those that a search chooses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_distill.errors import InputError

SEARCH = "search="

EXHAUSTIVE = 120
"""The search tries every subset if there are at most this many. Otherwise it starts from an even
spread and moves to the best neighbour until none is better.
"""


def parse_layers(text: str, available: int) -> list[int]:
    """Read the layers to keep: `0,2,5`, or `every=2` for each second one, starting with the first.

    Raises:
        InputError: These are not whole numbers in ascending order, or the backbone does not have
            one of the layers.
    """
    if text.startswith("every="):
        return list(range(0, available, _number(text, available)))
    try:
        layers = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--student_layers {text!r}: name layers by number, e.g. 0,2,5, or every=2, or search=3"
        ) from None
    if layers != sorted(set(layers)) or layers[0] < 0:
        raise InputError(
            f"--student_layers {text!r}: name each layer once, in ascending order, e.g. 0,2,5"
        )
    if layers[-1] >= available:
        raise InputError(
            f"--student_layers {text!r}: the backbone has {available} layers; name numbers from 0 "
            f"to {available - 1}"
        )
    return layers


def parse_search(text: str, available: int) -> int:
    """How many layers `search=K` keeps.

    Raises:
        InputError: K is not a whole number from 1 to `available`.
    """
    return _number(text, available)


def _number(text: str, available: int) -> int:
    kind, _, number = text.partition("=")
    if not number.isdecimal() or not 1 <= int(number) <= available:
        raise InputError(
            f"--student_layers {text!r}: {kind}= takes a whole number from 1 to {available}, the "
            "backbone's number of layers"
        )
    return int(number)


def _layer_stack(model: nn.Module) -> tuple[nn.Module, str, nn.ModuleList]:
    """The module that holds the backbone's layers, the name of its attribute, and the layers."""
    for holder in model.modules():
        for name in ("layer", "layers", "h", "block"):
            stack = getattr(holder, name, None)
            if isinstance(stack, nn.ModuleList) and len(stack) > 0:
                return holder, name, stack
    raise InputError(
        f"--student_layers: hf_distill does not know where a {type(model).__name__} keeps its "
        "layers; set --student_layers none"
    )


def count_layers(backbone: PreTrainedModel) -> int:
    """How many layers `backbone` has."""
    return len(_layer_stack(backbone)[2])


def keep_layers(backbone: PreTrainedModel, kept: list[int]) -> None:
    """Cut `backbone` (a transformers model) down to the layers `kept`, in place."""
    holder, name, stack = _layer_stack(backbone)
    setattr(holder, name, nn.ModuleList([stack[i] for i in kept]))
    config = backbone.config
    if config.num_hidden_layers != len(stack):
        raise InputError(
            f"--student_layers: the backbone has {len(stack)} layers, but its configuration says "
            f"{config.num_hidden_layers}; set --student_layers none"
        )
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept]


@contextmanager
def only_layers(backbone: PreTrainedModel, kept: list[int]) -> Iterator[None]:
    """Within the context, `backbone` has only the layers `kept`."""
    holder, name, stack = _layer_stack(backbone)
    types = getattr(backbone.config, "layer_types", None)
    number = backbone.config.num_hidden_layers
    keep_layers(backbone, kept)
    try:
        yield
    finally:
        setattr(holder, name, stack)
        backbone.config.num_hidden_layers = number
        if types:
            backbone.config.layer_types = types


def search_layers(
    available: int, number: int, quality: Callable[[list[int]], float]
) -> dict[tuple[int, ...], float]:
    """Look for the `number` of `available` layers with the highest `quality`.

    Returns:
        The quality of every subset that was tried, the best one first. Of equal ones, the one with
        the lower layers comes first.
    """
    tried: dict[tuple[int, ...], float] = {}

    def look(subsets: list[tuple[int, ...]], bar: tqdm[Any]) -> None:
        for subset in subsets:
            if subset not in tried:
                tried[subset] = quality(list(subset))
                bar.update()

    with tqdm(desc=f"Layers, {number} of {available}", unit=" subsets", leave=False) as bar:
        if math.comb(available, number) <= EXHAUSTIVE:
            bar.total = math.comb(available, number)
            look(list(itertools.combinations(range(available), number)), bar)
        else:
            here = tuple(round(i * (available - 1) / max(1, number - 1)) for i in range(number))
            look([here], bar)
            while True:
                others = sorted(set(range(available)) - set(here))
                neighbours = [
                    tuple(sorted({*here} - {out} | {into})) for out in here for into in others
                ]
                look(neighbours, bar)
                best = max(neighbours, key=tried.__getitem__)
                if tried[best] <= tried[here]:
                    break
                here = best
    return dict(sorted(tried.items(), key=lambda item: (-item[1], item[0])))

"""Which layers of the backbone the student keeps: named, or found by the search that asks which
keep most of the teacher's ranking.
"""

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
"""Up to so many subsets, the search looks at each; above, it goes from an even spread to the best
neighbour until none is better.
"""


def parse_layers(text: str, available: int) -> list[int]:
    """Read kept layers such as `0,2,5`, or `every=2` for each second one from the first.

    Raises:
        InputError: Not whole numbers in ascending order, or a layer that the backbone does not
            have.
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
        raise InputError(f"--student_layers {text!r}: each layer once, in ascending order")
    if layers[-1] >= available:
        raise InputError(
            f"--student_layers {text!r}: the backbone has {available} layers, 0 to {available - 1}"
        )
    return layers


def parse_search(text: str, available: int) -> int:
    """How many layers `search=K` is to find.

    Raises:
        InputError: K is no whole number from 1 to `available`.
    """
    return _number(text, available)


def _number(text: str, available: int) -> int:
    kind, _, number = text.partition("=")
    if not number.isdecimal() or not 1 <= int(number) <= available:
        what = "step" if kind == "every" else "number of layers"
        raise InputError(
            f"--student_layers {text!r}: the {what} is a whole number from 1 to the backbone's {available} layers"
        )
    return int(number)


def _layer_stack(model: nn.Module) -> tuple[nn.Module, str, nn.ModuleList]:
    """The module that holds the backbone's layers, the name it holds them under, and the layers."""
    for holder in model.modules():
        for name in ("layer", "layers", "h", "block"):
            stack = getattr(holder, name, None)
            if isinstance(stack, nn.ModuleList) and len(stack) > 0:
                return holder, name, stack
    raise InputError(
        f"--student_layers: {type(model).__name__} keeps its layers in a place that is not known here; leave the key out"
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
            f"--student_layers: the backbone's configuration says {config.num_hidden_layers} layers, it has {len(stack)}"
        )
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept]


@contextmanager
def only_layers(backbone: PreTrainedModel, kept: list[int]) -> Iterator[None]:
    """`backbone` with the layers `kept` alone, for a while."""
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
        The quality of every subset that was looked at, the best one first; of equals, the one with
        the lower layers.
    """
    found: dict[tuple[int, ...], float] = {}

    def look(subsets: list[tuple[int, ...]], bar: tqdm[Any]) -> None:
        for subset in subsets:
            if subset not in found:
                found[subset] = quality(list(subset))
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
                best = max(neighbours, key=found.__getitem__)
                if found[best] <= found[here]:
                    break
                here = best
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

"""Reading YAML: what it may hold, and what YAML itself would let pass."""

from __future__ import annotations

from typing import Any

import yaml

from hf_distill.errors import InputError

_DEEPEST = 20
"""Levels of a file. A recipe has three."""


class _Loader(yaml.SafeLoader):
    """YAML without tags that make objects, whose mappings hold each key once."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError(f"it has more than {_DEEPEST} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for name in (name for name, _ in node.value if isinstance(name, yaml.ScalarNode)):
            if name.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name.value!r} is there twice", name.start_mark
                )
            seen.add(name.value)
        return super().construct_mapping(node, deep=deep)


def read_yaml(text: str, where: object) -> Any:
    """What a YAML text holds.

    Args:
        text: The text.
        where: The file's name, for errors.

    Raises:
        InputError: It is not YAML, holds a key twice, or is nested too deeply: in which line.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        says = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"{where}{line} is not a YAML file: {says}; correct it") from error

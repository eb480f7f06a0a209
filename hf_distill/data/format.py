"""A format of files: when tables have it, and how they are read.

To add one, write a module in `hf_distill/data/sources/` with a `FORMAT`, and give it a line in
`hf_distill.recipe.kinds.FORMATS`; or name it in the recipe as `package.module:name`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hf_distill.data.collection import SourcePairs
from hf_distill.data.tables.table import Tables
from hf_distill.recipe.arguments import DataArguments


@dataclass(frozen=True)
class Format:
    """How files of one kind become pairs.

    Attributes:
        fits: Whether the tables have this format, by their names, columns and first rows. It may
            look at the recipe's columns (`query_column` ...). It raises nothing.
        read: What the tables hold. It raises `InputError` for tables that lack something, before
            any row is read; its `rows` raise it for a row that cannot be used, with the place.
    """

    fits: Callable[[Tables, DataArguments], bool]
    read: Callable[[Tables, DataArguments], SourcePairs]

"""Pairs from the documentation that is already on this machine: the docstrings of installed Python
packages.

The summary of a docstring is the query, the text after it is the document. Files are parsed with
`ast`, never imported.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hf_distill.data.collection import Source, SourcePairs
from hf_distill.data.near_duplicates import NearDuplicates, text_key
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe

PASSAGE_CHARACTERS = 200
"""A document is a passage: the text after the summary, cut at a space near this length. It is short
enough for every system to read whole.
"""

_SUMMARY_CHARACTERS = (15, 200)
_MIN_SUMMARY_WORDS = 3
_MIN_PASSAGE_CHARACTERS = 60
_SKIPPED_FOLDERS = frozenset((
    "__pycache__", "site-packages", "dist-packages", "test", "tests", "testing", "_vendor",
    "vendor", "idlelib",
))  # fmt: skip


def installed_roots() -> list[Path]:
    """The folders that hold this interpreter's standard library and installed packages."""
    paths = sysconfig.get_paths()
    return list(dict.fromkeys(Path(paths[name]) for name in ("stdlib", "purelib", "platlib")))


def _python_files(root: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in _SKIPPED_FOLDERS)
        yield from (Path(folder) / name for name in sorted(files) if name.endswith(".py"))


def _module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _docstrings(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """(qualified name, cleaned docstring) of the module and of every class and function in it, in
    source order.
    """

    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (
            text := ast.get_docstring(node)
        ):
            yield name, text
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from walk(child, f"{name}.{child.name}")
            elif isinstance(child, (ast.If, ast.Try, ast.With)):
                yield from walk(child, name)

    return walk(tree, module)


def passage(text: str) -> str:
    """`text` with single spaces, cut at the last space within `PASSAGE_CHARACTERS`."""
    flat = " ".join(text.split())
    if len(flat) <= PASSAGE_CHARACTERS:
        return flat
    return flat[: PASSAGE_CHARACTERS + 1].rpartition(" ")[0] or flat[:PASSAGE_CHARACTERS]


def _parse(file: Path) -> ast.Module | None:
    """The file's syntax tree; None if this interpreter cannot read it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, OSError):
        return None


class _Sieve:
    """Rejects pairs that are too short, and pairs that repeat an earlier one."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._summaries: set[str] = set()
        self._passages: set[str] = set()
        self._near = NearDuplicates()

    def rejects(self, name: str, query: str, document: str) -> str | None:
        """Why the pair is left out; None if it is taken."""
        query_key, document_key = text_key(query), text_key(document)
        low, high = _SUMMARY_CHARACTERS
        checks: tuple[tuple[str, Callable[[], bool]], ...] = (
            ("summary only", lambda: not document),
            (
                "summary too short or too long",
                lambda: not low <= len(query) <= high or len(query.split()) < _MIN_SUMMARY_WORDS,
            ),
            ("text too short", lambda: len(document) < _MIN_PASSAGE_CHARACTERS),
            ("redefined name", lambda: name in self._names),
            ("repeated summary", lambda: query_key in self._summaries),
            ("repeated text", lambda: document_key in self._passages),
            ("near-duplicate text", lambda: self._near.has(document)),
        )
        for reason, holds in checks:
            if holds():
                return reason
        self._names.add(name)
        self._summaries.add(query_key)
        self._passages.add(document_key)
        self._near.add(document)
        return None


def read_pydocs(recipe: Recipe) -> SourcePairs:
    """At most `max_pairs` pairs from the source tree `dataset_path`, or without it from what is
    installed.

    Raises:
        InputError: As `harvest`.
    """
    path = recipe.data.dataset_path
    root = None if path is None else Path(path)
    return harvest(root, recipe.data.max_pairs, recipe.seed)


def harvest(root: Path | None, max_pairs: int | None, seed: int) -> SourcePairs:
    """(Summary, text) pairs of docstrings. No summary, passage or near-duplicate of a passage
    appears twice. `group` is the module, `source` the package.

    Args:
        root: A source tree to read instead of the installed packages.
        max_pairs: Stop after this many pairs. None reads everything.
        seed: Seeds the order in which files are read, so that the first pairs come from many
            packages and not from the first ones of the alphabet.

    Raises:
        InputError: `root` does not exist or holds no Python file.
    """
    if root is not None and not root.is_dir():
        raise InputError(
            f"--dataset_path {root}: there is no such folder; name a folder of Python files, or "
            "set --dataset_path none to read the installed packages"
        )
    roots = [root] if root is not None else installed_roots()
    files = sorted(
        {(_module_name(file, base), file) for base in roots for file in _python_files(base)}
    )
    if not files:
        raise InputError(f"there is no .py file in {', '.join(map(str, roots))}")
    files.sort(key=lambda entry: hashlib.sha256(f"{seed} {entry[0]}".encode()).digest())
    counts: Counter[str] = Counter()
    unused: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        sieve, taken = _Sieve(), 0
        with tqdm(total=max_pairs, unit=" pairs", desc="Reading docstrings", leave=False) as bar:
            for module, file in files:
                if max_pairs is not None and taken >= max_pairs:
                    return
                tree = _parse(file)
                if tree is None:
                    unused["files that do not parse"] += 1
                    continue
                for name, text in _docstrings(tree, module):
                    head, _, rest = text.partition("\n\n")
                    query, document = " ".join(head.split()), passage(rest)
                    counts["docstrings found"] += 1
                    reason = sieve.rejects(name, query, document)
                    if reason is not None:
                        counts[reason] += 1
                        continue
                    taken += 1
                    bar.update()
                    yield {
                        "pair_id": name,
                        "query": query,
                        "document": document,
                        "group": module,
                        "source": module.split(".", 1)[0],
                    }

    installed = "the Python packages installed on this machine"
    where = installed if root is None else f"the Python files of {root.name}"
    about = Source(
        name="pydocs",
        description=f"Docstrings of {where}: the summary is the query, the text after it is the "
        "document.",
    )
    return SourcePairs(about, rows(), counts=counts, read_as="docstrings", unused=unused)

"""Pairs from the documentation that is already on this machine: the docstrings of installed Python
packages.

A docstring's summary is the query, what follows it is the document. Files are parsed with `ast`,
never imported.
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

from tqdm.auto import tqdm

from hf_distill.data.collection import (
    PAIR_FEATURES,
    Source,
    SourcePairs,
    dataset_of,
)
from hf_distill.data.near_duplicates import (
    NearDuplicates,
    text_key,
)
from hf_distill.errors import InputError

PASSAGE_CHARACTERS = 200
"""A document is a passage: the rest of the docstring up to about this length, cut at a space. Every
system sees the same.
"""

_SUMMARY_CHARACTERS = (15, 200)
_MIN_SUMMARY_WORDS = 3
_MIN_PASSAGE_CHARACTERS = 60
_SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "testing",
        "_vendor",
        "vendor",
        "idlelib",
    }
)


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
    """The file's syntax tree; None if it is no Python that this interpreter reads."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, OSError):
        return None


class _Sieve:
    """Lets a pair through that is long enough and that repeats none it has let through before."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._summaries: set[str] = set()
        self._passages: set[str] = set()
        self._near = NearDuplicates()

    def rejects(self, name: str, query: str, document: str) -> str | None:
        """Why the pair is left out, or None: it is taken."""
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


def read_pydocs(root: Path | None, max_pairs: int | None, seed: int, cache: Path) -> SourcePairs:
    """Harvest (summary, rest) pairs from docstrings.

    Args:
        root: A source tree to read instead of the installed packages.
        max_pairs: Stop once this many pairs are found. Files are read in an order seeded by `seed`,
            so that what is read is a sample of modules, not the first packages of the alphabet.
        seed: Seeds that order.
        cache: Folder for the resulting memory-mapped table.

    Returns:
        Pairs whose `group` is their module. A summary, a passage or a near-duplicate of a passage
        appears once.

    Raises:
        InputError: `root` does not exist or holds no Python file.
    """
    if root is not None and not root.is_dir():
        raise InputError(
            f"--dataset_path {root} is no folder; pydocs reads a folder of Python files (or none: what is installed)"
        )
    roots = [root] if root is not None else installed_roots()
    files = sorted(
        {(_module_name(file, base), file) for base in roots for file in _python_files(base)}
    )
    if not files:
        raise InputError(f"no .py file below {', '.join(map(str, roots))}")
    files.sort(key=lambda entry: hashlib.sha256(f"{seed} {entry[0]}".encode()).digest())
    counts: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, str]]:
        sieve = _Sieve()
        with tqdm(total=max_pairs, unit=" pairs", desc="Reading docstrings", leave=False) as bar:
            for module, file in files:
                if max_pairs is not None and counts["kept"] >= max_pairs:
                    return
                tree = _parse(file)
                counts["files read" if tree else "files that do not parse"] += 1
                for name, text in _docstrings(tree, module) if tree else ():
                    head, _, rest = text.partition("\n\n")
                    query, document = " ".join(head.split()), passage(rest)
                    reason = sieve.rejects(name, query, document)
                    counts["docstrings found"] += 1
                    counts[reason or "kept"] += 1
                    if reason is None:
                        bar.update()
                        yield {
                            "pair_id": name,
                            "query": query,
                            "document": document,
                            "group": module,
                            "source": module.split(".", 1)[0],
                        }

    pairs = dataset_of(rows(), PAIR_FEATURES, cache, "pydocs")
    where = (
        "the Python packages installed on this machine"
        if root is None
        else f"the Python files of {root.name}"
    )
    return SourcePairs(
        pairs=pairs,
        counts=dict(counts),
        source=Source(
            name="pydocs",
            description=f"Docstrings of {where}: the summary is the query, the text after it is the document.",
        ),
    )

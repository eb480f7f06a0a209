"""`hf-distill search RUN_OR_MODEL "question"`: ask a student."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from hf_distill.compute.device import use_all_cores
from hf_distill.compute.models import load_sentence_transformer
from hf_distill.errors import InputError
from hf_distill.finished_run import (
    open_finished_run,
    student_of,
)
from hf_distill.run.folder import RunFolder
from hf_distill.serving.index import (
    DEPTH,
    Index,
    build_index,
    corpus_of_python,
    corpus_of_run,
    find_index,
    python_key,
    user_cache,
)

HELP = "Search a run's documents with its student (of a model: the Python documentation on this machine)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "run_or_model",
        metavar="RUN_OR_MODEL",
        help="Folder of a finished run, or a model: a folder or a Hub id.",
    )
    parser.add_argument(
        "question",
        nargs="*",
        help="What to ask. Default: one question a line is read, and answered at once.",
    )
    parser.add_argument(
        "--top", type=int, default=DEPTH, metavar="K", help=f"How many documents. Default: {DEPTH}."
    )


def open_index(run_or_model: str) -> Index:
    """The index of a run or a model: kept from an earlier call, or made."""
    model = load_sentence_transformer(student_of(run_or_model), "search")
    path = Path(run_or_model)
    if RunFolder(path).recipe.is_file():
        run = open_finished_run(path)
        folder = run.folder.path / "search"
        return find_index(model, run.data.key, folder) or build_index(
            model, corpus_of_run(run), folder
        )
    return find_index(model, python_key(), user_cache()) or build_index(
        model, corpus_of_python(), user_cache()
    )


def printable(text: str) -> str:
    """`text` on one line without control characters: a document must not command the terminal."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def answer(index: Index, question: str, top: int) -> None:
    """Print what was found, and how long it took."""
    start = time.perf_counter()
    hits = index.ask(question, top)
    milliseconds = 1000 * (time.perf_counter() - start)
    for hit in hits:
        print(f"{hit.score:.3f}  {printable(hit.id)}\n       {printable(hit.text)}")
    print(
        f"{len(hits)} of {len(index.texts):,} documents in {milliseconds:.0f} ms", file=sys.stderr
    )


def run(arguments: argparse.Namespace) -> None:
    """Answer the question of the command line, or each line that is typed."""
    if arguments.top < 1:
        raise InputError(f"--top {arguments.top}: at least 1")
    use_all_cores(1)
    start = time.perf_counter()
    index = open_index(arguments.run_or_model)
    torch.set_num_threads(
        1
    )  # one question is too little to share out: threads would wait for each other
    index.ask("warm up", 1)  # the first call pays for set-up
    print(f"Ready in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    if arguments.question:
        answer(index, " ".join(arguments.question), arguments.top)
        return
    for line in sys.stdin:
        if line.strip():
            answer(index, line.strip(), arguments.top)

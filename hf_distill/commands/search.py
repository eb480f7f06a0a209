"""`hf-distill search RUN_OR_MODEL "question"`: ask a student."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hf_distill.data.conversations import conversation_query
from hf_distill.errors import InputError, printable
from hf_distill.serving.kept import DEPTH, KeptIndex, kept_index

if TYPE_CHECKING:
    from hf_distill.serving.index import Index

HELP = (
    "Search a run's documents with its student; a query encoder searches them as the teacher "
    "embedded them. (With a model: search the Python documentation on this machine.) Of a run, "
    "a student with a BERT backbone, or one that is exported (hf-distill export RUN), answers "
    "without loading torch."
)


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
        help="The question. Default: questions are read from standard input, one a line. If the "
        "student reads conversations, the lines before are the turns before; an empty line begins "
        "a new conversation.",
    )
    parser.add_argument(
        "--python",
        action="store_true",
        help="Search the documentation of all Python packages on this machine, not the documents "
        "of the run. The first call reads and embeds it.",
    )
    parser.add_argument(
        "--top", type=int, default=DEPTH, metavar="K", help=f"How many documents. Default: {DEPTH}."
    )


def open_index(run_or_model: str, python: bool = False) -> tuple[Index | KeptIndex, bool]:
    """The index to search, from an earlier call or made now, and whether the student reads the
    turns before a question.

    Args:
        run_or_model: A run, or a model.
        python: Search the documentation of the installed packages, also if it is a run.
    """
    if not python and (kept := kept_index(Path(run_or_model))) is not None:
        return kept
    from hf_distill.commands.student_index import open_with_torch  # noqa: PLC0415  (seconds)

    return open_with_torch(run_or_model, python)


def _on_one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def answer(index: Index | KeptIndex, question: str, top: int) -> None:
    """Print the nearest documents, and how long it took."""
    start = time.perf_counter()
    hits = index.ask(question, top)
    milliseconds = 1000 * (time.perf_counter() - start)
    for hit in hits:
        print(f"{hit.score:.3f}  {_on_one_line(hit.id)}\n       {_on_one_line(hit.text)}")
    total = len(index.embeddings)
    print(f"{len(hits)} of {total:,} documents in {milliseconds:.0f} ms", file=sys.stderr)


def run(arguments: argparse.Namespace) -> None:
    """Answer the question of the command line, or each line that is typed.

    Raises:
        InputError: The run is not finished, or there is no such model.
    """
    if arguments.top < 1:
        raise InputError(f"--top {arguments.top}: name at least 1")
    start = time.perf_counter()
    index, conversations = open_index(arguments.run_or_model, arguments.python)
    index.ask("warm up", 1)  # the first call is slow
    print(f"Ready in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    if arguments.question:
        answer(index, " ".join(arguments.question), arguments.top)
        return
    history = list[str]()
    for line in map(str.strip, sys.stdin):
        if not line:
            history.clear()
        elif conversations:
            answer(index, conversation_query(history, line), arguments.top)
            history.append(line)
        else:
            answer(index, line, arguments.top)

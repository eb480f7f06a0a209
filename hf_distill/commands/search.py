"""`hf-distill search RUN_OR_MODEL "question"`: ask a student."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from hf_distill.compute.device import use_all_cores
from hf_distill.compute.models import digest_of_weights
from hf_distill.data.conversations import conversation_query
from hf_distill.errors import InputError, printable
from hf_distill.finished_run import finished
from hf_distill.recipe.arguments import CONVERSATION
from hf_distill.run.folder import RunFolder, recipe_says
from hf_distill.serving.index import (
    DEPTH,
    Index,
    corpus_of_python,
    index_of,
    index_of_run,
    load_student,
    user_cache,
)

HELP = (
    "Search a run's documents with its student; a query encoder searches them as the teacher "
    "embedded them. (With a model: search the Python documentation on this machine.)"
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
        "--top", type=int, default=DEPTH, metavar="K", help=f"How many documents. Default: {DEPTH}."
    )


def open_index(run_or_model: str) -> Index:
    """The index of a run or a model, from an earlier call or made now."""
    folder = RunFolder(Path(run_or_model))
    if folder.recipe.is_file() and (folder.student / "modules.json").is_file():
        results = finished(folder.path)  # first: it names a file that is damaged
        return index_of_run(results, load_student(run_or_model))
    model = load_student(run_or_model)
    path = user_cache() / digest_of_weights(model)[:16]
    return index_of(model, corpus_of_python(), path)


def reads_conversations(run_or_model: str) -> bool:
    """Whether it is a run whose student reads the turns before a question."""
    return bool(recipe_says(RunFolder(Path(run_or_model)), "student_query") == CONVERSATION)


def _on_one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def answer(index: Index, question: str, top: int) -> None:
    """Print the nearest documents, and how long it took."""
    start = time.perf_counter()
    hits = index.ask(question, top)
    milliseconds = 1000 * (time.perf_counter() - start)
    for hit in hits:
        print(f"{hit.score:.3f}  {_on_one_line(hit.id)}\n       {_on_one_line(hit.text)}")
    total = len(index.corpus.texts)
    print(f"{len(hits)} of {total:,} documents in {milliseconds:.0f} ms", file=sys.stderr)


def run(arguments: argparse.Namespace) -> None:
    """Answer the question of the command line, or each line that is typed.

    Raises:
        InputError: The run is not finished, or there is no such model.
    """
    if arguments.top < 1:
        raise InputError(f"--top {arguments.top}: name at least 1")
    use_all_cores(1)
    start = time.perf_counter()
    index = open_index(arguments.run_or_model)
    torch.set_num_threads(
        1
    )  # one question is so short that several threads would only wait for each other
    index.ask("warm up", 1)  # the first call is slow
    print(f"Ready in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    if arguments.question:
        answer(index, " ".join(arguments.question), arguments.top)
        return
    conversations, history = reads_conversations(arguments.run_or_model), list[str]()
    for line in map(str.strip, sys.stdin):
        if not line:
            history.clear()
        elif conversations:
            answer(index, conversation_query(history, line), arguments.top)
            history.append(line)
        else:
            answer(index, line, arguments.top)

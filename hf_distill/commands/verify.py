"""`hf-distill verify STUDENT [--with RUNTIME ...]`: does every runtime read the student as
sentence-transformers does?
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sentence_transformers import __version__

from hf_distill.compute.models import load_sentence_transformer, locate_model
from hf_distill.errors import InputError
from hf_distill.evaluation.tasks import held_out_task
from hf_distill.finished_run import results_of
from hf_distill.release.model_card import model_cards, write_model_card
from hf_distill.release.parity import (
    NOT_ASKED_FOR,
    Student,
    attempts_of,
    texts_of,
    verify,
)
from hf_distill.release.probes import PROBES
from hf_distill.release.runtimes.table import RUNTIMES
from hf_distill.release.served import connect
from hf_distill.report.page import write_report, write_texts_report
from hf_distill.report.parity import Compared, Parity, write_parity
from hf_distill.report.results import RunResults, TextsResults
from hf_distill.run.folder import RunFolder
from hf_distill.run.lock import held
from hf_distill.serving.index import student_of

HELP = (
    "Embed the same texts with a student in every runtime that is installed, and compare with "
    "sentence-transformers: does one drop the head, the prompt, or the normalisation?"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "run_or_model",
        metavar="STUDENT",
        help="Folder of a finished run, or a model: a folder or a Hub id. Of a run, its held-out "
        "queries are searched, too, and its report and card show the result.",
    )
    parser.add_argument(
        "--with",
        dest="runtimes",
        metavar="RUNTIME",
        nargs="+",
        action="extend",
        help=f"Which runtimes: {', '.join(RUNTIMES)}. NAME@PLACE is one in another environment: "
        "PLACE is its Python or, for transformers.js, the folder that holds node_modules "
        "(default: the one that NODE_PATH names). Default: all that are installed here; with "
        "--url, none.",
    )
    parser.add_argument(
        "--url",
        metavar="URL",
        nargs="+",
        action="extend",
        default=[],
        help="A server of the student: text-embeddings-inference's /embed or OpenAI's "
        "/v1/embeddings (vLLM, Ollama, Infinity). If the address ends in neither, it is asked "
        "which it has. A key is read from the environment variable OPENAI_API_KEY.",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="The student's name at the server, if that has several."
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        type=Path,
        help="Write the result there. Default: parity.json in the run's folder, if it is a run.",
    )


def _results(run_or_model: str) -> RunResults | TextsResults | None:
    """The run that is named, or in which the model lies."""
    path = Path(run_or_model)
    for folder in (RunFolder(path), RunFolder(path.absolute().parent)):
        if folder.recipe.is_file() and (folder.path == path or folder.student.name == path.name):
            return results_of(folder.path)
    return None


def _card_of(results: RunResults | TextsResults | None) -> str | None:
    """The card whose snippet is executed: that of a run, as it is written now. The `README.md` of a
    model may be anybody's code.
    """
    return None if results is None else model_cards(results)["README.md"].decode()


def line_of(compared: Compared) -> str:
    """A runtime that was tried, as a line of the table."""
    figures = [
        "–" if value is None else shown.format(value)
        for value, shown in (
            (compared.difference, "{:.1e}"),
            (compared.cosine, "{:.6f}"),
            (compared.recall, "{:.3f}"),
        )
    ]
    verdict = "agrees" if compared.agrees else f"DIFFERS: {compared.reason}"
    if compared.refused:
        verdict += f"; refuses {compared.refused} texts: {compared.refusal}"
    versions = " ".join(f"{name} {version}" for name, version in compared.versions.items())
    difference, cosine, recall = figures
    return f"{compared.runtime:<24}{difference:>10}{cosine:>11}{recall:>8}  {verdict}" + (
        f"  [{versions}]" if versions else ""
    )


def _not_tried(parity: Parity) -> None:
    for other in parity.not_tried:
        if other.why != NOT_ASKED_FOR:
            line = f" ({other.line})" if other.line else ""
            print(f"{other.runtime:<24}not tried: {other.why}{line}")
    others = [other.runtime for other in parity.not_tried if other.why == NOT_ASKED_FOR]
    if others:
        print(f"Not asked for, and not tried: {', '.join(others)}.")


def run(arguments: argparse.Namespace) -> None:
    """Try the runtimes, print what differs, and keep it.

    Raises:
        InputError: There is no such student, runtime or server, or a run is not finished.
        SystemExit: 1, a runtime that was tried does not agree.
    """
    named, urls, out = arguments.runtimes, arguments.url, arguments.json
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise InputError(f"--json {out}: name a file in a folder that exists")
    attempts = attempts_of([] if urls and named is None else named)
    if arguments.model and not urls:
        raise InputError("--model names the student at a server; name that with --url")
    servers = [connect(url, arguments.model) for url in urls]
    results = _results(arguments.run_or_model)
    if results is not None:
        folder = results.folder.student
    else:
        try:
            folder = locate_model(student_of(arguments.run_or_model), "model")
        except InputError as error:  # this command takes it without a flag
            raise InputError(str(error).removeprefix("--model ")) from error
    model = load_sentence_transformer(str(folder), "model").float().cpu()
    student = Student(folder, model, _card_of(results))
    held_out = None
    if isinstance(results, RunResults):
        task = held_out_task(results.collection)
        held_out = (
            list((task.student_queries or task.queries).values()), list(task.documents.values())
        )  # fmt: skip
    training = results.training.key if results else None
    texts = texts_of(held_out)
    print(
        f"Compared with sentence-transformers {__version__}: {len(PROBES)} texts as queries and as "
        f"documents; recall@10 on {texts.of}."
    )
    print(f"{'runtime':<24}{'difference':>10}{'cosine':>11}{'recall':>8}")
    parity = verify(
        student, texts, attempts, servers, training,
        lambda compared: print(line_of(compared), flush=True),
    )  # fmt: skip
    _not_tried(parity)
    if out is not None:
        write_parity(out, parity)
    elif results is not None:
        with held(results.folder):
            write_parity(results.folder.parity, parity)
            write_model_card(results)
            if isinstance(results, RunResults):
                write_report(results)
            else:
                write_texts_report(results)
    if not all(compared.agrees for compared in parity.tried):
        sys.exit(1)

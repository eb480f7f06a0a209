"""The search page of a run in a real browser: bytes, the time to the first answer, the time of a
question, and how often it finds what the student finds in PyTorch.

    python benchmarks/page.py RUN [--pictures FOLDER]

The page is served on loopback, so no time is spent in a network. Questions are those of validation
pairs (of training pairs if there are none), which the page answers from all documents.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))


from browser import Browser, browser, static_host

from hf_distill.finished_run import finished
from hf_distill.report.results import RunResults
from hf_distill.serving.index import index_of_run, load_student
from hf_distill.serving.page import write_page

QUESTIONS, STARTS = 50, 5
FOUND = "[...document.querySelectorAll('#answers section:first-child li code')]"


def questions_of(results: RunResults) -> list[str]:
    """Up to `QUESTIONS` different questions that are not held out, on one line each."""
    collection = results.collection
    held_out = set(collection.query_texts(collection.pairs("test").queries))
    for split in ("validation", "train"):
        texts = collection.query_texts(collection.pairs(split).queries)
        texts = [" ".join(text.split()) for text in dict.fromkeys(texts) if text not in held_out]
        if texts:
            return texts[:QUESTIONS]
    raise SystemExit("the run has no query to ask")


def asked(page: Browser, question: str) -> tuple[list[str], float]:
    """The ids that the page shows for a question, and the milliseconds that it took."""
    page.run(
        "performance.clearMeasures(); document.getElementById('question').value = "
        f"{question!r}; document.getElementById('search').requestSubmit()"
    )
    page.wait("performance.getEntriesByName('answer').length")
    ids: list[str] = page.run(f"{FOUND}.map((code) => code.textContent)")
    return ids, page.run("performance.getEntriesByName('answer')[0].duration")


def measure(results: RunResults, folder: Path) -> dict[str, Any]:
    """What is printed, from a page in `folder`."""
    index = index_of_run(results, load_student(str(results.folder.path)))
    firsts, cores = [], []
    for _ in range(STARTS):  # a fresh browser each, with an empty cache
        with static_host(folder.parent) as host, browser() as page:
            before = page.seconds()
            page.open(f"{host}/{folder.name}/?q=read+a+csv+file")
            page.wait("performance.getEntriesByName('answer').length")
            cores.append(page.seconds() - before)
            firsts.append(
                page.run(
                    "performance.getEntriesByName('answer')[0].startTime + "
                    "performance.getEntriesByName('answer')[0].duration"
                )
            )
            loaded = page.run("document.getElementById('size').textContent")
    overlaps, times = [], []
    with static_host(folder.parent) as host, browser() as page:
        page.open(f"{host}/{folder.name}/")
        page.wait("document.documentElement.dataset.kept")
        before = page.seconds()
        for question in questions_of(results):
            ids, milliseconds = asked(page, question)
            exact = [hit.id for hit in index.ask(question)]
            overlaps.append(len(set(ids) & set(exact)))
            times.append(milliseconds)
        each = 1000 * (page.seconds() - before) / len(times)
        problems = page.problems
    return {
        "loaded before the first answer": loaded,
        "first answer after opening, s": [round(t / 1000, 2) for t in sorted(firsts)],
        "of which seconds of a core, in all processes": np.round(sorted(cores), 2).tolist(),
        "a question, ms, median and 95%": np.quantile(times, [0.5, 0.95]).round(1).tolist(),
        "a question, ms of a core, in all processes, with typing and showing": round(each, 1),
        "questions": len(times),
        "of the student's ten documents in PyTorch, mean": float(np.mean(overlaps)),
        "problems": problems,
        "load of the machine": os.getloadavg()[0],
    }


def pictures(folder: Path, to: Path) -> None:
    """Write what a held-out query looks like at two widths, light and dark."""
    to.mkdir(parents=True, exist_ok=True)
    with static_host(folder.parent) as host, browser() as page:
        page.open(f"{host}/{folder.name}/")
        page.wait("document.documentElement.dataset.kept")
        page.run("document.querySelector('#examples button')?.click()")
        page.wait("document.querySelector('#answers li')")
        for width, height in ((1280, 900), (390, 844)):
            for dark in (False, True):
                page.size(width, height, dark)
                page.picture(to / f"{width}-{'dark' if dark else 'light'}.png")


def main() -> None:
    """Measure, and print a line for each figure, and then all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", metavar="RUN", type=Path)
    parser.add_argument("--pictures", metavar="FOLDER", type=Path)
    arguments = parser.parse_args()
    results = finished(arguments.run_dir)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "a-sub-path"
        record = write_page(results, folder)
        print(f"documents: {record.documents:,}; page: {record.bytes / 1e6:.1f} MB")
        figures = measure(results, folder)
        for what, value in figures.items():
            print(f"{what}: {value}")
        if arguments.pictures:
            pictures(folder, arguments.pictures)
        print(json.dumps({"documents": record.documents, "bytes": record.bytes, **figures}))


if __name__ == "__main__":
    main()

"""TREC's qrels and runs, with the texts as MS MARCO writes them: `id<TAB>text`, no quoting."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hf_distill.data.collection import Split
from hf_distill.release.formats.contents import (
    Contents,
    ExportFormat,
    Listed,
    Names,
    Query,
    texts_in_order,
)

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_LINE_ENDS = re.compile(r"\r\n|[\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029]")


def _write_texts(
    path: Path, names: Names, look_up: Callable[[np.ndarray], list[str]], numbers: np.ndarray
) -> int:
    """Write the texts. Returns how many of them a tab or a line's end was taken out of."""
    changed = 0
    with path.open("w", encoding="utf-8") as file:
        for name, text in zip(
            texts_in_order(names.of, numbers), texts_in_order(look_up, numbers), strict=True
        ):
            flat = _LINE_ENDS.sub(" ", text)
            changed += flat != text
            file.write(f"{name}\t{flat}\n")
    return changed


def _run(query: Query) -> list[tuple[str, float]]:
    """(document, score) in descending order: all with a score, then those that nobody judged and
    that have none, each 1 below the one before.
    """
    scored = [(one.id, one.score) for one in _listed(query) if one.score is not None]
    scored.sort(key=lambda line: -line[1])
    last = scored[-1][1] if scored else 1.0
    rest = [one.id for one in _listed(query) if one.score is None]
    return [*scored, *((name, last - place) for place, name in enumerate(rest, 1))]


def _listed(query: Query) -> list[Listed]:
    """What stands in a run: a judgement without a score stands in the qrels alone."""
    return [
        one
        for one in (*query.positives, *query.others)
        if one.score is not None or one.grade is None
    ]


def _write(contents: Contents, folder: Path) -> dict[str, int]:
    collection = contents.collection
    documents = contents.documents(lambda survey: survey.documents) | contents.searched()
    changed = _write_texts(
        folder / "collection.tsv",
        contents.document_names,
        collection.document_texts,
        np.flatnonzero(documents),
    ) + _write_texts(
        folder / "queries.tsv",
        contents.query_names,
        collection.query_texts,
        contents.query_numbers(),
    )
    without_score = 0
    for split, survey in contents.surveys.items():
        with (folder / f"qrels.{split}.txt").open("w", encoding="utf-8") as file:
            for query in contents.queries(split, texts=False):
                for one in (*query.positives, *query.others):
                    if one.grade is not None:
                        file.write(f"{query.id} 0 {one.id} {one.grade}\n")
        if not survey.scored and not survey.not_judged:
            continue
        with (folder / f"run.{split}.txt").open("w", encoding="utf-8") as file:
            for query in contents.queries(split, texts=False):
                without_score += sum(one.score is None for one in _listed(query))
                for rank, (name, score) in enumerate(_run(query), 1):
                    file.write(f"{query.id} Q0 {name} {rank} {score!r} hf_distill\n")
    return {
        "texts have a space for each tab and line's end in them": changed,
        "candidates have no score: they stand at the end of their run, each 1 below the one "
        "before": without_score,
    }


FORMAT = ExportFormat(
    write=_write,
    files=(
        "collection.tsv",
        "queries.tsv",
        *(f"{kind}.{split}.txt" for kind in ("qrels", "run") for split in _SPLITS),
    ),
    lacks={"student_texts": "are left out"},
    scores="any",
    read=(
        "import ir_measures\n"
        "from ir_measures import nDCG\n\n"
        'qrels = ir_measures.read_trec_qrels("FOLDER/qrels.SPLIT.txt")\n'
        'run = ir_measures.read_trec_run("your_run.txt")\n'
        "print(ir_measures.calc_aggregate([nDCG @ 10], qrels, run))"
    ),
    forbidden=re.compile(r"\s"),
)

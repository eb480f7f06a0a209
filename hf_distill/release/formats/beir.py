"""A BEIR folder: `corpus.jsonl`, `queries.jsonl` and `qrels/{train,dev,test}.tsv`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hf_distill.release.formats.contents import Contents, ExportFormat, Names, texts_in_order

_QRELS = {"train": "train", "validation": "dev", "test": "test"}


def _write_texts(
    path: Path, names: Names, look_up: Callable[[np.ndarray], list[str]], numbers: np.ndarray
) -> None:
    fields = {"title": ""} if path.stem == "corpus" else {}
    with path.open("w", encoding="utf-8") as file:
        for name, text in zip(
            texts_in_order(names.of, numbers), texts_in_order(look_up, numbers), strict=True
        ):
            line = {"_id": name, **fields, "text": text, "metadata": {}}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write(contents: Contents, folder: Path) -> dict[str, int]:
    collection = contents.collection
    judged = contents.documents(lambda survey: survey.judged)
    searched = contents.searched()
    documents = np.flatnonzero(searched | judged)
    _write_texts(
        folder / "corpus.jsonl", contents.document_names, collection.document_texts, documents
    )
    queries = contents.query_numbers()
    _write_texts(folder / "queries.jsonl", contents.query_names, collection.query_texts, queries)
    (folder / "qrels").mkdir()
    for split in contents.pairs:
        with (folder / "qrels" / f"{_QRELS[split]}.tsv").open("w", encoding="utf-8") as file:
            file.write("query-id\tcorpus-id\tscore\n")
            for query in contents.queries(split, texts=False):
                for document in (*query.positives, *query.others):
                    if document.grade is not None:
                        file.write(f"{query.id}\t{document.id}\t{document.grade}\n")
    one_corpus = int((judged & ~searched).sum()) if "test" in contents.pairs else 0
    return {
        "documents of other pairs join the corpus: test queries search them, and did not in the "
        "run": one_corpus
    }


FORMAT = ExportFormat(
    write=_write,
    files=("corpus.jsonl", "queries.jsonl", *(f"qrels/{name}.tsv" for name in _QRELS.values())),
    lacks={
        "not_judged": "are left out: qrels hold judgements only",
        "student_texts": "are left out",
    },
    scores="none",
    read=(
        "from beir.datasets.data_loader import GenericDataLoader\n\n"
        'corpus, queries, qrels = GenericDataLoader("FOLDER").load(split="SPLIT")'
    ),
    validation="dev",
    forbidden=re.compile(r'["\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029]|^\s|\s$'),
)

"""FlagEmbedding's JSONL: `query`, `pos`, `neg`, and for distillation `pos_scores`, `neg_scores`.
`student_query` is what the student reads in place of the query, if that is another text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_distill.release.formats.contents import Contents, ExportFormat, Listed

_NO_NEGATIVES = "queries have an empty neg; FlagEmbedding's hn_mine fills it"


def _texts(documents: list[Listed]) -> list[str]:
    return [document.text for document in documents]


def _write(contents: Contents, folder: Path) -> dict[str, int]:
    notes = {_NO_NEGATIVES: 0}
    for split, survey in contents.surveys.items():
        scored = survey.has_scores("each")
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for query in contents.queries(split, ids=False):
                line: dict[str, Any] = {
                    "query": query.text,
                    "pos": _texts(query.positives),
                    "neg": _texts(query.others),
                }
                if query.student_text is not None:
                    line["student_query"] = query.student_text
                if scored:
                    line["pos_scores"] = [document.score for document in query.positives]
                    line["neg_scores"] = [document.score for document in query.others]
                notes[_NO_NEGATIVES] += not query.others
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return notes


FORMAT = ExportFormat(
    write=_write,
    files=("train.jsonl", "validation.jsonl", "test.jsonl"),
    lacks={
        "graded": "stand in pos like the others, without their grade",
        "not_relevant": "stand in neg like those that nobody judged",
        "ids": "are left out",
        "corpus": "are left out: there is no corpus",
    },
    scores="each",
    read=(
        "from datasets import load_dataset\n\n"
        'lists = load_dataset("json", data_files="FOLDER/SPLIT.jsonl", split="train")\n'
        'print(lists[0]["query"], lists[0]["pos"], lists[0]["neg"])'
    ),
)

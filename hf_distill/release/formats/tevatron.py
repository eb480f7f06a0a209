"""Tevatron's JSONL: `query_id`, `query`, `positive_passages` and `negative_passages`.
`student_query` is what the student reads in place of the query, if that is another text.
"""

from __future__ import annotations

import json
from pathlib import Path

from hf_distill.release.formats.contents import Contents, ExportFormat, Listed


def _passages(documents: list[Listed]) -> list[dict[str, str]]:
    return [{"docid": one.id, "title": "", "text": one.text} for one in documents]


def _write(contents: Contents, folder: Path) -> dict[str, int]:
    for split in contents.pairs:
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for query in contents.queries(split):
                own = query.student_text
                line = {
                    "query_id": query.id,
                    "query": query.text,
                    **({} if own is None else {"student_query": own}),
                    "positive_passages": _passages(query.positives),
                    "negative_passages": _passages(query.others),
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return {}


FORMAT = ExportFormat(
    write=_write,
    files=("train.jsonl", "validation.jsonl", "test.jsonl"),
    lacks={
        "graded": "stand in positive_passages like the others, without their grade",
        "not_relevant": "stand in negative_passages like those that nobody judged",
        "corpus": "are left out: there is no corpus",
    },
    scores="none",
    read=(
        "from datasets import load_dataset\n\n"
        'lists = load_dataset("json", data_files="FOLDER/SPLIT.jsonl", split="train")\n'
        'print(lists[0]["query"], lists[0]["positive_passages"])'
    ),
)

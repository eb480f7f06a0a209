"""`explain`: what was recognised, the counts, and three rows of each table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import recipe_of, sentences

from hf_distill.data.collection import Collection
from hf_distill.data.explain import EXAMPLES, explain
from hf_distill.data.load import load_collection
from hf_distill.run.folder import RunFolder


@pytest.fixture
def lists(tmp_path: Path, folder: RunFolder) -> Collection:
    """40 FlagEmbedding lists of one positive and two negatives, with a prompt nobody uses."""
    queries, documents = sentences(40), sentences(120, 1000)
    rows = [
        {
            "query": query, "pos": [documents[i]], "neg": documents[40 + 2 * i : 42 + 2 * i],
            "pos_scores": [0.75], "neg_scores": [0.25, 0.5], "prompt": "Find it",
        }
        for i, query in enumerate(queries)
    ]  # fmt: skip
    path = tmp_path / "flag.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = recipe_of(dataset_path=path, run_dir=folder.path, test_fraction=0.2)
    return load_collection(recipe, folder)


def test_it_says_what_was_recognised_counted_and_not_used(lists: Collection) -> None:
    said = explain(lists)
    assert "FlagEmbedding lists: 1 positive and 2 negatives a query, with scores" in said
    for count, what in [(120, "rows found"), (40, "kept"), (80, "candidates")]:
        assert f"{count:>9,}  {what}\n" in said
    assert f"{40:>9,}  column prompt of flag.jsonl\n" in said
    assert "    not judged, score 0.25\n" in said


def test_it_shows_three_rows_of_each_table_as_they_are(lists: Collection) -> None:
    lines = explain(lists).splitlines()
    tables = ("queries", "documents", "judgements", "candidates")
    starts = [next(i for i, x in enumerate(lines) if x.startswith(f"{t}:")) for t in tables]
    sizes = [b - a - 1 for a, b in zip(starts, [*starts[1:], len(lines)], strict=True)]
    assert sizes == [EXAMPLES, EXAMPLES, 2 * EXAMPLES, 2 * EXAMPLES]
    for i in range(EXAMPLES):
        assert lines[starts[0] + 1 + i].endswith(lists.queries[i]["text"])
        row = lists.candidates[i]
        pair = f"{lists.queries[row['query']]['text'][:30]}"
        assert lines[starts[3] + 1 + 2 * i].strip().startswith(pair)


def test_its_lines_are_short_and_cannot_command_a_terminal(
    tmp_path: Path, folder: RunFolder
) -> None:
    texts = zip(sentences(40), sentences(40, 99), strict=True)
    rows = [
        {"query": f"\x1b[31m{query}", "document": f"{document} " * 30, "x" * 150: 1}
        for query, document in texts
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = explain(load_collection(recipe_of(dataset_path=path, run_dir=folder.path), folder))
    assert max(map(len, said.splitlines())) <= 100
    assert "\x1b" not in said
    assert "x" * 150 in said.replace("\n", "").replace(" ", "")

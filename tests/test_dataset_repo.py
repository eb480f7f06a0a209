"""The dataset repository: what is in it, how the Hub's viewer reads it, and its card."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from run_results import SPLIT, run_results

from hf_distill.data.collection import Source
from hf_distill.release import dataset_repo
from hf_distill.release.dataset_repo import DatasetRecord, size_category, write_dataset
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import listed, read_result, write_result

RULES = ("echo", "percentile=50", "rank=3:weight=0.5", "near_duplicate")
SOURCE = Source("pairs | `of`", license="cc-by-4.0", description="<b>Pairs</b> of *nothing*.")

READ = """
import json, sys
from datasets import load_dataset
selected, every = (
    load_dataset(sys.argv[1], name, cache_dir=sys.argv[2]) for name in ("selected", "all")
)
default = load_dataset(sys.argv[1], cache_dir=sys.argv[2])
print(json.dumps({
    "default is selected": default["train"]["pair_id"][:] == selected["train"]["pair_id"][:],
    "selected": {name: split.to_list() for name, split in selected.items()},
    "all": {name: split.to_list() for name, split in every.items()},
    "features": {name: str(kind) for name, kind in every["train"].features.items()},
}))
"""


def test_a_fresh_process_loads_what_was_scored_ranked_and_selected(
    folder: RunFolder, tmp_path: Path
) -> None:
    results, scores, ranking, selection = run_results(folder, rules=RULES)
    write_dataset(results, scores, ranking, selection)
    command = [sys.executable, "-c", READ, "./run/dataset", str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert loaded["default is selected"]
    every, selected = loaded["all"], loaded["selected"]
    n = SPLIT["train"]
    assert [row["pair_id"] for row in every["train"]] == [
        *(f"pair {i}" for i in range(n)),
        *(f"pair {i}" for i in range(200 - SPLIT["leaked"], 200)),
    ]
    assert sum(map(len, every.values())) == 200
    assert selected["train"] == [
        {name: value for name, value in row.items() if name != "dropped_by"}
        for row in every["train"][:n]
        if row["dropped_by"] is None
    ]
    assert len(selected["train"]) == results.audit.kept < n

    pairs = results.collection.pairs("train")
    for i, row in enumerate(every["train"][:n]):
        dropped_by = selection.dropped_by[i]
        assert row["dropped_by"] == (
            None if dropped_by < 0 else results.audit.rules[dropped_by].rule
        )
        assert row["query"] == results.collection.query_texts(pairs.queries[[i]])[0]
        assert row["document"] == results.collection.document_texts(pairs.documents[[i]])[0]
        assert row["teacher_score"] == scores.values[i]
        assert row["rank"] == ranking.rank[i]
        assert row["weight"] == selection.weight[i]
        np.testing.assert_equal(row["margin"], float(ranking.margin[i]))
        negatives = ranking.negatives[i][ranking.negatives[i] >= 0]
        assert row["hard_negatives"] == [f"pair {number}" for number in negatives]
        np.testing.assert_allclose(
            row["hard_negative_scores"], ranking.negative_scores[i][: len(negatives)]
        )
    for row in every["train"][n:]:
        assert row["dropped_by"] == "leak: same query"
        assert row["rank"] is row["margin"] is row["weight"] is row["hard_negatives"] is None
    assert all(row["dropped_by"] is None for row in every["test"])
    assert {**every["test"][0], "dropped_by": None} == {**selected["test"][0], "dropped_by": None}
    assert loaded["features"] == {
        "pair_id": "Value('string')",
        "query": "Value('string')",
        "document": "Value('string')",
        "group": "Value('string')",
        "teacher_score": "Value('float32')",
        "rank": "Value('int32')",
        "margin": "Value('float32')",
        "hard_negatives": "List(Value('string'))",
        "hard_negative_scores": "List(Value('float32'))",
        "weight": "Value('float32')",
        "dropped_by": "Value('string')",
    }


def test_a_negative_is_the_first_training_pair_of_its_document(folder: RunFolder) -> None:
    results, scores, ranking, selection = run_results(folder)
    ranking.negatives[0] = [3, 9, -1, -1]  # document 3 is that of the pairs 3 and 7
    write_dataset(results, scores, ranking, selection)
    (file,) = (folder.dataset / "selected").glob("train-*.parquet")
    assert pq.read_table(file)["hard_negatives"][0].as_py() == ["pair 3", "pair 9"]


def test_columns_that_a_teacher_does_not_give_are_left_out(folder: RunFolder) -> None:
    results, scores, _, selection = run_results(folder)
    write_dataset(results, scores, None, selection)
    (file,) = (folder.dataset / "all").glob("test-*.parquet")
    columns = ["pair_id", "query", "document", "group", "teacher_score", "dropped_by"]
    assert pq.read_schema(file).names == columns
    text = (folder.dataset / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \| \w", text, re.MULTILINE)[-len(columns) :] == columns


def test_files_suit_the_viewer(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_repo, "SHARD_BYTES", 12_000)
    write_dataset(*run_results(folder))
    files = sorted((folder.dataset / "all").glob("train-*"))
    assert len(files) > 1
    assert [file.name for file in files] == [
        f"train-{i:05d}-of-{len(files):05d}.parquet" for i in range(len(files))
    ]
    for file in files:
        group = pq.read_metadata(file).row_group(0)
        assert group.column(0).has_offset_index, "the page index, which gives single rows"
        assert group.total_byte_size < 100_000_000
    rows = [row for file in files for row in pq.read_table(file)["pair_id"].to_pylist()]
    assert len(rows) == len(set(rows)) == SPLIT["train"] + SPLIT["leaked"]


def test_the_card_says_how_it_was_made_and_escapes_what_it_shows(folder: RunFolder) -> None:
    line = (
        "--dataset", "files", "--dataset_path", "secret/p.jsonl", "--teacher", "secret/a_*b*",
        "--group_column", "topic", "--seed", "7",
    )  # fmt: skip
    results, *rest = run_results(folder, *line, rules=RULES, source=SOURCE)
    write_dataset(results, *rest)
    card = DatasetCard.load(folder.dataset / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert [config["config_name"] for config in card.data.configs] == ["all", "selected"]
    assert [config.get("default", False) for config in card.data.configs] == [False, True]
    for config in card.data.configs:
        for files in config["data_files"]:
            assert list(folder.dataset.glob(files["path"])), files
    # The Hub refuses other metadata.
    assert card.data.language == "en"
    assert set(card.data.task_categories) <= {"text-retrieval", "sentence-similarity"}
    assert re.fullmatch(r"n<1K|\d+[KM]<n<\d+[KM]", card.data.size_categories)
    assert all(isinstance(tag, str) for tag in card.data.tags)
    for part in (
        r"# pairs \| \`of\` scored by a\_\*b\*", "float32", "without a prompt", "with seed 3",
        "| `rank` | int32 | documents, from 1 |", "group_column: topic", "seed: 7", "![Histogram",
        "teacher: a_*b*", "## Examples", "&lt;b&gt;Pairs&lt;/b&gt; of \\*nothing\\*.",
        "`percentile=50`", "score 0.", "under `cc-by-4.0`", "hf-distill train THAT_FILE",
        "same query 4",
    ):  # fmt: skip
        assert part in card.text, part
    assert "secret" not in card.text
    assert (folder.dataset / "scores.png").is_file()
    for rule in results.audit.rules:
        assert f"| `{rule.rule}` | {rule.pairs_in:,} | {rule.dropped:,} |" in card.text


def test_the_licence_of_the_recipe_wins_over_that_of_the_source(folder: RunFolder) -> None:
    write_dataset(*run_results(folder, "--dataset_license", "mit", source=SOURCE))
    assert DatasetCard.load(folder.dataset / "README.md").data.license == "mit"


def test_examples_can_be_turned_off(folder: RunFolder) -> None:
    results, *rest = run_results(folder, "--card_examples", "false")
    write_dataset(results, *rest)
    text = (folder.dataset / "README.md").read_text(encoding="utf-8")
    assert "## Examples" not in text
    assert not any(query in text for query in results.collection.queries["text"])


def test_a_data_set_replaces_the_one_before_as_a_whole(folder: RunFolder) -> None:
    write_dataset(*run_results(folder))
    stale = folder.dataset / "all" / "stale.parquet"
    stale.touch()
    record = read_result(folder.dataset_record, DatasetRecord)
    write_result(folder.dataset_record, record, [folder.dataset])  # it is the run's own
    write_dataset(*run_results(folder))
    assert not stale.exists()
    assert sorted(path.name for path in folder.dataset.iterdir()) == [
        "README.md", "all", "scores.png", "selected",
    ]  # fmt: skip
    stale.touch()  # and this is somebody else's
    write_dataset(*run_results(folder))
    assert stale.exists()
    assert stale not in (listed(folder.dataset_record) or ())


def test_size_categories() -> None:
    assert [size_category(n) for n in (5, 1000, 12269, 10**6, 10**9)] == [
        "n<1K",
        "1K<n<10K",
        "10K<n<100K",
        "1M<n<10M",
        "100M<n<1B",
    ]

"""The dataset repository: what is in it, how the Hub's viewer reads it, and its card."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from hf_distill.data.collection import (
    PairData,
    Source,
)
from hf_distill.recipe.arguments import (
    Recipe,
    TeacherArguments,
    read_recipe,
)
from hf_distill.release import dataset_repo
from hf_distill.release.dataset_repo import write_dataset
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.ranking import with_signals
from hf_distill.scoring.scores import score_pairs
from hf_distill.selection.rules import parse_rules
from hf_distill.selection.select import select_pairs
from hf_distill.teachers.bi_encoder import load_bi_encoder

RULES = ["echo", "percentile=50", "rank=3:weight=0.5", "near_duplicate"]
SOURCE = Source("pairs | `of`", description="<b>Pairs</b> of *nothing*.", license="cc-by-4.0")


def written(
    data: PairData, folder: RunFolder, teacher_dir: Path, rules: list[str], *line: str
) -> Recipe:
    recipe = read_recipe(
        [
            "--dataset",
            "files",
            "--dataset_path",
            "secret/p.jsonl",
            "--teacher",
            str(teacher_dir),
            "--bf16",
            "false",
            *line,
        ]
    )
    teacher = load_bi_encoder(TeacherArguments(teacher=str(teacher_dir), teacher_dtype="float32"))
    scored = score_pairs(data, teacher, folder, recipe.teacher)
    train, key = with_signals(scored, 1000, 4, 0, folder)
    selected = select_pairs(train, parse_rules(rules), 0, folder, key)
    write_dataset(scored, selected, recipe, SOURCE, data.counts, folder)
    return recipe


def test_it_loads_in_a_fresh_process(
    data: PairData, folder: RunFolder, teacher_dir: Path, tmp_path: Path
) -> None:
    written(data, folder, teacher_dir, RULES)
    program = (
        "import json, sys; from datasets import load_dataset\n"
        "selected, every = (load_dataset(sys.argv[1], name, cache_dir=sys.argv[2]) for name in ('selected', 'all'))\n"
        "assert load_dataset(sys.argv[1], cache_dir=sys.argv[2]).keys() == selected.keys(), 'selected is the default'\n"
        "row = selected['train'][0]\n"
        "print(json.dumps([{n: len(s) for n, s in selected.items()}, {n: len(s) for n, s in every.items()},\n"
        "    {n: str(f) for n, f in every['train'].features.items()}, row, every['test'][0], every['train']['dropped_by'][:]]))"
    )
    command = [sys.executable, "-c", program, "./run/dataset", str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    selected, every, features, row, test, reasons = json.loads(done.stdout.splitlines()[-1])
    audit = json.loads(folder.selection.read_text())
    assert selected["train"] == audit["kept"] == sum(reason is None for reason in reasons)
    assert sum(every.values()) == 200
    assert selected["test"] == every["test"] == len(data.test)
    assert set(features) == {*row, "dropped_by"}
    assert {"rank", "margin", "hard_negatives", "hard_negative_scores", "weight"} <= set(features)
    assert len(row["hard_negatives"]) == len(row["hard_negative_scores"]) == 4
    assert test["rank"] is None
    assert features["rank"] == "Value('int32')"


def test_files_are_as_the_viewer_likes_them(
    data: PairData, folder: RunFolder, teacher_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_repo, "SHARD_BYTES", 12_000)
    written(data, folder, teacher_dir, [])
    files = sorted((folder.dataset / "all").glob("train-*.parquet"))
    assert len(files) > 1
    assert [file.name for file in files] == [
        f"train-{i:05d}-of-{len(files):05d}.parquet" for i in range(len(files))
    ]
    for file in files:
        group = pq.read_metadata(file).row_group(0)
        assert group.column(0).has_offset_index, (
            "the page index, by which the viewer reads single rows"
        )
        assert group.total_byte_size < 100_000_000
    rows = [row for file in files for row in pq.read_table(file)["pair_id"].to_pylist()]
    assert len(rows) == len(set(rows)) == len(data.train) + len(data.leaked)


def test_the_card_says_how_it_was_made_and_escapes_what_it_shows(
    data: PairData, folder: RunFolder, teacher_dir: Path
) -> None:
    written(data, folder, teacher_dir, RULES, "--group_column", "topic", "--seed", "7")
    card = DatasetCard.load(folder.dataset / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert [config["config_name"] for config in card.data.configs] == ["all", "selected"]
    assert [config.get("default", False) for config in card.data.configs] == [False, True]
    for config in card.data.configs:
        for files in config["data_files"]:
            assert list(folder.dataset.glob(files["path"])), files
    # What the Hub's check of a card's metadata refuses.
    assert card.data.language == "en"
    assert set(card.data.task_categories) <= {"text-retrieval", "sentence-similarity"}
    assert re.fullmatch(r"n<1K|\d+[KM]<n<\d+[KM]", card.data.size_categories)
    assert all(isinstance(tag, str) for tag in card.data.tags)
    text = card.text
    for said in (
        "float32",
        "No prompt stood before the texts", "| `rank` | int32 | documents, from 1 |", "seed 0 decides", "group_column: topic", "seed: 7",
        "![Histogram", "## Examples", "&lt;b&gt;Pairs&lt;/b&gt;", "`percentile=50`", "score 0.", "cc-by-4.0",
    ):  # fmt: skip
        assert said in text, said
    assert "secret" not in text
    assert str(teacher_dir) not in text
    assert (folder.dataset / "scores.png").is_file()
    audit = json.loads(folder.selection.read_text())
    for rule in audit["rules"]:
        assert f"| `{rule['rule']}` | {rule['pairs_in']:,} | {rule['dropped']:,} |" in text


def test_examples_can_be_turned_off(data: PairData, folder: RunFolder, teacher_dir: Path) -> None:
    written(data, folder, teacher_dir, [], "--card_examples", "false")
    text = (folder.dataset / "README.md").read_text()
    assert "## Examples" not in text
    assert not any(query in text for query in data.train["query"])

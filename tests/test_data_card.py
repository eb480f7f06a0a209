"""The data set's card: every snippet of it runs as it stands, and the pairs that it shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import sentences
from hub_server import TOKEN, Hub, running_hub
from huggingface_hub import HfApi, constants
from run_results import SPLIT, run_results

from hf_distill.release.dataset_repo import write_dataset
from hf_distill.release.disagreements import others_above, scored_lowest
from hf_distill.release.hub import linked_dataset_card
from hf_distill.release.remote import Release, commit_release
from hf_distill.run.folder import RunFolder

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content="
)  # the client's own, of its HTTP library

RULES = ("percentile=30", "near_duplicate")
LINE = ("--push_to_hub", "true", "--hub_model_id", "you/student", "--hub_dataset_id", "you/pairs")

QUERIES = """
import datetime, json, sys
import duckdb
from huggingface_hub import HfFileSystem

# DuckDB's own reader of hf:// is an extension, which is downloaded when it is first used and asks
# no Hub but huggingface.co. The client's file system reads the same addresses from this one.
class Files(HfFileSystem):
    def modified(self, path):  # the client does not know it
        return datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

database = duckdb.connect()
database.register_filesystem(Files())
answers = []
for query in json.loads(sys.stdin.read()):
    relation = database.sql(query)
    answers.append([relation.columns, relation.fetchall()])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunFolder, Hub]]:
    """A data set, and a Hub that it was published to."""
    folder = RunFolder(tmp_path_factory.mktemp("card") / "run")
    results, scores, ranking, selection = run_results(folder, *LINE, rules=RULES)
    ranking.margin[:6] = [-3, -2, np.nan, -1, 0.5, -4]
    ranking.negatives[[0, 1, 3, 5], 0] = [50, 51, 50, 52]
    write_dataset(results, scores, ranking, selection)
    with pytest.MonkeyPatch.context() as patch, running_hub() as hub:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        api = HfApi(hub.endpoint, token=TOKEN)
        api.create_repo("you/pairs", repo_type="dataset")
        commit_release(api, Release("you/pairs", "dataset", folder.dataset))
        yield folder, hub


def card_of(folder: RunFolder) -> str:
    return (folder.dataset / "README.md").read_text(encoding="utf-8")


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", card, re.DOTALL | re.MULTILINE)


def fresh(code: str, given: str, hub: Hub, cache: Path) -> str:
    """What a fresh process with an empty cache prints, to which the Hub is `hub`."""
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    environment = {**os.environ, **own, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=given, capture_output=True, text=True, env=environment, cwd=cache, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_queries_of_the_card_run_on_what_was_published(
    run: tuple[RunFolder, Hub], tmp_path: Path
) -> None:
    pytest.importorskip("duckdb")
    folder, hub = run
    queries = blocks(card_of(folder), "sql")
    assert all("'hf://datasets/you/pairs/" in query for query in queries)
    fates, lowest = json.loads(fresh(QUERIES, json.dumps(queries), hub, tmp_path))
    table = pq.read_table(folder.dataset / "all" / "train-00000-of-00001.parquet").to_pylist()
    assert fates[0] == ["fate", "pairs", "mean_score"]
    assert sum(row[1] for row in fates[1]) == SPLIT["train"] + SPLIT["leaked"]
    for fate, pairs, mean in fates[1]:
        scores = [r["teacher_score"] for r in table if (r["dropped_by"] or "kept") == fate]
        assert (pairs, mean) == (len(scores), pytest.approx(np.mean(scores), abs=6e-4))
    kept = sorted(row["teacher_score"] for row in table if row["dropped_by"] is None)
    assert [row[1] for row in lowest[1]] == kept[:10]


def test_the_python_of_the_card_runs_on_what_was_published(
    run: tuple[RunFolder, Hub], tmp_path: Path
) -> None:
    folder, hub = run
    code = "\n".join(blocks(card_of(folder), "python"))
    shown = fresh(f"{code}\nprint(lowest['pair_id'][:])", "", hub, tmp_path)
    rows = pq.read_table(folder.dataset / "selected" / "train-00000-of-00001.parquet").to_pylist()
    first = [row["pair_id"] for row in sorted(rows, key=lambda row: row["teacher_score"])[:10]]
    assert shown.splitlines()[-1] == str(first)


def test_a_card_without_a_repository_gets_its_name_when_it_is_published(folder: RunFolder) -> None:
    results, *rest = run_results(folder, rules=RULES)
    write_dataset(results, *rest)
    card = card_of(folder)
    assert "hf://" not in card
    linked = linked_dataset_card(card, "you/pairs", "you/student", None)
    assert "path/to/this/folder" not in linked
    assert linked.count("'hf://datasets/you/pairs/") == len(blocks(card, "sql")) == 2


def test_the_largest_disagreements_are_those_of_the_scores(run: tuple[RunFolder, Hub]) -> None:
    folder, _ = run
    results, scores, ranking, _ = run_results(folder, rules=RULES)
    pairs = results.collection.pairs("train")
    values = scores.of(pairs.rows)
    values[0] = np.nan
    lowest = scored_lowest(pairs, values)
    assert [pair.score for pair in lowest] == sorted(values[1:].tolist())[:5]
    assert lowest[0].pair_id == f"pair {np.nanargmin(values)}"
    assert scored_lowest(pairs, np.full(len(pairs), np.nan, np.float32)) == []

    ranking.margin[:] = np.nan
    ranking.margin[[1, 3, 8, 9]] = [-0.25, -0.5, 0.5, -0.125]
    ranking.negatives[[1, 3, 9], 0] = [40, 40, -1]
    ranking.negative_scores[3, 0] = 0.75
    (above,) = others_above(pairs, ranking)  # of the two with the same document, the worse
    assert (above.pair_id, above.score, above.other_score) == ("pair 3", 0.25, 0.75)
    assert above.other == sentences(41, 1000)[40]
    ranking.margin[:] = 1
    assert others_above(pairs, ranking) == []


def test_the_card_shows_them_and_what_each_rule_dropped(run: tuple[RunFolder, Hub]) -> None:
    folder, _ = run
    card = card_of(folder)
    for part in (
        "## Where teacher and judgements disagree most", "Nobody judged them relevant",
        "<summary>Dropped by <code>percentile=30</code>: those nearest to the threshold</summary>",
        "![Histogram of teacher scores: 98 pairs kept, 42 dropped; percentile=30 at",
    ):  # fmt: skip
        assert part in card, part
    shown = card.partition("furthest above")[2].partition("## Examples")[0]
    assert sentences(53, 1000)[52] in shown
    assert shown.count(sentences(51, 1000)[50]) == 1


def test_texts_can_be_left_out(folder: RunFolder) -> None:
    results, *rest = run_results(folder, "--card_examples", "false", rules=RULES)
    write_dataset(results, *rest)
    card = card_of(folder)
    assert "disagree" not in card
    assert "<details>" not in card
    assert not any(text in card for text in results.collection.documents["text"])

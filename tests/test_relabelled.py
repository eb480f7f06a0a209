"""Pairs whose document a selection has replaced: how they are trained on and published."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import call, run_tiny
from huggingface_hub import DatasetCard
from run_results import SPLIT, run_results
from test_collator import rows, view
from tiny_training import Tiny, tiny_collection
from tiny_training import tiny as tiny_parts

from hf_distill.data.load import open_collection
from hf_distill.pipeline import Run
from hf_distill.recipe.read import read_recipe
from hf_distill.release.dataset_repo import EXAMPLES, write_dataset
from hf_distill.run.folder import RunFolder
from hf_distill.selection.relabelled import Relabelled
from hf_distill.training.in_batch import teacher_view
from hf_distill.training.lists import of_lists
from hf_distill.training.rows import Lookup, Negatives, examples, hard_negatives, training_rows


@pytest.fixture(scope="module")
def parts(teacher_dir: Path) -> Tiny:
    return tiny_parts(teacher_dir)


def test_the_document_before_is_no_negative_of_its_query() -> None:
    features = rows(4)
    for row in features:
        row["relabelled_from"] = None
    features[1]["relabelled_from"] = features[3]["document"]
    assert view(features).ignore.nonzero().tolist() == [[1, 3]]
    sides = examples(features, Lookup()).sides.reversed()
    config: Any = SimpleNamespace(false_negative_margin=None, positive_cut=None)
    assert teacher_view(sides, sides, 0, "cosine", config).ignore.nonzero().tolist() == [[3, 1]]


def test_rows_by_number_name_the_document_before(parts: Tiny) -> None:
    features = [dict(parts.numbers[i]) for i in range(3)]
    for row, before in zip(features, (-1, 5, -1), strict=True):
        row["relabelled_from"] = before
    sides = examples(features, parts.lookup).sides
    assert sides.old_document_key is not None
    assert sides.old_document_key.tolist() == [0, 5, 2]


def relabelled(pairs: list[tuple[int, int]], documents: list[int]) -> Relabelled:
    texts = [f"document {i}" for i in range(10)]
    collection = tiny_collection([f"query {i}" for i in range(3)], texts, np.array(pairs))
    scores = np.where(np.array(documents) < 0, np.nan, 0.75).astype(np.float32)
    return Relabelled(collection.every_pair(), np.array(documents), scores)


def test_a_new_document_is_no_hard_negative_of_any_pair_of_its_query() -> None:
    new = relabelled([(0, 0), (0, 1), (1, 2)], [5, -1, -1])
    negatives = np.array([[5, 6, 7]] * 3)
    assert new.answers(negatives).tolist() == [[True, False, False]] * 2 + [[False] * 3]
    ranking: Any = SimpleNamespace(
        negatives=negatives, negative_scores=negatives.astype(np.float32) / 10
    )
    none = Negatives(np.full((3, 0), -1), np.full((3, 0), np.nan, np.float32))
    columns = hard_negatives(none, ranking, np.arange(3), 2, new)
    assert columns["negatives"].tolist() == [[6, 7], [6, 7], [5, 6]]
    lists: Any = SimpleNamespace(
        padded=lambda: (negatives[:2], ranking.negative_scores[:2]),
        own=np.array([0.1, 0.2, 0.3], np.float32),
        of=np.array([0, 0, 1]),
    )
    recipe: Any = SimpleNamespace(
        lists=SimpleNamespace(choose_candidates="top"),
        training=SimpleNamespace(positive_cut=None),
        seed=0,
    )
    columns = of_lists(lists, np.arange(3), 2, recipe, new)
    assert columns["negatives"].tolist() == [[7, 6], [7, 6], [7, 6]]
    np.testing.assert_allclose(columns["list_scores"][:, 0], [0.75, 0.2, 0.3])


def test_the_teacher_scores_the_new_document() -> None:
    new = relabelled([(0, 0), (0, 1), (1, 2)], [5, -1, -1])
    own = np.array([0.1, 0.2, 0.3], np.float32)
    scores: Any = SimpleNamespace(of=own.__getitem__, embeddings=None)
    columns = new.columns(scores)
    assert columns["document"].tolist() == [5, 1, 2]
    assert columns["relabelled_from"].tolist() == [0, -1, -1]
    np.testing.assert_allclose(columns["teacher_score"], [0.75, 0.2, 0.3], rtol=1e-6)
    scores.embeddings, scores.between = True, lambda q, d: (q + d / 10).astype(np.float32)
    np.testing.assert_allclose(new.columns(scores)["teacher_score"], [0.5, 0.2, 0.3], rtol=1e-6)


LOOK_MISMATCHED = "look mismatched, because the teacher ranks their documents no better than random"
"""That is so here: the teacher has random weights."""
RULES = ("rank=4:relabel:weight_ranking=0", "mismatched")


def test_the_data_set_holds_both_documents(folder: RunFolder) -> None:
    results, scores, ranking, selection = run_results(folder, rules=RULES)
    write_dataset(results, scores, ranking, selection)
    every, selected = (
        pq.read_table(next((folder.dataset / name).glob("train-*.parquet"))).to_pylist()
        for name in ("all", "selected")
    )
    assert "relabelled_from" not in every[0]
    new = selection.relabelled
    assert 0 < (new >= 0).sum() == results.audit.relabelled < SPLIT["train"]
    texts = results.collection.document_texts(np.arange(200))
    of_pair = {row["pair_id"]: row["document"] for row in every}
    for i, (row, before) in enumerate(zip(selected, every, strict=False)):
        assert row["weight_ranking"] == selection.weight_ranking[i]
        if new[i] < 0:
            np.testing.assert_equal(
                {**before, "relabelled_from": None}, {**row, "dropped_by": None}
            )
            continue
        assert row["document"] == texts[new[i]]
        assert of_pair[row["relabelled_from"]] == before["document"] != row["document"]
        assert row["rank"] is row["margin"] is None
        assert row["teacher_score"] == selection.relabelled_score[i]
        names = row["hard_negatives"]
        others = [name for name in before["hard_negatives"] if of_pair[name] != row["document"]]
        assert names == others
        assert len(row["hard_negative_scores"]) == len(names)
    card = DatasetCard.load(folder.dataset / "README.md").text
    assert f"{results.audit.relabelled} pairs of `selected` have another document" in card
    assert "`hard_negatives`" in card
    assert "the hard negatives and `weight_ranking` describe training pairs only" in card
    assert "no mismatched pairs were detected" in card
    assert "weighted | relabelled | pairs out" in card
    assert "elabelled by <code>rank=4:relabel:weight_ranking=0</code>" in card


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run that relabels."""
    folder = tmp_path_factory.mktemp("relabelled") / "run"
    rules = "rank=1:relabel:weight_ranking=0", "mismatched:weight_ranking=0"
    more = "--hard_negatives_per_pair", 4, "--num_train_epochs", 1
    said = run_tiny(tiny, folder, "--selection", *rules, *more)
    assert "rank=1:relabel:weight_ranking=0 relabels" in said.out
    assert LOOK_MISMATCHED in said.out
    return folder


def opened_run(folder: Path) -> Run:
    return Run.open(read_recipe([str(folder / "recipe.yaml"), "--run_dir", str(folder)]))


def test_a_run_relabels_with_training_documents_alone(run: Path) -> None:
    collection = open_collection(RunFolder(run))
    train = collection.pairs("train")
    with np.load(run / "cache" / "selection.npz") as arrays:
        new, kept = arrays["relabelled"], np.flatnonzero(arrays["dropped_by"] < 0)
    held_out = {*collection.pairs("test").documents, *collection.pairs("validation").documents}
    documents = new[new >= 0]
    assert len(documents) > 10
    assert not held_out & {*documents.tolist()}
    assert {*documents.tolist()} <= {*train.documents.tolist()}
    of_query = set(zip(train.queries.tolist(), train.documents.tolist(), strict=True))
    asked = train.queries[new >= 0].tolist()
    assert not of_query & set(zip(asked, documents.tolist(), strict=True))
    assert len(kept) == len(train)


def test_training_reads_the_new_documents_and_their_scores(run: Path, tiny: Path) -> None:
    opened = opened_run(run)
    rows = training_rows(opened, opened.selection, opened.untrained()).train
    train = opened.collection.pairs("train")
    before, table = np.asarray(rows["relabelled_from"]), opened.scores.embeddings
    changed = before >= 0
    np.testing.assert_array_equal(np.asarray(rows["document"])[~changed], train.documents[~changed])
    np.testing.assert_array_equal(before[changed], train.documents[changed])
    queries, documents = (np.asarray(rows[name]) for name in ("query", "document"))
    q, d = table.of_queries(queries), table.of_documents(documents)
    np.testing.assert_allclose(rows["teacher_score"], (q * d).sum(1), atol=2e-3)
    assert (
        np.asarray(rows["teacher_score"])[changed] > opened.scores.of(train.rows)[changed]
    ).all()
    negatives = np.asarray(rows["negatives"])
    assert not (negatives == documents[:, None]).any()
    assert not (negatives == before[:, None]).any()
    assert all(len(set(row)) == 4 for row in negatives.tolist()), "one more was ranked for these"


def test_report_and_cards_say_what_was_relabelled(run: Path) -> None:
    audit = json.loads((run / "selection.json").read_text())
    number = audit["rules"][0]["relabelled"]
    selected = next((run / "dataset" / "selected").glob("train-*.parquet"))
    card = (run / "dataset" / "README.md").read_text()
    examples_shown = pq.read_table(selected).to_pylist()[:EXAMPLES]
    assert any(row["relabelled_from"] for row in examples_shown)
    for row in examples_shown:  # as they are trained on
        assert f"{row['teacher_score']:.3f} | {row['query']} | {row['document']} |" in card
    html = (run / "report.html").read_text()
    assert '<th scope="col">relabelled</th>' in html
    assert "Before the rules, up to " in html
    assert LOOK_MISMATCHED in html
    assert "Density of 140 ranks" in html
    for card in (run / "student_model_sd" / "README.md", run / "dataset" / "README.md"):
        text = card.read_text()
        assert "| relabelled |" in text
        assert LOOK_MISMATCHED in text
    rule = audit["rules"][0]["rule"]
    assert f"<summary>Relabelled by <code>{rule}</code>" in text
    assert f"{number} of them got another document" in (
        run / "student_model_sd" / "README.md"
    ).read_text().replace("\n", " ")


def test_lists_give_the_new_document_and_its_ranker_score(
    tiny: Path, cross_encoder_dir: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    line = (
        tiny, "--run_dir", tmp_path / "run", "--until", "select", "--candidates", "bm25",
        "--candidates_per_query", 6, "--hard_negatives_per_pair", 2, "--list_kl_weight", 1,
        "--selection", "margin=0:relabel",
    )  # fmt: skip
    assert call([*line, "--ranker", f"cross-encoder:{cross_encoder_dir}"]).code == 0
    opened = opened_run(tmp_path / "run")
    rows = training_rows(opened, opened.selection, opened.untrained()).train
    before = np.asarray(rows["relabelled_from"])
    assert (before >= 0).any()
    scores, documents = np.asarray(rows["list_scores"]), np.asarray(rows["document"])
    assert (scores[before >= 0, :1] >= scores[before >= 0]).all(), "the best of the list"
    assert not (np.asarray(rows["negatives"]) == documents[:, None]).any()
    of_teacher = opened.scores.between(np.asarray(rows["query"]), documents)
    np.testing.assert_allclose(rows["teacher_score"], of_teacher, atol=2e-3)

    without = (
        "--teacher", cross_encoder_dir, "--teacher_kind", "cross-encoder", "--alignment_weight", 0,
        "--student_backbone", teacher_dir, "--student_init", "random",
        "--ranker", f"cross-encoder:{cross_encoder_dir}",
    )  # fmt: skip
    refused = call([tiny, "--run_dir", tmp_path / "other", *line[3:], *without])
    assert refused.code == 2
    assert "margin=0:relabel: a new positive needs the teacher's score" in refused.err

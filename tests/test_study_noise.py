"""Noise on purpose: what becomes of the pairs, how well it is detected, and a study of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from conftest import recipe_of, sentences
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.data.collection import Pairs
from hf_distill.errors import InputError
from hf_distill.pipeline import Run
from hf_distill.run.stage import read_json
from hf_distill.scoring.ranking import Ranking
from hf_distill.selection.audit import Audit
from hf_distill.selection.mismatch import detect_mismatches
from hf_distill.selection.rules import Columns
from hf_distill.study.arms import FULL, ORACLE, clean, plan_arms
from hf_distill.study.detection import detection, picked, suspicions
from hf_distill.study.noise import (
    Answers,
    Noise,
    inject_near,
    inject_random,
    near_ranks,
    parse_noise,
)
from hf_distill.study.noisy import noisy_run
from hf_distill.study.page import Study
from hf_distill.study.study import run_study


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["ramdom=0.5"], "--noise 'ramdom=0.5': 'ramdom' is unknown"),
        (["random"], "the share must be a number from 0 to below 1"),
        (["near=1"], "the share must be a number from 0 to below 1"),
        (["near=half"], "--noise 'near=half': the share must be"),
        (["near=nan"], "the share must be"),
        (["near=0.5", "near=.5"], "--noise near=0.5 is given twice"),
    ],
)
def test_a_bad_noise_is_refused(texts: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_noise(texts)
    assert parse_noise(["random=.2", "near=0"]) == [Noise("random", 0.2), Noise("near", 0.0)]


def answers_of(queries: np.ndarray, documents: np.ndarray, count: int) -> Answers:
    """Query numbers q and q + count are the same text, and so are such document numbers."""
    keys = np.tile(np.arange(count), 2)
    return Answers.of(keys, keys, queries, documents)


@settings(max_examples=60, deadline=None)
@given(st.integers(40, 80), st.sampled_from([0.2, 0.5, 0.9]), st.integers(0, 2**31))
def test_random_noise_deals_the_same_documents_out_and_makes_no_answer(
    number: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    queries, documents = rng.integers(0, 80, number), rng.integers(0, 80, number)
    answers = answers_of(queries, documents, 40)
    injected = inject_random(queries, documents, answers, share, seed)
    assert len(injected.places) == round(share * number)
    assert (np.diff(injected.places) > 0).all()
    assert sorted(injected.documents) == sorted(documents[injected.places])
    judged = set(zip((queries % 40).tolist(), (documents % 40).tolist(), strict=True))
    theirs = zip(queries[injected.places] % 40, injected.documents % 40, strict=True)
    assert not judged & set(theirs), "equal texts count as the same"
    again = inject_random(queries, documents, answers, share, seed)
    assert again.documents.tolist() == injected.documents.tolist()


def test_documents_that_cannot_be_dealt_out_are_one_message() -> None:
    one, two = np.zeros(4, dtype=np.int64), np.arange(4)
    with pytest.raises(InputError, match=r"random=0.5 cannot deal the documents of 2 pairs"):
        inject_random(one, two, answers_of(one, two, 4), 0.5, 0)


def ranked(scores: np.ndarray, queries: np.ndarray, documents: np.ndarray, k: int) -> Ranking:
    """The ranking of pairs by hand, from scores (queries, documents)."""
    n = len(queries)
    rank, negatives = np.empty(n, dtype=np.int32), np.full((n, k), -1)
    for i, (query, document) in enumerate(zip(queries, documents, strict=True)):
        own = set(documents[queries == query])
        order = [d for d in np.argsort(-scores[query]) if d not in own]
        rank[i] = 1 + sum(scores[query, d] > scores[query, document] for d in order)
        negatives[i, : len(order[:k])] = order[:k]
    nothing = np.zeros((n, k), dtype=np.float32)
    return Ranking("", rank, nothing[:, 0], negatives, nothing, scores.shape[1])


def test_near_noise_is_of_the_ranks_that_it_says() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((30, 60))
    queries = np.repeat(np.arange(30), 2)
    documents = rng.permutation(60)
    documents[1] = documents[0]  # a pair that stands there twice
    of_query = {q: set(documents[queries == q]) for q in range(30)}
    ranking = ranked(scores, queries, documents, 20)
    places = (-scores).argsort(axis=1).argsort(axis=1) + 1
    ranks = near_ranks(queries, documents, ranking)
    assert (ranks == places[queries[:, None], ranking.negatives]).all()

    keys = np.arange(60)
    answers = Answers.of(keys, keys, queries, documents)
    injected = inject_near(queries, documents, answers, ranking, 0.5, 1)
    assert len(injected.places) == 30
    theirs = places[queries[injected.places], injected.documents]
    assert theirs.min() >= 2
    assert theirs.max() <= 20
    assert len(set(theirs.tolist())) > 8, "all these ranks are drawn"
    for query, document in zip(queries[injected.places], injected.documents, strict=True):
        assert document not in of_query[query]
    # Somebody judged all but one of them right.
    best = int(ranking.negatives[4, 7])
    known = [d for d in range(60) if d != best]
    judged_q = np.concatenate([queries, np.full(len(known), 2)])
    judged = Answers.of(keys, keys, judged_q, np.concatenate([documents, known]))
    all_but_few = inject_near(queries, documents, judged, ranking, 0.99, 1)
    place = all_but_few.places.tolist().index(4)
    assert all_but_few.documents[place] == best
    one = np.array([0])
    few = ranked(scores[:1, :1], one, one, 20)
    with pytest.raises(InputError, match=r"near=0.6 needs 1 pairs .* 0 of 1 have one"):
        inject_near(one, one, Answers.of(one, one, one, one), few, 0.6, 0)


def test_the_oracle_has_a_control_of_its_size() -> None:
    columns = Columns(Pairs(None, np.arange(5, 15)), np.linspace(0, 1, 10), np.arange(10))
    arms = {arm.name: arm for arm in plan_arms({ORACLE: (clean(np.array([5, 7])),)}, columns)}
    assert arms[ORACLE].rows(columns).tolist() == [1, 3, 4, 5, 6, 7, 8, 9]
    assert arms[ORACLE].control == "random 8"


def test_detectors_suspect_low_scores_high_ranks_and_low_margins() -> None:
    is_noisy = np.array([True, True, False, False])
    nan = np.float32("nan")
    suspected = suspicions(
        np.array([0.1, 0.6, 0.5, 0.9]), np.array([3, 9, 1, 2]), np.array([-0.1, -0.3, nan, -0.2])
    )  # fmt: skip
    aucs = {one.detector: one.auc for one in detection(is_noisy, suspected, 0)}
    assert {name: auc.value for name, auc in aucs.items()} == {
        "score": 0.75, "rank": 1.0, "margin": 0.75,
    }  # fmt: skip
    (nothing,) = detection(np.zeros(4, dtype=bool), {"score": np.arange(4.0)}, 0)
    assert nothing.auc.value is None
    assert nothing.auc.undefined


def test_what_the_rule_picks_of_noisy_and_clean_pairs() -> None:
    rank = np.array([1] * 60 + [*range(1, 21)] * 2)  # from rank 2 on all count as mismatched
    is_noisy = np.arange(100) >= 70
    found = picked(is_noisy, rank, detect_mismatches(rank, 20))
    assert (found.noisy, found.of_noisy, found.clean, found.of_clean) == (29, 30, 9, 70)


def test_the_auc_is_scikit_learns_and_lies_in_its_interval() -> None:
    rng = np.random.default_rng(0)
    is_noisy = rng.random(12_000) < 0.3
    values = rng.normal(size=12_000) + is_noisy
    (whole,) = detection(is_noisy[:2000], {"score": values[:2000]}, 0)
    expected = sklearn.metrics.roc_auc_score(is_noisy[:2000], values[:2000])
    assert whole.auc.value == pytest.approx(expected)
    assert whole.auc.low < expected < whole.auc.high
    assert whole.auc.high - whole.auc.low < 0.06


@dataclass(frozen=True)
class Studied:
    """A study with random noise, the run, and its folder."""

    study: Study
    run: Run
    folder: Path


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 pairs whose documents hold the words of their queries."""
    path = tmp_path_factory.mktemp("data") / "planted.jsonl"
    rows = [{"query": text, "document": f"{text} the river"} for text in sentences(160)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def keys(planted: Path, tiny: Path, words_dir: Path, backbone_dir: Path) -> dict[str, object]:
    return {
        "recipe": tiny, "dataset_path": planted, "group_column": None, "teacher": words_dir,
        "student_backbone": backbone_dir, "student_init": "random",
        "alignment_weight": 1.0, "texts_per_pair": 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def studied(keys: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Studied:
    folder = tmp_path_factory.mktemp("noise") / "run"
    recipe = recipe_of(**keys, run_dir=folder)
    (study,) = run_study(recipe, ["margin=0:relabel"], 16, 1, ["random=0.5"])
    return Studied(study, Run.open(recipe), folder)


def test_a_study_with_noise_has_an_oracle_and_says_how_well_it_is_detected(
    studied: Studied,
) -> None:
    study, out = studied.study, studied.folder / "study" / "noise" / "random=0.5"
    assert read_json(out / "study.json", Study) == study
    assert study.noise.changed == round(study.noise.pairs / 2)
    arms = {row.arm: row for row in study.arms}
    assert arms[ORACLE].pairs == study.noise.pairs - study.noise.changed
    assert arms[ORACLE].minus_all is not None
    assert arms[FULL].pairs == study.noise.pairs
    aucs = {one.detector: one.auc.value for one in study.detection}
    assert aucs["margin"] > 0.99
    assert aucs["score"] > 0.99
    assert aucs["rank"] > 0.98
    called, text = study.picked, (out / "study.md").read_text()
    assert (called.of_noisy, called.of_clean) == (study.noise.changed, arms[ORACLE].pairs)
    assert called.noisy > 0.8 * called.of_noisy
    assert called.clean == 0
    assert called.detection.low < 0.5 < called.detection.high
    assert f"picks {called.noisy} of {called.of_noisy} noisy pairs and 0 of" in text
    assert f"`{ORACLE}`" in text
    assert f"{study.noise.changed} of {study.noise.pairs} training pairs have another" in text
    assert "| margin | " in text
    assert not (studied.folder / "study" / "study.json").exists(), "that one is without noise"
    audits = [read_json(path, Audit) for path in out.glob("selections/oracle*/selection.json")]
    assert [audit.rules[0].rule for audit in audits] == ["clean"]
    (relabelled,) = out.glob("selections/margin*")
    with np.load(relabelled / "cache" / "selection.npz") as arrays:
        new = arrays["relabelled"]
    noisy = np.load(out / "noise.npz")["places"]
    right = studied.run.collection.pairs("train").documents
    assert (new[noisy] == right[noisy]).mean() > 0.8, "repair finds the documents of before"


def test_noise_is_in_the_training_pairs_alone_and_no_text_is_embedded_again(
    studied: Studied, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = studied.run, studied.folder / "study" / "noise" / "random=0.5"
    monkeypatch.setattr(type(run.teacher), "embed", None)
    monkeypatch.setattr(type(run.teacher), "embed_as", None)
    noisy = noisy_run(run, Noise("random", 0.5), out)
    before, after = run.collection, noisy.run.collection
    train = before.rows("train")
    differs = before.document_numbers != after.document_numbers
    assert (differs[train] == noisy.is_noisy).all()
    assert differs.sum() == studied.study.noise.changed
    assert before.query_numbers.tolist() == after.query_numbers.tolist()
    others = before.judgements.remove_columns("document")
    assert others[:] == after.judgements.remove_columns("document")[:]
    table, scores = run.scores.embeddings, noisy.run.scores
    vectors = table.of_queries(after.query_numbers), table.of_documents(after.document_numbers)
    cosines = np.einsum("nd,nd->n", *(values.astype(np.float64) for values in vectors))
    assert scores.values == pytest.approx(cosines, abs=2e-3)
    assert (scores.values == run.scores.values).mean() >= 1 - differs.mean()
    assert noisy.run.ranking.rank[noisy.is_noisy].min() > 1, "the right document is in the pool"
    assert noisy.run.ranking.pool == run.ranking.pool
    assert len({run.scores.key, scores.key, run.ranking.key, noisy.run.ranking.key}) == 4
    assert run.selection_inputs.key != noisy.run.selection_inputs.key
    near = noisy_run(run, Noise("near", 0.2), out.with_name("near=0.2"))
    assert near.is_noisy.sum() == round(0.2 * len(near.is_noisy))
    assert near.run.ranking.rank[near.is_noisy].min() > 1
    assert near.run.ranking.rank[near.is_noisy].max() <= 20, "one pair a query: two ranks are near"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"teacher_kind": "cross-encoder"}, "--noise needs a teacher that embeds texts"),
        (
            {"candidates": "bm25", "hard_negatives_per_pair": 1},
            "the recipe mines lists for their queries",
        ),
    ],
)
def test_what_noise_cannot_be_put_into_is_refused(
    more: dict[str, object],
    says: str,
    keys: dict[str, object],
    tmp_path: Path,
    cross_encoder_dir: Path,
) -> None:
    if "teacher_kind" in more:
        more |= {"teacher": cross_encoder_dir, "alignment_weight": 0, "texts_per_pair": 0,
                 "student_init": "random", "student_layers": None,
                 "student_backbone": cross_encoder_dir}  # fmt: skip
    recipe = recipe_of(**{**keys, **more}, run_dir=tmp_path / "run")
    with pytest.raises(InputError, match=says):
        run_study(recipe, ["echo"], 16, 1, ["near=0.5"])
    assert not (tmp_path / "run").exists()

"""A whole run with mined lists and a ranker: what it writes, what it does again, and what it
refuses.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import call, run_tiny
from datasets import load_dataset
from markupsafe import escape
from safetensors.torch import load_file
from scipy.stats import kendalltau
from sentence_transformers import CrossEncoder, SentenceTransformer

from hf_distill.commands.main import main as hf_distill
from hf_distill.data.load import open_collection
from hf_distill.errors import InputError
from hf_distill.evaluation.tasks import held_out_task
from hf_distill.recipe.read import read_recipe
from hf_distill.run import shards
from hf_distill.run.disk import Sizes, plan
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import read_result, write_result
from hf_distill.scoring.lists import (
    MinedRecord,
    ScoredLists,
    corpus_of,
    open_lists,
    pairs_of,
    with_lists,
)
from hf_distill.teachers.cross_encoder import CrossEncoderTeacher
from hf_distill.training import stages
from hf_distill.training.train import sizes_with
from hf_distill.training.trainer import DistillationTrainer

LISTS = (
    "--candidates", "teacher", "bm25", "--candidates_per_query", 6, "--hard_negatives_per_pair", 2,
    "--list_kl_weight", 1, "--rerank_queries", 10,
)  # fmt: skip


MINED = ("--candidates", "bm25", "--hard_negatives_per_pair", "2")


@pytest.fixture(scope="module")
def with_ranker(
    tiny: Path, cross_encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The folder of a whole run, and what it printed."""
    folder = tmp_path_factory.mktemp("lists") / "run"
    line = (*LISTS, "--list_margin_weight", 0.1, "--ranker", f"cross-encoder:{cross_encoder_dir}")
    return folder, run_tiny(tiny, folder, *line).out


def lists_in(path: Path) -> ScoredLists:
    folder = RunFolder(path)
    lists = open_lists(folder.candidates, open_collection(folder))
    assert lists is not None
    return lists


def test_the_card_shows_keys_of_lists_where_there_are_some(
    with_ranker: tuple[Path, str], finished_run: tuple[Path, str]
) -> None:
    cards = [run / "student_model_sd" / "README.md" for run, _ in (with_ranker, finished_run)]
    assert ["`positive_cut`" in card.read_text() for card in cards] == [True, False]


def test_lists_are_scored_by_the_ranker_as_its_library_does(
    with_ranker: tuple[Path, str], cross_encoder_dir: Path
) -> None:
    folder, out = with_ranker
    lists = lists_in(folder)
    collection = open_collection(RunFolder(folder))
    train, pairs = collection.pairs("train"), pairs_of(collection)
    queries = np.repeat(lists.queries, np.diff(lists.mined.starts))
    texts = collection.query_texts(queries), collection.document_texts(lists.mined.documents)
    model = CrossEncoder(str(cross_encoder_dir), device="cpu")
    expected = model.predict(list(zip(*texts, strict=True)), activation_fn=lambda x: x)
    assert np.allclose(lists.scores, np.ravel(expected), atol=1e-4), "logits, as they are"
    held_out = {*collection.pairs("test").documents, *collection.pairs("validation").documents}
    assert lists.trained == len(train) < len(lists.own), "validation pairs have lists, too"
    assert not held_out & {*lists.mined.documents.tolist()}
    for i, query in enumerate(lists.queries):
        own = pairs.documents[pairs.queries == query]
        row = lists.mined.documents[lists.mined.starts[i] : lists.mined.starts[i + 1]]
        assert 2 <= len(row) <= 6
        assert not np.isin(row, own).any()
    assert f"candidates of {len(lists.queries):,} queries among" in out
    assert "stand above their list" in out
    assert f"list, the average one above {lists.record.auc:.1%} of its candidates" in out
    above = [
        (lists.own[i] > lists.scores[lists.mined.starts[q] : lists.mined.starts[q + 1]]).mean()
        for i, q in enumerate(lists.of)
    ]
    assert lists.record.auc == pytest.approx(np.mean(above), abs=1e-6), "without ties"


def test_the_student_learns_from_the_lists_and_the_ranker_has_its_row(
    with_ranker: tuple[Path, str],
) -> None:
    folder, out = with_ranker
    training = json.loads((folder / "training.json").read_text())
    logged = {name for row in training["log"] for name in row}
    assert {"list_kl", "list_margin", "contrastive"} <= logged
    ranker = json.loads((folder / "evaluation.json").read_text())["ranker"]
    assert (ranker["first_stage"], ranker["num_queries"]) == ("teacher", 10)
    assert {*ranker["ndcg"]} == {"ranker", "teacher", "student", "student, reranked"}
    assert "On 10 held-out queries the ranker, which reorders the teacher's best 100" in out
    report = (folder / "report.html").read_text()
    assert "Beside the ranker" in report
    assert escape(lists_in(folder).record.described()) in report
    card = (folder / "student_model_sd" / "README.md").read_text()
    assert "`cross-encoder` scored the lists that it was trained on" in card
    assert "the ranker, which reorders" in card


def test_the_disk_that_lists_need_is_estimated(
    with_ranker: tuple[Path, str],
) -> None:
    folder, out = with_ranker
    recipe = read_recipe([str(folder / "recipe.yaml"), "--run_dir", str(folder)])
    teacher: Any = SimpleNamespace(embeds=True, dimension=32)
    sizes = sizes_with(Sizes(), open_collection(RunFolder(folder)), teacher, recipe)
    needed = sum(part.size for part in plan(recipe, sizes) if part.what == "lists")
    places = folder / "candidates", folder / "soft_labels" / "pairs"
    actual = sum(file.stat().st_size for place in places for file in place.iterdir())
    assert actual / 2 < needed < actual * 2
    assert re.search(r"Disk .*, lists \d", out)


def test_agreement_with_the_ranker_is_that_of_the_runs_and_its_librarys_scores(
    with_ranker: tuple[Path, str], cross_encoder_dir: Path
) -> None:
    folder, _ = with_ranker
    task = held_out_task(open_collection(RunFolder(folder)))
    scores: dict[str, dict[str, float]] = {}
    for text in (folder / "retrieval" / "student.run").read_text().splitlines():
        query, _, document, _, score, _ = text.split()
        scores.setdefault(query, {})[document] = float(score)
    names = list(task.qrels)
    drawn = np.sort(np.random.default_rng(42).permutation(len(names))[:10])
    model = CrossEncoder(str(cross_encoder_dir), device="cpu")
    taus = []
    for query in (names[i] for i in drawn):
        assert len(scores[query]) == len(task.documents) == 40, "the whole corpus"
        pairs = [(task.queries[query], task.documents[name]) for name in task.documents]
        ranked = np.ravel(model.predict(pairs))
        taus.append(kendalltau(ranked, [scores[query][name] for name in task.documents]).statistic)
    ranker = json.loads((folder / "evaluation.json").read_text())["ranker"]
    assert ranker["kendall"]["value"] == pytest.approx(np.mean(taus), abs=2e-3)


def test_the_data_set_holds_the_lists_and_its_card_names_no_path(
    with_ranker: tuple[Path, str], cross_encoder_dir: Path
) -> None:
    folder, _ = with_ranker
    card = (folder / "dataset" / "README.md").read_text()
    assert "## The lists" in card
    described = lists_in(folder).record.described("`cross-encoder`")
    assert described.replace("teacher", "`teacher`", 1).replace("bm25", "`bm25`") in card
    assert str(cross_encoder_dir) not in card
    rows = load_dataset(str(folder / "dataset"), "selected", split="train", cache_dir=str(folder))
    first = rows[0]
    assert len(first["candidates"]) == len(first["candidate_scores"]) == 4
    assert first["candidate_scores"] == sorted(first["candidate_scores"], reverse=True)
    assert first["document"] not in first["candidates"]


@pytest.mark.parametrize("name", ["mined.npz", "mined.json", "scores.npy", "manifest.json"])
def test_damaged_lists_are_named(with_ranker: tuple[Path, str], tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(with_ranker[0], tmp_path / "run"))
    damaged = run / "candidates" / name
    damaged.write_bytes(bytes(len(damaged.read_bytes())))
    with pytest.raises(InputError, match=rf"candidates/{name} is damaged"):
        lists_in(run)


def test_lists_without_the_record_of_their_mining_are_named(
    with_ranker: tuple[Path, str], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(with_ranker[0], tmp_path / "run"))
    (run / "candidates" / "mined.json").unlink()
    with pytest.raises(InputError, match=r"mined\.json is gone, but .*; remove manifest"):
        lists_in(run)


def test_lists_that_a_stopped_call_has_mined_again_are_not_mixed_with_old_scores(
    with_ranker: tuple[Path, str], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(with_ranker[0], tmp_path / "run"))
    candidates = run / "candidates"
    record = read_result(candidates / "mined.json", MinedRecord)
    other = dataclasses.replace(record, key="another")
    write_result(candidates / "mined.json", other, [candidates / "mined.npz"])
    with pytest.raises(InputError, match=r"mined\.json is of other lists than"):
        lists_in(run)


def test_a_stage_without_hard_negatives_is_validated_without_them(
    tiny: Path, cross_encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[bool, bool]] = []

    class Watched(DistillationTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            rows = kwargs["train_dataset"], kwargs["eval_dataset"]
            train, validation = ("list_scores" in of.column_names for of in rows)
            read.append((train, validation))
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(stages, "DistillationTrainer", Watched)
    line = (*LISTS, "--ranker", f"cross-encoder:{cross_encoder_dir}", "--until", "train")
    second = "hard_negatives_per_pair=0, list_kl_weight=0, num_train_epochs=1"
    run_tiny(tiny, tmp_path / "run", *line, "--stages", second)
    assert read == [(True, True), (False, False)]


def test_a_second_call_does_nothing_again_and_another_choice_trains_alone(
    with_ranker: tuple[Path, str], tiny: Path, cross_encoder_dir: Path
) -> None:
    folder, _ = with_ranker
    line = (*LISTS, "--list_margin_weight", 0.1, "--ranker", f"cross-encoder:{cross_encoder_dir}")
    before = {file: file.stat().st_mtime_ns for file in (folder / "candidates").iterdir()}
    trained = (folder / "training.json").stat().st_mtime_ns
    run_tiny(tiny, folder, *line, "--until", "train")
    assert (folder / "training.json").stat().st_mtime_ns == trained
    run_tiny(tiny, folder, *line, "--until", "evaluate", "--rerank_queries", 5)
    measured = json.loads((folder / "evaluation.json").read_text())["ranker"]
    assert measured["num_queries"] == 5
    assert (folder / "training.json").stat().st_mtime_ns == trained
    run_tiny(tiny, folder, *line, "--until", "train", "--choose_candidates", "top")
    assert (folder / "training.json").stat().st_mtime_ns > trained
    assert before == {file: file.stat().st_mtime_ns for file in (folder / "candidates").iterdir()}


def test_scoring_of_lists_that_is_stopped_goes_on_and_ends_with_the_same_bytes(
    tiny: Path, cross_encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "LEAST_ITEMS", 100)
    line = (*LISTS, "--ranker", f"cross-encoder:{cross_encoder_dir}", "--until", "select")
    run_tiny(tiny, tmp_path / "whole", *line)
    asked: list[int] = []
    score = CrossEncoderTeacher.score

    def stopped(self: CrossEncoderTeacher, pairs: list[tuple[str, str]], *rest: object) -> object:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(len(pairs))
        return score(self, pairs, *rest)  # type: ignore[arg-type]  # advance

    monkeypatch.setattr(CrossEncoderTeacher, "score", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tiny, tmp_path / "run", *line)
    assert not (tmp_path / "run" / "candidates" / "manifest.json").exists()
    monkeypatch.setattr(CrossEncoderTeacher, "score", score)
    later: list[int] = []

    def counted(self: CrossEncoderTeacher, pairs: list[tuple[str, str]], *rest: object) -> object:
        later.append(len(pairs))
        return score(self, pairs, *rest)  # type: ignore[arg-type]  # advance

    monkeypatch.setattr(CrossEncoderTeacher, "score", counted)
    run_tiny(tiny, tmp_path / "run", *line)
    lists = lists_in(tmp_path / "run")
    assert sum(asked) + sum(later) == len(lists.scores) + len(lists.own), "nothing twice"
    for name in ("scores.npy", "mined.npz"):
        whole = (tmp_path / "whole" / "candidates" / name).read_bytes()
        assert (tmp_path / "run" / "candidates" / name).read_bytes() == whole


def test_the_student_mines_again_and_a_training_that_is_stopped_ends_the_same(
    tiny: Path, cross_encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (
        *LISTS, "--ranker", f"cross-encoder:{cross_encoder_dir}", "--until", "train",
        "--num_train_epochs", 1, "--stages", "mine_again=true",
    )  # fmt: skip
    out = run_tiny(tiny, tmp_path / "whole", *line).out
    (place,) = (tmp_path / "whole" / "checkpoints").glob("*/candidates")
    collection = open_collection(RunFolder(tmp_path / "whole"))
    again, first = open_lists(place, collection), lists_in(tmp_path / "whole")
    assert again is not None
    assert {*again.record.mined.by} == {"student", "bm25"}
    assert again.summary() in out
    student = SentenceTransformer(str(place / "student"), device="cpu")
    corpus = corpus_of(collection)
    texts = collection.query_texts(again.queries), collection.document_texts(corpus)
    nearest = corpus[(student.encode(texts[0]) @ student.encode(texts[1]).T).argmax(axis=1)]
    every = collection.query_numbers.tolist(), collection.document_numbers.tolist()
    relevant = set(zip(*every, strict=True))
    lists = np.split(again.mined.documents, again.mined.starts[1:-1])
    missing = [
        query
        for query, best, row in zip(again.queries, nearest, lists, strict=True)
        if best not in row and (query, best) not in relevant
    ]
    assert len(missing) < len(lists) / 20, "but for what bfloat16 or float16 turns round"
    assert again.mined.documents.tolist() != first.mined.documents.tolist()

    (before,) = (tmp_path / "whole" / "checkpoints").glob("*/after.safetensors")
    of_first, weights = load_file(before), student.state_dict()
    assert all(of_first[name].equal(value) for name, value in weights.items() if name[0] == "0")

    stop = {"at": 3}
    step, rows = DistillationTrainer.training_step, list[Any]()

    def stopped(self: DistillationTrainer, *args: Any, **kwargs: Any) -> object:
        if self.args.mine_again:
            stop["at"] -= 1
            rows.append(self.train_dataset)
            if not stop["at"]:
                raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tiny, tmp_path / "run", *line)
    monkeypatch.setattr(DistillationTrainer, "training_step", step)
    listed = dict(zip(again.queries.tolist(), lists, strict=True))
    for row in rows[-1]:
        assert np.isin(row["negatives"], listed[int(row["query"])]).all(), "it trains on them"
    kept = {
        file: file.stat().st_mtime_ns
        for file in (tmp_path / "run").glob("checkpoints/*/candidates/*.np*")
    }
    assert len(kept) == 2
    run_tiny(tiny, tmp_path / "run", *line)
    assert kept == {file: file.stat().st_mtime_ns for file in kept}, "it mines once"
    for name in (
        "student_model_sd/model.safetensors",
        *(f.relative_to(tmp_path / "run") for f in kept),
    ):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_cross_encoder_alone_is_teacher_and_ranker(
    tiny: Path, cross_encoder_dir: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    line = (
        "--teacher", cross_encoder_dir, "--teacher_kind", "cross-encoder",
        "--student_backbone", teacher_dir, "--student_init", "random", "--alignment_weight", 0,
        "--candidates", "bm25", str(teacher_dir), "--candidates_per_query", 4,
        "--hard_negatives_per_pair", 3, "--kl_weight", 1, "--selection", "rank=3",
        "--rerank_queries", 5,
    )  # fmt: skip
    out = run_tiny(tiny, tmp_path / "run", *line).out
    assert "rank=3" in out
    ranker = json.loads((tmp_path / "run" / "evaluation.json").read_text())["ranker"]
    assert ranker["first_stage"] == "bm25"
    lists = lists_in(tmp_path / "run")
    assert lists.scale.activation == "sigmoid", "the teacher's own scale"
    log = json.loads((tmp_path / "run" / "training.json").read_text())["log"]
    assert all(row["kl"] > 0 for row in log if "kl" in row), "the matrix knows the lists' scores"
    assert any("kl" in row for row in log)


def test_mined_lists_are_exported_with_the_scores_of_the_ranker(
    with_ranker: tuple[Path, str], tiny: Path, cross_encoder_dir: Path, tmp_path: Path
) -> None:
    line = [
        "mine", tiny, "--run_dir", tmp_path / "run", *LISTS, "--ranker",
        f"cross-encoder:{cross_encoder_dir}", "--format", "flagembedding", "--output",
        tmp_path / "out",
    ]  # fmt: skip
    said = call(line, hf_distill)
    assert said.code == 0, said.err
    lists, collection = lists_in(tmp_path / "run"), open_collection(RunFolder(tmp_path / "run"))
    assert lists.scores.tolist() == lists_in(with_ranker[0]).scores.tolist()
    rows = [
        json.loads(text) for text in (tmp_path / "out" / "train.jsonl").read_text().splitlines()
    ]
    assert len(rows) == len(np.unique(collection.pairs("train").queries))
    number = {text: i for i, text in enumerate(collection.query_texts(lists.queries))}
    for row in rows:
        i = number[row["query"]]
        here = slice(lists.mined.starts[i], lists.mined.starts[i + 1])
        texts = collection.document_texts(lists.mined.documents[here])
        assert dict(zip(row["neg"], row["neg_scores"], strict=True)) == pytest.approx(
            dict(zip(texts, lists.scores[here].tolist(), strict=True))
        )
        assert len(row["pos"]) == len(row["pos_scores"])
    merged = with_lists(collection, lists).lists(lists.queries)
    assert len(merged.documents) == len(lists.scores) + len(lists.own)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["--ranker", "cross-encoder:x"], "no lists without --candidates"),
        (["--candidates", "bm25", "bm25"], "names a miner twice"),
        (["--candidates", "bm25"], "nothing uses the lists"),
        (["--candidates", "bm25", "--hard_negatives_per_pair", "40"], "a list has 32 candidates"),
        (["--list_kl_weight", "1"], "--hard_negatives_per_pair is 0"),
        ([*MINED, "--mine_again", "true"], "there is no student to mine"),
        (["--stages", "mine_again=true"], "this stage has none"),
        ([*MINED, "--stages", "mine_again=true", "--student_space", "teacher"], "queries alone"),
        ([*MINED, "--stages", "mine_again=true hard_negatives_per_pair=0"], "this stage has none"),
        (["--positive_cut", "1.5"], "at most 1"),
        (["--positive_cut", "0.9"], "it is about mined candidates"),
        (["--ranker_temperature", "0.1"], "only the terms over lists read it"),
        (
            [
                "--candidates",
                "bm25",
                "--hard_negatives_per_pair",
                "2",
                "--ranker_activation",
                "auto",
            ],
            "there is no --ranker",
        ),
        (
            ["--candidates", "bm25", "--selection", "rank=2", "--choose_candidates", "top"],
            "no candidate is taken",
        ),
        (
            [*MINED, "--rerank_queries", "9"],
            "there is no ranker to measure",
        ),
        (
            [*MINED, "--list_kl_weight", "1"],
            "all candidates of a list are nearly the same",
        ),
        (["--candidates", "given", "--hard_negatives_per_pair", "2"], "lists no documents"),
        (
            [*MINED, "--ranker", "x"],
            "a ranker is KIND:MODEL",
        ),
    ],
)
def test_what_makes_no_list_is_refused(
    tiny: Path, tmp_path: Path, line: list[str], says: str
) -> None:
    said = call([tiny, "--run_dir", tmp_path / "run", *line])
    assert said.code == 2
    assert says in said.err
    assert not (tmp_path / "run" / "soft_labels").exists(), "before any work"


RANKERS = """
import numpy as np
from hf_distill.teachers.base import PairTeacher, Scale

class Ranker(PairTeacher):
    name, scale = "mine", Scale("cross-encoder", None, -10.0, 10.0)

    def __init__(self, fault):
        self.fault, self.identity = fault, ("mine", fault)

    def score(self, pairs, advance=None):
        scores = np.array([len(query) % 7 - len(text) % 5 for query, text in pairs], dtype="f4")
        if self.fault == "few":
            return scores[:-1]
        if self.fault == "far":
            return scores + 100
        if self.fault == "nothing":
            return np.full(len(pairs), np.nan, dtype="f4")
        if self.fault == "some":
            scores[::3] = np.nan
        if self.fault == "nan":
            return self.checked(scores * np.nan, pairs, "Look at it")
        return scores

def load(recipe):
    return Ranker(recipe.teacher.teacher)
"""


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("few", r"returned scores of shape \(\d+,\) for \d+ pairs"),
        ("far", r"scores lie outside the declared range \[-10, 10\]"),
        ("nothing", "mine has no score for any candidate or for any pair"),
        ("nan", r"mine returns NaN or infinity for (\d+) of \1 pairs, e\.g\. for"),
    ],
)
def test_a_ranker_that_answers_nonsense_is_one_message(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, says: str
) -> None:
    (tmp_path / "my_rankers.py").write_text(RANKERS)
    monkeypatch.syspath_prepend(tmp_path)
    line = (*LISTS, "--ranker", f"my_rankers:load:{fault}")
    said = call([tiny, "--run_dir", tmp_path / "run", *line])
    assert said.code == 2
    assert re.search(says, said.err), said.err
    assert not (tmp_path / "run" / "candidates" / "manifest.json").exists()


def test_candidates_that_a_ranker_does_not_score_are_counted(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_rankers.py").write_text(RANKERS)
    monkeypatch.syspath_prepend(tmp_path)
    out = run_tiny(tiny, tmp_path / "run", *LISTS, "--ranker", "my_rankers:load:some").out
    lists = lists_in(tmp_path / "run")
    assert 0 < lists.record.unscored == int(np.isnan(lists.scores).sum())
    assert f"{lists.record.unscored:,} without a score" in out


def test_an_embedder_is_no_ranker(tiny: Path, teacher_dir: Path, tmp_path: Path) -> None:
    said = call(
        [tiny, "--run_dir", tmp_path / "r", *MINED, "--ranker", f"bi-encoder:{teacher_dir}"]
    )
    assert said.code == 2
    assert "it embeds texts and scores no pairs" in said.err


def test_a_ranker_that_cannot_be_loaded_is_said_with_its_own_flag(
    tiny: Path, cross_encoder_dir: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    line = [tiny, "--run_dir", tmp_path / "r", *LISTS]
    said = call([*line, "--ranker", f"cross-encoder:{teacher_dir}"])
    assert said.code == 2
    assert f"--ranker {teacher_dir}: " in said.err
    said = call([tiny, "--run_dir", tmp_path / "r", "--teacher", cross_encoder_dir])
    assert f"--ranker cross-encoder:{cross_encoder_dir}" in said.err, "a hint"


def test_mine_needs_a_recipe_a_format_and_miners(tiny: Path) -> None:
    for line, says in (
        (["mine"], "name the recipe first"),
        (["mine", tiny], "--format is missing"),
        (["mine", tiny, "--format", "trec"], "mines no candidates"),
    ):
        said = call(line, hf_distill)
        assert (said.code, says in said.err) == (2, True), said.err

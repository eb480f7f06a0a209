"""A test set of one's own and further tasks, figures per source, and what must not be claimed: a
whole tiny run and its parts.
"""

import json
import shutil
from pathlib import Path

import ir_measures
import numpy as np
import pytest
import yaml
from conftest import call, recipe_of, run_tiny, sentences
from sentence_transformers import SentenceTransformer

from hf_distill.compute.search import search
from hf_distill.data.collection import Collection
from hf_distill.errors import InputError
from hf_distill.evaluation import further
from hf_distill.evaluation.bm25 import bm25_run
from hf_distill.evaluation.further import (
    digest,
    embed_by_teacher,
    folder_name,
    load_tasks,
    task_names,
    with_shared_texts,
)
from hf_distill.evaluation.results import Evaluation
from hf_distill.evaluation.retrieval import per_query
from hf_distill.evaluation.significance import holm
from hf_distill.evaluation.tasks import RetrievalTask, load_task, make_task
from hf_distill.pipeline import Run
from hf_distill.recipe.read import read_recipe
from hf_distill.report.headline import task_verdict
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import read_json
from hf_distill.teachers.base import EmbeddingTeacher

OWN, ELSEWHERE = sentences(20, 5000), sentences(20, 6000)
FURTHER, CORPUS = sentences(15, 7000), sentences(40, 8000)


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pairs of one's own. The first query is one of `pairs_file`, too."""
    queries = [sentences(1)[0], *OWN[1:]]
    rows = [{"query": q, "document": d} for q, d in zip(queries, ELSEWHERE, strict=True)]
    return write_lines(tmp_path_factory.mktemp("own") / "own test.v2.jsonl", rows)


def beir_folder(folder: Path) -> Path:
    write_lines(
        folder / "corpus.jsonl",
        [{"_id": f"d {i}", "title": "", "text": text} for i, text in enumerate(CORPUS)],
    )
    write_lines(
        folder / "queries.jsonl", [{"_id": f"q{i}", "text": t} for i, t in enumerate(FURTHER)]
    )
    (folder / "qrels").mkdir()
    lines = [f"q{i}\td {i}\t{1 + i % 2}" for i in range(15)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two BEIR folders of the same name."""
    parent = tmp_path_factory.mktemp("beir")
    return beir_folder(parent / "a" / "tests"), beir_folder(parent / "b" / "tests")


@pytest.fixture(scope="module")
def measured(
    tiny: Path, test_set: Path, folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, str]:
    """A run with all three tasks, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "tasks"
    said = run_tiny(tiny, folder, "--test_path", test_set, "--eval_tasks", *folders)
    return RunFolder(folder), said.out


def model_of(path: Path) -> SentenceTransformer:
    return SentenceTransformer(str(path), device="cpu")


def figures(model: SentenceTransformer, task: RetrievalTask) -> float:
    """nDCG@10 of a model that is asked by hand."""
    queries, documents = (
        model.encode(list(part.values())) for part in (task.queries, task.documents)
    )
    return float(task.ndcg(search(queries, documents, 10)).mean())


def test_tasks_are_measured_beside_the_held_out_pairs(
    measured: tuple[RunFolder, str], teacher_dir: Path, test_set: Path, folders: tuple[Path, Path]
) -> None:
    folder, out = measured
    result = read_json(folder.evaluation, Evaluation)
    assert {name: task.named for name, task in result.tasks.items()} == {
        "own test": str(test_set), "tests": str(folders[0]), "tests 2": str(folders[1]),
    }  # fmt: skip
    beir = load_task(str(folders[0]))
    row = result.tasks["tests"].retrieval
    assert (row.num_queries, row.num_documents) == (15, 40)
    assert list(row.systems) == ["teacher", "student", "untrained student", "bm25"]
    assert list(row.systems["student"]) == ["nDCG@10", "R@1", "R@10", "R@100", "RR@10"]
    for name, model in (("teacher", teacher_dir), ("student", folder.student)):
        own = row.systems[name]["nDCG@10"]
        assert own.value == pytest.approx(figures(model_of(model), beir), abs=5e-3)
        assert own.low <= own.value <= own.high
    bm25 = per_query(bm25_run(beir.queries, beir.documents), beir.qrels)["nDCG@10"]
    assert row.systems["bm25"]["nDCG@10"].value == pytest.approx(bm25.mean())
    ratio = row.systems["student"]["nDCG@10"].value / row.systems["teacher"]["nDCG@10"].value
    assert row.student_over_teacher.value == pytest.approx(ratio)
    tests = result.tasks["tests"].significance
    assert list(tests.comparisons) == ["teacher", "untrained student", "bm25"]
    p = [comparison.tests["randomisation"] for comparison in tests.comparisons.values()]
    assert [test.p_holm for test in p] == holm([test.p for test in p]), "within the task"
    assert result.tasks["tests"].retrieval == result.tasks["tests 2"].retrieval
    assert result.tasks["own test"].retrieval.num_queries == 20
    said = out[out.index("Tasks    own test: 20 queries") : out.index("Scores   ")]
    assert "tests 2: 15 queries, 40 documents" in said
    for line in ("own test: 20 queries, 20 documents", "tests 2: 15 queries, 40 documents"):
        assert line in out


def test_the_files_of_a_task_give_its_figures(measured: tuple[RunFolder, str]) -> None:
    folder, _ = measured
    result = read_json(folder.evaluation, Evaluation)
    for name, task in result.tasks.items():
        files = folder.retrieval / name.replace(" ", "-")
        qrels = list(ir_measures.read_trec_qrels(str(files / "qrels.txt")))
        for system, measures in task.retrieval.systems.items():
            run = ir_measures.read_trec_run(str(files / f"{system.replace(' ', '-')}.run"))
            value = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)
            assert measures["nDCG@10"].value == pytest.approx(value[ir_measures.nDCG @ 10])


def test_report_and_card_show_the_tasks_and_name_no_path(measured: tuple[RunFolder, str]) -> None:
    folder, _ = measured
    result = read_json(folder.evaluation, Evaluation)
    card = (folder.student / "README.md").read_text(encoding="utf-8")
    page = folder.report.read_text(encoding="utf-8")
    for name, task in result.tasks.items():
        value = task.retrieval.systems["student"]["nDCG@10"].value
        assert f"{name}, {task.retrieval.num_queries} queries over" in card
        assert f"<h3>{name}</h3>" in page
        assert f"{value:.3f}" in card
        assert f"{value:.3f}" in page
        assert task_verdict(task) in card
    assert str(folder.path.parent.parent) not in card
    index = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    assert [entry["dataset"]["name"] for entry in index] == [
        "pairs (held-out)", "own test", "tests", "tests 2",
    ]  # fmt: skip


def again(tiny: Path, folder: Path, *line: object) -> Run:
    return Run.open(read_recipe([str(tiny), "--run_dir", str(folder), *map(str, line)]))


@pytest.fixture
def own_copy(measured: tuple[RunFolder, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(measured[0].path, tmp_path / "copy"))


def test_no_text_of_a_task_is_embedded_twice(
    tiny: Path, own_copy: Path, test_set: Path, folders: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = again(tiny, own_copy, "--test_path", test_set, "--eval_tasks", *folders)
    before = read_json(run.folder.evaluation, Evaluation).tasks
    run.folder.evaluation.unlink()

    def refuse(*_: object) -> np.ndarray:
        raise AssertionError("the teacher embeds a text again")

    monkeypatch.setattr(type(run.teacher), "embed", refuse)
    assert run.evaluation.tasks == before


def test_another_judgement_is_another_evaluation(
    tiny: Path, own_copy: Path, test_set: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    named = Path(shutil.copytree(folders[0], tmp_path / "tests"))
    lines = ("--test_path", test_set, "--eval_tasks", named)
    first = again(tiny, own_copy, *lines)
    key, training = first.evaluation.key, first.training.key
    assert again(tiny, own_copy, *lines).evaluation.key == key
    qrels = named / "qrels" / "test.tsv"
    qrels.write_text(qrels.read_text().replace("q3\td 3\t2", "q3\td 4\t2"))
    second = again(tiny, own_copy, *lines)
    assert second.evaluation.key != key
    assert second.training.key == training
    assert second.evaluation.tasks["own test"] == first.evaluation.tasks["own test"]


# --- before any work ----------------------------------------------------------------------------


def refused(tiny: Path, folder: Path, *line: object) -> str:
    said = call([tiny, "--run_dir", folder, *line])
    assert said.code == 2
    assert said.err.count("error:") == 1
    assert not (folder / "soft_labels").exists(), "nothing was scored"
    return said.err


def test_a_task_that_is_not_there_is_refused_at_once(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert "--eval_tasks nowhere: there is no such file or folder" in refused(
        tiny, run, "--eval_tasks", "nowhere"
    )
    assert "--test_path nowhere" in refused(tiny, run, "--test_path", "nowhere")
    assert f"--eval_tasks {tmp_path} is named twice" in refused(
        tiny, run, "--eval_tasks", tmp_path, tmp_path
    )
    assert not run.exists()


def test_mteb_that_is_not_installed_is_said_at_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(further.importlib.util, "find_spec", lambda _: None)
    said = refused(tiny, tmp_path / "run", "--eval_tasks", "nano:SciFact")
    assert "--eval_tasks nano:SciFact needs the package mteb" in said


def test_a_task_that_cannot_be_read_is_refused_before_the_scoring(
    tiny: Path, tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    broken = Path(shutil.copytree(folders[0], tmp_path / "broken"))
    (broken / "qrels" / "test.tsv").unlink()
    said = refused(tiny, tmp_path / "run", "--eval_tasks", folders[0], broken)
    assert f"--eval_tasks {broken}: " in said
    assert "qrels" in said


# --- parts --------------------------------------------------------------------------------------


def test_names_of_tasks_are_those_of_their_folders_and_differ() -> None:
    data = recipe_of(
        test_path="a/my test.v2.jsonl.gz", eval_tasks=["b/scifact", "c/SciFact", "nano:SciFact"]
    ).data
    names = task_names(data)
    assert names == {
        "my test": "a/my test.v2.jsonl.gz", "scifact": "b/scifact", "SciFact 2": "c/SciFact",
        "nano:SciFact": "nano:SciFact",
    }  # fmt: skip
    assert [folder_name(name) for name in names] == [
        "my-test", "scifact", "scifact-2", "nano-scifact",
    ]  # fmt: skip


def test_texts_that_were_trained_on_are_counted(collection: Collection) -> None:
    train, test = collection.pairs("train"), collection.pairs("test")
    queries = collection.query_texts(np.concatenate([train.queries[:3], test.queries[:2]]))
    documents = collection.document_texts(np.concatenate([train.documents[:4], test.documents[:1]]))
    task = make_task(
        ((f"q{i}", f"{text.upper()}?") for i, text in enumerate(queries)),
        ((f"d{i}", text) for i, text in enumerate(documents)),
        [(f"q{i}", f"d{i}", 1) for i in range(5)],
        "t",
    )
    own = make_task([("q", "else")], [("d", "where")], [("q", "d", 1)], "own")
    noted = with_shared_texts({"t": ("t", task), "own": ("own", own)}, collection)
    assert noted["t"][1].notes == (
        "3 of its 5 queries and 4 of its 5 documents are texts of the training pairs, too",
    )
    assert noted["own"][1].notes == ()


def test_a_teacher_that_embeds_no_new_texts_has_no_row(tmp_path: Path) -> None:
    task = make_task([("q", "a")], [("d", "b")], [("q", "d", 1)], "t")

    class Given(EmbeddingTeacher):
        embeds_new_texts = False
        name, identity, dimension = "given", (), 2

        def embed(self, texts: list[str], advance: object = None) -> np.ndarray:
            raise AssertionError

    assert embed_by_teacher(task, Given(), tmp_path) is None


def test_white_space_in_ids_becomes_one_word_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = beir_folder(tmp_path / "t")
    tasks = load_tasks(recipe_of(eval_tasks=[path], run_dir=tmp_path / "run"))
    task = tasks["t"][1]
    assert list(task.documents) == sorted(f"d_{i}" for i in range(40))
    assert task.qrels["q3"] == {"d_3": 2}
    assert task.documents["d_3"] == CORPUS[3]
    corpus = path / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace('"d 7"', '"d_8"'))
    with pytest.raises(InputError, match="'d_8'"):
        load_tasks(recipe_of(eval_tasks=[path], run_dir=tmp_path / "run"))


def test_a_digest_is_of_texts_and_judgements() -> None:
    def task(text: str = "a", grade: int = 1, name: str = "t") -> RetrievalTask:
        return make_task([("q", text)], [("d", "b")], [("q", "d", grade)], name)

    assert digest(task()) == digest(task(name="other"))
    assert len({digest(task()), digest(task("c")), digest(task(grade=2))}) == 3

"""A student in the teacher's own space: it searches what the teacher has embedded."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import Said, call, recipe_of, run_tiny
from sentence_transformers import SentenceTransformer
from tiny_teacher import tiny_teacher
from torch import Tensor

from hf_distill.commands.main import main
from hf_distill.commands.search import open_index
from hf_distill.compute.search import search
from hf_distill.errors import InputError
from hf_distill.evaluation.results import ALONE, ON_QUERY, STUDENT, TEACHER, UNTRAINED, Evaluation
from hf_distill.evaluation.retrieval import DEPTH
from hf_distill.evaluation.systems import on_documents_of_teacher
from hf_distill.evaluation.tasks import held_out_task
from hf_distill.finished_run import finished
from hf_distill.pipeline import Run
from hf_distill.recipe.config import DistillationConfig
from hf_distill.release.cards import PLACEHOLDER
from hf_distill.run.stage import read_json
from hf_distill.serving.demo import local_demo
from hf_distill.student.build import Initialisation, build_student
from hf_distill.student.head import least_squares_map
from hf_distill.training.in_batch import InBatch, in_batches

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")

SPACE = ("--student_space", "teacher", "--student_dim", "32", "--student_init", "random")
"""What makes the tiny recipe a query encoder; its teacher has 32 dimensions."""


@pytest.fixture(scope="module")
def encoder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """A whole run of a query encoder."""
    folder = tmp_path_factory.mktemp("runs") / "encoder"
    return folder, run_tiny(tiny, folder, *SPACE)


def words_of(page: Path) -> str:
    """The text of a page on one line."""
    return " ".join(page.read_text(encoding="utf-8").split())


# --- the in-batch matrices -----------------------------------------------------------------------


def units(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def batch_of(pairs: int = 3, negatives: int = 2, dimension: int = 8) -> dict[str, Tensor]:
    """The side columns of a batch, without a pool."""
    queries, documents = units(pairs, dimension, seed=1), units(pairs, dimension, seed=2)
    hard = units(pairs, negatives, dimension, seed=3)
    return {
        "teacher_score": (queries * documents).sum(1),
        "query_key": torch.arange(pairs),
        "document_key": torch.arange(pairs) + 10,
        "negative_key": torch.arange(pairs * negatives).view(pairs, negatives) + 20,
        "negative_score": torch.einsum("bd,bkd->bk", queries, hard),
        "query_embedding": queries.half(),
        "document_embedding": documents.half(),
        "negative_embedding": hard.half(),
    }


def matrices(texts: Tensor, batch: dict[str, Tensor], **config: object) -> InBatch:
    settings = DistillationConfig("unused", use_cpu=True, **config)  # type: ignore[arg-type]
    return in_batches(texts, batch, None, "cosine", settings)[-1]


def test_queries_are_compared_with_the_teachers_documents_and_negatives() -> None:
    batch, texts = batch_of(), units(12, 8, seed=4)
    of_batch = matrices(texts, batch, student_space="teacher", contrastive_symmetric=True)
    documents = torch.cat([batch["document_embedding"], batch["negative_embedding"].flatten(0, 1)])
    torch.testing.assert_close(of_batch.student, texts[:3] @ documents.float().T)
    assert of_batch.reverse is not None
    torch.testing.assert_close(of_batch.reverse.student, documents[:3].float() @ texts[:3].T)
    # Every text is aligned with the teacher's own embedding, documents as well.
    assert of_batch.targets is not None
    torch.testing.assert_close(of_batch.targets[:3], batch["query_embedding"].float())
    torch.testing.assert_close(of_batch.targets[3:], documents.float())
    torch.testing.assert_close(of_batch.texts, texts)


def test_a_student_whose_documents_are_the_teachers_trains_as_in_its_own_space() -> None:
    batch = batch_of()
    documents = torch.cat([batch["document_embedding"], batch["negative_embedding"].flatten(0, 1)])
    texts = torch.cat([units(3, 8, seed=4), documents.float()])
    own, of_teacher = (
        matrices(texts, batch, student_space=space, matryoshka_dims=[4])
        for space in ("own", "teacher")
    )
    torch.testing.assert_close(own.student, of_teacher.student)
    torch.testing.assert_close(own.teacher, of_teacher.teacher)
    assert own.ignore.equal(of_teacher.ignore)


def test_the_matrix_says_nothing_to_the_students_documents() -> None:
    texts = units(12, 8, seed=4).requires_grad_()
    matrices(texts, batch_of(), student_space="teacher").student.sum().backward()
    assert texts.grad is not None
    assert texts.grad[:3].abs().sum() > 0
    assert texts.grad[3:].abs().sum() == 0


def test_rows_without_the_teachers_embeddings_are_refused() -> None:
    batch = {name: value for name, value in batch_of().items() if "embedding" not in name}
    with pytest.raises(InputError, match="--student_space teacher: the training rows hold no"):
        matrices(units(12, 8, seed=4), batch, student_space="teacher")


# --- how the head starts -------------------------------------------------------------------------


def test_the_least_squares_map_finds_the_map() -> None:
    rng = np.random.default_rng(0)
    wanted, features = rng.normal(size=(3, 5)), rng.normal(size=(200, 5))
    np.testing.assert_allclose(
        least_squares_map(features, features @ wanted.T, ridge=0.0), wanted, atol=1e-5
    )
    # One feature, by hand: 2 x 1 + 4 x 3 = 14 over 1 + 9 + the ridge's share of the mean square.
    found = least_squares_map(np.array([[1.0], [3.0]]), np.array([[2.0], [4.0]]), ridge=0.4)
    np.testing.assert_allclose(found, [[14 / (10 + 0.4 * 10)]])


def test_more_features_than_texts_still_have_a_map() -> None:
    rng = np.random.default_rng(1)
    features, targets = rng.normal(size=(4, 9)), rng.normal(size=(4, 2))
    found = least_squares_map(features, targets)
    np.testing.assert_allclose(features @ found.T, targets, atol=0.01)


def test_a_copy_of_the_teacher_begins_as_the_teacher(
    tiny: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    """The identity for a copy, and the fitted map for a backbone of its own with the same layers:
    both embed as the teacher does.
    """
    teacher = SentenceTransformer(str(teacher_dir), device="cpu")
    texts = ["a cat and a dog", "the river of the moon", "red"]
    for name, backbone in (("copy", "teacher"), ("own", str(teacher_dir))):
        keys = {"student_space": "teacher", "student_init": "random", "student_layers": None}
        recipe = recipe_of(
            tiny, run_dir=tmp_path / name, student_dim=32, student_backbone=backbone, **keys
        )
        run = Run.open(recipe)
        student, head = run.untrained(), run.initialisation.head
        assert head is not None
        if backbone == "teacher":
            assert (head == np.eye(32)).all()
            atol = 1e-6
        else:
            atol = 0.03
        np.testing.assert_allclose(student.encode(texts), teacher.encode(texts), atol=atol)


def test_static_tokens_begin_as_the_teacher_embeds_them(teacher_dir: Path) -> None:
    recipe = recipe_of("quickstart", student_backbone="static", student_dim=32)
    arguments = recipe.student
    teacher = tiny_teacher(teacher_dir)
    head = np.eye(32, dtype=np.float32)
    plain = {**vars(arguments), "student_layers": None, "student_dropout": None}
    plain["student_init"] = "random"
    student = build_student(type(arguments)(**plain), teacher, Initialisation(head=head), 0)
    np.testing.assert_allclose(student.encode("cat"), teacher.embed(["cat"])[0], atol=1e-5)


# --- a whole run ---------------------------------------------------------------------------------


def test_the_headline_is_student_queries_on_the_teachers_documents(
    encoder: tuple[Path, Said],
) -> None:
    folder, said = encoder
    results = finished(folder)
    evaluation = read_json(folder / "evaluation.json", Evaluation)
    retrieval, task = evaluation.retrieval, held_out_task(results.collection)
    assert retrieval.searched == "teacher"
    student, teacher = (
        SentenceTransformer(str(path), device="cpu")
        for path in (folder / "student_model_sd", results.recipe.teacher.teacher)
    )
    texts = list(task.queries.values()), list(task.documents.values())
    queries, own = student.encode_query(texts[0]), student.encode_document(texts[1])
    documents = teacher.encode_document(texts[1])
    for name, searched in ((STUDENT, documents), (ALONE, own)):
        expected = task.ndcg(search(queries, searched, DEPTH)).mean()
        assert retrieval.systems[name]["nDCG@10"].value == pytest.approx(expected, abs=0.005)
    cosines = (queries[task.pair_queries] * documents[task.pair_documents]).sum(axis=1)
    np.testing.assert_allclose(evaluation.pairs.student, cosines, atol=2e-3)
    assert (folder / "retrieval" / "student-alone.run").is_file()
    assert "in the teacher's own index" in said.out
    assert "search the documents as the teacher embedded them" in said.out
    assert TEACHER in retrieval.systems


# --- what is made of it --------------------------------------------------------------------------


def test_report_and_cards_say_which_documents_are_searched(encoder: tuple[Path, Said]) -> None:
    folder, _ = encoder
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "its embeddings are in the teacher's own space, and nothing is projected" in report
    assert "begin as the teacher's principal components" not in report
    assert "as fast for one query" in report
    card = words_of(folder / "student_model_sd" / "README.md")
    assert "search the documents as the teacher embedded them" in card
    assert "in the teacher's own index" in card


def test_the_cards_code_runs(encoder: tuple[Path, Said]) -> None:
    folder, _ = encoder
    card = (folder / "student_model_sd" / "README.md").read_text(encoding="utf-8")
    part = card.partition("### With the teacher's index")[2].partition("### sentence")[0]
    code = "".join(re.findall(r"```python\n(.*?)```", part, re.DOTALL))
    teacher = Path(finished(folder).recipe.teacher.teacher)
    code = code.replace(f'"{PLACEHOLDER}"', repr(str(folder / "student_model_sd")))
    code = code.replace(f'"{teacher.name}"', repr(str(teacher)))
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(code, names := {})
    assert np.shape(names["queries"]) == (1, 32) == np.shape(names["index"])
    alone, as_router = re.findall(r"\[\[(.*?)\]\]", shown.getvalue())
    assert float(alone) == pytest.approx(float(as_router), abs=1e-4)
    assert "(held-out), documents embedded by the teacher" in card  # the model-index


def test_a_search_reads_the_teachers_documents_and_loads_it_once(
    encoder: tuple[Path, Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = encoder
    results = finished(folder)
    index, _ = open_index(str(folder))
    teacher = SentenceTransformer(results.recipe.teacher.teacher, device="cpu")
    expected = teacher.encode_document(index.corpus.texts)
    np.testing.assert_allclose(index.embeddings, expected, atol=2e-3)
    monkeypatch.setattr("hf_distill.scoring.documents.load_teacher", None)
    assert (open_index(str(folder))[0].embeddings == index.embeddings).all()
    assert len(index.ask("a cat", 3)) == 3
    _, (of_teacher, of_student), _, _ = local_demo(results)
    np.testing.assert_allclose(of_student.embeddings, of_teacher.embeddings, atol=2e-3)


def test_a_router_is_the_student_for_queries_and_the_teacher_for_documents(
    encoder: tuple[Path, Said], tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(encoder[0], folder)
    said = call(["export", folder, "--format", "router"], main)
    assert said.code == 0, said.err
    router = SentenceTransformer(str(folder / "router"), device="cpu")
    student = SentenceTransformer(str(folder / "student_model_sd"), device="cpu")
    teacher = SentenceTransformer(finished(folder).recipe.teacher.teacher, device="cpu")
    texts = ["a cat and a dog", "the river " * 60]
    np.testing.assert_allclose(router.encode_query(texts), student.encode_query(texts), atol=1e-6)
    np.testing.assert_allclose(
        router.encode_document(texts), teacher.encode_document(texts), atol=1e-6
    )
    types = json.loads((folder / "router" / "router_config.json").read_text())["types"]
    assert {kind.rpartition(".")[0] for kind in types.values()} == {"sentence_transformers.models"}
    card = words_of(folder / "router" / "README.md")
    assert "search the documents as the teacher embedded them" in card
    # Compared, it searches the teacher's documents; the run's student alone says that it does not.
    line = ["compare", folder / "router", folder, "--task", folder, "--measures", "nDCG@10"]
    compared = call([*line, "--json", tmp_path / "compared.json"], main)
    measured = json.loads((tmp_path / "compared.json").read_text())["systems"]
    systems = read_json(folder / "evaluation.json", Evaluation).retrieval.systems
    for name, model in ((STUDENT, "router"), (ALONE, "copied")):
        value = systems[name]["nDCG@10"].value  # of embeddings in float16
        assert measured[model]["nDCG@10"]["value"] == pytest.approx(value, abs=0.01)
    assert "is a query encoder, and here it embeds the documents, too" in compared.out
    # A second call finds it there; another student removes it.
    before = (folder / "router.json").stat().st_mtime_ns
    assert call(["export", folder, "--format", "router"], main).code == 0
    assert (folder / "router.json").stat().st_mtime_ns == before
    again = run_tiny(tiny, folder, *SPACE, "--learning_rate", "2e-3", "--until", "train")
    assert again.code == 0, again.err
    assert not (folder / "router.json").exists()
    assert not [file for file in (folder / "router").rglob("*") if file.is_file()]


def test_a_router_that_embeds_otherwise_is_not_written(
    encoder: tuple[Path, Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(encoder[0], folder)
    monkeypatch.setattr("hf_distill.release.router.TOLERANCE", -1.0)
    said = call(["export", folder, "--format", "router"], main)
    assert said.code == 2
    assert "embeds other than student and teacher do" in said.err
    assert not (folder / "router").exists()
    assert not (folder / "router.json").exists()


def test_every_reading_of_a_query_encoder_searches_the_teachers_documents() -> None:
    names = (TEACHER, STUDENT, UNTRAINED, ON_QUERY)
    embedded = {name: (np.full((1, 2), i), np.full((3, 2), i)) for i, name in enumerate(names)}
    searched = on_documents_of_teacher(embedded)
    for i, name in enumerate(names):
        assert searched[name][0][0, 0] == i, "the queries stay"
        assert (searched[name][1] == 0).all()
    assert (searched[ALONE][1] == 1).all()
    without = {name: of for name, of in embedded.items() if name != TEACHER}
    assert on_documents_of_teacher(without) == without


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("--student_dim", "16"), "--student_dim 16: --student_space teacher, and the embeddings"),
        (("--student_init", "pca"), "--student_init pca: in the teacher's space the head leads"),
        (("--teacher_similarity", "dot", "--regression_weight", "0"), "set --teacher_similarity"),
        (("--matryoshka_dims", "32"), "between 1 and student_dim - 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    line: tuple[str, ...], says: str, tiny: Path, tmp_path: Path
) -> None:
    said = call([tiny, "--run_dir", tmp_path / "run", *SPACE, *line])
    assert said.code == 2
    assert says in said.err
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_scores_pairs_has_no_space(
    tiny: Path, cross_encoder_dir: Path, tmp_path: Path
) -> None:
    said = call(
        [tiny, "--run_dir", tmp_path / "run", *SPACE, "--teacher", cross_encoder_dir,
         "--teacher_kind", "cross-encoder", "--alignment_weight", "0", "--student_layers", "none"]
    )  # fmt: skip
    assert said.code == 2
    assert "so there is no space to embed into" in said.err


def test_a_student_with_a_space_of_its_own_has_no_router(finished_run: tuple[Path, str]) -> None:
    said = call(["export", finished_run[0], "--format", "router"], main)
    assert said.code == 2
    assert "has a space of its own" in said.err


def test_the_dimension_is_the_teachers_where_the_recipe_says_none(
    tiny: Path, tmp_path: Path
) -> None:
    content = yaml.safe_load(tiny.read_text())
    del content["student_dim"]
    path = tmp_path / "encoder.yaml"
    path.write_text(yaml.safe_dump({**content, "student_init": "random"}))
    recipe = recipe_of(path, run_dir=tmp_path / "run", student_space="teacher", matryoshka_dims=31)
    run = Run.open(recipe)
    assert run.recipe.student.student_dim == 32 == run.recipe.keys()["student_dim"]

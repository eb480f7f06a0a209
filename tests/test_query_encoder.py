"""A student in the teacher's own space: it searches what the teacher has embedded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Said, recipe_of, run_tiny
from sentence_transformers import SentenceTransformer
from tiny_teacher import tiny_teacher
from tiny_training import Tiny
from tiny_training import tiny as tiny_things
from torch import Tensor

from hf_distill.compute.search import search
from hf_distill.errors import InputError
from hf_distill.evaluation.results import ALONE, STUDENT, TEACHER, Evaluation
from hf_distill.evaluation.retrieval import DEPTH
from hf_distill.evaluation.tasks import held_out_task
from hf_distill.pipeline import Run, finished
from hf_distill.recipe.config import DistillationConfig
from hf_distill.run.stage import read_json
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


@pytest.fixture(scope="module")
def things(teacher_dir: Path) -> Tiny:
    return tiny_things(teacher_dir)


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
    assert "on the teacher's own documents" in said.out
    assert "search the documents as the teacher embedded them" in said.out
    assert TEACHER in retrieval.systems

import copy
import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import sentences
from datasets import Dataset
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, Pooling
from tiny_teacher import TinyTeacher, tiny_teacher

from hf_distill.data.collection import Collection, CollectionRecord, Source
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe, StudentArguments
from hf_distill.recipe.read import read_recipe
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import read_json
from hf_distill.student import initialise as module
from hf_distill.student.build import (
    Initialisation,
    backbone_identity,
    build_student,
    set_dropout,
)
from hf_distill.student.head import principal_components
from hf_distill.student.initialise import LayerSearch, initialise
from hf_distill.student.layers import parse_layers, search_layers
from hf_distill.student.vocabulary import count_tokens
from hf_distill.teachers.base import SCALES, PairTeacher, Scale


@pytest.fixture(scope="module")
def teacher(teacher_dir: Path) -> TinyTeacher:
    return tiny_teacher(teacher_dir)


def components(dimension: int = 16, width: int = 32) -> np.ndarray:
    return principal_components(np.random.default_rng(0).normal(size=(200, width)), dimension)


def arguments(**changes) -> StudentArguments:
    return StudentArguments(**{"student_dim": 16, "student_max_length": 32, **changes})


def test_standard_modules_and_unit_norms(teacher: TinyTeacher) -> None:
    student = build_student(
        arguments(student_layers="0,2", head_dropout=0.1, student_pooling="cls"), teacher, None, 0
    )
    assert [type(module) for module in student] == [Transformer, Pooling, Dense, Dropout, Normalize]
    assert student[1].pooling_mode == "cls"
    embeddings = student.encode(["a cat", "the river of the moon and the sun"])
    assert embeddings.shape == (2, 16)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    assert student.max_seq_length == 32


def test_kept_layers_are_the_teachers_and_the_teacher_keeps_its_own(
    teacher: TinyTeacher,
) -> None:
    student = build_student(arguments(student_layers="1,3"), teacher, None, 0)
    theirs, ours = teacher.backbone[0].auto_model, student[0].auto_model
    assert len(ours.encoder.layer) == 2 == ours.config.num_hidden_layers
    assert len(theirs.encoder.layer) == 4 == theirs.config.num_hidden_layers
    for mine, kept in zip(ours.encoder.layer, (1, 3), strict=True):
        for name, value in mine.state_dict().items():
            assert value.equal(theirs.encoder.layer[kept].state_dict()[name])
    with torch.no_grad():
        ours.encoder.layer[0].output.dense.weight.zero_()
    assert theirs.encoder.layer[1].output.dense.weight.abs().sum() > 0


def test_a_backbone_of_its_own(teacher: TinyTeacher, backbone_dir) -> None:
    student = build_student(arguments(student_backbone=str(backbone_dir)), teacher, None, 0)
    assert student.encode(["a cat"]).shape == (1, 16)


def test_pca_head_keeps_the_cosines_of_low_rank_embeddings(teacher: TinyTeacher) -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(100, 8)) @ rng.normal(size=(8, 32))
    rows = principal_components(embeddings, 16)
    np.testing.assert_allclose(rows @ rows.T, np.eye(16), atol=1e-5)
    projected = embeddings @ rows.T
    np.testing.assert_allclose(
        projected @ projected.T, embeddings @ embeddings.T, rtol=1e-4, atol=1e-3
    )
    student = build_student(arguments(student_init="pca"), teacher, Initialisation(rows), 0)
    assert student[2].linear.weight.detach().numpy() == pytest.approx(rows)
    assert student[2].linear.bias is None


def test_principal_components_are_the_leading_right_singular_vectors() -> None:
    data = np.random.default_rng(3).normal(size=(50, 6)) * np.arange(1, 7)
    rows = principal_components(data, 3)
    expected = np.linalg.svd(data, full_matrices=False)[2][:3]
    np.testing.assert_allclose(np.abs((rows * expected).sum(axis=1)), 1, atol=1e-6)
    assert principal_components(data, 3).tobytes() == rows.tobytes()


def test_the_random_head_is_the_seeds(teacher: TinyTeacher) -> None:
    state = torch.random.get_rng_state()
    one, same, other = (
        build_student(arguments(), teacher, None, seed)[2].linear.weight for seed in (0, 0, 1)
    )
    assert one.equal(same)
    assert not one.equal(other)
    assert torch.random.get_rng_state().equal(state), (
        "building a student must not disturb the caller's random state"
    )


def test_dropout_is_set_everywhere(teacher: TinyTeacher) -> None:
    student = build_student(arguments(student_dropout=0.0), teacher, None, 0)
    student.train()
    tokens = student.preprocess(["a cat and a dog"])
    first, second = (student(dict(tokens))["sentence_embedding"] for _ in range(2))
    assert first.equal(second)
    set_dropout(student[0].auto_model, 0.5)
    third, fourth = (student(dict(tokens))["sentence_embedding"] for _ in range(2))
    assert not third.equal(fourth)


def test_prompts_come_from_the_teacher(teacher_dir: Path) -> None:
    student = build_student(arguments(), tiny_teacher(teacher_dir, "who ", "book "), None, 0)
    assert student.prompts == {"query": "who ", "document": "book "}
    np.testing.assert_allclose(
        student.encode_query("a cat"), student.encode("who a cat"), atol=1e-6
    )


def test_an_untrained_student_has_no_dropout_until_training_says_so(teacher: TinyTeacher) -> None:
    student = build_student(arguments(student_dropout=0.5, head_dropout=0.5), teacher, None, 0)
    assert not any(part.training for part in student.modules())
    tokens = student.preprocess(["a cat and a dog"])
    first, second = (student(dict(tokens))["sentence_embedding"] for _ in range(2))
    assert first.equal(second)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0,9", "'0,9'.* 4 layers.* 0 to 3"),
        ("2,1", "'2,1'.*ascending"),
        ("1,1", "'1,1'.*ascending"),
        ("all", "'all'.*by number"),
        ("every=0", "'every=0'.* 1 to 4"),
        ("every=x", "'every=x'.* 1 to 4"),
        ("-1", "'-1'.*ascending"),
    ],
)
def test_layers_that_do_not_exist_are_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=f"--student_layers {says}"):
        parse_layers(text, 4)


def test_every_second_layer() -> None:
    assert parse_layers("every=2", 5) == [0, 2, 4]
    assert parse_layers("every=1", 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"student_init": "pca", "student_dim": 64}, "--student_dim is 64"),
        ({"student_max_length": 500}, "--student_max_length 500.* 64 tokens"),
        ({"student_backbone": "./nowhere"}, "student_backbone.* ./nowhere"),
    ],
)
def test_a_student_that_cannot_be_built_is_refused(
    teacher: TinyTeacher, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        build_student(arguments(**changes), teacher, None, 0)


class Ranker(PairTeacher):
    """Scores pairs, and has no model of its own."""

    name = "ranker"
    identity = ("ranker",)

    def score(self, pairs: list[tuple[str, str]], advance: Any = None) -> np.ndarray:
        return np.zeros(len(pairs), dtype=np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {"student_backbone": "teacher"},
        {"student_backbone": "static"},
        {"student_backbone": "HERE", "student_init": "pca"},
    ],
)
def test_a_teacher_without_a_model_or_embeddings_is_refused_by_what_it_lacks(
    backbone_dir: Path, changes: dict[str, str]
) -> None:
    given = {name: value.replace("HERE", str(backbone_dir)) for name, value in changes.items()}
    flag, value = list(given.items())[-1]
    with pytest.raises(InputError, match=f"--{flag} {value}"):
        build_student(arguments(**given), Ranker(), None, 0)


def test_more_components_than_dimensions_are_refused() -> None:
    with pytest.raises(InputError, match=r"--student_dim 64.* 32 dimensions"):
        components(64)


def test_the_search_looks_at_every_small_subset_and_climbs_among_many() -> None:
    few = search_layers(4, 2, lambda kept: sum(kept) if kept != [1, 2] else 9.0)
    assert list(few) == [(1, 2), (2, 3), (1, 3), (0, 3), (0, 2), (0, 1)], (
        "the best first, of equals the lower layers"
    )
    looked: list[list[int]] = []

    def nearness(kept: list[int]) -> float:
        looked.append(kept)
        return -sum(abs(a - b) for a, b in zip(kept, (1, 2, 3, 11), strict=True))

    many = search_layers(12, 4, nearness)
    assert next(iter(many)) == (1, 2, 3, 11)
    assert len(looked) == len(many) < 495, "fewer than all, and none twice"


TEXTS = {"query": sentences(200), "document": sentences(200, 1000)}


@pytest.fixture
def collection() -> Collection:
    """240 training pairs over 200 queries and 200 documents, and ten held-out pairs."""
    train = np.r_[0:200, 0:40]
    numbers = np.concatenate([train, train[:10]])
    names = [{"text": text, "student_text": None} for text in TEXTS["query"]]
    record = CollectionRecord(
        key="a collection",
        source=Source("tests"),
        read={},
        split={"train": 240, "validation": 0, "test": 10, "leaked": 0},
        leaks_removed={},
        leaks_left=0,
    )
    return Collection(
        queries=Dataset.from_list(names),
        documents=Dataset.from_list([{"text": text} for text in TEXTS["document"]]),
        judgements=Dataset.from_dict({"query": numbers, "document": numbers[::-1]}),
        record=record,
    )


@dataclass(frozen=True)
class Table:
    """Embeddings of all texts, queries first, as scoring keeps them."""

    vectors: np.ndarray

    @property
    def dimension(self) -> int:
        return self.vectors.shape[1]

    def of_queries(self, numbers: np.ndarray) -> np.ndarray:
        return self.vectors[numbers]

    def of_documents(self, numbers: np.ndarray) -> np.ndarray:
        return self.vectors[len(TEXTS["query"]) + numbers]


@dataclass(frozen=True)
class Scored:
    """The part of `hf_distill.scoring.scores.Scores` that the initialisation reads."""

    embeddings: Table | None
    key: str = "scores"
    scale: Scale = SCALES["cosine"]


def scored_by(teacher: TinyTeacher) -> Scored:
    queries = [teacher.prompts.query + text for text in TEXTS["query"]]
    documents = [teacher.prompts.document + text for text in TEXTS["document"]]
    return Scored(Table(teacher.embed([*queries, *documents]).astype(np.float16)))


def recipe_of(student: StudentArguments) -> Recipe:
    return dataclasses.replace(read_recipe(), student=student)


def test_the_search_finds_the_layers_that_rank_as_the_teacher(
    teacher: TinyTeacher,
    collection: Collection,
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of the teacher's four layers do nothing, so the other two rank exactly as it does."""
    model = copy.deepcopy(teacher.backbone)
    for i in (1, 2):
        layer = model[0].auto_model.encoder.layer[i]
        layer.forward = lambda hidden_states, *_, **__: hidden_states
    idle = dataclasses.replace(teacher, backbone=model)
    scored = scored_by(idle)
    chosen = arguments(student_layers="search=2", student_init="pca", student_dim=32)
    initialisation = initialise(recipe_of(chosen), idle, collection, scored, folder)
    assert initialisation.layers == (0, 3)
    result = read_json(folder.layer_search, LayerSearch)
    assert (result.queries, result.documents, result.top) == (200, 200, 10)
    assert result.subsets[0].layers == [0, 3]
    assert result.subsets[0].overlap > 0.95, "all but near-ties of embeddings in float16"
    assert len(result.subsets) == 6
    assert result.subsets[1].overlap < 0.9
    student = build_student(chosen, idle, initialisation, 0)
    assert len(student[0].auto_model.encoder.layer) == 2
    with monkeypatch.context() as patched:
        patched.setattr(module, "search_layers", lambda *_: pytest.fail("the result is kept"))
        again = initialise(recipe_of(chosen), idle, collection, scored, folder)
    assert again.layers == (0, 3)
    other = initialise(
        recipe_of(dataclasses.replace(chosen, student_layers="search=3")),
        idle,
        collection,
        scored,
        folder,
    )
    assert len(other.layers or ()) == 3, "another search is not the one that is kept"


def test_a_search_needs_a_number_and_a_ranking(
    teacher: TinyTeacher, backbone_dir: Path, collection: Collection, folder: RunFolder
) -> None:
    with pytest.raises(InputError, match=r"'search=9'.* 1 to 4"):
        build_student(arguments(student_layers="search=9"), teacher, None, 0)
    lowest = build_student(arguments(student_layers="search=3"), teacher, None, 0)
    assert len(lowest[0].auto_model.encoder.layer) == 3
    chosen = arguments(student_layers="search=2", student_backbone=str(backbone_dir))
    with pytest.raises(InputError, match=r"--student_layers search=2.* ranker "):
        initialise(recipe_of(chosen), Ranker(), collection, Scored(None), folder)


def test_the_components_are_those_of_all_embeddings(
    teacher: TinyTeacher, collection: Collection, folder: RunFolder
) -> None:
    scored = scored_by(teacher)
    for dimension in (16, 64):
        recipe = recipe_of(arguments(student_dim=dimension))
        initialisation = initialise(recipe, teacher, collection, scored, folder)
        expected = principal_components(scored.embeddings.vectors, min(dimension, 32))
        np.testing.assert_array_equal(initialisation.components, expected)
        assert (initialisation.layers, initialisation.token_counts) == (None, None)
    assert not folder.path.exists(), "nothing takes long enough to be kept"
    assert initialise(recipe, teacher, collection, Scored(None), folder).components is None


@pytest.mark.parametrize(
    "changes", [{"student_backbone": "static"}, {"student_vocabulary": "used"}]
)
def test_each_training_pair_counts_its_tokens_once(
    teacher_dir: Path,
    collection: Collection,
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
) -> None:
    teacher = tiny_teacher(teacher_dir, "who ", "book ")
    recipe, scored = recipe_of(arguments(**changes)), scored_by(teacher)
    monkeypatch.setattr(module, "_READ", 7)
    counts = initialise(recipe, teacher, collection, scored, folder).token_counts
    pairs = collection.pairs("train")
    texts = ["who " + text for text in collection.query_texts(pairs.queries)]
    texts += ["book " + text for text in collection.document_texts(pairs.documents)]
    tokenizer = teacher.backbone.tokenizer
    by_pair = count_tokens(tokenizer, [(texts, np.ones(len(texts), dtype=np.int64))], 32)
    np.testing.assert_array_equal(counts, by_pair)
    assert by_pair[tokenizer.convert_tokens_to_ids("who")] >= 240
    monkeypatch.setattr(module, "count_tokens", lambda *_: pytest.fail("the result is kept"))
    again = initialise(recipe, teacher, collection, scored, folder).token_counts
    np.testing.assert_array_equal(again, counts)


def test_a_replaced_backbone_is_another_one(backbone_dir: Path, tmp_path: Path) -> None:
    copy_of_it = tmp_path / "backbone"
    shutil.copytree(backbone_dir, copy_of_it)
    chosen = arguments(student_backbone=str(copy_of_it))
    before = backbone_identity(chosen)
    assert before == backbone_identity(arguments(student_backbone=str(backbone_dir))), (
        "the content of the files counts, not their folder"
    )
    config = copy_of_it / "config.json"
    config.write_text(config.read_text().replace("32", "64"))
    assert backbone_identity(chosen) != before
    assert backbone_identity(arguments()) is None

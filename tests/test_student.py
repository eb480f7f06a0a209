import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, Pooling

from hf_distill.data.collection import PairData
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import (
    StudentArguments,
    TeacherArguments,
)
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.scores import score_pairs
from hf_distill.student.build import (
    Blueprint,
    backbone_digest,
    build_student,
    draw_blueprint,
    set_dropout,
)
from hf_distill.student.head import principal_components
from hf_distill.student.layers import (
    parse_layers,
    search_layers,
)
from hf_distill.teachers.bi_encoder import (
    BiEncoderTeacher,
    load_bi_encoder,
)


@pytest.fixture(scope="module")
def teacher(teacher_dir) -> BiEncoderTeacher:
    return load_bi_encoder(TeacherArguments(teacher=str(teacher_dir)))


def components(dimension: int = 16, width: int = 32) -> np.ndarray:
    return principal_components(np.random.default_rng(0).normal(size=(200, width)), dimension)


def arguments(**changes) -> StudentArguments:
    return StudentArguments(**{"student_dim": 16, "student_max_length": 32, **changes})


def test_standard_modules_and_unit_norms(teacher: BiEncoderTeacher) -> None:
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
    teacher: BiEncoderTeacher,
) -> None:
    student = build_student(arguments(student_layers="1,3"), teacher, None, 0)
    theirs, ours = teacher.model[0].auto_model, student[0].auto_model
    assert len(ours.encoder.layer) == 2 == ours.config.num_hidden_layers
    assert len(theirs.encoder.layer) == 4 == theirs.config.num_hidden_layers
    for mine, kept in zip(ours.encoder.layer, (1, 3), strict=True):
        for name, value in mine.state_dict().items():
            assert value.equal(theirs.encoder.layer[kept].state_dict()[name])
    with torch.no_grad():
        ours.encoder.layer[0].output.dense.weight.zero_()
    assert theirs.encoder.layer[1].output.dense.weight.abs().sum() > 0


def test_a_backbone_of_its_own(teacher: BiEncoderTeacher, backbone_dir) -> None:
    student = build_student(arguments(student_backbone=str(backbone_dir)), teacher, None, 0)
    assert student.encode(["a cat"]).shape == (1, 16)


def test_pca_head_keeps_the_cosines_of_low_rank_embeddings(teacher: BiEncoderTeacher) -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(100, 8)) @ rng.normal(size=(8, 32))
    rows = principal_components(embeddings, 16)
    np.testing.assert_allclose(rows @ rows.T, np.eye(16), atol=1e-5)
    projected = embeddings @ rows.T
    np.testing.assert_allclose(
        projected @ projected.T, embeddings @ embeddings.T, rtol=1e-4, atol=1e-3
    )
    student = build_student(arguments(student_init="pca"), teacher, Blueprint(rows), 0)
    assert student[2].linear.weight.detach().numpy() == pytest.approx(rows)
    assert student[2].linear.bias is None


def test_principal_components_are_the_leading_right_singular_vectors() -> None:
    data = np.random.default_rng(3).normal(size=(50, 6)) * np.arange(1, 7)
    rows = principal_components(data, 3)
    expected = np.linalg.svd(data, full_matrices=False)[2][:3]
    np.testing.assert_allclose(np.abs((rows * expected).sum(axis=1)), 1, atol=1e-6)
    assert principal_components(data, 3).tobytes() == rows.tobytes()


def test_the_random_head_is_the_seeds(teacher: BiEncoderTeacher) -> None:
    state = torch.random.get_rng_state()
    one, same, other = (
        build_student(arguments(), teacher, None, seed)[2].linear.weight for seed in (0, 0, 1)
    )
    assert one.equal(same)
    assert not one.equal(other)
    assert torch.random.get_rng_state().equal(state), (
        "building a student must not disturb the caller's random state"
    )


def test_dropout_is_set_everywhere(teacher: BiEncoderTeacher) -> None:
    student = build_student(arguments(student_dropout=0.0), teacher, None, 0)
    student.train()
    tokens = student.preprocess(["a cat and a dog"])
    first, second = (student(dict(tokens))["sentence_embedding"] for _ in range(2))
    assert first.equal(second)
    set_dropout(student[0].auto_model, 0.5)
    third, fourth = (student(dict(tokens))["sentence_embedding"] for _ in range(2))
    assert not third.equal(fourth)


def test_prompts_come_from_the_teacher(teacher_dir) -> None:
    teacher = load_bi_encoder(
        TeacherArguments(teacher=str(teacher_dir), query_prompt="who ", document_prompt="book ")
    )
    student = build_student(arguments(), teacher, None, 0)
    assert student.prompts == {"query": "who ", "document": "book "}
    np.testing.assert_allclose(
        student.encode_query("a cat"), student.encode("who a cat"), atol=1e-6
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0,9", "the backbone has 4 layers, 0 to 3"),
        ("2,1", "ascending order"),
        ("1,1", "ascending"),
        ("all", "by number"),
        ("every=0", "the step is a whole number from 1 to the backbone's 4 layers"),
        ("every=x", "the step is"),
        ("-1", "ascending"),
    ],
)
def test_layers_that_do_not_exist_are_said(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_layers(text, 4)


def test_every_second_layer() -> None:
    assert parse_layers("every=2", 5) == [0, 2, 4]
    assert parse_layers("every=1", 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"student_init": "pca", "student_dim": 64}, "student_dim is 64"),
        ({"student_max_length": 500}, "reads 64 tokens at most"),
        ({"student_backbone": "./nowhere"}, "student_backbone: no folder at ./nowhere"),
    ],
)
def test_a_student_that_cannot_be_built_is_said(
    teacher: BiEncoderTeacher, changes: dict, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        build_student(arguments(**changes), teacher, None, 0)


def test_more_components_than_dimensions_are_said() -> None:
    with pytest.raises(InputError, match="64 components of 32-dimensional"):
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


def test_the_layers_that_rank_as_the_teacher_are_found(
    teacher: BiEncoderTeacher, data: PairData, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of the teacher's four layers are made to do nothing: the other two rank exactly as it
    does.
    """
    model = copy.deepcopy(teacher.model)
    for i in (1, 2):
        layer = model[0].auto_model.encoder.layer[i]
        layer.forward = lambda hidden_states, *_, **__: hidden_states
    teacher = dataclasses.replace(
        teacher, model=model, fingerprint="two idle layers", batch_tokens=256
    )
    scored = score_pairs(data, teacher, folder, TeacherArguments())
    chosen = arguments(student_layers="search=2", student_init="pca", student_dim=32)
    blueprint = draw_blueprint(chosen, teacher, scored, folder, 0)
    assert blueprint.layers == (0, 3)
    found = json.loads(folder.layer_search.read_text())
    assert found["subsets"][0]["layers"] == [0, 3]
    assert found["subsets"][0]["overlap"] > 0.95, "all but near-ties of embeddings in float16"
    assert len(found["subsets"]) == 6
    assert found["subsets"][1]["overlap"] < 0.9
    student = build_student(chosen, teacher, blueprint, 0)
    assert len(student[0].auto_model.encoder.layer) == 2
    monkeypatch.setattr(
        "hf_distill.student.build.search_layers", lambda *_: pytest.fail("what was found is kept")
    )
    assert draw_blueprint(chosen, teacher, scored, folder, 0).layers == (0, 3)


def test_a_search_needs_a_number_and_a_ranking(teacher: BiEncoderTeacher) -> None:
    with pytest.raises(
        InputError, match="number of layers is a whole number from 1 to the backbone's 4"
    ):
        build_student(arguments(student_layers="search=9"), teacher, None, 0)
    assert (
        len(
            build_student(arguments(student_layers="search=3"), teacher, None, 0)[
                0
            ].auto_model.encoder.layer
        )
        == 3
    )


def test_a_replaced_backbone_is_another_one(backbone_dir: Path, tmp_path: Path) -> None:
    copy_of_it = tmp_path / "backbone"
    shutil.copytree(backbone_dir, copy_of_it)
    chosen = arguments(student_backbone=str(copy_of_it))
    before = backbone_digest(chosen)
    assert before == backbone_digest(arguments(student_backbone=str(backbone_dir))), (
        "what counts is what the files hold"
    )
    (copy_of_it / "config.json").write_text(
        (copy_of_it / "config.json").read_text().replace("32", "64")
    )
    assert backbone_digest(chosen) != before
    assert backbone_digest(arguments()) is None

"""Every kind of teacher but the endpoints (test_endpoint.py, test_rerank_endpoint.py), with tiny
real models and files.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_tokenizer, recipe_of, sentences
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util import SimilarityFunction
from transformers import BertConfig, BertForSequenceClassification

from hf_distill.errors import InputError
from hf_distill.teachers.base import (
    SCALES,
    EmbeddingTeacher,
    PairTeacher,
    Scale,
    pair_similarity,
    similarity,
)
from hf_distill.teachers.ensemble import combine, normalise_scores, parse_member
from hf_distill.teachers.load import load_teacher

QUERIES, DOCUMENTS = sentences(20), sentences(20, 1000)
PAIRS = list(zip(QUERIES, DOCUMENTS, strict=True))


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """`load_teacher` of a recipe with these keys."""
    return lambda **keys: load_teacher(recipe_of(run_dir=tmp_path / "run", **keys))


def lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def scores_file(path: Path, scores: list[object]) -> Path:
    """A JSONL file that gives the first of `PAIRS` these scores."""
    pairs = zip(PAIRS, scores, strict=False)
    return lines(path, [{"query": q, "document": d, "teacher_score": s} for (q, d), s in pairs])


def embeddings_file(path: Path, texts: list[str | None], embeddings: np.ndarray) -> Path:
    pq.write_table(pa.table({"text": texts, "embedding": embeddings.tolist()}), path)
    return path


# --- Similarities of embeddings


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_a_bi_encoder_scores_by_the_similarity_that_its_model_declares(
    load: Any, teacher_dir: Path, tmp_path: Path, name: str
) -> None:
    modules = list(SentenceTransformer(str(teacher_dir), device="cpu"))[:2]  # without Normalize
    declaring = SentenceTransformer(modules=modules, device="cpu", similarity_fn_name=name)
    declaring.save_pretrained(str(tmp_path / "teacher"), create_model_card=False)
    teacher = load(teacher=tmp_path / "teacher", teacher_similarity="declared")
    assert teacher.scale == SCALES[name]
    ours = teacher.embed(QUERIES), teacher.embed(DOCUMENTS)
    theirs = (torch.from_numpy(declaring.encode(texts)) for texts in (QUERIES, DOCUMENTS))
    expected = SimilarityFunction.to_similarity_fn(name)(*theirs).numpy()
    np.testing.assert_allclose(pair_similarity(name, *ours), expected.diagonal(), atol=1e-5)
    matrix = similarity(name, *map(torch.from_numpy, ours))
    np.testing.assert_allclose(matrix.numpy(), expected, atol=1e-5)
    assert Scale.read(json.loads(json.dumps(teacher.scale.record()))) == teacher.scale


# --- Cross-encoder


def test_a_cross_encoders_logits_go_through_a_sigmoid(load: Any, cross_encoder_dir: Path) -> None:
    teacher = load(teacher=cross_encoder_dir, teacher_kind="cross-encoder")
    model = CrossEncoder(str(cross_encoder_dir), device="cpu")
    expected = model.predict(PAIRS, activation_fn=torch.nn.Sigmoid())
    np.testing.assert_allclose(teacher.score(PAIRS), expected, atol=1e-5)
    assert teacher.scale == Scale("cross-encoder", "sigmoid", 0.0, 1.0)
    assert teacher.scores_pairs
    assert not teacher.embeds
    assert teacher.backbone is None


def test_logits_are_kept_and_declared_if_the_recipe_says_so(
    load: Any, cross_encoder_dir: Path
) -> None:
    keys = {"teacher": cross_encoder_dir, "teacher_kind": "cross-encoder"}
    teacher = load(**keys, teacher_activation="identity")
    assert np.abs(teacher.score(PAIRS)).max() > 1
    assert teacher.scale.record()["range"] == [None, None]
    assert not teacher.scale.is_bounded
    assert Scale.read(teacher.scale.record()) == teacher.scale
    assert teacher.identity != load(**keys).identity


def test_prompts_go_before_query_and_document(load: Any, cross_encoder_dir: Path) -> None:
    keys = {"teacher": cross_encoder_dir, "teacher_kind": "cross-encoder"}
    plain, prompted = load(**keys), load(**keys, query_prompt="the ", document_prompt="a ")
    assert plain.identity != prompted.identity
    assert prompted.prompts.of("document") == "a "
    assert prompted.score([("cat", "dog")]) == pytest.approx(plain.score([("the cat", "a dog")]))


def test_a_classifier_is_refused(load: Any, cross_encoder_dir: Path, tmp_path: Path) -> None:
    config = BertConfig.from_pretrained(cross_encoder_dir, num_labels=3)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "three")
    make_tokenizer().save_pretrained(tmp_path / "three")
    with pytest.raises(InputError, match=f"--teacher {tmp_path / 'three'} has 3 outputs"):
        load(teacher=tmp_path / "three", teacher_kind="cross-encoder")


def test_a_cross_encoders_nan_is_said_with_the_pair(load: Any, cross_encoder_dir: Path) -> None:
    teacher = load(teacher=cross_encoder_dir, teacher_kind="cross-encoder")
    with torch.no_grad():
        next(teacher.model.parameters()).fill_(torch.nan)
    with pytest.raises(
        InputError, match=r"NaN or infinity for 1 of 1 pairs, e\.g\. for 'a cat' and 'a dog'"
    ):
        teacher.score([("a cat", "a dog")])


# --- Precomputed


def test_scores_of_a_file_belong_to_their_pairs(load: Any, tmp_path: Path) -> None:
    path = scores_file(tmp_path / "scores.jsonl", [0.5, None, -0.25, 1.0005])
    teacher = load(teacher=path, teacher_kind="precomputed")
    expected = [-0.25, np.nan, 0.5, 1.0, np.nan, np.nan]
    wanted = [PAIRS[2], PAIRS[1], PAIRS[0], PAIRS[3], PAIRS[4], (QUERIES[0], DOCUMENTS[2])]
    np.testing.assert_array_equal(teacher.score(wanted), np.array(expected, dtype=np.float32))
    assert teacher.scale == Scale("given")
    assert (teacher.embeds, teacher.scores_pairs) == (False, True)


def test_the_soft_labels_of_a_run_are_a_teacher(load: Any, tmp_path: Path) -> None:
    """The paper's form: one JSON list."""
    rows = [
        {"pair_id": str(i), "query": q, "document": d, "teacher_score": i / 20}
        for i, (q, d) in enumerate(PAIRS)
    ]
    (tmp_path / "teacher_soft_labels.json").write_text(json.dumps(rows, indent=1))
    teacher = load(
        teacher=tmp_path / "teacher_soft_labels.json",
        teacher_kind="precomputed",
        score_range=[0, 1],
    )
    np.testing.assert_allclose(teacher.score(PAIRS), np.arange(20) / 20, rtol=1e-6)
    assert teacher.scale.record()["range"] == [0, 1]


def test_texts_are_in_the_recipes_columns_or_those_of_a_format(load: Any, tmp_path: Path) -> None:
    row = {"asked": " a ", "told": "b", "teacher_score": 0.5}
    keys = {"teacher": lines(tmp_path / "scores.jsonl", [row]), "teacher_kind": "precomputed"}
    teacher = load(**keys, query_column="asked", document_column="told")
    assert teacher.score([("a", "b")]) == [0.5]
    with pytest.raises(InputError, match=r"asked, told, teacher_score.*--query_column"):
        load(**keys)


LISTS: dict[str, tuple[dict[str, object], list[float]]] = {
    "FlagEmbedding": (
        {"query": "q", "pos": ["a"], "neg": ["b", "c"], "pos_scores": [1], "neg_scores": [0, 0.25]},
        [1, 0, 0.25],
    ),
    "lists of documents": (
        {"query": "q", "documents": ["a", "b", "c"], "scores": [0.5, -0.5, 0.25]},
        [0.5, -0.5, 0.25],
    ),
}


@pytest.mark.parametrize(("row", "scores"), LISTS.values(), ids=LISTS)
def test_scores_are_read_from_the_lists_of_other_projects(
    load: Any, tmp_path: Path, row: dict[str, object], scores: list[float]
) -> None:
    path = lines(tmp_path / "lists.jsonl", [row])
    teacher = load(teacher=path, teacher_kind="precomputed")
    pairs = [("q", "a"), ("q", "b"), ("q", "c"), ("q", "d")]
    np.testing.assert_array_equal(teacher.score(pairs), [*scores, np.nan])


def test_one_row_for_each_score_needs_no_word_of_what_is_relevant(
    load: Any, tmp_path: Path
) -> None:
    rows = [{"query": "q", "document": d, "teacher_score": s} for d, s in (("a", 1), ("b", 0))]
    teacher = load(teacher=lines(tmp_path / "s.jsonl", rows), teacher_kind="precomputed")
    np.testing.assert_array_equal(teacher.score([("q", "a"), ("q", "b")]), [1, 0])


def test_a_file_without_scores_is_said(load: Any, tmp_path: Path) -> None:
    path = lines(tmp_path / "s.jsonl", [{"query": "q", "document": "a"}])
    with pytest.raises(InputError, match=r"none of its 1 rows has a score.*--score_column"):
        load(teacher=path, teacher_kind="precomputed")


@pytest.mark.parametrize(
    ("scores", "keys", "says"),
    [
        ([0.5, 8.25], {}, r"1 of 2 scores .*\[-1, 1\].*8\.2500"),
        ([0.5, -0.25], {"score_range": [0, 1]}, r"\[0, 1\].*-0\.2500"),
        (["high"], {}, "line 1: .*teacher_score.*'high'"),
        ([], {}, "is empty"),
        ([0.5], {"score_range": [1, 0]}, r"--score_range 1\.0 0\.0"),
        ([0.5], {"score_range": [1]}, r"--score_range 1\.0"),
    ],
    ids=["logits", "range", "text", "empty", "order", "one bound"],
)
def test_a_file_that_cannot_be_used_is_said(
    load: Any, tmp_path: Path, scores: list[object], keys: dict[str, object], says: str
) -> None:
    path = scores_file(tmp_path / "scores.jsonl", scores)
    with pytest.raises(InputError, match=says):
        load(teacher=path, teacher_kind="precomputed", **keys)


def test_logits_in_a_file_can_go_through_a_sigmoid(load: Any, tmp_path: Path) -> None:
    path = scores_file(tmp_path / "scores.jsonl", [0.0, 8.25])
    teacher = load(teacher=path, teacher_kind="precomputed", teacher_activation="sigmoid")
    expected = [0.5, 1 / (1 + np.exp(-8.25)), np.nan]
    np.testing.assert_allclose(teacher.score(PAIRS[:3]), expected, rtol=1e-6)
    assert teacher.scale == Scale("given", "sigmoid", 0.0, 1.0)


def test_two_scores_for_one_pair_are_said(load: Any, tmp_path: Path) -> None:
    path = scores_file(tmp_path / "scores.jsonl", [0.5])
    text = path.read_text()
    path.write_text(text + text)
    assert load(teacher=path, teacher_kind="precomputed").score(PAIRS[:1]) == [0.5]
    path.write_text(text + text.replace("0.5", "0.75"))
    with pytest.raises(InputError, match=r"line 1 says 0\.5, .*line 2 says 0\.75"):
        load(teacher=path, teacher_kind="precomputed")


def test_the_content_of_a_file_is_its_identity(load: Any, tmp_path: Path) -> None:
    first, copy, other = (
        load(teacher=scores_file(tmp_path / f"{i}.jsonl", [score]), teacher_kind="precomputed")
        for i, score in enumerate((0.5, 0.5, 0.25))
    )
    assert first.identity == copy.identity
    assert first.identity != other.identity


def test_precomputed_embeddings_are_a_teacher_that_embeds(load: Any, tmp_path: Path) -> None:
    embeddings = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    path = embeddings_file(tmp_path / "e.parquet", ["a", " b ", "a"], embeddings)
    teacher = load(teacher=path, teacher_kind="precomputed")
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    np.testing.assert_allclose(teacher.embed(["b", "a"]), unit[[1, 0]], rtol=1e-6)
    raw = load(teacher=path, teacher_kind="precomputed", teacher_similarity="dot")
    np.testing.assert_array_equal(raw.embed(["b", "a"]), embeddings[[1, 0]])
    assert teacher.dimension == 8
    assert teacher.embeds
    assert not teacher.embeds_new_texts
    with pytest.raises(InputError, match=r"no embedding for 1 of 2 texts, e\.g\. 'c'"):
        teacher.embed(["a", "c"])


def test_embeddings_that_cannot_be_used_are_said(load: Any, tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "embedding": [[1.0, 2.0], [1.0]]}), path)
    with pytest.raises(InputError, match=r"e\.parquet, row 1 .* 1 dimensions.* one of 2"):
        load(teacher=path, teacher_kind="precomputed")
    path = embeddings_file(tmp_path / "n.parquet", ["a", "c"], np.array([[1, 2], [1, np.nan]]))
    teacher = load(teacher=path, teacher_kind="precomputed")
    with pytest.raises(InputError, match=r"for 1 of 1 texts, e\.g\. for 'c'"):
        teacher.embed(["c"])


# --- Ensemble


def test_quantiles_and_their_mean_by_hand() -> None:
    fitted_on = np.array([2.0, 4.0, np.nan, 6.0])
    quantiles = normalise_scores(fitted_on, np.array([1.0, 3.0, 4.0, 9.0, np.nan]))
    np.testing.assert_allclose(quantiles, [0, 1 / 3, 0.5, 1, np.nan])
    np.testing.assert_allclose(normalise_scores(np.ones(3), np.ones(2)), [0.5, 0.5])
    scores = [np.array([1.0, 0.0]), np.array([0.0, np.nan])]
    np.testing.assert_allclose(combine(scores, [3, 1]), [0.75, np.nan])


def test_an_ensemble_has_members_each_with_the_options_that_it_reads(
    load: Any, teacher_dir: Path, cross_encoder_dir: Path
) -> None:
    members = [f"bi-encoder:{teacher_dir}=3", f"cross-encoder:{cross_encoder_dir}=1"]
    options = {"teacher_similarity": "dot", "teacher_activation": "identity", "query_prompt": "q "}
    teacher = load(teacher_kind="ensemble", ensemble=members, **options)
    (bi, three), (cross, one) = teacher.members
    assert (three, one) == (3, 1)
    assert (bi.scale, cross.scale.activation) == (SCALES["dot"], "identity")
    assert bi.prompts == cross.prompts == teacher.prompts
    assert teacher.scale.record()["range"] == [0, 1]
    assert teacher.name == f"3 {teacher_dir} + 1 {cross_encoder_dir}"
    assert not teacher.embeds
    assert not teacher.scores_pairs
    reweighed = load(teacher_kind="ensemble", ensemble=[members[0][:-1] + "2", members[1]])
    assert reweighed.identity != load(teacher_kind="ensemble", ensemble=members).identity


def test_members_are_read() -> None:
    assert parse_member("endpoint:a/b:c=d=0.5") == ("endpoint", "a/b:c=d", 0.5)
    assert parse_member("a.b:C:teacher=2") == ("a.b:C", "teacher", 2.0)
    assert parse_member("a:C:./x:y=2") == ("a:C", "./x:y", 2.0)


@pytest.mark.parametrize(
    "text",
    ["a=1", "bi-encoder:a", "bi-encoder:=1", "bi-encoder:a=0", "bi-encoder:a=x", "ensemble:a=1",
     "bi-encoder:a=inf", "a.b:C=1", "biencoder:a/b=1", "bi-encoder:a=-1", ""],
)  # fmt: skip
def test_members_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"--ensemble {text}: .*KIND:TEACHER=WEIGHT"):
        parse_member(text)


# --- Which kind, and what it reads


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("bi-encoder", "teacher_url", "http://localhost/v1"), ("bi-encoder", "score_range", [0, 1]),
        ("bi-encoder", "teacher_activation", "sigmoid"), ("bi-encoder", "ensemble", ["a=1"]),
        ("cross-encoder", "teacher_similarity", "dot"), ("cross-encoder", "teacher_pooling", "cls"),
        ("precomputed", "teacher_max_length", 9), ("precomputed", "query_prompt", "q: "),
        ("endpoint", "trust_remote_code", True),
    ],
)  # fmt: skip
def test_options_without_effect_are_refused(load: Any, kind: str, key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"--{key} .*--teacher_kind {kind}"):
        load(teacher="x", teacher_kind=kind, **{key: value})


def test_an_option_that_no_member_reads_is_refused(load: Any) -> None:
    with pytest.raises(InputError, match=r"--score_range .*--teacher_kind ensemble"):
        load(teacher_kind="ensemble", ensemble=["bi-encoder:a=1"], score_range=[0, 1])
    with pytest.raises(InputError, match="needs --ensemble"):
        load(teacher_kind="ensemble")


def test_a_kind_from_outside_the_package_is_loaded_alone_and_as_a_member(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher_dir: Path
) -> None:
    (tmp_path / "outside_kind.py").write_text(
        "import numpy as np\n"
        "from hf_distill.teachers.base import PairTeacher\n"
        "class Lengths(PairTeacher):\n"
        "    name = 'lengths'\n"
        "    identity = ('lengths', 1)\n"
        "    def __init__(self, recipe):\n"
        "        self.unit = float(recipe.teacher.teacher)\n"
        "    def score(self, pairs, advance=None):\n"
        "        return np.array([len(q) / len(d) / self.unit for q, d in pairs], np.float32)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    kind = "outside_kind:Lengths"
    alone = load(teacher_kind=kind, teacher="2", teacher_url="http://localhost/v1")
    assert alone.score([("aa", "bbbb")]) == [0.25]
    assert (alone.embeds, alone.scores_pairs, alone.backbone) == (False, True, None)
    members = [f"{kind}:4=1", f"bi-encoder:{teacher_dir}=1"]
    ensemble = load(teacher_kind="ensemble", ensemble=members)
    assert ensemble.members[0][0].score([("aa", "bbbb")]) == [0.125]
    sys.modules.pop("outside_kind")


def test_an_unknown_kind_is_refused(load: Any) -> None:
    with pytest.raises(InputError, match=r"--teacher_kind 'biencoder'.*'bi-encoder'"):
        load(teacher_kind="biencoder")
    with pytest.raises(InputError, match=r"--ensemble no_such_module:K"):
        load(teacher_kind="ensemble", ensemble=["no_such_module:K:a=1"])


def test_half_a_teacher_cannot_be_made() -> None:
    for kind in (EmbeddingTeacher, PairTeacher):
        with pytest.raises(TypeError, match="abstract"):
            kind()


# --- Scales


def test_rounding_is_forgiven_and_nothing_else() -> None:
    scale = SCALES["cosine"]
    scores = scale.check(np.array([1.0005, -1, np.nan, 0.5]), "t")
    np.testing.assert_array_equal(scores, [1, -1, np.nan, 0.5])
    np.testing.assert_array_equal(scale.check(np.array([0, 1]), "t"), [0.0, 1.0], "integers")
    with pytest.raises(InputError, match=r"t: 1 of 2 scores .*\[-1, 1\].*1\.0020"):
        scale.check(np.array([1.002, 0]), "t")


def test_a_wrong_activation_leaves_the_scale(load: Any, cross_encoder_dir: Path) -> None:
    teacher = load(teacher=cross_encoder_dir, teacher_kind="cross-encoder")
    wrong = dataclasses.replace(teacher, activation=torch.nn.Identity())
    with pytest.raises(InputError, match=r"\[0, 1\].*--teacher_activation sigmoid"):
        teacher.scale.check(wrong.score(PAIRS), teacher.name)


def test_a_scale_reads_like_a_sentence() -> None:
    assert str(SCALES["cosine"]) == "cosine, in [-1, 1]"
    assert str(SCALES["dot"]) == "dot, unbounded"
    assert (
        str(Scale("cross-encoder", "sigmoid", 0, 1)) == "cross-encoder through sigmoid, in [0, 1]"
    )

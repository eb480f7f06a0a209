"""Every kind of teacher but the endpoint (test_endpoint.py), with real components, from scores to a
scale that is checked.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_tokenizer, sentences
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util import SimilarityFunction
from transformers import BertConfig, BertForSequenceClassification

from hf_distill.data.collection import PairData
from hf_distill.data.load import load_pair_data
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import (
    DataArguments,
    TeacherArguments,
    parse_member,
    read_recipe,
)
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.scores import score_pairs
from hf_distill.teachers.base import (
    SCALES,
    Scale,
    Teacher,
)
from hf_distill.teachers.ensemble import (
    combine,
    normalise_scores,
)
from hf_distill.teachers.load import load_teacher
from hf_distill.training.train import check_objective

FILES = DataArguments(dataset="files", group_column="topic")


def load(folder: RunFolder, **keys: object) -> Teacher:
    return load_teacher(
        TeacherArguments(**{"teacher_dtype": "float32", **keys}), FILES, folder.cache
    )


def labels(folder: RunFolder) -> dict[str, float | None]:
    return {
        row["pair_id"]: row["teacher_score"]
        for row in json.loads(folder.soft_labels_json.read_text())
    }


# --- similarities of embeddings
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ["cosine", "dot", "euclidean", "manhattan"])
def test_a_bi_encoder_scores_by_the_similarity_that_is_asked_for(
    data: PairData, folder: RunFolder, teacher_dir: Path, tmp_path: Path, measure: str
) -> None:
    modules = list(SentenceTransformer(str(teacher_dir), device="cpu"))[
        :2
    ]  # without its normalisation
    declaring = SentenceTransformer(modules=modules, device="cpu", similarity_fn_name=measure)
    declaring.save_pretrained(str(tmp_path / "teacher"), create_model_card=False)
    teacher = load(folder, teacher=str(tmp_path / "teacher"), teacher_similarity="declared")
    assert teacher.scale == SCALES[measure]
    scored = score_pairs(data, teacher, folder, TeacherArguments())
    q, d = (
        torch.from_numpy(declaring.encode(list(data.train[name]))) for name in ("query", "document")
    )
    expected = SimilarityFunction.to_similarity_pairwise_fn(measure)(q, d).numpy()
    np.testing.assert_allclose(scored.train["teacher_score"], expected, rtol=5e-3, atol=5e-3)
    assert Scale.read(scored.manifest["scale"]) == SCALES[measure]


def test_embeddings_that_float16_cannot_hold_are_said(
    data: PairData, folder: RunFolder, teacher_dir: Path, tmp_path: Path
) -> None:
    model = SentenceTransformer(
        modules=list(SentenceTransformer(str(teacher_dir), device="cpu"))[:2], device="cpu"
    )
    with torch.no_grad():
        model[0].auto_model.encoder.layer[-1].output.LayerNorm.weight *= 1e6
    model.save_pretrained(str(tmp_path / "teacher"), create_model_card=False)
    with pytest.raises(InputError, match=r"values up to .*, more than float16 holds"):
        score_pairs(
            data,
            load(folder, teacher=str(tmp_path / "teacher"), teacher_similarity="dot"),
            folder,
            TeacherArguments(),
        )


# --- cross-encoder
# ----------------------------------------------------------------------------------------------------------------


def test_a_cross_encoders_logits_go_through_a_sigmoid(
    data: PairData, folder: RunFolder, cross_encoder_dir: Path
) -> None:
    teacher = load(folder, teacher=str(cross_encoder_dir), teacher_kind="cross-encoder")
    scored = score_pairs(data, teacher, folder, TeacherArguments(shard_size=64))
    pairs = list(zip(data.train["query"], data.train["document"], strict=True))
    expected = CrossEncoder(str(cross_encoder_dir), device="cpu").predict(
        pairs, activation_fn=torch.nn.Sigmoid()
    )
    np.testing.assert_allclose(scored.train["teacher_score"], expected, atol=1e-5)
    assert scored.manifest["scale"] == {
        "measure": "cross-encoder",
        "activation": "sigmoid",
        "range": [0.0, 1.0],
    }
    assert scored.embeddings is None
    assert scored.manifest["items"] == 200
    assert len(list((folder.soft_labels / "scores").glob("*.parquet"))) == 4


def test_logits_are_kept_and_declared_if_asked_for(
    data: PairData, folder: RunFolder, cross_encoder_dir: Path
) -> None:
    teacher = load(
        folder,
        teacher=str(cross_encoder_dir),
        teacher_kind="cross-encoder",
        teacher_activation="identity",
    )
    scored = score_pairs(data, teacher, folder, TeacherArguments())
    assert scored.manifest["scale"] == {
        "measure": "cross-encoder",
        "activation": "identity",
        "range": [None, None],
    }
    assert not teacher.scale.is_bounded
    assert np.abs(scored.train["teacher_score"]).max() > 1
    assert Scale.read(scored.manifest["scale"]) == teacher.scale


def test_prompts_go_before_query_and_document(folder: RunFolder, cross_encoder_dir: Path) -> None:
    plain, prompted = (
        load(
            folder,
            teacher=str(cross_encoder_dir),
            teacher_kind="cross-encoder",
            query_prompt=p,
            document_prompt=p,
        )
        for p in ("", "the ")
    )
    assert plain.fingerprint != prompted.fingerprint
    assert prompted.score([("cat", "dog")]) == pytest.approx(plain.score([("the cat", "the dog")]))


def test_a_classifier_is_no_teacher(
    folder: RunFolder, cross_encoder_dir: Path, tmp_path: Path
) -> None:
    config = BertConfig.from_pretrained(cross_encoder_dir, num_labels=3)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "three")
    make_tokenizer().save_pretrained(tmp_path / "three")
    with pytest.raises(InputError, match="has 3 outputs, so it classifies pairs"):
        load(folder, teacher=str(tmp_path / "three"), teacher_kind="cross-encoder")


def test_a_cross_encoders_nan_is_said_with_the_pair(
    folder: RunFolder, cross_encoder_dir: Path
) -> None:
    teacher = load(folder, teacher=str(cross_encoder_dir), teacher_kind="cross-encoder")
    with torch.no_grad():
        next(teacher.model.parameters()).fill_(torch.nan)
    with pytest.raises(
        InputError, match=r"returns NaN for 1 of 1 pairs, e\.g\. for 'a cat' and 'a dog'"
    ):
        teacher.score([("a cat", "a dog")])


# --- precomputed
# ------------------------------------------------------------------------------------------------------------------


def test_soft_labels_of_one_run_are_the_teacher_of_another(
    data: PairData, folder: RunFolder, cross_encoder_dir: Path, tmp_path: Path
) -> None:
    first = score_pairs(
        data,
        load(folder, teacher=str(cross_encoder_dir), teacher_kind="cross-encoder"),
        folder,
        TeacherArguments(),
    )
    other = RunFolder(tmp_path / "other")
    teacher = load(
        other,
        teacher=str(folder.soft_labels_json),
        teacher_kind="precomputed",
        score_range=[0.0, 1.0],
    )
    second = score_pairs(data, teacher, other, TeacherArguments())
    np.testing.assert_allclose(
        second.train["teacher_score"], first.train["teacher_score"], atol=1e-6
    )
    assert second.manifest["scale"] == {"measure": "given", "activation": None, "range": [0.0, 1.0]}
    assert labels(other) == labels(folder)


def scores_file(path: Path, data: PairData, scores: list[object]) -> Path:
    rows = [*data.train, *data.validation, *data.test]
    path.write_text(
        "".join(
            json.dumps({"query": r["query"], "document": r["document"], "teacher_score": s}) + "\n"
            for r, s in zip(rows, scores, strict=False)
        )
    )
    return path


def test_pairs_without_a_score_are_counted_and_kept(
    data: PairData, folder: RunFolder, tmp_path: Path
) -> None:
    count = len(data.train) + len(data.validation) + len(data.test)
    path = scores_file(
        tmp_path / "scores.jsonl", data, [None if i in (0, 3) else 0.5 for i in range(count)]
    )
    scored = score_pairs(
        data,
        load(folder, teacher=str(path), teacher_kind="precomputed"),
        folder,
        TeacherArguments(),
    )
    assert scored.manifest["unscored"] == 2
    assert np.isnan(scored.train["teacher_score"]).nonzero()[0].tolist() == [0, 3]
    assert len(labels(folder)) == 200
    assert [name for name, score in labels(folder).items() if score is None] == [
        data.train["pair_id"][0],
        data.train["pair_id"][3],
    ]


@pytest.mark.parametrize(
    ("scores", "keys", "says"),
    [
        (
            [0.5, 8.25],
            {},
            r"1 of 2 scores lie outside the declared range \[-1, 1\], e\.g\. 8\.2500",
        ),
        (
            [0.5, -0.25],
            {"score_range": [0.0, 1.0]},
            r"outside the declared range \[0, 1\], e\.g\. -0\.2500",
        ),
        (["high"], {}, "row 0: teacher_score is 'high'"),
        ([], {}, "is empty"),
        (
            [0.5],
            {"score_column": "points"},
            "has the columns query, document, teacher_score; a precomputed teacher has query, document, points",
        ),
    ],
    ids=["logits", "range", "text", "empty", "column"],
)
def test_a_file_that_cannot_be_used_is_said(
    data: PairData,
    folder: RunFolder,
    tmp_path: Path,
    scores: list[object],
    keys: dict[str, object],
    says: str,
) -> None:
    path = scores_file(tmp_path / "scores.jsonl", data, scores)
    with pytest.raises(InputError, match=says):
        load(folder, teacher=str(path), teacher_kind="precomputed", **keys)


def test_logits_in_a_file_can_go_through_a_sigmoid(
    data: PairData, folder: RunFolder, tmp_path: Path
) -> None:
    path = scores_file(tmp_path / "scores.jsonl", data, [0.0, 8.25])
    teacher = load(
        folder, teacher=str(path), teacher_kind="precomputed", teacher_activation="sigmoid"
    )
    pairs = list(zip(data.train["query"], data.train["document"], strict=True))
    np.testing.assert_allclose(
        teacher.score(pairs[:3]), [0.5, 1 / (1 + np.exp(-8.25)), np.nan], rtol=1e-6
    )
    assert (teacher.scale.low, teacher.scale.high) == (0, 1)


def test_two_scores_for_one_pair_are_said(
    data: PairData, folder: RunFolder, tmp_path: Path
) -> None:
    path = scores_file(tmp_path / "scores.jsonl", data, [0.5])
    path.write_text(path.read_text() + path.read_text().replace("0.5", "0.75"))
    with pytest.raises(InputError, match=r"two scores: row 0 says 0\.5, row 1 says 0\.75"):
        load(folder, teacher=str(path), teacher_kind="precomputed")


def test_a_file_of_other_pairs_is_said(data: PairData, folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "scores.jsonl").write_text(
        '{"query": "a", "document": "b", "teacher_score": 0.5}\n'
    )
    teacher = load(folder, teacher=str(tmp_path / "scores.jsonl"), teacher_kind="precomputed")
    with pytest.raises(InputError, match=r"has a score for none of the \d+ train pairs"):
        score_pairs(data, teacher, folder, TeacherArguments())


def embeddings_file(
    path: Path, data: PairData, teacher_dir: Path
) -> tuple[Path, SentenceTransformer]:
    model = SentenceTransformer(str(teacher_dir), device="cpu")
    splits = (data.train, data.validation, data.test, data.leaked)
    texts = list(
        dict.fromkeys(
            text for split in splits for name in ("query", "document") for text in split[name]
        )
    )
    pq.write_table(pa.table({"text": texts, "embedding": (2 * model.encode(texts)).tolist()}), path)
    return path, model


def test_precomputed_embeddings_are_a_teacher_that_embeds(
    data: PairData, folder: RunFolder, teacher_dir: Path, tmp_path: Path
) -> None:
    path, model = embeddings_file(tmp_path / "e.parquet", data, teacher_dir)
    scored = score_pairs(
        data,
        load(folder, teacher=str(path), teacher_kind="precomputed"),
        folder,
        TeacherArguments(),
    )
    expected = (
        model.encode(list(data.train["query"])) * model.encode(list(data.train["document"]))
    ).sum(axis=1)
    np.testing.assert_allclose(scored.train["teacher_score"], expected, atol=2e-3)
    assert scored.embeddings is not None
    assert scored.manifest["dimension"] == 32


def test_given_embeddings_are_none_of_new_texts(
    data: PairData, folder: RunFolder, teacher_dir: Path, tmp_path: Path
) -> None:
    path, _ = embeddings_file(tmp_path / "e.parquet", data, teacher_dir)
    teacher = load(folder, teacher=str(path), teacher_kind="precomputed")
    line = ["--student_dim", "16", "--alignment_weight", "1", "--augmented_texts_per_pair"]
    check_objective(read_recipe([*line, "0"]), teacher)
    with pytest.raises(
        InputError, match=r"makes new texts, and .* holds embeddings of given ones alone; set"
    ):
        check_objective(read_recipe([*line, "2"]), teacher)


def test_a_text_without_an_embedding_is_said(
    data: PairData, folder: RunFolder, teacher_dir: Path, tmp_path: Path
) -> None:
    path, _ = embeddings_file(tmp_path / "e.parquet", data, teacher_dir)
    table = pq.read_table(path)
    pq.write_table(table.slice(2), path)
    with pytest.raises(InputError, match="has no embedding for 2 of"):
        score_pairs(
            data,
            load(folder, teacher=str(path), teacher_kind="precomputed"),
            folder,
            TeacherArguments(),
        )


# --- ensemble
# ---------------------------------------------------------------------------------------------------------------------


def test_normalisations_by_hand() -> None:
    fitted, scores = np.array([2.0, 4.0, np.nan, 6.0]), np.array([1.0, 3.0, 4.0, 9.0, np.nan])
    np.testing.assert_allclose(
        normalise_scores(fitted, scores, "minmax"), [0, 0.25, 0.5, 1, np.nan]
    )
    np.testing.assert_allclose(
        normalise_scores(fitted, scores, "quantile"), [0, 1 / 3, 0.5, 1, np.nan]
    )
    np.testing.assert_allclose(normalise_scores(fitted, scores, "none"), scores)
    np.testing.assert_allclose(normalise_scores(np.ones(3), np.ones(2), "minmax"), [0.5, 0.5])
    np.testing.assert_allclose(
        combine([np.array([1.0, 0.0]), np.array([0.0, np.nan])], [3, 1]), [0.75, np.nan]
    )


@pytest.mark.parametrize("how", ["none", "minmax", "quantile"])
def test_an_ensemble_is_the_weighted_mean_of_its_members(
    data: PairData,
    folder: RunFolder,
    teacher_dir: Path,
    cross_encoder_dir: Path,
    tmp_path: Path,
    how: str,
) -> None:
    members = [f"bi-encoder:{teacher_dir}=3", f"cross-encoder:{cross_encoder_dir}=1"]
    scored = score_pairs(
        data,
        load(folder, teacher_kind="ensemble", ensemble=members, ensemble_normalization=how),
        folder,
        TeacherArguments(),
    )
    alone = [
        score_pairs(
            data,
            load(RunFolder(tmp_path / kind), teacher=str(name), teacher_kind=kind),
            RunFolder(tmp_path / kind),
            TeacherArguments(),
        )
        for kind, name in (("bi-encoder", teacher_dir), ("cross-encoder", cross_encoder_dir))
    ]
    train, test = (
        [np.array(getattr(s, split)["teacher_score"], dtype=np.float64) for s in alone]
        for split in ("train", "test")
    )
    expected = combine(
        [normalise_scores(a, b, how) for a, b in zip(train, test, strict=True)], [3, 1]
    )  # fitted on train alone
    np.testing.assert_allclose(scored.test["teacher_score"], expected, atol=1e-6)
    assert scored.embeddings is None
    assert scored.manifest["scale"]["range"] == ([-1.0, 1.0] if how == "none" else [0.0, 1.0])
    assert scored.manifest["items"] == 400 + 200


def test_logits_are_not_added_to_cosines(
    folder: RunFolder, teacher_dir: Path, cross_encoder_dir: Path
) -> None:
    members = [f"bi-encoder:{teacher_dir}=1", f"cross-encoder:{cross_encoder_dir}=1"]
    with pytest.raises(InputError, match="are unbounded; use quantile or minmax"):
        load(
            folder,
            teacher_kind="ensemble",
            ensemble=members,
            ensemble_normalization="none",
            teacher_activation="identity",
        )


def test_members_are_read() -> None:
    assert parse_member("endpoint:a/b:c=d=0.5") == ("endpoint", "a/b:c=d", 0.5)
    for bad in (
        "a=1",
        "bi-encoder:a",
        "bi-encoder:=1",
        "bi-encoder:a=0",
        "bi-encoder:a=x",
        "ensemble:a=1",
        "bi-encoder:a=inf",
    ):
        with pytest.raises(InputError, match="is no KIND:TEACHER=WEIGHT"):
            parse_member(bad)


# --- scales
# -----------------------------------------------------------------------------------------------------------------------


def test_rounding_is_forgiven_and_nothing_else() -> None:
    scale = SCALES["cosine"]
    np.testing.assert_array_equal(
        scale.check(np.array([1.0005, -1, np.nan, 0.5]), "t"), [1, -1, np.nan, 0.5]
    )
    with pytest.raises(InputError, match="t: 1 of 2 scores lie outside the declared range"):
        scale.check(np.array([1.002, 0]), "t")


def test_a_teacher_that_leaves_its_scale_is_said(
    data: PairData, folder: RunFolder, cross_encoder_dir: Path
) -> None:
    teacher = load(folder, teacher=str(cross_encoder_dir), teacher_kind="cross-encoder")
    teacher.activation = torch.nn.Identity()
    with pytest.raises(
        InputError,
        match=r"scores lie outside the declared range \[0, 1\].*teacher_activation sigmoid",
    ):
        score_pairs(data, teacher, folder, TeacherArguments())
    assert not list((folder.soft_labels / "scores").glob("*")), "nothing wrong is kept"


def test_every_text_is_scored_whatever_is_in_it(
    folder: RunFolder, teacher_dir: Path, tmp_path: Path
) -> None:
    odd = [
        "x" * 1_000_000,
        "a \x00 nul",
        "\u202eright to left",
        "שלום עולם",
        "🦉" * 50,
        "tab\tand\nline",
    ]
    rows = [
        {"query": q, "document": d, "topic": i}
        for i, (q, d) in enumerate(zip(sentences(60), [*odd, *sentences(54, 500)], strict=True))
    ]
    rows += [
        {"query": "", "document": "no query", "topic": 100},
        {"query": "no document", "document": " ", "topic": 101},
    ]
    path = tmp_path / "odd.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_pair_data(
        DataArguments(dataset="files", dataset_path=str(path), group_column="topic"), 0, folder
    )
    assert data.counts["source"] == {"rows found": 62, "kept": 60, "no query": 1, "no document": 1}
    scored = score_pairs(
        data, load(folder, teacher=str(teacher_dir)), folder, TeacherArguments(shard_size=16)
    )
    assert scored.manifest["pairs"] == 60
    assert len(labels(folder)) == 60
    assert all(np.isfinite(score) for score in labels(folder).values())

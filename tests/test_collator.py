import pytest
import torch
from conftest import sentences
from sentence_transformers import SentenceTransformer

from hf_distill.training.collator import (
    SIDE_COLUMNS,
    DistillationCollator,
    in_batch_matrices,
    key_of,
)


def rows(count: int, dimension: int = 8) -> list[dict]:
    torch.manual_seed(1)
    vectors = torch.nn.functional.normalize(torch.randn(2 * count, dimension), dim=1)
    return [
        {
            "query": q,
            "document": d,
            "teacher_score": float(vectors[i] @ vectors[count + i]),
            "teacher_query_embedding": vectors[i].numpy(),
            "teacher_document_embedding": vectors[count + i].numpy(),
            "group": "never read",
        }
        for i, (q, d) in enumerate(zip(sentences(count), sentences(count, 500), strict=True))
    ]


@pytest.fixture(scope="module")
def model(teacher_dir) -> SentenceTransformer:
    return SentenceTransformer(str(teacher_dir), device="cpu").eval()


def test_the_teachers_matrix_is_the_cosines_of_its_embeddings(model: SentenceTransformer) -> None:
    features = rows(6)
    batch = DistillationCollator(model.preprocess)(features)
    q = torch.stack([torch.tensor(r["teacher_query_embedding"]) for r in features])
    d = torch.stack([torch.tensor(r["teacher_document_embedding"]) for r in features])
    torch.testing.assert_close(batch["teacher_matrix"], q @ d.T)
    assert batch["positives"].tolist() == list(range(6))
    assert not batch["ignore"].any()


def test_a_teacher_without_embeddings_knows_the_diagonal_only(model: SentenceTransformer) -> None:
    features = [{k: v for k, v in row.items() if "embedding" not in k} for row in rows(3)]
    matrix = DistillationCollator(model.preprocess)(features)["teacher_matrix"]
    assert matrix.diagonal().tolist() == pytest.approx([row["teacher_score"] for row in features])
    assert matrix.isnan().sum() == 6


def test_the_same_document_or_query_is_no_negative(model: SentenceTransformer) -> None:
    features = rows(4)
    features[2]["document"] = features[0]["document"]
    features[3]["query"] = features[1]["query"]
    ignore = DistillationCollator(model.preprocess)(features)["ignore"]
    assert ignore.nonzero().tolist() == [[0, 2], [1, 3], [2, 0], [3, 1]]


def test_what_the_teacher_scores_near_the_pairs_own_is_no_negative(
    model: SentenceTransformer,
) -> None:
    features = rows(5)
    plain = DistillationCollator(model.preprocess)(features)
    own = plain["teacher_matrix"].diagonal()[:, None]
    for false_negative_margin in (0.0, 0.3):
        batch = DistillationCollator(model.preprocess, false_negative_margin=false_negative_margin)(
            features
        )
        expected = plain["teacher_matrix"] > own - false_negative_margin
        assert 0 < expected.fill_diagonal_(False).sum() < 20
        assert batch["ignore"].equal(expected)
        torch.testing.assert_close(batch["teacher_matrix"], plain["teacher_matrix"])
    without = [{k: v for k, v in row.items() if "embedding" not in k} for row in features]
    assert not DistillationCollator(model.preprocess, false_negative_margin=0.3)(without)[
        "ignore"
    ].any(), "unknown cells stay negatives"


def test_pairs_of_a_group_are_no_negatives_of_each_other_and_hard_negatives_stay(
    model: SentenceTransformer,
) -> None:
    features = with_negatives(rows(4))
    for row, group in zip(features, "abab", strict=True):
        row["group"] = group
    ignore = DistillationCollator(model.preprocess, false_negative_groups=True)(features)["ignore"]
    assert ignore.shape == (4, 12)
    assert ignore.nonzero().tolist() == [[0, 2], [1, 3], [2, 0], [3, 1]]


def with_negatives(features: list[dict], number: int = 2) -> list[dict]:
    torch.manual_seed(2)
    for i, row in enumerate(features):
        embeddings = torch.nn.functional.normalize(torch.randn(number, 8), dim=1)
        row["negatives"] = sentences(number, 700 + number * i)
        row["teacher_negative_embeddings"] = embeddings.numpy()
        row["negative_scores"] = (embeddings @ torch.tensor(row["teacher_query_embedding"])).numpy()
    return features


def test_hard_negatives_are_further_columns(model: SentenceTransformer) -> None:
    features = with_negatives(rows(3))
    features[1]["negatives"][0] = features[0]["document"]
    batch = DistillationCollator(model.preprocess)(features)
    q, d = (
        torch.stack([torch.tensor(r[f"teacher_{kind}_embedding"]) for r in features])
        for kind in ("query", "document")
    )
    n = torch.cat([torch.tensor(r["teacher_negative_embeddings"]) for r in features])
    torch.testing.assert_close(batch["teacher_matrix"], q @ torch.cat([d, n]).T)
    assert batch["ignore"].nonzero().tolist() == [[0, 3 + 2]], (
        "the text of pair 0's document is no negative for pair 0 alone"
    )
    assert batch["positives"].tolist() == [0, 1, 2]
    assert len(batch["place"]) == 3 + 3 + 6


def test_a_teacher_without_embeddings_knows_the_scores_of_its_own_negatives(
    model: SentenceTransformer,
) -> None:
    features = [
        {k: v for k, v in row.items() if "embedding" not in k} for row in with_negatives(rows(3))
    ]
    matrix = DistillationCollator(model.preprocess)(features)["teacher_matrix"]
    assert matrix.shape == (3, 9)
    assert (~matrix.isnan()).nonzero().tolist() == [
        [0, 0],
        [0, 3],
        [0, 4],
        [1, 1],
        [1, 5],
        [1, 6],
        [2, 2],
        [2, 7],
        [2, 8],
    ]
    assert matrix[1, 5:7].tolist() == pytest.approx(features[1]["negative_scores"].tolist())


@pytest.mark.parametrize("group_size", [1, 3, 8, 100])
def test_groups_by_length_give_the_embeddings_of_plain_encoding(
    model: SentenceTransformer, group_size: int
) -> None:
    features = rows(5)
    features[0]["document"] = "cat"
    collator = DistillationCollator(
        model.preprocess, query_prompt="who ", document_prompt="book ", group_size=group_size
    )
    batch = collator(features)
    groups = []
    while f"texts{len(groups)}_input_ids" in batch:
        prefix = f"texts{len(groups)}_"
        groups.append({k.removeprefix(prefix): v for k, v in batch.items() if k.startswith(prefix)})
    assert len(groups) == -(-10 // group_size)
    with torch.no_grad():
        embeddings = torch.cat([model(group)["sentence_embedding"] for group in groups])[
            batch["place"]
        ]
    plain = model.encode(
        ["who " + r["query"] for r in features] + ["book " + r["document"] for r in features],
        convert_to_tensor=True,
    )
    torch.testing.assert_close(embeddings, plain, atol=1e-5, rtol=1e-4)


def test_a_missing_column_is_said(model: SentenceTransformer) -> None:
    with pytest.raises(ValueError, match="no column teacher_score; they have query, document"):
        DistillationCollator(model.preprocess)([{"query": "a", "document": "b"}])


def test_blocks_of_two_processes_are_the_rows_of_one(model: SentenceTransformer) -> None:
    features = rows(8)
    features[6]["document"] = features[1]["document"]
    whole = DistillationCollator(model.preprocess)(features)
    names = (
        "teacher_score",
        "query_key",
        "document_key",
        "teacher_query_embedding",
        "teacher_document_embedding",
    )
    columns = {name: whole[name] for name in names}
    for start in (0, 4):
        part = in_batch_matrices(
            {name: columns[name][start : start + 4] for name in names}, columns, offset=start
        )
        torch.testing.assert_close(part.teacher, whole["teacher_matrix"][start : start + 4])
        assert part.ignore.equal(whole["ignore"][start : start + 4])
        assert part.positives.tolist() == list(range(start, start + 4))


def test_keys_are_equal_only_for_equal_texts() -> None:
    assert key_of("a b") == key_of("a b") != key_of("a  b")
    assert -(2**63) <= key_of("x") < 2**63


@pytest.mark.parametrize("embeds", [True, False])
def test_hard_negatives_of_two_processes_stand_where_one_puts_them(
    model: SentenceTransformer, embeds: bool
) -> None:
    features = [
        {k: v for k, v in row.items() if embeds or "embedding" not in k}
        for row in with_negatives(rows(8))
    ]
    whole = DistillationCollator(model.preprocess)(features)
    columns = {name: whole[name] for name in SIDE_COLUMNS if name in whole}
    for start in (0, 4):
        part = in_batch_matrices(
            {name: value[start : start + 4] for name, value in columns.items()},
            columns,
            offset=start,
        )
        torch.testing.assert_close(
            part.teacher, whole["teacher_matrix"][start : start + 4], equal_nan=True
        )
        assert part.ignore.equal(whole["ignore"][start : start + 4])

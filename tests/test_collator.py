"""What a batch holds: tokenised texts, side columns, and the matrices that are built from them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import sentences
from sentence_transformers import SentenceTransformer
from tiny_training import Tiny, tiny

from hf_distill.errors import InputError
from hf_distill.training.collator import DistillationCollator
from hf_distill.training.in_batch import Sides, TeacherView, teacher_view
from hf_distill.training.rows import Lookup, examples, key_of


def rows(count: int, dimension: int = 8) -> list[dict[str, Any]]:
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


NO_CUT: Any = SimpleNamespace(false_negative_margin=None, positive_cut=None)


def with_negatives(features: list[dict[str, Any]], number: int = 2) -> list[dict[str, Any]]:
    torch.manual_seed(2)
    for i, row in enumerate(features):
        embeddings = torch.nn.functional.normalize(torch.randn(number, 8), dim=1)
        row["negatives"] = sentences(number, 700 + number * i)
        row["teacher_negative_embeddings"] = embeddings.numpy()
        row["negative_scores"] = (embeddings @ torch.tensor(row["teacher_query_embedding"])).numpy()
    return features


def without_embeddings(features: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if "embedding" not in k} for row in features]


def view(
    features: list[dict[str, Any]], margin: float | None = None, cut: float | None = 0.95
) -> TeacherView:
    sides = examples(features, Lookup()).sides
    config = SimpleNamespace(false_negative_margin=margin, positive_cut=cut)
    return teacher_view(sides, sides, 0, "cosine", config)  # type: ignore[arg-type]  # what it reads


@pytest.fixture(scope="module")
def parts(teacher_dir: Path) -> Tiny:
    return tiny(teacher_dir)


@pytest.fixture(scope="module")
def model(parts: Tiny) -> SentenceTransformer:
    return parts.teacher


def test_the_teachers_matrix_is_the_cosines_of_its_embeddings() -> None:
    features = rows(6)
    matrices = view(features)
    q = torch.stack([torch.tensor(r["teacher_query_embedding"]) for r in features])
    d = torch.stack([torch.tensor(r["teacher_document_embedding"]) for r in features])
    torch.testing.assert_close(matrices.teacher, q @ d.T)
    assert matrices.positives.tolist() == list(range(6))
    assert not matrices.ignore.any()


def test_a_teacher_without_embeddings_knows_the_diagonal_only() -> None:
    features = without_embeddings(rows(3))
    matrix = view(features).teacher
    assert matrix.diagonal().tolist() == pytest.approx([row["teacher_score"] for row in features])
    assert matrix.isnan().sum() == 6


def test_the_same_document_or_query_is_not_a_negative() -> None:
    features = rows(4)
    features[2]["document"] = features[0]["document"]
    features[3]["query"] = features[1]["query"]
    assert view(features).ignore.nonzero().tolist() == [[0, 2], [1, 3], [2, 0], [3, 1]]


def test_what_the_teacher_scores_near_the_pairs_own_is_not_a_negative() -> None:
    features = rows(5)
    plain = view(features)
    own = plain.teacher.diagonal()[:, None]
    for margin in (0.0, 0.3):
        expected = plain.teacher > own - margin
        assert 0 < expected.fill_diagonal_(False).sum() < 20
        assert view(features, margin).ignore.equal(expected)
        torch.testing.assert_close(view(features, margin).teacher, plain.teacher)
    assert not view(without_embeddings(features), 0.3).ignore.any(), "unknown cells stay negatives"


def test_hard_negatives_are_further_columns(model: SentenceTransformer) -> None:
    features = with_negatives(rows(3))
    features[1]["negatives"][0] = features[0]["document"]
    matrices = view(features)
    q, d = (
        torch.stack([torch.tensor(r[f"teacher_{kind}_embedding"]) for r in features])
        for kind in ("query", "document")
    )
    n = torch.cat([torch.tensor(r["teacher_negative_embeddings"]) for r in features])
    torch.testing.assert_close(matrices.teacher, q @ torch.cat([d, n]).T)
    assert matrices.ignore.nonzero().tolist() == [[0, 3 + 2]], (
        "a text like pair 0's document is not a negative for pair 0, and is one for the others"
    )
    assert matrices.positives.tolist() == [0, 1, 2]
    assert len(DistillationCollator(model.preprocess)(features)["place"]) == 3 + 3 + 6


def test_a_teacher_without_embeddings_knows_the_scores_of_its_own_negatives() -> None:
    features = without_embeddings(with_negatives(rows(3)))
    matrix = view(features).teacher
    assert matrix.shape == (3, 9)
    wanted = [[0, 0], [0, 3], [0, 4], [1, 1], [1, 5], [1, 6], [2, 2], [2, 7], [2, 8]]
    assert (~matrix.isnan()).nonzero().tolist() == wanted
    assert matrix[1, 5:7].tolist() == pytest.approx(features[1]["negative_scores"].tolist())


@pytest.mark.parametrize("embeds", [True, False])
@pytest.mark.parametrize("negatives", [True, False])
def test_blocks_of_two_processes_are_the_rows_of_one(embeds: bool, negatives: bool) -> None:
    features = with_negatives(rows(8)) if negatives else rows(8)
    features[6]["document"] = features[1]["document"]
    features = features if embeds else without_embeddings(features)
    whole = view(features)
    columns = examples(features, Lookup()).sides
    for start in (0, 4):
        own = examples(features[start : start + 4], Lookup()).sides
        part = teacher_view(own, columns, start, "cosine", NO_CUT)
        here = slice(start, start + 4)
        torch.testing.assert_close(part.teacher, whole.teacher[here], equal_nan=True)
        assert part.ignore.equal(whole.ignore[here])
        assert part.positives.tolist() == list(range(start, start + 4))


def test_the_reverse_has_documents_as_rows_and_no_hard_negatives() -> None:
    sides = examples(with_negatives(rows(4)), Lookup()).sides
    plain = teacher_view(sides, sides, 0, "cosine", NO_CUT)
    reverse = teacher_view(sides.reversed(), sides.reversed(), 0, "cosine", NO_CUT)
    torch.testing.assert_close(reverse.teacher, plain.teacher[:, :4].T)


def groups_of(batch: dict[str, Any]) -> list[dict[str, Any]]:
    groups = []
    while f"texts{len(groups)}_input_ids" in batch:
        prefix = f"texts{len(groups)}_"
        groups.append({k.removeprefix(prefix): v for k, v in batch.items() if k.startswith(prefix)})
    return groups


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
    groups = groups_of(batch)
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


def test_rows_by_number_are_the_rows_with_texts(parts: Tiny) -> None:
    numbers = ["query", "document", "teacher_score"]
    by_number = examples(
        [parts.numbers.select_columns(numbers)[i] for i in (5, 2, 9)], parts.lookup
    )
    with_texts = examples([parts.texts[i] for i in (5, 2, 9)], Lookup())
    assert by_number.queries == with_texts.queries
    assert by_number.documents == with_texts.documents
    assert by_number.rows is None
    of_number, of_text = by_number.sides.columns(), with_texts.sides.columns()
    assert of_number.keys() == of_text.keys()
    for name, value in of_number.items():
        if "key" not in name:
            torch.testing.assert_close(value.float(), of_text[name])


def test_hard_negatives_by_number_are_looked_up(parts: Tiny) -> None:
    found = examples([parts.numbers[3], parts.numbers[4]], parts.lookup)
    numbers = np.array([4, 5, 5, 6])
    documents = sentences(32, 400)
    assert found.negatives == [documents[i] for i in numbers]
    assert found.sides.negative_key is not None
    assert found.sides.negative_key.flatten().tolist() == numbers.tolist()
    assert found.sides.negative_embedding is not None
    assert parts.lookup.embeddings is not None
    wanted = parts.lookup.embeddings.of_documents(numbers).reshape(2, 2, 32)
    assert np.array_equal(found.sides.negative_embedding.numpy(), wanted)


def test_texts_of_the_pool_have_the_prompt_of_their_kind(parts: Tiny) -> None:
    collator = DistillationCollator(
        lambda texts: {"input_ids": torch.zeros(len(texts), 1), "texts": texts},
        query_prompt="Q ", document_prompt="D ", lookup=parts.lookup, texts_per_pair=3, pairs=32,
        group_size=100,
    )  # fmt: skip
    batch = collator([parts.numbers[i] for i in (1, 7)])
    order = batch["place"].argsort()
    texts = [""] * len(order)
    for place, text in zip(order.tolist(), batch["texts0_texts"], strict=True):
        texts[place] = text
    pool = parts.lookup.pool
    assert pool is not None
    drawn, kinds, vectors = pool.take(np.array([3, 4, 5, 21, 22, 23]))
    prompts = {"query": "Q ", "document": "D "}
    assert texts[8:] == [prompts[kind] + text for kind, text in zip(kinds, drawn, strict=True)]
    assert {text[0] for text in texts[8:]} == {"Q", "D"}
    assert np.array_equal(batch["pool_embedding"].numpy(), vectors.reshape(2, 3, 32))
    collator.epoch.fill_(1)
    later = collator([parts.numbers[i] for i in (1, 7)])["pool_embedding"]
    assert np.array_equal(later[0].numpy(), pool.vectors[np.array([35, 36, 37])]), (
        "32 pairs with three texts each, of a pool of 64: (32 + 1) * 3 % 64"
    )


def test_rows_without_a_number_have_no_texts_of_the_pool_beside_them(parts: Tiny) -> None:
    collator = DistillationCollator(
        parts.teacher.preprocess, lookup=parts.lookup, texts_per_pair=3, pairs=32
    )
    batch = collator([parts.numbers.remove_columns("row")[i] for i in range(2)])
    assert "pool_embedding" not in batch
    assert len(batch["place"]) == 4 + 4


def test_a_list_is_the_document_and_its_hard_negatives_with_the_rankers_scores() -> None:
    features = with_negatives(rows(3))
    plain = view(features)
    assert plain.listed is not None
    assert plain.ranker is not None
    assert plain.listed.tolist() == [[0, 3, 4], [1, 5, 6], [2, 7, 8]]
    torch.testing.assert_close(plain.ranker, plain.teacher.gather(1, plain.listed))
    for row, scores in zip(
        features, ([2.0, 1.0, 1.95], [-2.0, -2.05, -3.0], [1.0, 1.0, 9.0]), strict=True
    ):
        row["list_scores"] = np.array(scores, dtype=np.float32)
    features[2]["negatives"][1] = features[2]["negatives"][0]
    ranked = view(features)
    assert ranked.ranker is not None
    torch.testing.assert_close(
        ranked.ranker[:2], torch.tensor([[2.0, 1.0, 1.95], [-2.0, -2.05, -3.0]])
    )
    assert ranked.ranker[2, 2].isnan(), "the list repeats this document"
    ignored = ranked.ignore.gather(1, plain.listed)
    assert ignored.tolist() == [[False, False, True], [False, True, False], [False, True, True]], (
        "above .95 of 2, above -2 - .05 * 2, above .95 of 1"
    )
    assert not view(features, cut=None).ignore.gather(1, plain.listed).any()
    torch.testing.assert_close(ranked.teacher[:2], plain.teacher[:2])  # the teacher's own


def test_the_side_columns_of_a_batch_are_read_back(parts: Tiny) -> None:
    collator = DistillationCollator(parts.teacher.preprocess, lookup=parts.lookup)
    batch = collator([parts.numbers[i] for i in range(3)])
    sides = Sides.of(batch)
    assert sides.negatives_each == 2
    assert set(sides.columns()) == set(vars(sides)) - {
        "weight", "weight_ranking", "old_document_key", "old_query_key", "list_score",
    }  # fmt: skip


def test_a_missing_column_and_missing_texts_are_said(model: SentenceTransformer) -> None:
    collator = DistillationCollator(model.preprocess)
    with pytest.raises(InputError, match="no column teacher_score; they have query, document"):
        collator([{"query": "a", "document": "b"}])
    with pytest.raises(InputError, match=r"by number \(query 7\)"):
        collator([{"query": 7, "document": 1, "teacher_score": 0.5}])


def test_keys_are_equal_only_for_equal_texts() -> None:
    assert key_of("a b") == key_of("a b") != key_of("a  b")
    assert -(2**63) <= key_of("x") < 2**63

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import sentences
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_process import NO_PROMPTS, TinyTeacher, read_collection, recipe, write_collection

from hf_distill.compute.encode import Advance
from hf_distill.data.collection import Collection, pair_number, text_number
from hf_distill.errors import InputError
from hf_distill.run.folder import RunFolder
from hf_distill.run.shards import Part, Shards
from hf_distill.scoring.embeddings import EmbeddingTable, Vectors, embed_texts
from hf_distill.scoring.items import Items, work_once
from hf_distill.scoring.scores import score_collection
from hf_distill.teachers.base import PairTeacher, Prompts, Scale, Teacher, TextKind


def pairs() -> list[tuple[str, str, str]]:
    """200 pairs of 200 queries and 200 documents."""
    splits = ["train"] * 160 + ["validation"] * 10 + ["test"] * 20 + ["leaked"] * 10
    return list(zip(sentences(200), sentences(200, 1000), splits, strict=True))


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    write_collection(tmp_path / "pairs", pairs())
    return read_collection(tmp_path / "pairs")


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_distill.run.shards.LEAST_ITEMS", 64)


class LengthTeacher(PairTeacher):
    """Scores a pair by how many characters its document has, and does not know one of them."""

    name, identity, scale = "length", ("length",), Scale("given", None, 0.0, 1000.0)

    def __init__(self, unknown: str = "", prompts: Prompts = NO_PROMPTS) -> None:
        self.unknown, self.prompts = unknown, prompts
        self.calls: list[int] = []

    def score(self, pairs: list[tuple[str, str]], advance: Advance | None = None) -> np.ndarray:
        self.calls.append(len(pairs))
        scores = [math.nan if self.unknown == document else len(document) for _, document in pairs]
        return np.array(scores, dtype=np.float32)


class Ensemble(Teacher):
    name, identity, scale = "both", ("both",), Scale("weighted mean (quantile)", None, 0.0, 1.0)

    def __init__(self, *members: tuple[Teacher, float]) -> None:
        self.members = members


def test_a_score_is_the_cosine_of_the_teachers_embeddings(
    collection: Collection, teacher_dir: Path, folder: RunFolder
) -> None:
    teacher = TinyTeacher(teacher_dir)
    scores = score_collection(collection, teacher, recipe(), folder)
    queries, documents, _ = (list(column) for column in zip(*pairs(), strict=True))
    by_hand = (teacher.embed(queries) * teacher.embed(documents)).sum(axis=1)
    np.testing.assert_allclose(scores.values, by_hand, atol=2e-3)  # embeddings are float16
    np.testing.assert_array_equal(scores.of(collection.rows("test")), scores.values[170:190])
    assert scores.record.pairs == 200
    assert scores.record.dimension == 32
    assert scores.record.score.mean == pytest.approx(by_hand.mean(), abs=1e-3)
    assert scores.record.scale == {
        "similarity": "cosine",
        "activation": None,
        "range": [-1.0, 1.0],
    }
    assert "200 pairs by tiny" in scores.summary()


def test_the_table_has_the_embedding_of_every_query_and_document(
    collection: Collection, teacher_dir: Path, folder: RunFolder
) -> None:
    teacher = TinyTeacher(teacher_dir, Prompts(query="who ", document="a "))
    table = score_collection(collection, teacher, recipe(), folder).embeddings
    assert table is not None
    assert table.dimension == 32
    queries = ["who " + text for text in collection.queries["text"]]
    documents = ["a " + text for text in collection.documents["text"]]
    np.testing.assert_allclose(table.of_queries(slice(None)), teacher.embed(queries), atol=2e-3)
    some = np.array([7, 3, 3])
    np.testing.assert_allclose(
        table.of_documents(some), teacher.embed([documents[i] for i in some]), atol=2e-3
    )
    keys = np.array([text_number(text) for text in [*queries, *documents]], dtype=np.uint64)
    rows = np.concatenate([table.queries, table.documents])
    assert (np.diff(keys[np.argsort(rows)].astype(object)) > 0).all(), "by ascending key"


@pytest.mark.usefixtures("small_shards")
def test_every_unique_text_is_embedded_once(
    collection: Collection, teacher_dir: Path, folder: RunFolder
) -> None:
    teacher = TinyTeacher(teacher_dir)
    first = score_collection(collection, teacher, recipe(), folder)
    assert sum(teacher.calls) == 400 == first.record.items
    assert teacher.calls == [64, 64, 64, 64, 64, 64, 16]
    assert first.record.items_without_deduplication == 420, "20 documents are searched, too"
    again = score_collection(collection, teacher, recipe(), folder)
    assert sum(teacher.calls) == 400, "nothing has changed, so nothing is embedded again"
    assert again.record == first.record
    np.testing.assert_array_equal(again.values, first.values)
    assert first.embeddings is not None
    assert again.embeddings is not None
    np.testing.assert_array_equal(again.embeddings.vectors[:], first.embeddings.vectors[:])


def test_a_text_that_is_query_and_document_is_embedded_once(
    teacher_dir: Path, folder: RunFolder, tmp_path: Path
) -> None:
    rows = [("a dog", "the cat", "train"), ("the cat", "a dog", "train"), ("a", "b", "test")]
    write_collection(tmp_path / "pairs", rows)
    collection = read_collection(tmp_path / "pairs")
    teacher = TinyTeacher(teacher_dir)
    scores = score_collection(collection, teacher, recipe(), folder)
    assert sum(teacher.calls) == 4
    assert scores.embeddings is not None
    assert scores.embeddings.queries[0] == scores.embeddings.documents[1]
    prompted = TinyTeacher(teacher_dir, Prompts(query="who "))
    score_collection(collection, prompted, recipe(), folder)
    assert sum(prompted.calls) == 3, "with a prompt, the three queries are other texts"


def test_soft_labels_are_in_the_papers_form(
    teacher_dir: Path, folder: RunFolder, tmp_path: Path
) -> None:
    rows = [("a dog", "the café", "train"), ('the "cat"', "a\nb", "test"), ("x", "y", "leaked")]
    write_collection(tmp_path / "pairs", rows)
    collection = read_collection(tmp_path / "pairs")
    scores = score_collection(collection, TinyTeacher(teacher_dir), recipe(), folder)
    rounded = [round(float(score), 6) for score in scores.values]
    assert folder.soft_labels_json.read_text(encoding="utf-8") == (
        "[\n"
        '{"pair_id": "0", "query": "a dog", "document": "the café", '
        f'"teacher_score": {rounded[0]}}},\n'
        r'{"pair_id": "1", "query": "the \"cat\"", "document": "a\nb", '
        f'"teacher_score": {rounded[1]}}},\n'
        f'{{"pair_id": "2", "query": "x", "document": "y", "teacher_score": {rounded[2]}}}\n'
        "]\n"
    )


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("damage", ["removed", "truncated", "emptied", "one bit flipped"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    collection: Collection, teacher_dir: Path, folder: RunFolder, damage: str
) -> None:
    teacher = TinyTeacher(teacher_dir)
    score_collection(collection, teacher, recipe(), folder)
    parts = sorted((folder.soft_labels / "texts").glob("*.arrow"))
    whole = [part.read_bytes() for part in parts]
    assert len(parts) == 7
    victim, content = parts[3], bytearray(whole[3])
    size = len(Part.open(victim).keys)
    if damage == "removed":
        victim.unlink()
    else:
        content[len(content) // 3] ^= 1
        victim.write_bytes(
            {
                "truncated": whole[3][: len(whole[3]) // 2],
                "emptied": b"",
                "one bit flipped": content,
            }[damage]
        )
    teacher.calls.clear()
    score_collection(collection, teacher, recipe(), folder)
    assert teacher.calls == [size], "only the damaged shard is made again"
    assert [part.read_bytes() for part in parts] == whole


@pytest.mark.usefixtures("small_shards")
def test_a_killed_shard_leaves_no_part(
    collection: Collection, teacher_dir: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = TinyTeacher(teacher_dir)
    embed = teacher.embed

    def dies(texts: list[str], advance: Advance | None = None) -> np.ndarray:
        if len(teacher.calls) == 2:
            raise KeyboardInterrupt
        return embed(texts, advance)

    monkeypatch.setattr(teacher, "embed", dies)
    with pytest.raises(KeyboardInterrupt):
        score_collection(collection, teacher, recipe(), folder)
    names = [path.suffix for path in (folder.soft_labels / "texts").iterdir()]
    assert names == [".arrow", ".arrow"], "two whole parts, nothing half-written"
    assert not folder.soft_labels_json.exists()
    monkeypatch.setattr(teacher, "embed", embed)
    assert score_collection(collection, teacher, recipe(), folder).record.items == 400
    assert sum(teacher.calls) == 400


@pytest.mark.usefixtures("small_shards")
def test_two_runs_share_a_teacher_cache(
    collection: Collection, teacher_dir: Path, folder: RunFolder, tmp_path: Path
) -> None:
    teacher = TinyTeacher(teacher_dir)
    cache = tmp_path / "cache"
    first = score_collection(collection, teacher, recipe(cache), folder)
    other = RunFolder(tmp_path / "other")
    second = score_collection(collection, teacher, recipe(cache), other)
    assert sum(teacher.calls) == 400
    np.testing.assert_array_equal(first.values, second.values)
    assert other.soft_labels_json.read_bytes() == folder.soft_labels_json.read_bytes()
    assert not (other.soft_labels / "texts").exists()


def test_other_prompts_are_other_scores(
    collection: Collection, teacher_dir: Path, folder: RunFolder
) -> None:
    plain = score_collection(collection, TinyTeacher(teacher_dir), recipe(), folder)
    prompted = TinyTeacher(teacher_dir, Prompts(query="who "))
    scores = score_collection(collection, prompted, recipe(), folder)
    assert sum(prompted.calls) == 200, "the documents have no prompt"
    query, document, _ = pairs()[0]
    by_hand = prompted.embed(["who " + query]) @ prompted.embed([document]).T
    assert scores.values[0] == pytest.approx(by_hand.item(), abs=2e-3)
    assert scores.key != plain.key
    assert scores.record.query_prompt == "who "


def test_a_teacher_that_changes_its_dimension_is_refused(
    collection: Collection, teacher_dir: Path, folder: RunFolder
) -> None:
    teacher = TinyTeacher(teacher_dir)
    teacher.dimension = 16
    with pytest.raises(InputError, match=r"shape \(400, 32\) for 400 texts, .* dimension 16"):
        score_collection(collection, teacher, recipe(), folder)


def test_embeddings_that_float16_cannot_hold_are_refused(
    collection: Collection, teacher_dir: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = TinyTeacher(teacher_dir)
    monkeypatch.setattr(
        teacher, "embed", lambda texts, advance: np.full((len(texts), 32), 7e4, dtype=np.float32)
    )
    with pytest.raises(InputError, match=r"7e\+04.*--teacher_similarity cosine"):
        score_collection(collection, teacher, recipe(), folder)


def test_a_pair_teacher_scores_every_unique_pair_once(folder: RunFolder, tmp_path: Path) -> None:
    rows = [
        ("q", "four", "train"),
        ("q", "four", "train"),
        ("q", "ab", "train"),
        ("q", "c", "test"),
    ]
    write_collection(tmp_path / "pairs", rows)
    teacher = LengthTeacher(unknown="ab")
    scores = score_collection(read_collection(tmp_path / "pairs"), teacher, recipe(), folder)
    np.testing.assert_array_equal(scores.values, [4, 4, np.nan, 1])
    assert teacher.calls == [3]
    assert scores.embeddings is None
    assert (scores.record.unscored, scores.record.items, scores.record.item) == (1, 3, "pair")
    assert json.loads(folder.soft_labels_json.read_text())[2]["teacher_score"] is None
    again = score_collection(read_collection(tmp_path / "pairs"), teacher, recipe(), folder)
    np.testing.assert_array_equal(again.values, scores.values)
    assert teacher.calls == [3]
    (path,) = (folder.soft_labels / "pairs").glob("*.arrow")
    part = Part.open(path)
    assert sorted(part.keys.tolist()) == sorted(
        pair_number("q", document) for document in ("four", "ab", "c")
    )


def test_a_pair_teacher_with_another_prompt_scores_again(
    collection: Collection, folder: RunFolder
) -> None:
    score_collection(collection, LengthTeacher(), recipe(), folder)
    prompted = LengthTeacher(prompts=Prompts(query="who "))
    score_collection(collection, prompted, recipe(), folder)
    assert sum(prompted.calls) == 200


def test_scores_outside_the_declared_scale_are_refused_and_not_kept(
    collection: Collection, folder: RunFolder
) -> None:
    teacher = LengthTeacher()
    teacher.scale = Scale("given")
    with pytest.raises(InputError, match=r"length: 200 of 200 scores .* \[-1, 1\]"):
        score_collection(collection, teacher, recipe(), folder)
    assert not list(folder.soft_labels.rglob("*.arrow"))


def test_scores_of_another_shape_are_refused(
    collection: Collection, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LengthTeacher, "score", lambda self, pairs, _: np.zeros((len(pairs), 2)))
    with pytest.raises(InputError, match=r"shape \(200, 2\) for 200 pairs"):
        score_collection(collection, LengthTeacher(), recipe(), folder)


def test_a_teacher_that_knows_no_test_pair_is_refused(folder: RunFolder, tmp_path: Path) -> None:
    write_collection(tmp_path / "pairs", [("q", "a", "train"), ("q", "b", "test")])
    collection = read_collection(tmp_path / "pairs")
    with pytest.raises(InputError, match="any of the 1 test pairs"):
        score_collection(collection, LengthTeacher(unknown="b"), recipe(), folder)


def test_an_ensemble_is_the_weighted_mean_of_quantiles_among_the_training_pairs(
    teacher_dir: Path, folder: RunFolder, tmp_path: Path
) -> None:
    rows = [("q", "a" * length, "train") for length in (1, 2, 3, 4)]
    write_collection(tmp_path / "pairs", [*rows, ("q", "aaa", "test"), ("q", "a" * 9, "test")])
    collection = read_collection(tmp_path / "pairs")
    tiny = TinyTeacher(teacher_dir)
    alone = score_collection(collection, tiny, recipe(), RunFolder(tmp_path / "alone")).values
    scores = score_collection(
        collection, Ensemble((LengthTeacher(), 3.0), (tiny, 1.0)), recipe(), folder
    )
    lengths = np.array([0.125, 0.375, 0.625, 0.875, 0.625, 1.0])
    below = (alone[:4] < alone[:, None]).sum(1) + (alone[:4] == alone[:, None]).sum(1) / 2
    np.testing.assert_allclose(scores.values, (3 * lengths + below / 4) / 4, atol=1e-6)
    assert scores.embeddings is None
    assert (scores.record.item, scores.record.items) == ("item", 5 + 6)


def test_a_teacher_that_can_do_nothing_is_refused(
    collection: Collection, folder: RunFolder
) -> None:
    with pytest.raises(InputError, match=r"both \(Ensemble\) neither embeds"):
        score_collection(collection, Ensemble(), recipe(), folder)


def test_a_call_that_is_killed_while_it_writes_leaves_no_scores_of_another_teacher(
    collection: Collection, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = LengthTeacher(), LengthTeacher(unknown=pairs()[0][1])
    second.identity = ("another",)
    expected = score_collection(collection, first, recipe(), folder).values

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hf_distill.scoring.scores.write_soft_labels", dies)
        with pytest.raises(KeyboardInterrupt):
            score_collection(collection, second, recipe(), folder)
    scores = score_collection(collection, first, recipe(), folder)
    np.testing.assert_array_equal(scores.values, expected)


@pytest.mark.usefixtures("small_shards")
def test_further_texts_come_in_the_order_of_their_rows(teacher_dir: Path, tmp_path: Path) -> None:
    teacher = TinyTeacher(teacher_dir, Prompts(query="who "))
    texts = sentences(100) + sentences(30)
    kinds = ["query" if i % 3 else "document" for i in range(130)]
    table = Dataset.from_dict({"text": texts, "kind": kinds})
    vectors = embed_texts(table, teacher, tmp_path)
    prompted = [
        "who " + text if kind == "query" else text for text, kind in zip(texts, kinds, strict=True)
    ]
    assert len(vectors) == 130
    assert sum(teacher.calls) == len(set(prompted)) < 130
    np.testing.assert_allclose(vectors[:], teacher.embed(prompted), atol=2e-3)
    teacher.calls.clear()
    embed_texts(table.select(range(50)), teacher, tmp_path)
    assert teacher.calls == []


def test_no_further_texts_have_no_vectors(teacher_dir: Path, tmp_path: Path) -> None:
    table = Dataset.from_dict({"text": [], "kind": []})
    vectors = embed_texts(table, TinyTeacher(teacher_dir), tmp_path)
    assert vectors[:].shape == (0, 32)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 99))
def test_vectors_give_the_rows_of_their_parts(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = tuple(rng.normal(size=(size, 3)).astype(np.float16) for size in sizes)
    every = np.concatenate(parts)
    places = rng.permutation(len(every)).astype(np.uint32)
    vectors = Vectors(parts, places, 3)
    rows = rng.integers(0, max(len(every), 1), 8 if len(every) else 0)
    np.testing.assert_array_equal(vectors[rows], every[places[rows]])
    np.testing.assert_array_equal(vectors[1:4], every[places[1:4]])
    assert vectors[rows].dtype == np.float16


def test_a_table_reads_only_the_parts_that_it_is_asked_for() -> None:
    class Untouched(np.ndarray):
        def __getitem__(self, _: object) -> Callable[[], None]:
            raise AssertionError("this part was read")

    parts = (np.ones((2, 2), dtype=np.float16), np.ones((2, 2), dtype=np.float16).view(Untouched))
    vectors = Vectors(parts, np.arange(4, dtype=np.uint32), 2)
    table = EmbeddingTable(vectors, np.array([1, 3]), np.array([0, 2]))
    assert table.of_queries(np.array([0, 0])).tolist() == [[1, 1], [1, 1]]
    with pytest.raises(AssertionError, match="this part was read"):
        table.of_documents(np.array([1]))


def test_the_longest_texts_come_first(tmp_path: Path) -> None:
    """If memory runs out, it does so at once. Texts of one length come by ascending key."""
    texts = ["aa", "a", "aaaa", "aaa", "bbbb", "a", "b"]
    items = Items(len(texts), lambda places: [texts[place] for place in places], "text", least=2)
    made: list[str] = []

    def work(batch: list[str], _: Advance) -> np.ndarray:
        made.extend(batch)
        return np.array([len(text) for text in batch], dtype=np.float32)

    stored = work_once(items, items.keys(), Shards(tmp_path, "t"), work)
    assert made == sorted(set(texts), key=lambda text: (-len(text), text_number(text)))
    values = np.concatenate([part.values for part in stored.parts])
    assert values[stored.places[stored.unique]].tolist() == list(map(len, texts))


class Broken(LengthTeacher):
    """Fails in the middle of its work."""

    def score(self, pairs: list[tuple[str, str]], advance: Advance | None = None) -> np.ndarray:
        assert advance is not None
        advance(1, 1)
        raise InputError("it fails")


def test_an_error_begins_on_a_line_of_its_own(
    collection: Collection, folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="it fails"):
        score_collection(collection, Broken(), recipe(), folder)
    bar = capsys.readouterr().err
    assert "200 pairs" in bar
    assert bar.endswith("\n")


def test_prompts_and_instruction_are_printed(collection: Collection, folder: RunFolder) -> None:
    teacher = LengthTeacher(prompts=Prompts(query="who: "))
    teacher.instruction = "judge the document"
    said = score_collection(collection, teacher, recipe(), folder).summary()
    assert "query 'who: ', instruction 'judge the document'" in said


class Routes(TinyTeacher):
    """Embeds a text as a query with the sign turned."""

    by_kind = True

    def embed_as(
        self, kind: TextKind, texts: list[str], advance: Advance | None = None
    ) -> np.ndarray:
        return super().embed_as(kind, texts, advance) * (-1 if kind == "query" else 1)


@pytest.mark.parametrize("by_kind", [False, True])
def test_a_text_that_is_query_and_document_is_embedded_twice_only_by_a_teacher_with_routes(
    teacher_dir: Path, folder: RunFolder, by_kind: bool
) -> None:
    texts = Dataset.from_dict({"text": ["a cat", "a cat"], "kind": ["query", "document"]})
    teacher = Routes(teacher_dir) if by_kind else TinyTeacher(teacher_dir)
    vectors = embed_texts(texts, teacher, folder.path / "shards")
    query, document = vectors[np.arange(2)].astype(np.float32)
    np.testing.assert_array_equal(query, -document if by_kind else document)
    assert sum(map(len, vectors.parts)) == (2 if by_kind else 1)

"""What is bounded by the machine and not by the data gives what the plain way gives."""

import errno
import itertools
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from test_selection import pairs_of

from hf_distill.data import word_grams as word_grams_module
from hf_distill.data.collection import Source, SourcePairs, TableWriter, text_number
from hf_distill.data.column import Column
from hf_distill.data.keys import (
    each_once,
    filled,
    first_places,
    is_among,
    lexsort,
    numbered,
    numbers_from,
    ordered_by,
    places_of,
    taken,
)
from hf_distill.data.load import _by_appearance, write_collection
from hf_distill.data.near_duplicates import (
    NEAR_DUPLICATE_JACCARD,
    jaccard,
    text_key,
    word_trigrams,
    words_of,
)
from hf_distill.data.read import TABLES, open_tables
from hf_distill.data.sources.files import read_path
from hf_distill.data.word_grams import each_once as grams_once
from hf_distill.data.word_grams import salted, word_grams
from hf_distill.errors import InputError, WriteError
from hf_distill.recipe.arguments import DataArguments
from hf_distill.run import scratch as scratch_module
from hf_distill.run.folder import RunFolder
from hf_distill.run.scratch import Numbers, in_file, scratch
from hf_distill.selection import texts as module
from hf_distill.selection.rules import parse_rules
from hf_distill.selection.select import SelectionInputs, make_selection, rule_columns
from hf_distill.selection.texts import codes, is_empty, near_duplicate_families

KEYS = st.lists(st.integers(0, 12), max_size=40).map(lambda keys: np.array(keys, dtype=np.uint64))
BLOCKS = (
    "data.keys._BLOCK", "data.column._READ", "data.collection._READ", "data.load._BATCH",
    "data.near_duplicates._BATCH", "selection.texts._BATCH",
)  # fmt: skip


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every array is in a file, and every block is small."""
    for name in BLOCKS:
        monkeypatch.setattr(f"hf_distill.{name}", 7)
    monkeypatch.setattr(scratch_module, "SMALL", 1)
    monkeypatch.setattr(scratch_module, "_place", [tmp_path_factory.mktemp("scratch")])


@settings(max_examples=40, deadline=None)
@given(KEYS, KEYS)
def test_keys_are_compared_as_numpy_compares_them(keys: np.ndarray, others: np.ndarray) -> None:
    once, first, which = np.unique(keys, return_index=True, return_inverse=True)
    numbers = numbered(keys)
    assert np.array_equal(numbers[0], once)
    assert np.array_equal(numbers[1], which)
    assert numbers[1].dtype == np.int32
    assert np.array_equal(first_places(numbers[1], len(once)), first)
    assert np.array_equal(is_among(keys, np.unique(others)), np.isin(keys, others))
    assert np.array_equal(each_once(keys), once)
    parts = keys.astype(np.int32), others.astype(np.int32)
    in_order = list(dict.fromkeys([*keys.tolist(), *others.tolist()]))
    assert _by_appearance(*parts).tolist() == in_order


@settings(max_examples=40, deadline=None)
@given(KEYS, st.integers(0, 5))
def test_numbers_are_sorted_and_taken_as_numpy_does_it(keys: np.ndarray, seed: int) -> None:
    draw = np.random.default_rng(seed)
    floats = draw.integers(3, size=len(keys)) / 2 - 0.5
    floats[::5] = np.nan
    assert np.array_equal(lexsort(keys, floats), np.lexsort((keys, floats)))
    assert np.array_equal(ordered_by(keys), np.argsort(keys, kind="stable"))
    assert np.array_equal(places_of(keys > 5), np.flatnonzero(keys > 5))
    places = draw.integers(0, len(keys), 20) if len(keys) else np.empty(0, np.int64)
    rows = np.stack([keys, keys], axis=1)
    assert np.array_equal(taken(rows, places), rows[places])
    assert np.array_equal(filled(iter(keys.tolist()), len(keys), np.uint64), keys)
    assert numbers_from(3, 20).tolist() == list(range(3, 20))


def test_numbers_that_come_one_by_one_are_in_a_file_that_nobody_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scratch_module, "SMALL", 12)  # three are written at once, two are left
    numbers = Numbers("f")
    for value in range(20):
        numbers.append(value / 2)
    assert len(numbers) == 20
    assert numbers.read().tolist() == [value / 2 for value in range(20)]
    array = scratch(1000, np.int32)
    array[3] = 5
    assert (array.sum(), type(array)) == (5, np.ndarray)
    [folder] = scratch_module._place
    assert not list(folder.iterdir())
    assert isinstance(array.base, np.memmap)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no such call on this system")
def test_a_disk_without_room_for_an_array_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WriteError, match="cannot be written: No space left"):
        scratch(1000, np.int32)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 24), max_size=30))
def test_a_column_gives_the_rows_of_its_table(rows: list[int]) -> None:
    parts = [list("abcde"), [None, "g"], [], [f"w{i}" for i in range(18)]]
    table = pa.chunked_array([pa.array(part, pa.string()) for part in parts])
    data = Dataset(pa.table({"text": table}))
    values = [value for part in parts for value in part]
    places = np.array(rows, dtype=np.int64)
    column = Column(data, "text")
    assert column[places] == [values[row] for row in rows] == list(column.each(places))
    assert pickle.loads(pickle.dumps(column))[places] == column[places]
    shuffled = data.select(list(range(24, -1, -1)))
    assert Column(shuffled, "text")[places] == [values[24 - row] for row in rows]


def test_a_table_is_written_in_batches_of_many_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times five numbers, 40 bytes each time."""
    monkeypatch.setattr("hf_distill.data.collection._BATCH_BYTES", 100)
    with TableWriter(tmp_path / "x.arrow", Features({"x": Value("int64")})) as table:
        for start in range(0, 50, 5):
            table.add_columns(pa.array(range(start, start + 5), pa.int64()))
    column = Dataset.from_file(str(tmp_path / "x.arrow")).data["x"]
    assert [len(chunk) for chunk in column.chunks] == [15, 15, 15, 5]
    assert column.to_pylist() == list(range(50))


gram_texts = st.lists(st.text("ab ü", max_size=12).map(lambda text: " ".join(text.split())))


@settings(max_examples=60, deadline=None)
@given(gram_texts, st.integers(1, 3))
def test_hashes_of_word_grams_are_equal_where_the_grams_are(texts: list[str], n: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_grams_module, "_BYTES", 9)
        hashes, starts = word_grams(texts, n)
    grams = []
    for text in texts:
        words = text.split(" ")
        runs = [" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))]
        grams.append(runs)
    assert np.diff(starts).tolist() == [len(runs) for runs in grams]
    flat = [gram for runs in grams for gram in runs]
    pairs = set(zip(flat, hashes.tolist(), strict=True))
    assert len(pairs) == len(set(flat)) == len(set(hashes.tolist()))
    once, first = grams_once(hashes, starts)
    assert np.diff(first).tolist() == [len(set(runs)) for runs in grams]
    assert set(once.tolist()) == set(hashes.tolist())
    counts = np.diff(starts)
    text = np.repeat(np.arange(len(texts)), counts)
    assert len(set(salted(hashes, counts).tolist())) == len(
        set(zip(text.tolist(), flat, strict=True))
    )


words = st.lists(
    st.sampled_from(["alpha", "beta", "gamma", "delta", "?"]), min_size=1, max_size=9
).map(" ".join)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=12))
def test_families_are_those_of_all_candidates_at_once(rows: list[tuple[str, str]]) -> None:
    pairs = pairs_of(rows)
    grams = [word_trigrams(f"{query}\n{document}") for query, document in rows]
    bands = module._Bands(len(rows))
    bands.add(slice(0, len(rows)), module._Batch(pairs))
    edges = set()
    for band in bands.keys:
        for key in np.unique(band):
            same = np.flatnonzero(band == key).tolist()
            edges |= set(itertools.pairwise(same))
            edges |= {(same[0], b) for b in same[1:]}
    near = [(a, b) for a, b in edges if jaccard(grams[a], grams[b]) >= NEAR_DUPLICATE_JACCARD]
    left, right = np.array(near, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(near)), (left, right)), shape=(len(rows), len(rows)))
    labels = connected_components(graph, directed=False)[1]
    first = np.unique(labels, return_index=True)[1]
    assert near_duplicate_families(pairs).tolist() == first[labels].tolist()


def test_more_texts_than_have_numbers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_distill.data.read._MOST_TEXTS", 5)
    rows = [{"query": f"q{i}", "document": "d"} for i in range(6)]
    source = SourcePairs(Source("rows"), rows)
    with pytest.raises(InputError, match="more than 5 queries or documents"):
        write_collection((source, None), DataArguments(), 0, RunFolder(tmp_path), "key")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no such call on this system")
def test_an_array_in_a_file_has_its_place_before_it_is_written() -> None:
    with tempfile.TemporaryFile() as file:
        array = in_file(file, np.uint64, (3, 10_000))
        assert not array.any()
        assert os.fstat(file.fileno()).st_blocks * 512 >= array.nbytes == 240_000


def test_groups_have_codes_by_their_hashes_and_no_group_is_none_called_none() -> None:
    groups = ["a", None, "b", "a", "None", None]
    pairs = pairs_of([(f"q{i}", f"d{i}") for i in range(6)], group=groups)
    found = codes(pairs, "group").tolist()
    assert [found[i] == found[j] for i, j in ((0, 3), (1, 5), (1, 4), (0, 2))] == [
        True, True, False, False,
    ]  # fmt: skip
    assert (found[0] < found[2]) == (text_number("a") < text_number("b"))
    assert (is_empty(pairs, "group"), is_empty(pairs, "source")) == (False, True)


@pytest.mark.parametrize(
    "name",
    [
        "part-{:05}-3f1c2d9a-7b7e-4c7a-9a53-0d7d1a3b5c11-c000.snappy.parquet",
        "b1946ac92492d2347c6235b4d2611184_{:06}_000000.parquet",
    ],
    ids=["Spark", "Ray Data"],
)
def test_a_folder_of_parts_is_read_part_by_part(tmp_path: Path, name: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for part in range(3):
        rows = [(f"query {part} {row}", f"document {part} {row}") for row in range(2)]
        pd.DataFrame(rows, columns=["query", "document"]).to_parquet(data / name.format(part))
        (data / f".{name.format(part)}.crc").write_bytes(b"crc")
    (data / "_SUCCESS").touch()
    source = read_path(data, "dataset_path", DataArguments(), tmp_path / "cache")
    rows = iter(source.rows)
    assert next(rows)["query"] == "query 0 0"
    (data / name.format(2)).unlink()  # it has not been read yet
    with pytest.raises(InputError, match="No such file"):
        list(rows)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=9))
def test_columns_of_texts_are_those_of_each_pair(rows: list[tuple[str, str]]) -> None:
    pairs = pairs_of(rows)
    columns = module.text_columns(pairs, sorted(module.TEXT_COLUMNS))
    shares = [module.ngram_overlap(query, document) for query, document in rows]
    assert columns["overlap"].tolist() == np.array(shares, dtype=np.float32).tolist()
    for side, name in enumerate(("query", "document")):
        numbers = [text_number(text_key(row[side])) for row in rows]
        assert columns[name].tolist() == numbers
    enough = [len(query) > 5 and len(document) > 10 for query, document in rows]
    assert columns["long_enough"].tolist() == enough
    joined = [words_of(f"{query}\n{document}") for query, document in rows]
    assert module._Batch(pairs).joined == joined


def test_blocks_and_files_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs are read, split, freed of leaks, selected and audited as in memory and at once."""
    draw = np.random.default_rng(0)
    rows = [
        {
            "query": f"what is w{i // 2}",
            "document": " ".join(f"w{word}" for word in draw.integers(0, 9, size=12)),
            "pair_id": str(i // 3),
            "group": f"g{i // 5}",
            "grade": int(i % 7 > 0),
        }
        for i in range(120)
    ]
    rules = parse_rules(
        ["echo", "near_echo=0.9", "duplicate", "near_duplicate", "percentile=20:by=group",
         "percentile=5", "top_k=3:by=group", "stratified=0.9", "agreement=0.9",
         "random=0.9:weight=0.5"],
    )  # fmt: skip
    results = []
    for small in (True, False):
        if not small:
            monkeypatch.undo()
        folder = RunFolder(tmp_path / str(small))
        source = SourcePairs(Source("rows"), rows)
        record = write_collection((source, None), DataArguments(), 0, folder, "key")
        tables = [(folder.pairs / f"{name}.arrow").read_bytes() for name in TABLES]
        pairs = open_tables(folder.pairs, record).pairs("train")
        scores = np.random.default_rng(1).integers(0, 9, len(pairs)).astype(np.float32) / 9
        scores[::11] = np.nan
        given = SelectionInputs(pairs, scores, None, "key", disagreement=scores[::-1])
        result = make_selection(rule_columns(given, rules, 0), rules, 0, "key")
        results.append([record, tables, result.audit, result.dropped_by.tolist()])
        results[-1].append(None if result.weight is None else result.weight.tolist())
    assert results[0] == results[1]
    assert results[0][2].kept > 10

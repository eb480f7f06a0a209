"""What is bounded by the machine and not by the data gives what the plain way gives."""

import itertools
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from test_selection import pairs_of

from hf_distill.data.collection import text_number
from hf_distill.data.keys import first_places, is_among, numbered
from hf_distill.data.load import _by_appearance
from hf_distill.data.near_duplicates import NEAR_DUPLICATE_JACCARD, jaccard, word_trigrams
from hf_distill.data.sources.files import read_path
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments
from hf_distill.run.scratch import in_file
from hf_distill.selection import texts as module
from hf_distill.selection.texts import codes, is_empty, near_duplicate_families

KEYS = st.lists(st.integers(0, 12), max_size=40).map(lambda keys: np.array(keys, dtype=np.uint64))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_distill.data.keys._BLOCK", 7)


@given(KEYS, KEYS)
def test_keys_are_compared_as_numpy_compares_them(keys: np.ndarray, others: np.ndarray) -> None:
    once, first, which = np.unique(keys, return_index=True, return_inverse=True)
    numbers = numbered(keys)
    assert np.array_equal(numbers[0], once)
    assert np.array_equal(numbers[1], which)
    assert numbers[1].dtype == np.int32
    assert np.array_equal(first_places(numbers[1], len(once)), first)
    assert np.array_equal(is_among(keys, np.unique(others)), np.isin(keys, others))
    assert _by_appearance(keys.astype(np.int32)).tolist() == list(dict.fromkeys(keys.tolist()))


words = st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta"]), min_size=1, max_size=9).map(
    " ".join
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=12))
def test_families_are_those_of_all_candidates_at_once(rows: list[tuple[str, str]]) -> None:
    pairs = pairs_of(rows)
    grams = [word_trigrams(f"{query}\n{document}") for query, document in rows]
    with tempfile.TemporaryFile() as file:
        bands = np.array(module._band_keys(pairs, file))
    edges = set()
    for band in bands:
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

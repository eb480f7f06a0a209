import logging
import os
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.run.shards import Part, Shards, locate, shard_size


def square(keys: np.ndarray) -> np.ndarray:
    return (keys % 100).astype(np.float32) ** 2


def keys(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def contents(shards: Shards) -> dict[int, float]:
    return {
        int(key): float(value)
        for part in shards.parts()
        for key, value in zip(part.keys, part.values, strict=True)
    }


class Counter:
    def __init__(self) -> None:
        self.made: list[list[int]] = []

    def __call__(self, wanted: np.ndarray) -> np.ndarray:
        self.made.append(wanted.tolist())
        return square(wanted)


def test_a_shard_has_4096_items_and_there_are_at_most_256() -> None:
    assert shard_size(1) == shard_size(256 * 4096) == 4096
    assert shard_size(256 * 4096 + 1) == 4097
    assert (shard_size(1000, 64), shard_size(256 * 64 + 1, 64)) == (64, 65)


@pytest.mark.parametrize("block", [2, 1 << 16])
def test_only_new_items_are_worked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("hf_distill.run.shards._BLOCK", block)
    work = Counter()
    Shards(tmp_path, "t").complete(keys(1, 2, 3, 4, 5), 2, work)
    assert work.made == [[1, 2], [3, 4], [5]]
    Shards(tmp_path, "t").complete(keys(9, 4, 2, 8, 7), 2, work)
    assert work.made[3:] == [[9, 8], [7]]
    assert contents(Shards(tmp_path, "t")) == {k: float(k**2) for k in (1, 2, 3, 4, 5, 7, 8, 9)}


def test_another_worker_has_shards_of_its_own(tmp_path: Path) -> None:
    work = Counter()
    Shards(tmp_path, "one").complete(keys(1, 2), 2, work)
    Shards(tmp_path, "other").complete(keys(1, 2), 2, work)
    assert len(work.made) == 2
    assert len(Shards(tmp_path, "one").parts()) == 1


def test_the_largest_key_survives(tmp_path: Path) -> None:
    shards = Shards(tmp_path, "t")
    shards.complete(keys(2**64 - 1, 2**63), 2, square)
    assert sorted(contents(shards)) == [2**63, 2**64 - 1]


def test_embeddings_are_mapped_and_not_copied(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float16)
    shards = Shards(tmp_path, "t")
    shards.complete(keys(4, 1, 3, 0, 2), 5, lambda wanted: rows[wanted.astype(int)])
    (part,) = shards.parts()
    assert part.values.dtype == np.float16
    np.testing.assert_array_equal(part.values, rows[[4, 1, 3, 0, 2]])
    assert not part.values.flags.owndata
    assert not part.values.flags.writeable


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_hundred_shards_hold_no_file_open(tmp_path: Path) -> None:
    shards = Shards(tmp_path, "t")
    shards.complete(np.arange(100, dtype=np.uint64), 1, square)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    parts = Shards(tmp_path, "t").parts()
    assert len(parts) == 100
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert sorted(float(part.values[0]) for part in parts) == sorted(
        square(np.arange(100, dtype=np.uint64)).tolist()
    )


def test_every_flipped_byte_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Shards(tmp_path, "t").complete(keys(*range(50)), 50, square)
    (path,) = tmp_path.glob("*.arrow")
    whole = path.read_bytes()
    for place in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            assert Shards(tmp_path, "t").parts() == []
        assert "is damaged" in caplog.text
        assert not path.exists()
    Shards(tmp_path, "t").complete(keys(*range(50)), 50, square)
    assert path.read_bytes() == whole


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    Shards(tmp_path, "t").complete(keys(1, 2), 2, square)
    (path,) = tmp_path.glob("*.arrow")
    name = path.name.split(".")[0]
    path.unlink()
    (tmp_path / f".{name}.0123.arrow.k1ll3d.arrow").write_bytes(b"half of it")
    (tmp_path / f".{name}.lock").touch()
    Shards(tmp_path, "t").complete(keys(1, 2), 2, square)
    assert [left.name for left in tmp_path.iterdir()] == [path.name]


def test_an_error_in_the_work_leaves_what_is_done(tmp_path: Path) -> None:
    def fails_at_three(wanted: np.ndarray) -> np.ndarray:
        if 3 in wanted:
            raise RuntimeError("no")
        return square(wanted)

    with pytest.raises(RuntimeError, match="no"):
        Shards(tmp_path, "t").complete(keys(1, 2, 3, 4), 2, fails_at_three)
    assert [path.suffix for path in tmp_path.iterdir()] == [".arrow"]
    assert sorted(contents(Shards(tmp_path, "t"))) == [1, 2]


def test_a_shard_that_somebody_is_at_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Shards(tmp_path, "t").complete(keys(1, 2), 2, square)
    (path,) = tmp_path.glob("*.arrow")
    content = path.read_bytes()
    path.unlink()
    lock = FileLock(tmp_path / f".{path.name.split('.')[0]}.lock")
    lock.acquire()

    def other_finishes(_: float) -> None:
        path.write_bytes(content)
        lock.release()

    monkeypatch.setattr("hf_distill.run.shards.time.sleep", other_finishes)
    work = Counter()
    Shards(tmp_path, "t").complete(keys(1, 2, 3), 2, work)
    assert work.made == [[3]]


def test_a_shard_that_another_process_made_badly_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name says that it is there, and its bytes say that it is not."""
    Shards(tmp_path, "t").complete(keys(1, 2), 2, square)
    (path,) = tmp_path.glob("*.arrow")
    path.unlink()
    lock = FileLock(tmp_path / f".{path.name.split('.')[0]}.lock")
    lock.acquire()

    def other_fails(_: float) -> None:
        path.write_bytes(b"not an Arrow file")
        lock.release()

    monkeypatch.setattr("hf_distill.run.shards.time.sleep", other_fails)
    shards = Shards(tmp_path, "t")
    shards.complete(keys(1, 2), 2, square)
    assert contents(shards) == {1: 1, 2: 4}


@settings(max_examples=30, deadline=None)
@given(
    st.sets(st.integers(0, 2**64 - 1), min_size=1, max_size=40),
    st.integers(1, 9),
    st.integers(1, 4),
)
def test_ranks_make_everything_once(
    tmp_path_factory: pytest.TempPathFactory, items: set[int], size: int, ranks: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    wanted = keys(*items)
    work = Counter()
    # One after another: the first one meets nobody at the others' shards, and takes them.
    for rank in range(ranks):
        Shards(folder, "t").complete(wanted, size, work, rank, ranks)
    assert sorted(item for made in work.made for item in made) == sorted(items)
    assert sorted(contents(Shards(folder, "t"))) == sorted(items)
    assert all(len(made) == size for made in work.made if made[-1] != wanted[-1])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 30), min_size=1, max_size=9), max_size=6), st.integers(0, 99)
)
def test_each_item_is_located_in_a_part_that_holds_it(stored: list[set[int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = []
    for i, items in enumerate(stored):
        own = rng.permutation(keys(*items))
        parts.append(Part(Path(str(i)), own, square(own)))
    every = sorted({item for items in stored for item in items})
    wanted = keys(*sorted(rng.permutation(every)[: len(every) // 2].tolist()))
    needed, places = locate(parts, wanted)
    assert places.dtype == np.uint32
    assert all(np.isin(part.keys, wanted).any() for part in needed)
    held = np.concatenate([keys(), *(part.keys for part in needed)])
    np.testing.assert_array_equal(held[places], wanted)

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.scoring.shards import Shards


def square(keys: np.ndarray) -> Dataset:
    return Dataset(pa.table({"key": keys, "value": (keys % 100).astype(np.float32) ** 2}))


def keys(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def contents(shards: Shards) -> dict[int, float]:
    return {
        int(k): float(v) for key, value in shards.values() for k, v in zip(key, value, strict=True)
    }


class Counter:
    def __init__(self) -> None:
        self.made: list[list[int]] = []

    def __call__(self, wanted: np.ndarray) -> Dataset:
        self.made.append(wanted.tolist())
        return square(wanted)


def test_new_items_cost_only_themselves(tmp_path: Path) -> None:
    work = Counter()
    Shards(tmp_path, "t").complete(keys(1, 2, 3, 4, 5), 2, work)
    assert work.made == [[1, 2], [3, 4], [5]]
    Shards(tmp_path, "t").complete(keys(9, 4, 2, 8, 7), 2, work)
    assert work.made[3:] == [[9, 8], [7]]
    assert contents(Shards(tmp_path, "t")) == {k: float(k**2) for k in (1, 2, 3, 4, 5, 7, 8, 9)}


def test_another_worker_has_parts_of_its_own(tmp_path: Path) -> None:
    work = Counter()
    Shards(tmp_path, "one").complete(keys(1, 2), 2, work)
    Shards(tmp_path, "other").complete(keys(1, 2), 2, work)
    assert len(work.made) == 2
    assert len(Shards(tmp_path, "one").parts()) == 1


def test_the_largest_key_survives(tmp_path: Path) -> None:
    shards = Shards(tmp_path, "t")
    shards.complete(keys(2**64 - 1, 2**63), 2, square)
    assert sorted(contents(shards)) == [2**63, 2**64 - 1]


def test_every_flipped_byte_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Shards(tmp_path, "t").complete(keys(*range(50)), 50, square)
    (part,) = tmp_path.glob("*.parquet")
    whole = part.read_bytes()
    for place in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        part.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            assert Shards(tmp_path, "t").parts() == []
        assert "is damaged" in caplog.text
        assert not part.exists()
    Shards(tmp_path, "t").complete(keys(*range(50)), 50, square)
    assert part.read_bytes() == whole


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    Shards(tmp_path, "t").complete(keys(1, 2), 2, square)
    (part,) = tmp_path.glob("*.parquet")
    name = part.name.split(".")[0]
    part.unlink()
    (tmp_path / f".{name}.0123.parquet.k1ll3d.parquet").write_bytes(b"half of it")
    (tmp_path / f".{name}.lock").touch()
    Shards(tmp_path, "t").complete(keys(1, 2), 2, square)
    assert [path.name for path in tmp_path.iterdir()] == [part.name]


def test_an_error_in_the_work_leaves_what_is_done(tmp_path: Path) -> None:
    def fails_at_three(wanted: np.ndarray) -> Dataset:
        if 3 in wanted:
            raise RuntimeError("no")
        return square(wanted)

    with pytest.raises(RuntimeError, match="no"):
        Shards(tmp_path, "t").complete(keys(1, 2, 3, 4), 2, fails_at_three)
    assert [path.suffix for path in tmp_path.iterdir()] == [".parquet"]
    assert sorted(contents(Shards(tmp_path, "t"))) == [1, 2]


def test_a_shard_that_somebody_is_at_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = Shards(tmp_path, "t")
    shards.complete(keys(1, 2), 2, square)
    (part,) = tmp_path.glob("*.parquet")
    content = part.read_bytes()
    part.unlink()
    lock = FileLock(tmp_path / f".{part.name.split('.')[0]}.lock")
    lock.acquire()

    def other_finishes(_: float) -> None:
        part.write_bytes(content)
        lock.release()

    monkeypatch.setattr("hf_distill.scoring.shards.time.sleep", other_finishes)
    work = Counter()
    Shards(tmp_path, "t").complete(keys(1, 2, 3), 2, work)
    assert work.made == [[3]]


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
    for rank in range(
        ranks
    ):  # one after another: the first one finds nobody at the others' shards, and takes them
        Shards(folder, "t").complete(wanted, size, work, rank, ranks)
    assert sorted(item for made in work.made for item in made) == sorted(items)
    assert sorted(contents(Shards(folder, "t"))) == sorted(items)
    assert all(len(made) == size for made in work.made if made[-1] != wanted[-1])

"""The teacher's pass over a corpus on a cluster: what it keeps is what a run would have made."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PROCESS_PATH, ROOT, run_tiny

from hf_distill.errors import InputError
from hf_distill.run.shards import Part
from hf_distill.scoring.corpus import CorpusTeacher
from hf_distill.teachers.bi_encoder import BiEncoderTeacher

PATIENT = {
    "RAY_raylet_start_wait_time_s": "60", "RAY_worker_register_timeout_seconds": "300",
    "RAY_worker_niceness": "0",
}  # fmt: skip
"""Ray's workers are nice and have a minute to start, which they do not make on a busy machine."""


@pytest.fixture(scope="module")
def corpus(pairs_file: Path) -> dict[str, list[str]]:
    """The texts of the tiny run's pairs, with space around some, and 20 twice."""
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    texts = [row[kind] for kind in ("query", "document") for row in rows]
    texts = [f" {text}\n" if i % 7 == 0 else text for i, text in enumerate(texts)]
    kinds = ["query"] * len(rows) + ["document"] * len(rows)
    return {"text": texts + texts[:20], "kind": kinds + kinds[:20]}


def embeddings_in(cache: Path) -> dict[int, bytes]:
    """Key of a text -> its embedding, of all shards in `cache`."""
    parts = [Part.open(path) for path in sorted(cache.glob("*.arrow"))]
    assert len({path.name.split("-")[0] for path in cache.glob("*.arrow")}) == 1, "one teacher"
    return {
        int(key): row.tobytes()
        for part in parts
        for key, row in zip(part.keys, part.values, strict=True)
    }


def assert_a_run_embeds_nothing(
    tiny: Path, cache: Path, folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the cache, its labels are those of the run that embedded everything."""

    def refuse(*_: object) -> None:
        raise AssertionError("a text is embedded again")

    monkeypatch.setattr(BiEncoderTeacher, "_embed", refuse)
    run_tiny(tiny, folder, "--teacher_cache", cache, "--until", "score")
    labels = "teacher_soft_labels.json"
    assert (folder / labels).read_bytes() == (finished / labels).read_bytes()


def test_batches_of_two_workers_are_the_shards_of_a_run(
    corpus: dict[str, list[str]],
    tiny: Path,
    tmp_path: Path,
    finished_run: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = tmp_path / "cache"
    workers = [CorpusTeacher([str(tiny), "--teacher_cache", str(cache)]) for _ in range(2)]
    asked: list[int] = []
    embed = BiEncoderTeacher._embed

    def counted(self: BiEncoderTeacher, of: Any, texts: list[str], advance: Any) -> np.ndarray:
        asked.append(len(texts))
        return embed(self, of, texts, advance)

    monkeypatch.setattr(BiEncoderTeacher, "_embed", counted)
    for number, start in enumerate(range(0, len(corpus["text"]), 60)):
        batch = {name: np.array(values[start : start + 60]) for name, values in corpus.items()}
        answer = workers[number % 2](batch)
        assert answer["text"].tolist() == [text.strip() for text in batch["text"]]
        assert answer["embedding"].shape == (len(batch["text"]), 32)
        assert answer["embedding"].dtype == np.float16
        np.testing.assert_allclose(np.linalg.norm(answer["embedding"], axis=1), 1, atol=1e-3)
    assert sum(asked) == 400, "what another worker has embedded is not embedded again"
    own = embeddings_in(finished_run[0] / "soft_labels" / "texts")
    assert embeddings_in(cache) == own
    assert_a_run_embeds_nothing(tiny, cache, tmp_path / "run", finished_run[0], monkeypatch)


def test_what_a_pass_cannot_use_is_said(
    tiny: Path, cross_encoder_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="--teacher_cache is none"):
        CorpusTeacher([str(tiny)])
    line = [str(tiny), "--teacher_cache", str(tmp_path / "cache")]
    ranker = ["--teacher", str(cross_encoder_dir), "--teacher_kind", "cross-encoder"]
    with pytest.raises(InputError, match="it embeds no texts"):
        CorpusTeacher([*line, *ranker])
    teacher = CorpusTeacher(line)
    for batch in ({"text": ["a", None]}, {"text": ["a"], "kind": ["passage"]}):
        with pytest.raises(InputError, match=r"a row has text '(None|a)' and kind '\w+'"):
            teacher(batch)
    assert not (tmp_path / "cache").exists()


@pytest.mark.skipif(not find_spec("ray"), reason="ray, the extra `ray`, is not installed")
def test_the_script_of_the_page_runs_on_two_workers_of_ray(
    corpus: dict[str, list[str]],
    tiny: Path,
    backbone_dir: Path,
    tmp_path: Path,
    finished_run: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = (ROOT / "docs" / "machines.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(# embed_corpus\.py\n.*?)```", page, flags=re.DOTALL)
    for ours, here in {
        '"recommended", "--teacher", "you/teacher"': repr(str(tiny)), "/shared/cache": "cache",
        "num_gpus=1": "num_cpus=1", "batch_size=4096": "batch_size=100",
    }.items():  # fmt: skip
        assert ours in code
        code = code.replace(ours, here)
    code = code.replace('"cache"', repr(str(tmp_path / "cache")))
    start = "import ray\nray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)\n"
    (tmp_path / "embed_corpus.py").write_text(start + code)
    (tmp_path / "corpus").mkdir()
    for number in range(4):
        part = pa.table(corpus).slice(105 * number, 105)
        pq.write_table(part, tmp_path / "corpus" / f"part-{number}.parquet")
    done = subprocess.run(
        [sys.executable, "embed_corpus.py"], capture_output=True, text=True, check=False,
        timeout=900, cwd=tmp_path, env={**os.environ, **PATIENT, "PYTHONPATH": PROCESS_PATH},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    written = pq.read_table(tmp_path / "embedded")
    assert sorted(written["text"].to_pylist()) == sorted(map(str.strip, corpus["text"]))
    own = embeddings_in(finished_run[0] / "soft_labels" / "texts")
    assert embeddings_in(tmp_path / "cache") == own
    assert_a_run_embeds_nothing(
        tiny, tmp_path / "cache", tmp_path / "run", finished_run[0], monkeypatch
    )
    given = ["--teacher", tmp_path / "embedded", "--teacher_kind", "precomputed"]
    student = ["--student_backbone", backbone_dir, "--texts_per_pair", 0]
    run_tiny(tiny, tmp_path / "given", *given, *student, "--until", "score")

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_distill.compute.encode import Advance
from hf_distill.data.collection import (
    PairData,
    text_id,
)
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import TeacherArguments
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.scores import (
    EmbeddingTable,
    score_pairs,
)
from hf_distill.teachers.bi_encoder import (
    BiEncoderTeacher,
    load_bi_encoder,
)


@pytest.fixture(scope="module")
def teacher(teacher_dir: Path) -> BiEncoderTeacher:
    return load_bi_encoder(TeacherArguments(teacher=str(teacher_dir), teacher_dtype="float32"))


SHARDS = TeacherArguments(shard_size=64)


def count_embedded(teacher: BiEncoderTeacher, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    embed = type(teacher).embed
    monkeypatch.setattr(
        type(teacher),
        "embed",
        lambda self, texts, advance=None: calls.append(len(texts)) or embed(self, texts, advance),
    )
    return calls


def test_a_score_is_the_cosine_of_the_teachers_embeddings(
    data: PairData, teacher: BiEncoderTeacher, folder: RunFolder
) -> None:
    scored = score_pairs(data, teacher, folder, SHARDS)
    by_hand = (
        teacher.embed(list(data.train["query"])) * teacher.embed(list(data.train["document"]))
    ).sum(axis=1)
    np.testing.assert_allclose(
        scored.train["teacher_score"], by_hand, atol=2e-3
    )  # embeddings are kept as float16
    assert scored.train["pair_id"] == data.train["pair_id"]
    assert scored.manifest["pairs"] == 200
    assert scored.manifest["scale"] == {
        "measure": "cosine",
        "activation": None,
        "range": [-1.0, 1.0],
    }


def test_every_unique_text_is_embedded_once(
    data: PairData, teacher: BiEncoderTeacher, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_embedded(teacher, monkeypatch)
    scored = score_pairs(data, teacher, folder, SHARDS)
    assert (
        sum(calls) == 400 == scored.manifest["items"]
    )  # 200 queries, 200 documents, the corpus is among them
    score_pairs(data, teacher, folder, SHARDS)
    assert sum(calls) == 400, "nothing has changed, so nothing is embedded again"


def test_soft_labels_are_in_the_papers_form(
    data: PairData, teacher: BiEncoderTeacher, folder: RunFolder
) -> None:
    scored = score_pairs(data, teacher, folder, SHARDS)
    labels = json.loads(folder.soft_labels_json.read_text(encoding="utf-8"))
    assert len(labels) == 200
    assert all(set(label) == {"pair_id", "query", "document", "teacher_score"} for label in labels)
    by_id = {label["pair_id"]: label["teacher_score"] for label in labels}
    for name in ("train", "validation", "test"):
        split = getattr(scored, name)
        assert [by_id[i] for i in split["pair_id"]] == pytest.approx(
            split["teacher_score"], abs=1e-6
        )
        assert pq.read_metadata(folder.soft_labels / f"{name}.parquet").num_rows == len(split)


@pytest.mark.parametrize("damage", ["removed", "truncated", "emptied", "one bit flipped"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    data: PairData,
    teacher: BiEncoderTeacher,
    folder: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    score_pairs(data, teacher, folder, SHARDS)
    parts = sorted((folder.soft_labels / "texts").glob("*.parquet"))
    whole = [part.read_bytes() for part in parts]
    assert len(parts) == 7
    victim, content = parts[3], bytearray(whole[3])
    size = pq.read_metadata(victim).num_rows
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
    calls = count_embedded(teacher, monkeypatch)
    score_pairs(data, teacher, folder, SHARDS)
    assert sum(calls) == size, "only the damaged shard is made again"
    assert [part.read_bytes() for part in parts] == whole


def test_a_killed_shard_leaves_no_part(
    data: PairData, teacher: BiEncoderTeacher, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, calls = type(teacher).embed, []

    def dies(
        self: BiEncoderTeacher, texts: list[str], advance: Advance | None = None
    ) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(self, texts, advance)

    with monkeypatch.context() as patch:
        patch.setattr(type(teacher), "embed", dies)
        with pytest.raises(KeyboardInterrupt):
            score_pairs(data, teacher, folder, SHARDS)
    assert len(list((folder.soft_labels / "texts").glob("*"))) == 2, (
        "two whole parts, nothing half-written"
    )
    assert not folder.soft_labels_json.exists()
    assert score_pairs(data, teacher, folder, SHARDS).manifest["items"] == 400


def test_prompts_are_part_of_the_text(data: PairData, teacher_dir: Path, folder: RunFolder) -> None:
    prompted = load_bi_encoder(
        TeacherArguments(teacher=str(teacher_dir), query_prompt="who ", teacher_dtype="float32")
    )
    scored = score_pairs(data, prompted, folder, SHARDS)
    assert scored.train["query_id"][0] == text_id("who " + data.train["query"][0])
    by_hand = (
        prompted.embed(["who " + data.train["query"][0]])
        @ prompted.embed([data.train["document"][0]]).T
    )
    assert scored.train["teacher_score"][0] == pytest.approx(by_hand.item(), abs=2e-3)


def test_a_teacher_that_changes_its_dimension_is_said(
    data: PairData, teacher: BiEncoderTeacher, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = type(teacher).embed
    monkeypatch.setattr(
        type(teacher),
        "embed",
        lambda self, texts, advance=None: embed(self, texts, advance)[:, :16],
    )
    with pytest.raises(InputError, match=r"shape \(64, 16\) for 64 texts, expected dimension 32"):
        score_pairs(data, teacher, folder, SHARDS)


def test_an_unknown_text_has_no_embedding() -> None:
    table = EmbeddingTable(
        ids=np.array([int(text_id("a"), 16)], dtype=np.uint64),
        rows=np.ones((1, 2), dtype=np.float16),
    )
    assert table.of([text_id("a")]).tolist() == [[1, 1]]
    with pytest.raises(KeyError, match="1 of 2 texts have no teacher embedding"):
        table.of([text_id("a"), text_id("b")])

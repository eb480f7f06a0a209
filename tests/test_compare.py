"""`hf-distill compare`, as users run it."""

import importlib.util
import json
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from conftest import sentences
from datasets import Dataset

from hf_distill.commands import main
from hf_distill.commands.compare import names_of
from hf_distill.data.collection import PairData
from hf_distill.errors import InputError
from hf_distill.evaluation.tasks import (
    held_out_task,
    load_task,
    mteb_task,
)
from hf_distill.run.folder import RunFolder


@pytest.fixture(scope="session")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beir") / "sentences"
    (folder / "qrels").mkdir(parents=True)
    texts = sentences(60)
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts))
    )
    halves = (" ".join(text.split()[:5]) for text in texts[:40])
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{i}", "text": text}) + "\n" for i, text in enumerate(halves))
    )
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(40))
    )
    return folder


def test_models_and_bm25_side_by_side(
    beir: Path,
    teacher_dir: Path,
    backbone_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.json"
    models = [str(teacher_dir), str(backbone_dir)]
    command = [
        "compare",
        *models,
        "--task",
        str(beir),
        "--bm25",
        "--json",
        str(out),
        "--runs",
        str(tmp_path / "runs"),
    ]
    assert main([*command, "--measures", "nDCG@10", "AP@50"]) == 0
    printed = capsys.readouterr().out
    assert "sentences: 40 judged queries, 60 documents" in printed
    result = json.loads(out.read_text())
    assert list(result["systems"]) == ["teacher", "backbone", "bm25"]
    per = {name: np.array(result["per_query"][name]["nDCG@10"]) for name in result["systems"]}
    for name, values in per.items():
        assert result["systems"][name]["nDCG@10"]["value"] == pytest.approx(values.mean())
        assert f"{values.mean():.3f}" in printed
    assert result["against"]["baseline"] == "teacher"
    row = result["against"]["nDCG@10"]["bm25"]
    assert row["paired_t_test"]["p"] == pytest.approx(
        scipy.stats.ttest_rel(per["bm25"], per["teacher"]).pvalue, abs=1e-9
    )
    assert row["wins"] + row["losses"] + row["ties"] == 40
    files = [str(tmp_path / "runs" / name) for name in ("qrels.txt", "bm25.run")]
    done = subprocess.run(
        [sys.executable, "-m", "ir_measures", "--places", "12", *files, "AP@50"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout.split()[-1]) == pytest.approx(
        result["systems"]["bm25"]["AP@50"]["value"], abs=1e-9
    )


def test_the_held_out_pairs_of_a_run(data: PairData, folder: RunFolder) -> None:
    with pytest.raises(InputError, match=r"neither recipe.yaml"):
        load_task(str(folder.path))
    folder.recipe.write_text("seed: 1\n")
    task = load_task(str(folder.path))
    expected = held_out_task(data)
    assert (task.queries, task.documents, task.qrels) == (
        expected.queries,
        expected.documents,
        expected.qrels,
    )
    (folder.pairs / "test.arrow").unlink()
    with pytest.raises(InputError, match=r"test.arrow is missing in its pairs/"):
        load_task(str(folder.path))


def test_names_tell_models_apart() -> None:
    assert names_of(["a/x", "b/x", "c/y"]) == {"a/x": "a/x", "b/x": "b/x", "y": "c/y"}
    with pytest.raises(InputError, match="a model is named twice"):
        names_of(["a", "a"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "MODEL", "--task", "BEIR"], "one model has nothing to be compared with"),
        (["compare", "MODEL", "--bm25", "--task", "nowhere"], "--task nowhere: no such folder"),
        (
            ["compare", "MODEL", "--bm25", "--task", "BEIR", "--measures", "nope"],
            "measure 'nope' is not one of ir-measures",
        ),
        (["compare", "/no/model", "--bm25", "--task", "BEIR"], "no folder at /no/model"),
    ],
)
def test_input_that_cannot_be_used(
    arguments: list[str],
    message: str,
    beir: Path,
    teacher_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"MODEL": str(teacher_dir), "BEIR": str(beir)}
    assert main([places.get(a, a) for a in arguments]) == 2
    assert message in capsys.readouterr().err


# --- mteb
# ------------------------------------------------------------------------------------------------------------


class Task:
    """What of a task of `mteb` is read: the attributes that version 2 has."""

    def __init__(
        self,
        kind: str = "Retrieval",
        subsets: tuple[str, ...] = ("default",),
        error: Exception | None = None,
    ) -> None:
        self.metadata = SimpleNamespace(
            type=kind, modalities=["text"], dataset={"path": "mteb/X", "revision": "abc"}
        )
        self.hf_subsets, self.eval_splits, self.error, self.dataset = (
            list(subsets),
            ["train"],
            error,
            {},
        )

    def load_data(self) -> None:
        if self.error:
            raise self.error
        documents = Dataset.from_dict({"id": ["2", "1"], "title": ["Two", ""], "text": ["b", "a"]})
        queries = Dataset.from_dict({"id": ["q"], "text": ["what"]})
        self.dataset = {
            "default": {
                "train": {
                    "corpus": documents,
                    "queries": queries,
                    "relevant_docs": {"q": {"2": 1}},
                    "top_ranked": None,
                }
            }
        }


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Task]:
    """The package `mteb`, stood in for by its interface: it is large, and its data lie on the
    Hub.
    """
    module, found = ModuleType("mteb"), {"NanoXRetrieval": Task()}
    module.__spec__ = ModuleSpec("mteb", None)

    def get_task(name: str) -> Task:
        if name not in found:
            raise KeyError(f"KeyError: '{name}' not found")
        return found[name]

    module.get_task = get_task  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mteb", module)
    return found


def test_a_task_of_mteb(tasks: dict[str, Task]) -> None:
    task = load_task("nano:X")
    assert (task.name, list(task.documents.items()), task.qrels) == (
        "NanoXRetrieval",
        [("1", "a"), ("2", "Two b")],
        {"q": {"2": 1}},
    )
    assert load_task("mteb:NanoXRetrieval") == task


def test_a_task_of_mteb_that_cannot_be_had(tasks: dict[str, Task]) -> None:
    tasks |= {
        "Away": Task(error=ConnectionError("Couldn't reach 'mteb/X' on the Hub")),
        "Banking": Task("Classification"),
        "Many": Task(subsets=("en", "de")),
    }
    for name, message in (
        (
            "Away",
            r"the data of Away \(data set mteb/X, revision abc\) is not in the local cache and could not be downloaded",
        ),
        ("Banking", "Banking is no text retrieval task of mteb but Classification"),
        ("Many", r"Many has 2 subsets \(en, de\)"),
        ("Nope", "mteb has no task 'Nope'"),
    ):
        with pytest.raises(InputError, match=message):
            load_task(f"mteb:{name}")


@pytest.mark.skipif(importlib.util.find_spec("mteb") is not None, reason="mteb is installed")
def test_without_mteb_it_is_said() -> None:
    with pytest.raises(InputError, match=r"pip install 'hf_distill\[mteb\]'"):
        mteb_task("NanoSciFactRetrieval")

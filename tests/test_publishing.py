"""Publishing to a Hub on this machine, with the unmodified client: each fault that the client does
not handle, and loading back.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import huggingface_hub
import pytest
from datasets import Dataset
from hub_server import READ_TOKEN, SCOPED_TOKEN, TOKEN, Fault, Hub, running_hub
from huggingface_hub import HfApi
from sentence_transformers import SentenceTransformer

from hf_distill.errors import InputError, PublishingError
from hf_distill.evaluation.results import STUDENT, Estimate, RetrievalResults
from hf_distill.release import access
from hf_distill.release.access import check_access
from hf_distill.release.model_card import _eval_results
from hf_distill.release.publish import Settings, dry_run, prepare, publish
from hf_distill.release.remote import Release, commit_release
from hf_distill.report.results import RunResults
from hf_distill.student.save import save_student

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content="
)  # the client's own, of its HTTP library

DATASET_CARD = """---
license: mit
configs:
- config_name: selected
  data_files:
  - split: train
    path: selected/train.parquet
---
# pairs
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # of the process that loads back
    with running_hub() as hub:
        yield hub


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(hub.endpoint, token=TOKEN)


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been slept."""
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This machine has no Hub token of its own."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """Two small files and a large one, as the server has it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# hello\n")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\0" * 1000)
    return Release("you/student", "model", folder)


def commit(api: HfApi, release: Release) -> str:
    api.create_repo(release.repo, exist_ok=True)
    return commit_release(api, release)


def is_whole(hub: Hub, release: Release) -> bool:
    _, files = hub.files("models", release.repo) or ("", {})
    return all(files.get(name) == path.read_bytes() for name, path in release.files().items())


@pytest.mark.parametrize(
    "fault",
    [
        Fault(r"POST .*/commit/", 503),
        Fault(r"POST .*/commit/", 500, times=3),
        Fault(r"POST .*/commit/", None),
        Fault(r"POST .*/commit/", after=True),
        Fault(r"POST .*/validate-yaml", 503),
        Fault(r"POST .*/validate-yaml", 502, body=b"<html>bad gateway</html>"),
        Fault(r"POST .*/preupload/", 503),
        Fault(r"POST .*/objects/batch", 500),
        Fault(r"PUT /storage/", 503),
        Fault(r"POST .*/verify", None),
        Fault(r"GET /api/models", 503),
        Fault(r"GET .*/tree/", 504),
    ],
    ids=lambda f: f"{f.where}-{f.status}-{'after' if f.after else ''}{f.times}",
)
def test_a_fault_that_passes_leaves_one_whole_commit(
    hub: Hub, api: HfApi, release: Release, fault: Fault, naps: list[float]
) -> None:
    api.create_repo(release.repo)
    hub.faults.append(fault)
    new = commit_release(api, release)
    assert fault.times == 0, "the fault has happened"
    assert naps
    assert is_whole(hub, release)
    assert hub.commits("models", release.repo) == 1
    assert (hub.files("models", release.repo) or ("",))[0] == new


def test_retry_after_is_obeyed(hub: Hub, api: HfApi, release: Release, naps: list[float]) -> None:
    api.create_repo(release.repo)
    hub.faults.append(Fault(r"POST .*/commit/", 429, retry_after=37))
    commit_release(api, release)
    assert naps == [37]


def test_a_commit_in_between_is_kept_and_ours_comes_after_it(
    hub: Hub, api: HfApi, release: Release, naps: list[float]
) -> None:
    api.create_repo(release.repo)
    theirs = Fault(
        r"POST .*/preupload/",
        meanwhile=lambda: hub.commit("models", release.repo, {"theirs.txt": b"x"}),
    )
    hub.faults.append(theirs)
    commit_release(api, release)
    assert is_whole(hub, release)
    assert (hub.files("models", release.repo) or ("", {}))[1]["theirs.txt"] == b"x"
    assert [r for r in hub.requests if "/commit/" in r] == [
        "POST /api/models/you/student/commit/main"
    ] * 2, "the first one was a 412"
    assert len(naps) == 1


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault(r"POST .*/commit/", 503, times=99), "503"),
        (Fault(r"POST .*/commit/", 403, times=99), "403"),
        (Fault(r"PUT /storage/", 403, times=99), "could not be published"),
        (Fault(r"PUT /storage/", 503, times=99), "could not be published"),
    ],
    ids=["503 for ever", "403 on commit", "403 on storage", "503 on storage for ever"],
)
def test_a_fault_that_stays_is_one_error_and_nothing_on_main(
    hub: Hub, api: HfApi, release: Release, fault: Fault, says: str, naps: list[float]
) -> None:
    api.create_repo(release.repo)
    hub.faults.append(fault)
    with pytest.raises(PublishingError, match=says) as caught:
        commit_release(api, release)
    assert TOKEN not in str(caught.value)
    assert hub.commits("models", release.repo) == 0
    assert len(naps) < 20
    hub.faults.clear()
    commit_release(api, release)
    assert is_whole(hub, release), "running it again goes on"


def test_metadata_that_the_hub_refuses_is_reported(hub: Hub, api: HfApi, release: Release) -> None:
    (release.folder / "README.md").write_text("---\nlicense: my own\n---\n")
    api.create_repo(release.repo)
    with pytest.raises(PublishingError, match='"license" must be one of'):
        commit_release(api, release)
    assert hub.commits("models", release.repo) == 0


def test_only_what_differs_is_sent_and_only_own_leftovers_are_removed(
    hub: Hub, api: HfApi, release: Release
) -> None:
    commit(api, release)
    hub.commit(
        "models",
        release.repo,
        {"onnx/old.onnx": b"old", "2_Dense/old.bin": b"old", "theirs/old.txt": b"kept"},
    )
    before = len(hub.requests)
    (release.folder / "config.json").write_text('{"a": 1}')
    commit(api, release)
    _, files = hub.files("models", release.repo) or ("", {})
    assert set(files) == {
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
        "theirs/old.txt",
    }
    sent = hub.requests[before:]
    assert not [request for request in sent if "storage" in request or "validate-yaml" in request]
    count = hub.commits("models", release.repo)
    commit(api, release)
    assert hub.commits("models", release.repo) == count


def test_a_student_of_another_kind_leaves_nothing_of_the_one_before(
    hub: Hub, api: HfApi, release: Release
) -> None:
    commit(api, release)
    stale = dict.fromkeys(
        [
            "sentence_bert_config.json",
            "tokenizer_config.json",
            "vocab.txt",
            "model-00001-of-00002.safetensors",
        ],
        b"old",
    )
    theirs = dict.fromkeys(["vocab.txt.md", "model.png", "pictures/config.json"], b"kept")
    hub.commit("models", release.repo, {**stale, **theirs})
    (release.folder / "config.json").unlink()
    commit(api, release)
    _, files = hub.files("models", release.repo) or ("", {})
    assert set(files) == {".gitattributes", "README.md", "model.safetensors", *theirs}


def test_hidden_files_are_not_published_except_for_the_results(release: Release) -> None:
    before = set(release.files())
    for name in (
        ".config.json.k1.json",
        "onnx/.model.onnx.k1.onnx",
        ".git/config",
        ".eval_results/.retrieval.yaml.k1.yaml",
    ):
        (release.folder / name).parent.mkdir(exist_ok=True)
        (release.folder / name).touch()
    assert set(release.files()) == before
    (release.folder / ".eval_results" / "retrieval.yaml").touch()
    assert set(release.files()) == {*before, ".eval_results/retrieval.yaml"}


@pytest.mark.parametrize(
    ("token", "repo", "says"),
    [
        (None, "you/x", "HF_TOKEN"),
        ("hf_wrong", "you/x", "does not accept the token"),
        (READ_TOKEN, "you/x", "the token can only read"),
        (SCOPED_TOKEN, "you/x", "no write access to you"),
        (TOKEN, "somebody/x", "not a member of somebody"),
        (TOKEN, "readers/x", "only read in readers"),
        (TOKEN, "x", "OWNER/NAME"),
    ],
)
def test_a_token_that_cannot_write_is_refused_before_any_work(
    hub: Hub, release: Release, no_token: None, token: str | None, repo: str, says: str
) -> None:
    releases = [Release(repo, "model", release.folder)]
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        publish(releases, Settings(), HfApi(hub.endpoint, token=token))
    assert str(token) not in str(caught.value)
    assert not hub.repos
    assert not [request for request in hub.requests if request.startswith("POST")]


def test_an_organisation_is_written_to_by_its_members(hub: Hub, naps: list[float]) -> None:
    hub.faults.append(Fault("whoami", 429, retry_after=3))
    check_access(HfApi(hub.endpoint, token=TOKEN), ["team/student"])
    check_access(HfApi(hub.endpoint, token=SCOPED_TOKEN), ["team/student"])
    assert naps == [3]


def test_without_a_network_nothing_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        check_access(HfApi("http://127.0.0.1:9", token=TOKEN), ["you/student"])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(access, "WAITS", [])
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9"):
        check_access(HfApi("http://127.0.0.1:9", token=TOKEN), ["you/student"])


@pytest.fixture
def releases(tmp_path: Path, teacher_dir: Path) -> list[Release]:
    """A tiny student and a tiny data set."""
    save_student(SentenceTransformer(str(teacher_dir), device="cpu"), tmp_path / "student")
    pairs = tmp_path / "pairs"
    (pairs / "selected").mkdir(parents=True)
    Dataset.from_dict({"query": ["a", "b", "c"]}).to_parquet(
        str(pairs / "selected" / "train.parquet")
    )
    (pairs / "README.md").write_text(DATASET_CARD)
    return [
        Release("you/pairs", "dataset", pairs),
        Release("you/student", "model", tmp_path / "student"),
    ]


def test_publishing_loads_back_then_tags_and_again_does_nothing(
    hub: Hub, api: HfApi, releases: list[Release], naps: list[float]
) -> None:
    would = dry_run(releases, Settings(), api)
    assert not hub.repos, "a dry run changes nothing"
    assert "tagged v1" in would[-2]
    hub.faults += [
        Fault(r"POST /api/repos/create"),
        Fault(r"POST .*/tag/", after=True),
        Fault(r"POST /api/collections"),
    ]
    said = publish(releases, Settings(private=True, gated="manual", collection="Distilled"), api)
    assert all(fault.times == 0 for fault in hub.faults)
    assert "rows equal: selected/train 3" in said[0]
    assert "5 embeddings equal" in said[1]
    for kind, repo in (("datasets", "you/pairs"), ("models", "you/student")):
        held = hub.repos[kind, repo]
        assert hub.commits(kind, repo) == 1
        assert held.tags == {"v1": held.commits[-1][0]}
        assert (held.private, held.gated) == (True, "manual")
    assert [item["id"] for item in next(iter(hub.collections.values()))["items"]] == [
        "you/pairs",
        "you/student",
    ]
    commits = len([r for r in hub.requests if "/commit/" in r])
    again = publish(releases, Settings(), api)
    assert again[:2] == [
        "you/pairs: nothing to do, v1 is this release",
        "you/student: nothing to do, v1 is this release",
    ]
    assert len([r for r in hub.requests if "/commit/" in r]) == commits
    (releases[1].folder / "config.json").write_text(
        (releases[1].folder / "config.json").read_text() + "\n"
    )
    with pytest.raises(InputError, match=r"you/student has a tag v1 .*--revision"):
        publish(releases, Settings(tag="v1"), api)
    assert len([r for r in hub.requests if "/commit/" in r]) == commits, "nothing was sent"
    assert any(
        "you/student" in line or "tagged v2" in line for line in dry_run(releases, Settings(), api)
    )
    assert naps


def test_a_dry_run_prints_no_control_characters_of_the_hub(
    hub: Hub, api: HfApi, release: Release
) -> None:
    commit(api, release)
    hub.commit("models", release.repo, {"onnx/\x1b[2J.onnx": b"old"})
    lines = dry_run([release], Settings(private=True, gated="auto", collection="x"), api)
    assert all(line.isprintable() for line in lines)
    assert any("remove" in line and "onnx/\\x1b[2J.onnx" in line for line in lines)


def test_a_flipped_byte_on_the_hub_is_noticed_before_tagging(
    hub: Hub, api: HfApi, releases: list[Release]
) -> None:
    hub.corrupt = True
    with pytest.raises(PublishingError, match=r"you/student at \w+: model\.safetensors"):
        publish([releases[1]], Settings(), api)
    assert not hub.repos["models", "you/student"].tags


def test_a_space_is_one_commit_without_a_tag(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("print()")
    said = publish([Release("you/demo", "space", tmp_path)], Settings(), api)
    held = hub.repos["spaces", "you/demo"]
    commit = held.commits[-1][0]
    assert said == [
        f"Loaded back you/demo at {commit[:10]}: 1 files with equal SHA-256",
        f"Published: {hub.endpoint}/spaces/you/demo/commit/{commit}",
    ]
    assert (hub.commits("spaces", "you/demo"), held.tags) == (1, {})


def test_a_public_repository_is_closed_before_it_holds_anything(
    hub: Hub, api: HfApi, release: Release
) -> None:
    api.create_repo(release.repo, private=False)
    prepare(api, release, Settings(private=True))
    assert hub.repos["models", release.repo].private
    assert hub.commits("models", release.repo) == 0


def test_the_evaluation_results_are_read_back_by_the_client(
    hub: Hub, api: HfApi, release: Release
) -> None:
    retrieval = RetrievalResults(
        num_queries=9,
        num_documents=9,
        notes=(),
        systems={STUDENT: {"nDCG@10": Estimate(0.51234, 0.4, 0.6, 9)}},
        student_over_teacher=None,
        not_applicable={},
        same_text=0,
        words="",
    )

    def write(dataset: str | None) -> None:
        results = SimpleNamespace(
            recipe=SimpleNamespace(run=SimpleNamespace(hub_dataset_id=dataset)),
            evaluation=SimpleNamespace(retrieval=retrieval),
        )
        path = release.folder / ".eval_results" / "retrieval.yaml"
        text = _eval_results(cast(RunResults, results))
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True) if text is None else path.write_text(text)

    write("you/pairs")
    commit(api, release)
    (entry,) = api.model_info(release.repo, expand=["evalResults"]).eval_results or []
    assert (entry.dataset_id, entry.task_id, entry.value) == ("you/pairs", "retrieval", 0.5123)
    assert entry.notes == "nDCG@10 over 9 held-out queries, 95% interval 0.4000 to 0.6000"
    write(None)
    commit(api, release)
    assert not api.model_info(release.repo, expand=["evalResults"]).eval_results, (
        "a student without a published data set names none"
    )

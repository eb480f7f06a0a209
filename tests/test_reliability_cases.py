"""The cases of the reliability campaign, and further ones of their kinds.

| case | test |
|---|---|
| 01 half checkpoint | here; every moment in test_interrupted_training.py, benchmarks/kills.py |
| 02 untrained student in training mode | here |
| 03 links published | test_finished_runs.py::test_what_a_link_leads_to_is_not_published |
| 04 hidden files removed | here, test_run.py::test_leftovers_of_a_killed_call... |
| 07 brackets in a file's name | here |
| 08 damaged artefacts stay | benchmarks/damage.py, test_run.py::test_a_damaged_result... |
| 09 damaged student published | test_finished_runs.py::test_a_damaged_artefact_is_not_published |
| 10 nothing trained, 11 bad numbers | here |
| 12 paths | here; the recipe of brackets in test_hostile_recipes.py |
| 13 Markdown in cards | here: a teacher's folder, prompts; all fields: test_hostile_texts.py |
| 15 two runs in one folder | benchmarks/two_at_once.py, test_run.py::test_a_second_call... |
| 17 a pickle | here; loading it as a student in test_foreign_runs.py |
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Said, call, run_tiny
from hub_server import card_errors
from test_foreign_runs import Evil
from test_hostile_texts import check
from tiny_run import artefacts

from hf_distill.commands.main import main
from hf_distill.data.load import open_collection
from hf_distill.run.folder import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


def refused(said: Said, *says: str, left: Path | None = None) -> None:
    """One message, exit code 2, and nothing was written."""
    assert said.code == 2, said.err[-2000:]
    messages = [line for line in said.err.splitlines() if "error: " in line]
    assert len(messages) == 1, said.err[-2000:]
    assert "Traceback" not in said.err
    assert all(text in messages[0] for text in says), messages[0]
    assert left is None or not left.exists(), sorted(left.rglob("*"))


# --- 01, 02: called again ------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["trainer_state.json", "model.safetensors", "optimizer.pt"])
def test_01_a_half_checkpoint_is_passed_over(tiny: Path, copied: Path, gone: str) -> None:
    whole = artefacts(copied)
    checkpoints = copied.glob("checkpoints/*/checkpoint-*")
    newest = max(checkpoints, key=lambda path: int(path.name.partition("-")[2]))
    (newest / gone).unlink()
    (copied / "training.json").unlink()
    run_tiny(tiny, copied)
    assert artefacts(copied) == whole


def test_02_the_untrained_student_is_measured_without_dropout(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_tiny(tiny, run, "--student_dropout", 0.3)
    before = artefacts(run)["evaluation.json"]
    for name in ("evaluation.json", "retrieval/untrained.run"):
        (run / name).unlink(missing_ok=True)
    run_tiny(tiny, run, "--student_dropout", 0.3)
    assert artefacts(run)["evaluation.json"] == before


# --- 04: what is behind a link, and what is hidden -----------------------------------------------

HIDDEN = (".bashrc.bak", ".aws.credentials.json", ".env.local", "notes.txt")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder outside the run, with files of somebody and names that a run uses."""
    home = tmp_path / "home"
    for name in (*HIDDEN, "student.run", "config.json", "README.md", "checkpoint-1/a", "all/a"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("mine")
    return home


@pytest.mark.parametrize(
    "name",
    ["cache", "pairs", "soft_labels", "soft_labels/texts", "checkpoints", "dataset",
     "dataset/selected", "student_model_sd", "student_model_sd/onnx", "retrieval", "search",
     "export", "pool"],
)  # fmt: skip
def test_04_nothing_behind_a_link_is_touched(
    tiny: Path, copied: Path, home: Path, name: str
) -> None:
    before = contents(home)
    shutil.rmtree(copied / name, ignore_errors=True)
    (copied / name).symlink_to(home)
    lines = ([tiny, "--run_dir", copied], [tiny, "--run_dir", copied, "--student_dropout", 0.1])
    for line in lines:
        refused(call(line), f"{copied / name} is a link to {home}")
    for line in (["export", copied], ["publish", copied, "--model", "a/b"]):
        refused(call(line, main), str(copied / name))
    searched = call(["search", copied, "a"], main)
    if name in ("search", "student_model_sd"):  # what it reads; it writes nothing
        refused(searched, str(copied / name))
    else:
        assert searched.code == 0, searched.err
    assert contents(home) == before


def test_04_a_folder_of_links_alone_is_no_run(tiny: Path, tmp_path: Path, home: Path) -> None:
    before = contents(home)
    run = tmp_path / "run"
    run.mkdir()
    (run / "cache").symlink_to(home)
    refused(call([tiny, "--run_dir", run]), f"{run / 'cache'} is a link to {home}")
    assert contents(home) == before


def test_04_hidden_files_in_a_run_stay_and_the_run_itself_may_be_a_link(
    tiny: Path, copied: Path, tmp_path: Path
) -> None:
    folders = [copied, *(path for path in copied.rglob("*") if path.is_dir())]
    names = [
        path / name for path in folders for name in HIDDEN
        if path.relative_to(copied).parts[:1] != ("dataset",)  # it is replaced as a whole
    ]  # fmt: skip
    for path in names:
        path.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(copied)
    run_tiny(tiny, link)
    for path in names:
        assert path.read_text() == "mine", path


# --- 07: names that a shell or a pattern would read otherwise ------------------------------------

NAMES = (
    "pairs[1]", "pairs*", "pairs?", "[!a]", "**", "{a,b}", "a b", "~", "$HOME", "a%20b", "a#b",
    "a::b", "a:b", "a,b", "a=b", "-x", "é", "'q\"", "a\\b", "a\nb",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_07_every_character_of_a_files_name_is_itself(
    tiny: Path, tmp_path: Path, pairs_file: Path, name: str
) -> None:
    data = tmp_path / "data"
    (data / name).mkdir(parents=True)
    path, inside = data / f"{name}.jsonl", data / name / "pairs.jsonl"
    for other in ("pairsX", "pairs1", "a", "b", "HOME"):  # what a pattern would find
        (data / f"{other}.jsonl").write_text('{"query": "strange", "document": "stranger"}\n')
    for file in (path, inside):
        file.write_bytes(pairs_file.read_bytes())
    lines = (["--dataset_path", path], ["--dataset_path", data / name],
             ["--dataset", "auto", "--dataset_path", "none", "--sources", f"s={path}"])  # fmt: skip
    for number, line in enumerate(lines):
        run = tmp_path / str(number)
        run_tiny(tiny, run, *line, "--until", "read")
        record = open_collection(RunFolder(run)).record
        assert record.read["kept"] == 200


@pytest.mark.parametrize("name", ["run[1]*?", "a\nb", "{a}$HOME", "-r", "a::b%20#c"])
def test_07_a_run_and_a_teacher_may_have_any_name(
    tiny: Path, teacher_dir: Path, tmp_path: Path, name: str
) -> None:
    teacher = shutil.copytree(teacher_dir, tmp_path / "teachers" / name)
    run, cache, checkpoints = (tmp_path / kind / name for kind in ("runs", "cache", "checkpoints"))
    line = ["--teacher", teacher, "--teacher_cache", cache, "--output_dir", checkpoints]
    run_tiny(tiny, run, *line)
    made = (run / "evaluation.json").stat().st_mtime_ns
    run_tiny(tiny, run, *line)
    assert (run / "evaluation.json").stat().st_mtime_ns == made
    publish = ["publish", run, "--model", "a/b", "--dataset", "a/c", "--dry_run"]
    for command in (["search", run, "a cat"], ["dataset", run, "--format", "beir"], publish):
        said = call(command, main)
        assert said.code == 0, said.err[-2000:]


# --- 10, 11: numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        # 10: nothing trained
        "--gradient_accumulation_steps -1", "--max_steps 0", "--num_train_epochs 0",
        "--max_steps -1 --num_train_epochs 0", "--max_steps -5",
        # 11
        "--seed -1", "--seed 4294967296", "--seed 9223372036854775808",
        "--seed 18446744073709551616", "--per_device_train_batch_size 0",
        "--gradient_accumulation_steps 0", "--learning_rate nan", "--learning_rate -1",
        "--learning_rate inf", "--num_train_epochs nan", "--num_train_epochs inf",
        "--contrastive_weight inf", "--false_negative_margin nan", "--false_negative_margin inf",
        "--temperature inf", "--teacher_temperature inf", "--alignment_weight inf",
        # of their kind
        "--weight_decay nan", "--weight_decay -1", "--max_grad_norm inf", "--adam_beta1 2",
        "--adam_beta2 nan", "--adam_epsilon -1", "--warmup_steps -1", "--warmup_steps nan",
        "--data_seed -1", "--data_seed 4294967296", "--eval_delay nan",
        "--logging_steps -1", "--logging_steps nan", "--student_dim 1099511627776",
        "--test_fraction nan", "--head_dropout 1", "--student_max_length -1", "--max_pairs 0",
        "--dataloader_num_workers -1", "--save_total_limit -1", "--hard_negatives_per_pair -1",
        "--texts_per_pair -1", "--matryoshka_dims 0",
    ],
)  # fmt: skip
def test_10_11_a_number_that_no_run_can_have_is_refused_before_any_work(
    tiny: Path, tmp_path: Path, line: str
) -> None:
    run = tmp_path / "run"
    refused(call([tiny, "--run_dir", run, *line.split()]), line.split()[-2][2:], left=run)


# --- 12: paths -----------------------------------------------------------------------------------


def special_files(folder: Path) -> dict[str, Path]:
    """Things that are no file to read, by name."""
    made = {
        name: folder / f"{name}.jsonl"
        for name in ("fifo", "loop", "dangling", "binary", "empty", "folder", "latin", "utf16")
    }
    os.mkfifo(made["fifo"])
    made["loop"].symlink_to(made["loop"])
    made["dangling"].symlink_to(folder / "gone")
    made["binary"].write_bytes(bytes(range(256)) * 8)
    made["empty"].touch()
    made["folder"].mkdir()
    made["latin"].write_bytes('{"query": "café", "document": "d"}\n'.encode("latin-1") * 50)
    made["utf16"].write_bytes("seed: 1".encode("utf-16") + b"\xff")
    return {
        **made, "null": Path("/dev/null"), "zero": Path("/dev/zero"), "proc": Path("/proc/x/y"),
        "long": folder / ("x" * 300), "missing": folder / "missing",
        "under": tmp_file(folder) / "x",
    }  # fmt: skip


def tmp_file(folder: Path) -> Path:
    path = folder / "a_file"
    path.write_text("text")
    return path


@pytest.mark.parametrize("flag", ["run_dir", "output_dir", "teacher_cache"])
@pytest.mark.parametrize(
    "name", ["fifo", "loop", "binary", "null", "proc", "long", "under", "a_file"]
)
def test_12_a_folder_that_cannot_be_written_to(
    tiny: Path, tmp_path: Path, flag: str, name: str
) -> None:
    wrong = {**special_files(tmp_path), "a_file": tmp_file(tmp_path)}[name]
    run = tmp_path / "run"
    line = [tiny, "--run_dir", run, f"--{flag}", wrong]
    refused(call(line), f"--{flag} {wrong}", left=run)


@pytest.mark.parametrize(
    "flag",
    ["dataset_path", "teacher", "student_backbone", "resume_from_checkpoint", "sources",
     "eval_tasks", "recipe"],
)  # fmt: skip
def test_12_a_file_that_cannot_be_read(tiny: Path, tmp_path: Path, flag: str) -> None:
    run = tmp_path / "run"
    for name, wrong in special_files(tmp_path).items():
        line = [tiny, "--run_dir", run, f"--{flag}", wrong]
        if flag == "recipe":
            if name in ("null", "empty", "fifo", "zero"):
                continue  # one that says nothing is the defaults; a pipe is a way to give one
            line = [wrong, "--run_dir", run]
        elif flag == "sources":
            line = [tiny, "--run_dir", run, "--dataset", "auto", "--dataset_path", "none",
                    "--sources", f"s={wrong}"]  # fmt: skip
        said = call(line)
        assert (name, said.code) == (name, 2), said.err[-2000:]
        refused(said, str(wrong))
        assert flag == "eval_tasks" or not (run / "recipe.yaml").exists(), name


@pytest.mark.parametrize(
    "line",
    ["search PATH a", "publish PATH --model a/b", "export PATH", "dataset PATH --format beir",
     "demo PATH --push a/b --model a/c", "compare PATH PATH", "study PATH"],
)  # fmt: skip
def test_12_commands_on_what_is_no_run(tmp_path: Path, line: str) -> None:
    for path in special_files(tmp_path).values():
        refused(call([str(path) if t == "PATH" else t for t in line.split()], main))


@pytest.mark.parametrize("name", ["fifo", "loop", "null", "proc", "long", "under"])
def test_12_an_export_goes_nowhere_else(copied: Path, tmp_path: Path, name: str) -> None:
    wrong = special_files(tmp_path)[name]
    refused(call(["dataset", copied, "--format", "beir", "--output", wrong], main), "--output")


def test_12_an_unknown_tracker_is_refused(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    refused(call([tiny, "--run_dir", run, "--report_to", "foo"]), "--report_to foo", left=run)


# --- 13, 17: teachers ----------------------------------------------------------------------------


def test_13_the_name_and_the_prompts_of_a_teacher_are_text_in_the_cards(
    tiny: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    name = "t`<img src=x onerror=alert(1)>[read this](https:evil.example) **now**"
    teacher = shutil.copytree(teacher_dir, tmp_path / name)
    config = teacher / "config_sentence_transformers.json"
    content = json.loads(config.read_text())
    prompt = "[read this](https://evil.example/x) **now** <b>"
    content["prompts"] = {"query": prompt, "document": prompt}
    config.write_text(json.dumps(content))
    run = tmp_path / "run"
    run_tiny(tiny, run, "--teacher", teacher, "--student_init", "random")
    for kind, folder in (("model", "student_model_sd"), ("dataset", "dataset")):
        card = (run / folder / "README.md").read_text(encoding="utf-8")
        check(card)
        assert not card_errors(card, kind)


@pytest.mark.parametrize("damage", ["evil", "empty", "text"])
def test_17_a_pickle_that_is_no_weights_is_one_message(
    tiny: Path, teacher_dir: Path, tmp_path: Path, damage: str
) -> None:
    teacher, ran, run = tmp_path / "teacher", tmp_path / "ran", tmp_path / "run"
    shutil.copytree(teacher_dir, teacher)
    (teacher / "model.safetensors").unlink()
    torch.save({"x": Evil(ran)}, teacher / "pytorch_model.bin")
    if damage != "evil":
        (teacher / "pytorch_model.bin").write_text("" if damage == "empty" else "no pickle")
    refused(call([tiny, "--run_dir", run, "--teacher", teacher]), str(teacher), left=run)
    assert not ran.exists()

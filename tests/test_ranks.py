"""Several processes: they agree, see the same folders, and end together."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import forked
import pytest
import ranks_process
from conftest import recipe_of

from hf_distill.errors import InputError
from hf_distill.recipe.read import read_recipe
from hf_distill.run import processes
from hf_distill.training.hardware import with_precision
from hf_distill.training.rehearsal import check_strategy


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("localhost", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes were told, by rank; when each ended; and what they wrote to stderr."""
    folder, log = tmp_path_factory.mktemp("ranks"), tmp_path_factory.mktemp("log") / "log"
    forked.ended(forked.start(log, ranks_process.main, folder, str(free_port())), log)
    read = {p.stem: json.loads(p.read_text()) for p in folder.glob("*.json")}
    return {**read, "stderr": forked.error_log(log).read_text()}


def test_processes_that_differ_are_told_which_and_in_what(ranks: dict[str, Any]) -> None:
    for rank in "01":
        assert not ranks[rank]["same"]
        assert "process 1 on" in ranks[rank]["precision"]
        assert "bf16 is false, and true in process 0" in ranks[rank]["precision"]
        assert '"data of 1"' in ranks[rank]["together"]


def test_a_host_with_a_folder_of_its_own_is_told_so(ranks: dict[str, Any]) -> None:
    for rank in "01":
        assert not ranks[rank]["shared"]
        assert "--teacher_cache" in ranks[rank]["unshared"]
        assert "process 1 on" in ranks[rank]["unshared"]
    assert ranks["0"]["left"] == []


def test_nobody_waits_for_a_result_that_is_made_from_other_data(ranks: dict[str, Any]) -> None:
    assert ranks["0"]["makes"] == ranks["1"]["makes"]
    assert not ranks["0"]["waits"]
    assert '"data of 1" here, and from "data of 0" in process 0' in ranks["1"]["waits"]


def test_a_killed_main_process_ends_the_one_that_waits_for_it(ranks: dict[str, Any]) -> None:
    (killed, before), (ended, after) = ranks["ended"]["0"], ranks["ended"]["1"]
    assert (killed, ended) == (-9, 1)
    assert after - before < 10  # the worker that process 0 leaves behind lives for 15 seconds
    assert "process 0 on localhost has ended before its work was done" in ranks["stderr"]


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> Queue[tuple[int, str, bool]]:
    """Port and token that the main process tells the others, who have 0.3 s to say who they are."""
    told: Queue[tuple[int, str, bool]] = Queue()
    monkeypatch.setattr(processes, "from_main", told.put)
    monkeypatch.setattr(processes, "_NAMED_SECONDS", 0.3)
    return told


def test_strangers_at_the_port_neither_end_the_run_nor_join_it(
    announced: Queue[tuple[int, str, bool]],
) -> None:
    with ThreadPoolExecutor() as pool:
        accepted = pool.submit(processes._accept, "localhost", 2)
        port, token, _ = announced.get(timeout=10)
        strangers = [
            b"GET / HTTP/1.1\n", b"hello\n", "\u00fc 1 host\n".encode(), b"\xff 1 host\n",
            b"", b"x" * 2000, f"{token[:-1]} 1 host\n".encode(),
        ]  # fmt: skip
        with contextlib.ExitStack() as stack:
            for said in strangers:
                stranger = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                stranger.sendall(said)
            own = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            own.sendall(f"{token} 1 a host\n".encode())
            connections = accepted.result(timeout=10)
        assert {rank: host for rank, (host, _) in connections.items()} == {1: "a host"}
        connections[1][1].close()


def test_a_process_that_does_not_connect_is_named(
    monkeypatch: pytest.MonkeyPatch, announced: Queue[tuple[int, str, bool]]
) -> None:
    monkeypatch.setattr(processes, "_CONNECT_SECONDS", 0.1)
    with pytest.raises(InputError, match=r"processes \[1, 2\] did not connect .* within 0.1 s"):
        processes._accept("localhost", 3)
    assert announced.qsize() == 1


@pytest.mark.parametrize(
    ("said", "ended"),
    [
        (b'["b", 1, ["\xc3', True),
        (b'"bye"\n', False),
        (b'"bye"\n"back"\n', True),
    ],
    ids=["within a line", "its work is done", "in its second run"],
)
def test_who_ends_before_its_work_is_done_ends_the_others(
    monkeypatch: pytest.MonkeyPatch, said: bytes, ended: bool
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0)
    monkeypatch.setattr(os, "_exit", codes.append)
    here, there = socket.socketpair()
    with here, there:
        links = processes._Links(0, {1: ("host", here)})
        there.sendall(b'["a", 1, ["x"]]\n' + said)
        there.shutdown(socket.SHUT_WR)
        links.listen(1)
    assert (codes, links.heard) == ([1] if ended else [], {("a", 1): ["x"]})


def test_a_second_run_of_the_same_processes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = socket.socketpair()
    monkeypatch.setattr(processes, "_state", lambda: SimpleNamespace(num_processes=2))
    monkeypatch.setattr(processes, "_links", processes._Links(0, {1: ("host", here)}))
    with here, there, there.makefile() as lines:
        processes.done()
        processes.end_together()
        assert [next(lines), next(lines)] == ['"bye"\n', '"back"\n']


def test_one_process_has_nobody_to_agree_with(tmp_path: Path) -> None:
    processes.end_together()
    processes.check_same({"a": 1})
    processes.check_shared({"run_dir": tmp_path / "new"})
    processes.done()
    assert not list(tmp_path.iterdir())
    assert (processes.of_all(3), processes.from_main(4)) == ([3], 4)


def test_a_silent_host_is_noticed_within_a_minute() -> None:
    keep = processes._KEEPALIVE
    silent = keep["TCP_KEEPIDLE"] + keep["TCP_KEEPINTVL"] * keep["TCP_KEEPCNT"]
    assert silent + processes.GRACE_SECONDS < 60
    with (
        socket.create_server(("localhost", 0)) as server,
        socket.create_connection(server.getsockname()) as connection,
    ):
        processes._keep_alive(connection)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_collective_may_take_a_day_unless_the_recipe_says_less() -> None:
    for stage in read_recipe(["quickstart", "--stages", "max_steps=3"]).stages:
        assert stage.ddp_timeout == 24 * 3600
    assert read_recipe(["quickstart", "--ddp_timeout", "60"]).training.ddp_timeout == 60


@pytest.mark.parametrize(
    ("launched", "flags", "precision"),
    [
        ("bf16", [], "bf16"),
        ("fp16", [], "fp16"),
        ("bf16", ["--bf16", "false"], "no"),
        ("fp16", ["--bf16", "true"], "bf16"),
    ],
    ids=["the launcher's", "also fp16", "none against the launcher", "another one"],
)
def test_the_precision_that_trains_is_the_one_that_is_recorded(
    monkeypatch: pytest.MonkeyPatch, launched: str, flags: list[str], precision: str
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    recipe = read_recipe(["quickstart", "--stages", "max_steps=3", *flags])
    assert len(recipe.stages) == 2
    for stage in with_precision(recipe).stages:
        assert stage.precision.replace("fp32", "no") == precision
        assert stage.copied().mixed_precision == precision


def test_a_launcher_with_fp8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(InputError, match="fp8"):
        with_precision(read_recipe(["quickstart"]))


@pytest.mark.parametrize(
    "variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"]
)
def test_a_strategy_that_cuts_the_student_into_parts_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    training = recipe_of().training
    check_strategy(training)
    monkeypatch.setenv(variable, "true")
    with pytest.raises(InputError, match=r"accelerate launch with .*DDP"):
        check_strategy(training)


def test_several_gpus_in_one_process_are_refused() -> None:
    training = recipe_of().training
    training._n_gpu = 4
    with pytest.raises(InputError, match=r"4 GPUs and one process.*--num_processes 4"):
        check_strategy(training)


def test_flags_that_cut_the_student_into_parts_are_refused() -> None:
    training = recipe_of().training
    training.fsdp = "full_shard"
    with pytest.raises(InputError, match=r"^--fsdp full_shard: .*--grad_cache"):
        check_strategy(training)

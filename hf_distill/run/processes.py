"""The processes of a run: they work on the same thing, see the same folders, and end together.

Each process has a connection to the main process for as long as it lives. The operating system
closes it when a process ends, however it ends, and asks a silent host whether it is still there
(TCP keepalive). So nobody waits for a process that is gone, whatever it waits in: a collective, a
file, or a stage of the main process that takes hours. Nothing on a connection depends on how busy
Python is.

The main process also says through them which result it makes from which inputs, so that a process
that would wait for another result stops instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hf_distill.errors import InputError

if TYPE_CHECKING:
    from accelerate import PartialState

GRACE_SECONDS = 5.0
"""How long a process goes on when another one has ended. If all end for the same reason, each says
its own, and nothing about the others.
"""

_KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
"""A host that does not answer for 35 seconds is gone."""

_CONNECT_SECONDS, _SEE_SECONDS, _LOST_SECONDS, _POLL_SECONDS = 60.0, 15.0, 2.0, 0.2
_NAMED_SECONDS = 5.0
"""How long a new connection has to say whose it is."""
_SHOWN = 200
_BYE, _BACK = "bye", "back"

T = TypeVar("T")


def _accelerate() -> Any:
    # Who only reads results is alone, and needs no torch, which takes seconds to load.
    import accelerate  # noqa: PLC0415

    return accelerate


def _state() -> PartialState:
    state: PartialState = _accelerate().PartialState()
    return state


def is_main() -> bool:
    """Whether this is the main process."""
    return bool(_state().is_main_process)


def of_all(value: T) -> list[T]:
    """`value` of every process, in order of rank. All processes call this together."""
    if _state().num_processes == 1:
        return [value]
    gathered: list[T] = _accelerate().utils.gather_object([value])
    return gathered


def from_main(value: T) -> T:
    """The main process's `value`. All processes call this together."""
    values = [value]
    if _state().num_processes > 1:
        _accelerate().utils.broadcast_object_list(values)
    return values[0]


def _shown(value: str) -> str:
    return value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."


def check_same(values: Mapping[str, object]) -> None:
    """Check that all processes have the same `values`. All processes call this together.

    Raises:
        InputError: In all of them: which process has another value, and of what.
    """
    if _state().num_processes == 1:
        return
    own = {name: json.dumps(value, sort_keys=True, default=str) for name, value in values.items()}
    every = of_all((socket.gethostname(), own))
    host, first = every[0]
    for rank, (other, theirs) in enumerate(every):
        for name in [*first, *(theirs.keys() - first.keys())]:
            here, there = first.get(name, "nothing"), theirs.get(name, "nothing")
            if here != there:
                raise InputError(
                    f"process {rank} on {other} differs from process 0 on {host}: {name} is "
                    f"{_shown(there)}, and {_shown(here)} in process 0. They would train different "
                    "students, or wait for each other forever; start all with the same recipe, "
                    "data, models and versions"
                )


def check_shared(folders: Mapping[str, Path]) -> None:
    """Check that all processes see the same folders: the main process writes a token into each, and
    all read it. Nothing is left there. All processes call this together.

    Args:
        folders: Flag -> the folder that it names. It may not exist yet.

    Raises:
        InputError: In all of them: which process does not see which folder.
    """
    state = _state()
    if state.num_processes == 1:
        return
    with contextlib.ExitStack() as stack:
        tokens: dict[str, tuple[str, str]] = {}
        if state.is_main_process:
            for flag, path in folders.items():
                token = secrets.token_hex()
                tokens[flag] = stack.enter_context(_token_in(path, token)).name, token
        tokens = from_main(tokens)
        unseen = [flag for flag, path in folders.items() if not _reads(path, *tokens[flag])]
        every = of_all((socket.gethostname(), unseen))
    of_all(None)  # nobody goes on while there is a token
    for rank, (host, flags) in enumerate(every):
        if flags:
            raise InputError(
                f"--{flags[0]} {folders[flags[0]]}: process {rank} on {host} does not see what "
                f"process 0 on {every[0][0]} writes there, so it would wait for its results "
                "forever; name a folder that all hosts share"
            )


@contextlib.contextmanager
def _token_in(path: Path, token: str) -> Iterator[Path]:
    """Within the context, a file in `path` holds `token`. Folders that had to be made go again."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    # A name of the form that a killed call leaves, and the next one removes.
    file = path / f".token.{secrets.token_hex(16)}.hf_distill-part"
    try:
        file.write_text(token)
        yield file
    finally:
        file.unlink(missing_ok=True)
        for folder in made:
            with contextlib.suppress(OSError):  # somebody else uses it already
                folder.rmdir()


def _reads(path: Path, name: str, token: str) -> bool:
    """Whether the file `name` in `path` holds `token`. A network file system may take some seconds
    to show a new file.
    """
    end = time.monotonic() + _SEE_SECONDS
    while True:
        with contextlib.suppress(OSError):
            if (path / name).read_text() == token:
                return True
        if time.monotonic() > end:
            return False
        time.sleep(_POLL_SECONDS)


@dataclass
class _Links:
    """The connections of this process: of the main process to all others, of another one to it.

    Attributes:
        rank: Of this process.
        to: Rank at the other end -> host and connection.
        heard: What the main process has said, by name and number of the call.
        calls: How often this process has made or waited for each result.
        left: The ranks that have said that they are done.
        lost: What to say of a process that has ended before.
    """

    rank: int
    to: dict[int, tuple[str, socket.socket]]
    heard: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    left: set[int] = field(default_factory=set)
    lost: str | None = None

    def say(self, message: object) -> None:
        """Send a line to all. Who is gone does not get it: `listen` notices."""
        line = json.dumps(message).encode() + b"\n"
        for _, connection in self.to.values():
            with contextlib.suppress(OSError):
                connection.sendall(line)

    def listen(self, rank: int) -> None:
        """Hear what process `rank` says, until it ends. If it has not said before that it is done,
        this process ends, too.
        """
        host, connection = self.to[rank]
        # A process that is killed while it speaks leaves a part of a line.
        with (
            contextlib.suppress(OSError, ValueError),
            connection.makefile(encoding="utf-8") as lines,
        ):
            for line in lines:
                said = json.loads(line)
                if said == _BYE:
                    self.left.add(rank)
                elif said == _BACK:
                    self.left.discard(rank)
                else:
                    name, call, inputs = said
                    self.heard[name, call] = inputs
        if rank in self.left:
            return
        self.lost = (
            f"process {rank} on {host} has ended before its work was done; what it said tells why. "
            f"Process {self.rank} ends, too. What was complete is kept: run the same command again"
        )
        time.sleep(GRACE_SECONDS)
        print(f"hf_distill: error: {self.lost}", file=sys.stderr, flush=True)
        os._exit(1)  # whatever the other threads wait in


_links: _Links | None = None


def end_together() -> None:
    """From here on, a process that ends before `done` ends all of them, within a minute and on any
    host. All processes call this together, and again if they go on after `done`, with another run.

    Raises:
        InputError: A process cannot connect to the main process.
    """
    global _links  # noqa: PLW0603  (a process has one set of connections)
    state = _state()
    if state.num_processes == 1:
        return
    if _links is not None:
        _links.say(_BACK)
        return
    main = os.environ.get("MASTER_ADDR", "localhost")
    if state.is_main_process:
        connections = _accept(main, state.num_processes)
    else:
        connections = _connect(main, state.process_index)
    links = _Links(state.process_index, connections)
    for rank, (_, connection) in links.to.items():
        _keep_alive(connection)
        threading.Thread(target=links.listen, args=(rank,), daemon=True).start()
    _links = links


def _let_go() -> None:
    """In a process that was forked off, as one that reads batches: close the connections. They
    would otherwise outlive the process that they belong to.
    """
    global _links  # noqa: PLW0603  (as above)
    if _links is not None:
        for _, connection in _links.to.values():
            os.close(connection.detach())
        _links = None


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_let_go)


def _accept(main: str, processes: int) -> dict[int, tuple[str, socket.socket]]:
    local = main in ("localhost", "127.0.0.1", "::1")
    both = socket.has_dualstack_ipv6() and not local
    server = socket.create_server(
        ("127.0.0.1" if local else "", 0),
        family=socket.AF_INET6 if both else socket.AF_INET,
        dualstack_ipv6=both,
    )
    connections: dict[int, tuple[str, socket.socket]] = {}
    with server:
        token = secrets.token_hex()
        from_main((server.getsockname()[1], token, local))
        end = time.monotonic() + _CONNECT_SECONDS
        while len(connections) < processes - 1:
            try:
                server.settimeout(max(end - time.monotonic(), 0.001))
                connection, _ = server.accept()
            except OSError as error:
                missing = sorted(set(range(1, processes)) - connections.keys())
                raise InputError(
                    f"processes {missing} did not connect to the main process at {main} within "
                    f"{_CONNECT_SECONDS:g} s ({error}); hosts of a run reach each other at any "
                    "port, as torch.distributed needs it, too"
                ) from error
            named = _named(connection, token)
            if named is None:
                connection.close()
            else:
                rank, host = named
                connections[rank] = host, connection
    return connections


def _named(connection: socket.socket, token: str) -> tuple[int, str] | None:
    """Rank and host of the process at the other end of a new connection; None if it does not say
    the token: somebody else knocked, a scanner of ports for instance.
    """
    try:
        given, rank, host = _line(connection).split(" ", 2)
    except (OSError, ValueError):
        return None
    # As bytes: what a stranger says may be no ASCII.
    if not secrets.compare_digest(given.encode(), token.encode()):
        return None
    return int(rank), host


def _line(connection: socket.socket) -> str:
    """The first line that comes, without its end.

    Raises:
        OSError: It does not come within `_NAMED_SECONDS`.
    """
    read, end = b"", time.monotonic() + _NAMED_SECONDS
    while not read.endswith(b"\n") and len(read) < 1024:
        connection.settimeout(max(end - time.monotonic(), 0.001))
        if not (byte := connection.recv(1)):
            break
        read += byte
    return read.decode(errors="replace").rstrip("\n")


def _connect(main: str, rank: int) -> dict[int, tuple[str, socket.socket]]:
    port, token, local = from_main((0, "", False))
    host = "127.0.0.1" if local else main
    try:
        connection = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
    except OSError as error:
        raise InputError(
            f"process {rank} on {socket.gethostname()} cannot connect to the main process at "
            f"{host}:{port} ({error}); hosts of a run reach each other at any port, as "
            "torch.distributed needs it, too"
        ) from error
    connection.sendall(f"{token} {rank} {socket.gethostname()}\n".encode())
    return {0: (main, connection)}


def _keep_alive(connection: socket.socket) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # each system has some of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def done() -> None:
    """Tell the others that this process has done its work, so that its end ends nobody."""
    if _links is not None:
        _links.say(_BYE)


def lost() -> str | None:
    """Why something failed, if another process has ended: what to say of it. A collective may fail
    a moment before the connection is closed.
    """
    end = time.monotonic() + _LOST_SECONDS
    while _links is not None and _links.lost is None and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    return None if _links is None else _links.lost


@dataclass(frozen=True)
class Expected:
    """A result that the main process makes and this process waits for.

    Attributes:
        name: Which one.
        call: How often it was asked for.
        inputs: What this process would make it from.
    """

    name: str
    call: int
    inputs: tuple[str, ...]

    def check(self) -> None:
        """Check that the main process makes it from the same inputs, if it has said so yet.

        Raises:
            InputError: It makes it from others: which ones differ.
        """
        theirs = None if _links is None else _links.heard.get((self.name, self.call))
        if theirs is None or tuple(theirs) == self.inputs:
            return
        first = next(
            (pair for pair in zip(self.inputs, theirs, strict=False) if pair[0] != pair[1]),
            (f"{len(self.inputs)} values", f"{len(theirs)} values"),
        )
        raise InputError(
            f"process {_state().process_index} on {socket.gethostname()} differs from "
            f"process 0: {self.name} is made from {_shown(first[0])} here, and from "
            f"{_shown(first[1])} in process 0, so this process would wait for it forever; start "
            "all with the same recipe, data, models and versions"
        )


def expect(name: str, inputs: Sequence[Any]) -> Expected:
    """Say, as the main process, what the result `name` is made from; as another one, what this
    process expects it to be made from.

    Args:
        name: The same in all processes.
        inputs: As for `hf_distill.run.stage.stage`.
    """
    texts = tuple(json.dumps(value, sort_keys=True, default=str) for value in inputs)
    if _links is None:
        return Expected(name, 0, texts)
    _links.calls[name] += 1
    expected = Expected(name, _links.calls[name], texts)
    if _state().is_main_process:
        _links.say(dataclasses.astuple(expected))
    return expected

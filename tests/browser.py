"""A headless Chromium, driven over its DevTools protocol through two pipes, and a static host."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_LONGEST = 60.0
"""Seconds that an answer may take."""


def chromium() -> str | None:
    """The path of Chromium, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """One page of a browser. What the page logs as an error or warning is in `problems`."""

    def __init__(self, to: int, back: int, group: int) -> None:
        self._to, self._back, self._group = to, back, group
        self._number, self._buffer = 0, b""
        self.problems: list[str] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._back], [], [], _LONGEST)
            part = os.read(self._back, 1 << 20) if ready else b""
            if not part:
                raise TimeoutError("Chromium does not answer")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self._number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _note(self, event: dict[str, Any]) -> None:
        given = event.get("params", {})
        if event["method"] == "Log.entryAdded":
            self.problems.append(f"{given['entry']['text']} ({given['entry'].get('url')})")
        elif event["method"] == "Runtime.exceptionThrown":
            self.problems.append(str(given["exceptionDetails"]))
        elif event["method"] == "Runtime.consoleAPICalled" and given["type"] in (
            "error",
            "warning",
        ):
            self.problems.append(str([a.get("value", a.get("description")) for a in given["args"]]))

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + _LONGEST
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition} is still false; {self.problems}")
            time.sleep(0.02)

    def open(self, address: str) -> None:
        """Open a page, and wait until its document is there."""
        self.call("Page.navigate", url=address)
        self.wait(f"location.href === {json.dumps(address)} && document.readyState === 'complete'")

    def key(self, name: str, text: str = "") -> None:
        """Press a key."""
        typed = {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, code=name, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name, code=name)

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """Set the window's size, and what the user prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def seconds(self) -> float:
        """Seconds of a core that all processes of the browser have used."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # a process may end meanwhile
                fields = stat.read_text().rpartition(")")[2].split()
                ticks += int(fields[2]) == self._group and int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def picture(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A fresh Chromium, which is killed afterwards."""
    program = chromium()
    if program is None:
        raise FileNotFoundError("there is no chromium")
    (from_us, to), (back, to_us) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        line = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-background-networking", "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]  # fmt: skip
        dead = os.open(os.devnull, os.O_WRONLY)
        process = os.posix_spawn(
            program,
            line,
            os.environ,
            # In this order: the pipes may have the numbers 3 and 4 themselves.
            file_actions=[
                (os.POSIX_SPAWN_DUP2, from_us, 103),
                (os.POSIX_SPAWN_DUP2, to_us, 104),
                (os.POSIX_SPAWN_DUP2, 103, 3),
                (os.POSIX_SPAWN_DUP2, 104, 4),
                (os.POSIX_SPAWN_DUP2, dead, 1),
                (os.POSIX_SPAWN_DUP2, dead, 2),
            ],
            setpgroup=0,
        )
        for end in (from_us, to_us, dead):
            os.close(end)
        try:
            yield Browser(to, back, process)
        finally:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            os.close(to)
            os.close(back)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Silence."""

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")  # as a CDN sends
        super().end_headers()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that is gone is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def static_host(folder: Path) -> Iterator[str]:
    """Serve a folder on a free loopback port; yields its address."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()

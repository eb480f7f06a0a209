"""A small Hub: enough of its protocol for the unmodified client to create, commit and download over loopback HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_goodtokengoodtokengoodtokengood"


class Hub(ThreadingHTTPServer):
    """Holds `repos`: (kind, id) -> [(commit, {path: bytes}), ...], and `requests`, the log."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[tuple[str, str], list[tuple[str, dict[str, bytes]]]] = {}
        self.requests: list[str] = []
        self.corrupt = False

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, kind: str, repo: str, revision: str = "main") -> tuple[str, dict[str, bytes]] | None:
        history = self.repos.get((kind, repo), [])
        found = [entry for entry in history if revision in ("main", entry[0])]
        return found[-1] if found else None


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Silence."""

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def handle_request(self) -> None:
        path, body = self.path.partition("?")[0], self.body()
        self.server.requests.append(f"{self.command} {path}")
        if self.headers.get("Authorization", f"Bearer {TOKEN}") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid credentials"}, X_Error_Message="Invalid credentials")
        if path == "/api/whoami-v2":
            return self.answer(200, {"type": "user", "name": "you", "auth": {"type": "access_token"}})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo = wanted["name"] if not wanted.get("organization") else f"{wanted['organization']}/{wanted['name']}"
            kind = wanted.get("type") or "model"
            self.server.repos.setdefault((f"{kind}s", repo), [])
            return self.answer(200, {"url": f"{self.server.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo}", "name": repo})
        if found := re.fullmatch(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)/(preupload|commit|revision|tree)/([\w.-]+)/?(.*)", path):
            return self.repository(*found.groups()[:4], body)
        if found := re.fullmatch(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)", path):
            return self.repository(*found.groups(), "revision", "main", body)
        if found := re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)", path):
            return self.resolve("datasets" if found[1] else "models", found[2], found[3], found[4])
        return self.answer(404, {"error": f"no {path}"})

    do_GET = do_POST = do_HEAD = handle_request  # noqa: N815

    def repository(self, kind: str, repo: str, action: str, revision: str, body: bytes) -> None:
        state = self.server.files(kind, repo, revision)
        if action == "preupload":
            wanted = json.loads(body)["files"]
            return self.answer(200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]})
        if action == "commit":
            files = dict(state[1]) if state else {}
            for line in filter(None, body.split(b"\n")):
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            commit = hashlib.sha1(body + str(len(self.server.repos[kind, repo])).encode()).hexdigest()
            self.server.repos[kind, repo].append((commit, files))
            return self.answer(200, {"success": True, "commitOid": commit, "commitUrl": f"{self.server.endpoint}/{repo}/commit/{commit}"})
        if state is None:
            return self.answer(404, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
        commit, files = state
        if action == "tree":
            return self.answer(
                200, [{"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for p, c in files.items()]
            )
        return self.answer(200, {"id": repo, "sha": commit, "private": False, "siblings": [{"rfilename": p} for p in files], "tags": []})

    def resolve(self, kind: str, repo: str, revision: str, name: str) -> None:
        state = self.server.files(kind, repo, revision)
        if state is None or name not in state[1]:
            return self.answer(404, {"error": "no such entry"}, X_Error_Code="EntryNotFound")
        content = state[1][name]
        if self.server.corrupt and name.endswith(".safetensors"):
            content = content[:-1] + bytes([content[-1] ^ 1])
        return self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=state[0])


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub on a free loopback port."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()

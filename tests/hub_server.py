"""A small Hub on this machine: enough of the protocol for the unmodified client to create, commit,
tag and download.

It answers 404 with the path to what it does not know, applies the rules for cards, and fails where
a test wants it to (`Fault`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

TOKEN = "hf_goodtokengoodtokengoodtokengood"
READ_TOKEN = "hf_readtokenreadtokenreadtokenread"
SCOPED_TOKEN = "hf_scopedtokenscopedtokenscopedtok"

LARGE = (".safetensors", ".parquet", ".onnx", ".png")
LICENSES = {
    "apache-2.0",
    "mit",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc0-1.0",
    "bsd-3-clause",
    "other",
    "unknown",
}
PIPELINE_TAGS = {"sentence-similarity", "feature-extraction", "text-ranking", "text-classification"}
TASKS = {
    "text-retrieval",
    "sentence-similarity",
    "feature-extraction",
    "text-ranking",
    "question-answering",
}
RELATIONS = {"finetune", "quantized", "adapter", "merge"}
REPO_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


@dataclass
class Fault:
    """Requests whose `METHOD path` matches `where` fail, `times` times: with `status`, or because
    the connection breaks (None).

    `after`: the request is carried out, and only its answer is lost. `meanwhile`: nothing fails,
    but this happens first.
    """

    where: str
    status: int | None = 503
    times: int = 1
    retry_after: int | None = None
    body: bytes = b'{"error": "a fault of the test"}'
    after: bool = False
    meanwhile: Callable[[], object] | None = None


@dataclass
class Repo:
    """`commits`: (id, {path: content}), oldest first."""

    commits: list[tuple[str, dict[str, bytes]]]
    private: bool = False
    gated: str | bool = False
    tags: dict[str, str] = field(default_factory=dict)


def card_errors(content: str, kind: str) -> list[str]:  # noqa: PLR0912  (a branch for each rule of the Hub's)
    """The Hub's complaints about the metadata of a card."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if not match:
        return []
    card = yaml.safe_load(match[1])
    if not isinstance(card, dict):
        return ["metadata is not a mapping"]
    errors = []
    for name in ("tags", "datasets", "task_categories", "source_datasets", "configs"):
        if name in card and not isinstance(card[name], list):
            errors.append(f'"{name}" must be an array')
    languages = card.get("language", [])
    for language in languages if isinstance(languages, list) else [languages]:
        if not isinstance(language, str) or not re.fullmatch(
            r"[a-z]{2,3}|multilingual|code", language
        ):
            errors.append(f'"language" must be a lowercase ISO code, got {language!r}')
    if "license" in card and card["license"] not in LICENSES:
        errors.append(f'"license" must be one of {sorted(LICENSES)}')
    if kind == "model":
        if card.get("pipeline_tag", "feature-extraction") not in PIPELINE_TAGS:
            errors.append('"pipeline_tag" is unknown')
        bases = card.get("base_model", [])
        errors += [
            f'"base_model" {b!r} is not a model id'
            for b in (bases if isinstance(bases, list) else [bases])
            if not REPO_ID.fullmatch(b)
        ]
        if card.get("base_model_relation", "finetune") not in RELATIONS:
            errors.append('"base_model_relation" is unknown')
        errors += [
            f'"datasets" {d!r} is not a dataset id'
            for d in card.get("datasets", [])
            if not REPO_ID.fullmatch(d)
        ]
        for entry in card.get("model-index", []):
            for result in entry.get("results", [{}]) if entry.get("name") else [{}]:
                if not result.get("task", {}).get("type") or not {"type", "name"} <= set(
                    result.get("dataset", {})
                ):
                    errors.append('"model-index" is incomplete')
                for metric in result.get("metrics") or [{}]:
                    if "type" not in metric or not isinstance(metric.get("value"), (int, float)):
                        errors.append('"model-index" has a metric without type or value')
    if kind == "dataset":
        errors += [
            f'"task_categories" {t!r} is unknown'
            for t in card.get("task_categories", [])
            if t not in TASKS
        ]
    return errors


class Hub(ThreadingHTTPServer):
    """Holds `repos` ((kind, id) -> Repo), `stored` large files, `collections`, a log of the
    `requests`, and `faults` that are still to happen.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.corrupt = False
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone, because it was killed, is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(
        self, kind: str, repo: str, revision: str = "main"
    ) -> tuple[str, dict[str, bytes]] | None:
        """The commit that `revision` (a branch, tag or commit) names, and its files."""
        held = self.repos.get((kind, repo))
        if held is None:
            return None
        wanted = held.tags.get(revision, revision)
        history = [entry for entry in held.commits if wanted in ("main", entry[0])]
        return history[-1] if history else None

    def commits(self, kind: str, repo: str) -> int:
        """How many commits `main` has, the first one (`.gitattributes`) not counted."""
        return len(self.repos[kind, repo].commits) - 1

    def commit(self, kind: str, repo: str, changed: dict[str, bytes | None]) -> str:
        """Change files (None: remove) in a new commit of `main`."""
        history = self.repos[kind, repo].commits
        files = {
            name: content
            for name, content in {**history[-1][1], **changed}.items()
            if content is not None
        }
        history.append(
            (hashlib.sha1(f"{repo} {len(history)} {sorted(files)}".encode()).hexdigest(), files)
        )
        return history[-1][0]

    def fault_of(self, request: str) -> Fault | None:
        """The fault that this request runs into. It then happens once less."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.where, request):
                    fault.times -= 1
                    return fault
        return None


def digest_of(name: str, content: bytes) -> str:
    """SHA-256 of a large file, and Git's SHA-1 of any other."""
    return (
        hashlib.sha256(content).hexdigest()
        if name.endswith(LARGE)
        else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    )


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"
    answer_is_lost = False

    def log_message(self, *_: Any) -> None:
        """Silence."""

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        if self.answer_is_lost:
            self.close_connection = True
            return
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def role(self) -> str | None:
        """What the request's token may do: `nobody` without a token, None with an unknown one."""
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return {TOKEN: "write", READ_TOKEN: "read", SCOPED_TOKEN: "fineGrained", "": "nobody"}.get(
            given
        )

    def handle_request(self) -> None:  # noqa: PLR0912
        path, body = self.path.partition("?")[0], self.body()
        self.server.requests.append(f"{self.command} {path}")
        self.answer_is_lost = False
        if fault := self.server.fault_of(f"{self.command} {path}"):
            if fault.meanwhile:
                fault.meanwhile()
            elif fault.after:
                self.answer_is_lost = True
            elif fault.status is None:
                self.close_connection = True
                return None
            else:
                return self.answer(
                    fault.status,
                    fault.body,
                    **({"Retry_After": str(fault.retry_after)} if fault.retry_after else {}),
                )
        if path.startswith("/storage/"):  # a signed address: no token
            return self.storage(path, body)
        role = self.role()
        if role is None:
            return self.answer(
                401, {"error": "Invalid credentials"}, X_Error_Message="Invalid credentials"
            )
        if path == "/api/whoami-v2":
            return self.whoami(role)
        if path == "/api/validate-yaml":
            card = json.loads(body)
            errors = card_errors(card["content"], card["repoType"])
            return self.answer(
                400 if errors else 200, {"errors": [{"message": e} for e in errors], "warnings": []}
            )
        asks = self.command in {"GET", "HEAD"} or "/paths-info/" in path
        if not asks and role != "write":
            return self.answer(403, {"error": "no write access"}, X_Error_Message="no write access")
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/collections" or path.startswith("/api/collections/"):
            return self.collection(path, body)
        if found := re.fullmatch(
            r"/(datasets/|spaces/)?([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path
        ):
            return self.large_files(json.loads(body))
        api = r"/api/(models|datasets|spaces)/([\w.-]+/[\w.-]+)"
        if found := re.fullmatch(
            rf"{api}/(preupload|commit|revision|tree|tag|paths-info)/([\w.-]+)/?(.*)", path
        ):
            if found[3] == "tree":
                return self.tree(*found.groups())
            if found[3] == "paths-info":
                return self.paths_info(found[1], found[2], found[4], body)
            return self.repository(*found.groups()[:4], body)
        if found := re.fullmatch(rf"{api}/(refs|settings)", path):
            return self.repository(*found.groups(), "main", body)
        if found := re.fullmatch(api, path):
            return self.repository(*found.groups(), "revision", "main", body)
        if found := re.fullmatch(
            r"/(datasets/|spaces/)?([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)", path
        ):
            return self.resolve((found[1] or "models/")[:-1], found[2], found[3], found[4])
        return self.answer(404, {"error": f"no {path}"})

    do_GET = do_POST = do_HEAD = do_PUT = handle_request  # noqa: N815

    def whoami(self, role: str) -> None:
        if role == "nobody":
            return self.answer(401, {"error": "no token"})
        token: dict[str, Any] = {"displayName": "test", "role": role}
        if role == "fineGrained":
            token["fineGrained"] = {
                "scoped": [
                    {"entity": {"type": "org", "name": "team"}, "permissions": ["repo.write"]}
                ]
            }
        orgs = [
            {"type": "org", "name": "team", "roleInOrg": "write"},
            {"type": "org", "name": "readers", "roleInOrg": "read"},
        ]
        return self.answer(
            200,
            {
                "type": "user",
                "name": "you",
                "orgs": orgs,
                "auth": {"type": "access_token", "accessToken": token},
            },
        )

    def create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted.get('organization') or 'you'}/{wanted['name']}"
        kind = wanted.get("type") or "model"
        url = f"{self.server.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo}"
        if (f"{kind}s", repo) in self.server.repos:
            return self.answer(
                409, {"error": "You already created this repo", "url": url, "name": repo}
            )
        first = {".gitattributes": b"*.safetensors filter=lfs\n"}
        self.server.repos[f"{kind}s", repo] = Repo(
            [(hashlib.sha1(repo.encode()).hexdigest(), first)],
            private=wanted.get("visibility") == "private",
        )
        return self.answer(200, {"url": url, "name": repo})

    def collection(self, path: str, body: bytes) -> None:
        slug = path.removeprefix("/api/collections").strip("/").removesuffix("/items")
        if self.command == "POST" and not slug:
            wanted = json.loads(body)
            name = re.sub(r"\W+", "-", wanted["title"].lower())
            slug = f"{wanted['namespace']}/{name}-0123456789abcdef01234567"
            if slug in self.server.collections:
                return self.answer(409, {"error": "it is there", "slug": slug})
            self.server.collections[slug] = {
                "slug": slug,
                "title": wanted["title"],
                "owner": {"name": "you"},
                "items": [],
                "lastUpdated": "2026-01-01T00:00:00.000Z",
                "position": 0,
                "private": wanted["private"],
                "theme": "blue",
                "upvotes": 0,
            }
        held = self.server.collections.get(slug)
        if held is None:
            return self.answer(404, {"error": f"no {path}"})
        if path.endswith("/items"):
            item = json.loads(body)["item"]
            if any(item["id"] == other["id"] for other in held["items"]):
                return self.answer(409, {"error": "it is in there"})
            held["items"].append(
                {"_id": str(len(held["items"])), "position": len(held["items"]), **item}
            )
        return self.answer(200, held)

    def large_files(self, wanted: dict[str, Any]) -> None:
        objects = []
        for entry in wanted["objects"]:
            href = f"{self.server.endpoint}/storage/{entry['oid']}"
            actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(
                {**entry, **({} if entry["oid"] in self.server.stored else {"actions": actions})}
            )
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def storage(self, path: str, body: bytes) -> None:
        oid = path.split("/")[2]
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != oid:
                return self.answer(400, {"error": "the content does not have this digest"})
            self.server.stored[oid] = body
            return self.answer(200)
        return self.answer(200 if oid in self.server.stored else 404, {})

    def repository(self, kind: str, repo: str, action: str, revision: str, body: bytes) -> None:
        held, state = self.server.repos.get((kind, repo)), self.server.files(kind, repo, revision)
        if held is None:
            return self.answer(404, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
        if state is None:
            return self.answer(404, {"error": "no such revision"}, X_Error_Code="RevisionNotFound")
        commit, files = state
        if action == "preupload":
            answers = []
            for wanted in json.loads(body)["files"]:
                name = wanted["path"]
                answer = {
                    "path": name,
                    "uploadMode": "lfs" if name.endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                answers.append(
                    {**answer, **({"oid": digest_of(name, files[name])} if name in files else {})}
                )
            return self.answer(200, {"files": answers})
        if action == "commit":
            return self.add_commit(kind, repo, commit, body)
        if action == "settings":
            wanted = json.loads(body)
            held.gated = wanted.get("gated", held.gated)
            held.private = (
                wanted["visibility"] == "private" if "visibility" in wanted else held.private
            )
            return self.answer(200, {})
        if action == "tag":
            name = json.loads(body)["tag"]
            if name in held.tags:
                return self.answer(409, {"error": "the tag is there"})
            held.tags[name] = commit
            return self.answer(200, {})
        if action == "refs":
            tags = [
                {"name": n, "ref": f"refs/tags/{n}", "targetCommit": c}
                for n, c in held.tags.items()
            ]
            branches = [
                {"name": "main", "ref": "refs/heads/main", "targetCommit": held.commits[-1][0]}
            ]
            return self.answer(200, {"branches": branches, "converts": [], "tags": tags})
        info = {
            "id": repo,
            "sha": commit,
            "private": held.private,
            "gated": held.gated,
            "siblings": [{"rfilename": p} for p in files],
        }
        return self.answer(200, {**info, "tags": [], "evalResults": self.eval_results(files)})

    def tree(self, kind: str, repo: str, _: str, revision: str, folder: str) -> None:
        """The entries of a folder, or with `recursive` of all below it."""
        state = self.server.files(kind, repo, revision)
        if state is None:
            code = "RevisionNotFound" if (kind, repo) in self.server.repos else "RepoNotFound"
            return self.answer(404, {"error": "no such repository or revision"}, X_Error_Code=code)
        start = f"{folder}/" if folder else ""
        below = {name: content for name, content in state[1].items() if name.startswith(start)}
        if folder and not below:
            return self.answer(404, {"error": f"no folder {folder}"}, X_Error_Code="EntryNotFound")
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in (
            "true",
            "1",
        )
        return self.answer(200, self.entries(below, start, recursive))

    def paths_info(self, kind: str, repo: str, revision: str, body: bytes) -> None:
        """The entries of the paths that the request names; a path that is not there has none."""
        state = self.server.files(kind, repo, revision)
        if state is None:
            return self.answer(404, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
        entries = {entry["path"]: entry for entry in self.entries(state[1], "", recursive=True)}
        wanted = parse_qs(body.decode()).get("paths", [])
        return self.answer(200, [entries[path] for path in wanted if path in entries])

    @staticmethod
    def entries(below: dict[str, bytes], start: str, recursive: bool) -> list[dict[str, Any]]:
        """What the API says of files whose paths begin with `start`, and of their folders."""
        entries: dict[str, dict[str, Any]] = {}
        for name, content in below.items():
            first, *rest = name.removeprefix(start).split("/")
            if rest:
                entries[start + first] = {
                    "type": "directory",
                    "path": start + first,
                    "size": 0,
                    "oid": hashlib.sha1(first.encode()).hexdigest(),
                }
            if not rest or recursive:
                entry: dict[str, Any] = {
                    "type": "file",
                    "path": name,
                    "size": len(content),
                    "oid": digest_of(name, content),
                }
                if name.endswith(LARGE):
                    entry["lfs"] = {"oid": entry["oid"], "size": len(content), "pointerSize": 130}
                    entry["oid"] = hashlib.sha1(content).hexdigest()
                entries[name] = entry
        return list(entries.values())

    @staticmethod
    def eval_results(files: dict[str, bytes]) -> list[Any]:
        return [
            entry
            for name, content in files.items()
            if name.startswith(".eval_results/")
            for entry in yaml.safe_load(content)
        ]

    def add_commit(self, kind: str, repo: str, parent: str, body: bytes) -> None:
        changed: dict[str, bytes | None] = {}
        for entry in map(json.loads, filter(None, body.split(b"\n"))):
            value = entry["value"]
            if entry["key"] == "header" and value.get("parentCommit", parent) != parent:
                return self.answer(
                    412, {"error": "A commit has happened since. Please refresh and try again."}
                )
            if entry["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.server.stored:
                    return self.answer(400, {"error": f"{value['path']} was not stored"})
                changed[value["path"]] = self.server.stored[value["oid"]]
            elif entry["key"] == "deletedFile":
                changed[value["path"]] = None
            elif entry["key"] != "header":
                return self.answer(400, {"error": f"unknown {entry['key']}"})
        commit = self.server.commit(kind, repo, changed)
        return self.answer(
            200,
            {
                "success": True,
                "commitOid": commit,
                "commitUrl": f"{self.server.endpoint}/{repo}/commit/{commit}",
            },
        )

    def resolve(self, kind: str, repo: str, revision: str, name: str) -> None:
        state = self.server.files(kind, repo, revision)
        held = self.server.repos.get((kind, repo))
        if held is not None and held.private and self.role() == "nobody":
            return self.answer(404, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
        if state is None or name not in state[1]:
            return self.answer(404, {"error": "no such entry"}, X_Error_Code="EntryNotFound")
        content = state[1][name]
        etag = digest_of(name, content)
        if self.server.corrupt and name.endswith(".safetensors"):
            content = content[:-1] + bytes([content[-1] ^ 1])
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": state[0]}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(part[1]), int(part[2] or len(content) - 1)
            span = f"bytes {first}-{last}/{len(content)}"
            return self.answer(206, content[first : last + 1], **headers, Content_Range=span)
        return self.answer(200, content, **headers)


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

"""Publishing to the Hub: one commit a repository, loaded back in a fresh process, and only then
tagged.

Whatever a repository is to hold goes into one `create_commit`: large files are stored first, where
no branch shows them, and the commit that names them is made as a whole or not at all.
(`upload_folder` splits a push into several commits when it uses Xet, so that an interruption leaves
part of it on `main`; a branch that is merged afterwards would give `main` another commit than the
one checked.)

Each attempt begins by asking what the repository holds, and sends what differs. So a call that was
interrupted goes on, one whose answer was lost finds its own commit, and one that has nothing to do
does nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, cast

import numpy as np
import pyarrow.parquet as pq
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetCard,
    HfApi,
    get_session,
    get_token,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from sentence_transformers import SentenceTransformer

from hf_distill.errors import InputError

logger = logging.getLogger(__name__)

WAITS: list[float] = [1, 2, 4, 8, 16]
"""Seconds before each further attempt, where the Hub does not say how long (`Retry-After`)."""

RETRIED = frozenset({408, 409, 412, 425, 429, 500, 502, 503, 504})
"""Answers after which another attempt may succeed. 409 and 412: somebody else committed in
between.
"""

TIMEOUT = 300.0
"""Seconds without a byte after which an attempt has failed; the client itself would wait for
ever.
"""

TOLERANCE = 1e-6
"""Largest difference of an embedding from the local one."""

PROBES = (
    "how do I read a csv file",
    "Parse a file of comma-separated values.",
    "a",
    "Ünïcödé – 漢字 🙂",
    "one long text " * 100,
)

_HTTP_ERROR = cast(
    "type[Exception]", HfHubHTTPError.__mro__[1]
)  # httpx's or httpx2's, as the client is built: also broken connections
_RESULTS = ".eval_results"
_OWN_FOLDERS = re.compile(r"(\d_[A-Z]\w*|onnx|\.eval_results|all|selected)/")
_OWN_FILES = re.compile(
    r"config\.json|sentence_bert_config\.json|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|tokenizer\.json|tokenizer_config\.json"
    r"|special_tokens_map\.json|added_tokens\.json|vocab\.(txt|json)|merges\.txt|(sentencepiece\.bpe|spiece|tokenizer)\.model"
)
"""What a student may have in the root of its repository, and one of another kind or with another
tokenizer has not: beside that, it would be read as its own."""
_UNSET = (
    "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE", "TRANSFORMERS_CACHE",
    "SENTENCE_TRANSFORMERS_HOME", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE",
)  # fmt: skip

P = ParamSpec("P")
T = TypeVar("T")


class PublishingError(RuntimeError):
    """The Hub could not be brought to hold the release, or does not return what was sent. No
    message holds the token.
    """


@dataclass(frozen=True)
class Release:
    """What one repository is to hold: the files of `folder`, of which some (`instead`, by path in
    the repository) have other content.
    """

    repo: str
    kind: Literal["model", "dataset", "space"]
    folder: Path
    instead: Mapping[str, bytes] = field(default_factory=dict)

    def files(self) -> dict[str, Path | bytes]:
        """Path in the repository -> file, or content. What is hidden (a killed call's half-written
        files) is not published, but for the evaluation results.
        """
        files = {
            p.relative_to(self.folder): p for p in sorted(self.folder.rglob("*")) if p.is_file()
        }
        found = {
            path.as_posix(): file
            for path, file in files.items()
            if not any(
                part.startswith(".")
                for part in (path.parts[1:] if path.parts[0] == _RESULTS else path.parts)
            )
        }
        return {**found, **self.instead}


@dataclass(frozen=True)
class Settings:
    """How it is published. `tag` None: the next of v1, v2, ..."""

    private: bool | None = None
    gated: Literal["auto", "manual"] | None = None
    tag: str | None = None
    collection: str | None = None


@dataclass(frozen=True)
class Remote:
    """What a repository holds: its last commit, the digest of each file (SHA-256, or Git's SHA-1 of
    a small file), and tag -> commit.
    """

    commit: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def patiently(what: str, call: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
    """`call(...)`, again after what may pass: broken connections, 429 (after `Retry-After`), 5xx,
    somebody else's commit in between.

    The client retries uploads by itself, but neither creating, validating, tagging nor committing.
    """
    for wait in [*WAITS, None]:
        pause = wait
        try:
            return call(*arguments, **keywords)
        except HfHubHTTPError as error:
            if wait is None or error.response.status_code not in RETRIED:
                raise
            told = error.response.headers.get("Retry-After", "")
            pause = float(told) if told.isdecimal() else wait
            reason = f"HTTP {error.response.status_code}"
        except (
            _HTTP_ERROR,
            json.JSONDecodeError,
        ) as error:  # a proxy's HTML where the client expects JSON
            if wait is None:
                raise
            reason = type(error).__name__
        logger.warning("%s: %s; trying again in %g s", what, reason, pause)
        time.sleep(pause or 0)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _may_write(account: Mapping[str, Any], repo: str) -> str | None:
    """Why the account's token cannot write to `repo`; None if it can, as far as the Hub tells."""
    namespace = repo.partition("/")[0]
    user = account["name"]
    roles = {user: "admin"} | {
        org["name"]: org.get("roleInOrg") or "write" for org in account.get("orgs", [])
    }
    token = account.get("auth", {}).get("accessToken") or {}
    if token.get("role") == "read":
        return "the token can only read; make one that can write"
    if namespace not in roles:
        return f"you are {user}, and no member of {namespace}"
    if roles[namespace] == "read":
        return f"you can only read in {namespace}"
    if token.get("role") == "fineGrained":
        scopes = (token.get("fineGrained") or {}).get("scoped", [])
        written = {
            scope["entity"]["name"] for scope in scopes if "repo.write" in scope["permissions"]
        }
        if not written & {namespace, repo}:
            return f"the fine-grained token has no write access to {namespace}; tick it in the token's settings"
    return None


def check_access(api: HfApi, repos: Sequence[str]) -> None:
    """Before any work: is there a token, does the Hub know it, and may it write to `repos`?

    Creating a repository that exists succeeds also without write access, so that it proves nothing:
        the account is asked.

    Raises:
        InputError: It cannot be. The token itself is never in the message.
    """
    malformed = [repo for repo in repos if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo)]
    if malformed:
        raise InputError(f"{malformed[0]!r} is no repository: write OWNER/NAME, e.g. you/student")
    get_session().timeout = TIMEOUT
    try:
        account = patiently("asking the Hub who you are", api.whoami)
    except LocalTokenNotFoundError as error:
        raise InputError(
            "publishing needs a Hub token: run `hf auth login`, or set HF_TOKEN"
        ) from error
    except OfflineModeIsEnabled as error:
        raise InputError("HF_HUB_OFFLINE is set: nothing can be published") from error
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise InputError(
                "the Hub does not accept the token; nothing was done. Run `hf auth login`, or set HF_TOKEN"
            ) from error
        raise InputError(
            f"the Hub answers HTTP {error.response.status_code} to who you are; nothing was done. Try later"
        ) from error
    except (_HTTP_ERROR, OSError, json.JSONDecodeError) as error:
        raise InputError(
            f"the Hub at {api.endpoint} cannot be reached ({type(error).__name__}); nothing was done"
        ) from error
    for repo in repos:
        if reason := _may_write(account, repo):
            raise InputError(f"cannot publish to {repo}: {reason}. Nothing was done")


def remote_state(api: HfApi, release: Release) -> Remote:
    """What the repository of `release` holds now; an empty `Remote` if there is none."""
    try:
        commit = str(api.repo_info(release.repo, repo_type=release.kind).sha)
    except RepositoryNotFoundError:
        return Remote()
    tree = api.list_repo_tree(release.repo, repo_type=release.kind, revision=commit, recursive=True)
    digests = {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
        for entry in tree
        if isinstance(entry, RepoFile)
    }
    tags = {
        tag.name: tag.target_commit
        for tag in api.list_repo_refs(release.repo, repo_type=release.kind).tags
    }
    return Remote(commit, digests, tags)


def _sha256(content: Path | bytes) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _has_digest(content: Path | bytes, digest: str) -> bool:
    if len(digest) == 64:
        return _sha256(content) == digest
    small = (
        content if isinstance(content, bytes) else content.read_bytes()
    )  # Git's own: what is large has a SHA-256
    return hashlib.sha1(b"blob %d\0" % len(small) + small).hexdigest() == digest


def changes(release: Release, remote: Remote) -> tuple[list[str], list[str]]:
    """Files to send, and files of an earlier release to remove: those in a release's own folders,
    and the configuration, tokenizer and weights of a student, that this one does not have.

    What others put beside them stays.
    """
    files = release.files()
    send = [
        name
        for name, content in files.items()
        if not (name in remote.digests and _has_digest(content, remote.digests[name]))
    ]
    model = release.kind == "model"
    own = [
        name
        for name in remote.digests
        if _OWN_FOLDERS.match(name) or (model and _OWN_FILES.fullmatch(name))
    ]
    remove = [name for name in own if name not in files]
    return send, remove


def tag_of(release: Release, remote: Remote, wanted: str | None) -> str:
    """The tag that the release gets.

    Raises:
        InputError: `wanted` is taken by another commit.
    """
    changed = any(changes(release, remote))
    if wanted is not None:
        if wanted in remote.tags and (changed or remote.tags[wanted] != remote.commit):
            raise InputError(
                f"{release.repo} has a tag {wanted} already, at commit {remote.tags[wanted][:10]}, which holds something else; "
                "name another --revision"
            )
        return wanted
    numbers = {
        int(name[1:]): commit for name, commit in remote.tags.items() if re.fullmatch(r"v\d+", name)
    }
    here = [number for number, commit in numbers.items() if commit == remote.commit and not changed]
    return f"v{max(here) if here else max(numbers, default=0) + 1}"


def commit_release(api: HfApi, release: Release) -> str:
    """Bring `main` to hold `release`, in one commit or none if it does already.

    Returns:
        The commit.

    Raises:
        PublishingError: The Hub refuses it.
    """

    def attempt() -> str:
        remote = remote_state(api, release)
        send, remove = changes(release, remote)
        if not send and not remove:
            return str(remote.commit)
        files = release.files()
        made = api.create_commit(
            release.repo,
            [
                *(CommitOperationAdd(name, files[name]) for name in send),
                *(CommitOperationDelete(name, is_folder=False) for name in remove),
            ],
            commit_message="Release by hf_distill",
            repo_type=release.kind,
            parent_commit=remote.commit,  # a commit in between is a 412, and what differs is looked for again
        )
        return str(made.oid)

    try:
        return patiently(f"committing to {release.repo}", attempt)
    except (_HTTP_ERROR, RuntimeError, ValueError) as error:
        raise PublishingError(
            f"{release.repo} could not be published: {_without_token(_story(error), api)}\nRun again: it goes on from what the Hub holds"
        ) from error


def _story(error: BaseException) -> str:
    """The message of `error`, and of what caused it: the client says "error while uploading" of a
    403.
    """
    return str(error) + (f" ({_story(error.__cause__)})" if error.__cause__ else "")


def _token(api: HfApi) -> str:
    return str(api.token or get_token() or "")


def _without_token(text: str, api: HfApi) -> str:
    return text.replace(_token(api), "[token]") if _token(api) else text


def _local_rows(folder: Path) -> dict[str, int]:
    """`config/split` -> rows, as the card of the dataset repository in `folder` declares its
    files.
    """
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*.parquet")}
    return {
        f"{config['config_name']}/{part['split']}": sum(
            pq.ParquetFile(path).metadata.num_rows
            for name, path in files.items()
            if any(
                fnmatch(name, pattern)
                for pattern in ([part["path"]] if isinstance(part["path"], str) else part["path"])
            )
        )
        for config in DatasetCard.load(folder / "README.md").data["configs"]
        for part in config["data_files"]
    }


def load_back(api: HfApi, commits: Sequence[tuple[Release, str]]) -> list[str]:
    """Load what was published by commit, as anyone would, in a fresh process with an empty cache,
    and compare.

    Compared are the SHA-256 of every file, the embeddings of some texts (within `TOLERANCE`), and
    the rows of every config and split.

    Returns:
        What was found equal, a line for each repository.

    Raises:
        PublishingError: Something differs, or cannot be loaded.
    """
    local_digests = {
        r.repo: {name: _sha256(content) for name, content in r.files().items()} for r, _ in commits
    }
    wanted = {
        "repos": [[r.kind, r.repo, commit, local_digests[r.repo]] for r, commit in commits],
        "probes": PROBES,
    }
    with tempfile.TemporaryDirectory() as home:
        environment = {name: value for name, value in os.environ.items() if name not in _UNSET}
        environment |= {
            "HF_HOME": home,
            "HF_TOKEN": _token(api),
            "HF_ENDPOINT": api.endpoint,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        script = Path(__file__).with_name("load_back.py")
        done = subprocess.run(  # -P: the folder of the script holds names like `search`, which are no business of the libraries'
            [sys.executable, "-P", str(script)],
            input=json.dumps(wanted), capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    digests = next((answer["digests"] for answer in answers if "digests" in answer), None)
    failure = _without_token("\n".join(done.stderr.splitlines()[-12:]), api)
    if digests is None:
        raise PublishingError(f"what was published could not be downloaded again:\n{failure}")
    said = []
    for release, commit in commits:
        here, there = local_digests[release.repo], digests[release.repo]
        for name, digest in here.items():
            if there.get(name) != digest:
                raise PublishingError(
                    f"{release.repo} at {commit}: {name} on the Hub differs from the local file (SHA-256 {there.get(name, 'none')[:16]}, "
                    f"here {digest[:16]}). It was not tagged; publish again"
                )
        said.append(f"{release.repo} at {commit[:10]}: {len(here)} files with equal SHA-256")
    found = answers[-1]
    if done.returncode or "rows" not in found:
        raise PublishingError(f"what was published could be downloaded, but not loaded:\n{failure}")
    for i, (release, commit) in enumerate(commits):
        if release.kind == "model":
            local = SentenceTransformer(str(release.folder), device="cpu").encode(
                list(PROBES), show_progress_bar=False
            )
            difference = float(
                np.abs(local - np.array(found["embeddings"], dtype=np.float32)).max()
            )
            if not difference <= TOLERANCE:
                raise PublishingError(
                    f"{release.repo} at {commit}: embeddings differ from the local ones by up to {difference:.2g}"
                )
            said[i] += f"; {len(PROBES)} embeddings equal (largest difference {difference:.1g})"
        else:
            rows = _local_rows(release.folder)
            if rows != found["rows"]:
                raise PublishingError(
                    f"{release.repo} at {commit}: rows are {found['rows']}, locally {rows}"
                )
            said[i] += "; rows equal: " + ", ".join(
                f"{name} {count:,}" for name, count in rows.items()
            )
    return said


def _prepare(api: HfApi, release: Release, settings: Settings) -> None:
    """Create the repository, and close it to the public where that is wished for, before anything
    is in it.
    """
    repo, kind = release.repo, release.kind
    sdk = "gradio" if kind == "space" else None
    patiently(
        f"creating {repo}",
        api.create_repo,
        repo,
        repo_type=kind,
        private=settings.private,
        space_sdk=sdk,
        exist_ok=True,
    )
    info = patiently(f"looking at {repo}", api.repo_info, repo, repo_type=kind)
    private = True if settings.private and not info.private else None  # it was there, and public
    if private is not None or settings.gated is not None:
        patiently(
            f"setting up {repo}",
            api.update_repo_settings,
            repo,
            repo_type=kind,
            private=private,
            gated=settings.gated,
        )


def _collect(api: HfApi, releases: Sequence[Release], title: str, private: bool) -> str:
    """Put the repositories into one collection; its address."""
    namespace = releases[-1].repo.partition("/")[0]
    made = patiently(
        "creating the collection",
        api.create_collection,
        title,
        namespace=namespace,
        private=private,
        exists_ok=True,
    )
    for release in releases:
        patiently(
            f"collecting {release.repo}",
            api.add_collection_item,
            made.slug,
            release.repo,
            release.kind,
            exists_ok=True,
        )
    return made.url


def publish(releases: Sequence[Release], settings: Settings, api: HfApi) -> list[str]:
    """Publish `releases`, each in one commit; load them back by commit and compare; then tag them.

    A tag thus says that the commit was loaded back. Where `main` holds a release already and is
    tagged, nothing is done. A Space is neither loaded back nor tagged.

    Returns:
        What was done and found, a line each: the last ones are the addresses.

    Raises:
        InputError: No token, or one that may not write; a tag that is taken. Nothing was done.
        PublishingError: The Hub refuses something, or does not return what was sent.
    """
    check_access(api, [release.repo for release in releases])
    try:
        for release in releases:  # a tag that is taken is said before anything is made
            tag_of(
                release,
                patiently(f"looking at {release.repo}", remote_state, api, release),
                settings.tag,
            )
        for release in releases:
            _prepare(api, release, settings)
        said: list[str] = []
        commits: list[tuple[Release, str]] = []
        tags: list[str | None] = []
        for release in releases:
            before = patiently(f"looking at {release.repo}", remote_state, api, release)
            tag = None if release.kind == "space" else tag_of(release, before, settings.tag)
            commit = commit_release(api, release)
            commits.append((release, commit))
            if commit == before.commit and (tag is None or before.tags.get(tag) == commit):
                said.append(f"{release.repo}: nothing to do, {tag or 'main'} is this release")
                tag = None
            tags.append(tag)
        fresh = [entry for entry, tag in zip(commits, tags, strict=True) if tag]
        if fresh:
            said += [f"Loaded back {line}" for line in load_back(api, fresh)]
        for (release, commit), tag in zip(commits, tags, strict=True):
            if tag:
                patiently(
                    f"tagging {release.repo}",
                    api.create_tag,
                    release.repo,
                    tag=tag,
                    revision=commit,
                    repo_type=release.kind,
                    exist_ok=True,
                )
        if settings.collection:
            said.append(
                f"Collection: {_collect(api, releases, settings.collection, bool(settings.private))}"
            )
    except _HTTP_ERROR as error:
        raise PublishingError(
            f"the Hub does not go along: {_without_token(str(error), api)}\nRun again: it goes on from here"
        ) from error
    prefix = {"model": "", "dataset": "datasets/", "space": "spaces/"}
    for (release, commit), tag in zip(commits, tags, strict=True):
        named = f" ({tag})" if tag else ""
        said.append(
            f"Published: {api.endpoint}/{prefix[release.kind]}{release.repo}/commit/{commit}{named}"
        )
    return said


def dry_run(releases: Sequence[Release], settings: Settings, api: HfApi) -> list[str]:
    """What `publish` would send, a line each. Reads from the Hub where it can, and changes
    nothing.
    """
    said = []
    for release in releases:
        try:
            remote, known = remote_state(api, release), ""
        except (_HTTP_ERROR, OSError) as error:
            remote, known = Remote(), f" (the Hub was not asked: {type(error).__name__})"
        send, remove = changes(release, remote)
        files = release.files()
        sizes = {n: len(c) if isinstance(c, bytes) else c.stat().st_size for n, c in files.items()}
        exists = f"exists at {remote.commit[:10]}" if remote.commit else "would be created"
        closed = ", ".join(
            filter(
                None,
                [
                    "private" if settings.private else "",
                    f"gated ({settings.gated})" if settings.gated else "",
                ],
            )
        )
        said.append(
            f"{release.kind} {release.repo}: {exists}{', ' + closed if closed else ''}{known}"
        )
        said += [
            f"  {'send' if name in send else 'same':<6} {sizes[name]:>13,} bytes  {name}"
            for name in files
        ]
        said += [f"  {'remove':<6} {'':>13}        {name}" for name in remove]
        total = sum(sizes[name] for name in send)
        said.append(
            f"  {len(send)} files, {total:,} bytes in one commit, tagged {tag_of(release, remote, settings.tag)}"
        )
    return [
        *said,
        *([f"collection {settings.collection!r}"] if settings.collection else []),
        "Dry run: nothing was sent",
    ]

"""A repository on the Hub: what it holds, what a release changes in it, and the one commit that
makes the change.

Everything that a repository will hold goes into one `create_commit`. Large files are stored first,
visible on no branch, and the commit that names them is made as a whole or not at all.
(`upload_folder` splits a push into several commits when it uses Xet, so an interruption leaves a
part of it on `main`. A branch that is merged afterwards would give `main` another commit than the
one that was checked.)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from hf_distill.errors import InputError, PublishingError
from hf_distill.release.access import HTTP_ERROR, patiently, shown

_RESULTS = ".eval_results"
_OWN_FOLDERS = re.compile(
    r"(\d_[A-Z]\w*|onnx|openvino|model2vec|\.eval_results|all|selected|page-[0-9a-f]{16})/"
)
_OWN_FILES = re.compile(
    r"config\.json|sentence_bert_config\.json|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.(txt|json)|merges\.txt|(sentencepiece\.bpe|spiece|tokenizer)\.model"
)
"""Files of a student in the root of its repository. If an earlier release left one that this
student does not have, it would be read as part of this student.
"""


@dataclass(frozen=True)
class Release:
    """What one repository will hold.

    Attributes:
        repo: OWNER/NAME.
        kind: Model, data set or Space.
        folder: Its files.
        instead: Path in the repository -> content that replaces the file's own.
        own: The files of the folder that are published, as paths in the repository: those that the
            run wrote. None: all.
        sdk: What runs a Space.
    """

    repo: str
    kind: Literal["model", "dataset", "space"]
    folder: Path
    instead: Mapping[str, bytes] = field(default_factory=dict)
    own: frozenset[str] | None = None
    sdk: Literal["gradio", "static"] = "gradio"

    def files(self) -> dict[str, Path | bytes]:
        """Path in the repository -> file, or content.

        Raises:
            InputError: A file or a folder is a link: what it leads to is not part of the run.
        """
        there = self._there()
        own = {name: path for name, path in there.items() if self.own is None or name in self.own}
        return {**own, **self.instead}

    def foreign(self) -> list[str]:
        """Files of the folder that are not published, because the run did not write them."""
        if self.own is None:
            return []
        return [name for name in self._there() if name not in self.own | self.instead.keys()]

    def _there(self) -> dict[str, Path]:
        """Path in the repository -> file. Hidden files are none (a killed call may leave
        half-written ones), except for the evaluation results.
        """
        files: dict[str, Path] = {}
        for file in sorted(self.folder.rglob("*")):
            if file.is_symlink():
                raise InputError(
                    f"{file} is a link to {file.resolve()}, and only files of the run itself are "
                    "published; remove it"
                )
            path = file.relative_to(self.folder)
            parts = path.parts[1:] if path.parts[0] == _RESULTS else path.parts
            if file.is_file() and not any(part.startswith(".") for part in parts):
                files[path.as_posix()] = file
        return files


@dataclass(frozen=True)
class Remote:
    """What a repository holds: its last commit, the digest of each file (SHA-256, or Git's SHA-1 of
    a small file), and tag -> commit.
    """

    commit: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def remote_state(api: HfApi, release: Release) -> Remote:
    """What the repository of `release` holds now; an empty `Remote` if it does not exist."""
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


def digest_of(content: Path | bytes) -> str:
    """SHA-256 of a file or of content, in hex."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _has_digest(content: Path | bytes, digest: str) -> bool:
    if len(digest) == 64:
        return digest_of(content) == digest
    # Git's own digest, which only small files have.
    small = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(small) + small).hexdigest() == digest


def changes(release: Release, remote: Remote) -> tuple[list[str], list[str]]:
    """Files to send, and files of an earlier release to remove.

    Files that this release does not have are removed from a release's own folders and from the
    configuration, tokenizer and weights of a student. Files that others added stay.
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
    return send, [name for name in own if name not in files]


def tag_of(release: Release, remote: Remote, wanted: str | None) -> str:
    """The tag that the release gets: `wanted`, or the next of v1, v2, ...

    Raises:
        InputError: Another commit has the tag `wanted` already.
    """
    changed = any(changes(release, remote))
    if wanted is not None:
        if wanted in remote.tags and (changed or remote.tags[wanted] != remote.commit):
            raise InputError(
                f"{release.repo} has a tag {wanted} already, at commit "
                f"{remote.tags[wanted][:10]}, which holds something else; choose another tag with "
                "--revision (of a recipe: --hub_revision)"
            )
        return wanted
    numbers = {
        int(name[1:]): commit for name, commit in remote.tags.items() if re.fullmatch(r"v\d+", name)
    }
    here = [number for number, commit in numbers.items() if commit == remote.commit and not changed]
    return f"v{max(here) if here else max(numbers, default=0) + 1}"


def _story(error: BaseException) -> str:
    """The messages of `error` and its causes: the client calls a 403 "error while uploading"."""
    return str(error) + (f" ({_story(error.__cause__)})" if error.__cause__ else "")


def commit_release(api: HfApi, release: Release) -> str:
    """Make `main` hold `release`: in one commit, or in none if it does so already.

    Each attempt first asks what the repository holds, and sends only what differs. An interrupted
    call therefore continues, and one whose answer was lost recognises its own commit.

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
        commit = api.create_commit(
            release.repo,
            [
                *(CommitOperationAdd(name, files[name]) for name in send),
                *(CommitOperationDelete(name, is_folder=False) for name in remove),
            ],
            commit_message="Release by hf_distill",
            repo_type=release.kind,
            # If somebody commits in between, the Hub answers 412, and the next attempt compares
            # with their commit.
            parent_commit=remote.commit,
        )
        return str(commit.oid)

    try:
        return patiently(f"committing to {release.repo}", attempt)
    except (HTTP_ERROR, RuntimeError, ValueError) as error:
        raise PublishingError(
            f"{release.repo} could not be published: {shown(_story(error), api)}\n"
            "Run it again to continue from what the Hub holds"
        ) from error

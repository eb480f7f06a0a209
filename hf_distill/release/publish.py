"""Publishing to the Hub: one commit a repository, loaded back in a fresh process, and only then
tagged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from huggingface_hub import HfApi

from hf_distill.errors import PublishingError
from hf_distill.release.access import HTTP_ERROR, check_access, patiently, shown
from hf_distill.release.remote import (
    Release,
    Remote,
    changes,
    commit_release,
    remote_state,
    tag_of,
)
from hf_distill.release.verify import load_back

__all__ = ["Release", "Settings", "check_access", "dry_run", "publish"]

_PATHS = {"model": "", "dataset": "datasets/", "space": "spaces/"}


@dataclass(frozen=True)
class Settings:
    """How to publish.

    Attributes:
        private: Only members see the repositories. None: as they are, or as the owner's default.
        gated: Whether access has to be requested, and who grants it. None: as it is.
        tag: None: the next of v1, v2, ...
        collection: Title of a collection that the repositories go into.
    """

    private: bool | None = None
    gated: Literal["auto", "manual"] | None = None
    tag: str | None = None
    collection: str | None = None


@dataclass(frozen=True)
class _Committed:
    """A release and its commit. A Space has no `tag`; `done`: nothing had to change."""

    release: Release
    commit: str
    tag: str | None
    done: bool


def prepare(api: HfApi, release: Release, settings: Settings) -> None:
    """Create the repository and, if wanted, close it to the public, before it holds anything."""
    repo, kind = release.repo, release.kind
    patiently(
        f"creating {repo}",
        api.create_repo,
        repo,
        repo_type=kind,
        private=settings.private,
        space_sdk=release.sdk if kind == "space" else None,
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


def _commit(api: HfApi, release: Release, settings: Settings) -> _Committed:
    """Bring `main` to hold `release`."""
    before = patiently(f"looking at {release.repo}", remote_state, api, release)
    tag = None if release.kind == "space" else tag_of(release, before, settings.tag)
    commit = commit_release(api, release)
    tagged = tag is None or before.tags.get(tag) == commit
    return _Committed(release, commit, tag, done=tagged and commit == before.commit)


def _tag(api: HfApi, committed: _Committed) -> None:
    patiently(
        f"tagging {committed.release.repo}",
        api.create_tag,
        committed.release.repo,
        tag=str(committed.tag),
        revision=committed.commit,
        repo_type=committed.release.kind,
        exist_ok=True,
    )


def _collect(api: HfApi, releases: Sequence[Release], title: str, private: bool) -> str:
    """Put the repositories into one collection. Returns its address."""
    namespace = releases[-1].repo.partition("/")[0]
    collection = patiently(
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
            collection.slug,
            release.repo,
            release.kind,
            exists_ok=True,
        )
    return collection.url


def publish(releases: Sequence[Release], settings: Settings, api: HfApi) -> list[str]:
    """Publish `releases`, each in one commit; load them back by commit and compare; then tag them.

    A tag therefore means that its commit was loaded back. Nothing is done if `main` already holds
    the release and has the tag. A Space is loaded back, and not tagged.

    Returns:
        What was done, a line each. The last ones are the addresses.

    Raises:
        InputError: There is no token, or it cannot write there, or the tag is taken. Nothing was
            done.
        PublishingError: The Hub refuses something, or does not return what was sent.
    """
    check_access(api, [release.repo for release in releases])
    try:
        for release in releases:  # a tag that is taken ends the call before anything is created
            state = patiently(f"looking at {release.repo}", remote_state, api, release)
            tag_of(release, state, settings.tag)
        for release in releases:
            prepare(api, release, settings)
        commits = [_commit(api, release, settings) for release in releases]
        lines = [line for release in releases for line in _left_out(release)]
        lines += [
            f"{c.release.repo}: nothing to do, {c.tag or 'main'} is this release"
            for c in commits
            if c.done
        ]
        fresh = [c for c in commits if not c.done]
        if fresh:
            pairs = [(c.release, c.commit) for c in fresh]
            lines += [f"Loaded back {line}" for line in load_back(api, pairs)]
        for committed in fresh:
            if committed.tag:
                _tag(api, committed)
        if settings.collection:
            url = _collect(api, releases, settings.collection, bool(settings.private))
            lines.append(f"Collection: {url}")
    except HTTP_ERROR as error:
        raise PublishingError(
            f"the Hub refuses: {shown(str(error), api)}\nRun it again to continue from here"
        ) from error
    for c in commits:
        tag = f" ({c.tag})" if c in fresh and c.tag else ""
        address = f"{api.endpoint}/{_PATHS[c.release.kind]}{c.release.repo}/commit/{c.commit}"
        lines.append(f"Published: {address}{tag}")
    return [shown(line, api) for line in lines]


def _left_out(release: Release) -> list[str]:
    """A line for each file beside the release that is not sent."""
    return [
        f"{release.repo}: {name} was not written by this run, so it is not sent"
        for name in release.foreign()
    ]


def dry_run(releases: Sequence[Release], settings: Settings, api: HfApi) -> list[str]:
    """What `publish` would send, a line each. Reads from the Hub where it can, and changes nothing.

    Raises:
        InputError: The tag is taken.
    """
    lines = []
    for release in releases:
        try:
            remote, unasked = remote_state(api, release), ""
        except (HTTP_ERROR, OSError) as error:
            remote, unasked = Remote(), f" (the Hub was not asked: {type(error).__name__})"
        send, remove = changes(release, remote)
        sizes = {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in release.files().items()
        }
        state = [f"exists at {remote.commit[:10]}" if remote.commit else "would be created"]
        state += ["private"] if settings.private else []
        state += [f"gated ({settings.gated})"] if settings.gated else []
        lines.append(f"{release.kind} {release.repo}: {', '.join(state)}{unasked}")
        lines += [
            f"  {'send' if name in send else 'same':<6} {size:>13,} bytes  {name}"
            for name, size in sizes.items()
        ]
        lines += [f"  {'remove':<6} {'':>13}        {name}" for name in remove]
        lines += _left_out(release)
        total = sum(sizes[name] for name in send)
        tagged = (
            "" if release.kind == "space" else f", tagged {tag_of(release, remote, settings.tag)}"
        )
        lines.append(f"  {len(send)} files, {total:,} bytes in one commit{tagged}")
    if settings.collection:
        lines.append(f"collection {settings.collection!r}")
    return [shown(line, api) for line in [*lines, "Dry run: nothing was sent"]]

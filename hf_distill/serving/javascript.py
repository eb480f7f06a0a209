"""The JavaScript of a search page: files of two npm packages, of pinned versions and with pinned
checksums. npm itself is not needed.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote

from hf_distill.errors import InputError
from hf_distill.run.stage import written_whole
from hf_distill.serving.index import user_cache

_REGISTRY = "https://registry.npmjs.org"
CDN = "https://cdn.jsdelivr.net/npm"
"""Serves the files of npm packages as they are in the registry."""

_TIMEOUT = 60.0
"""Seconds without a byte after which a download has failed."""


@dataclass(frozen=True)
class File:
    """One file of a package.

    Attributes:
        package: Name, in the npm registry.
        version: The pinned version.
        archive: SHA-512 of the package's archive, in base64, as the registry tells it.
        path: Of the file in the package.
        sha384: Of the file, in base64.
        size: In bytes.
    """

    package: str
    version: str
    archive: str
    path: str
    sha384: str
    size: int

    @property
    def integrity(self) -> str:
        """What a browser checks before it uses the file."""
        return f"sha384-{self.sha384}"

    def address(self, cdn: str = CDN) -> str:
        """Where the file lies on a server of npm packages."""
        return f"{cdn}/{self.package}@{self.version}/{self.path}"


_ONNXRUNTIME = (
    "onnxruntime-web",
    "1.30.0",
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
)
_TOKENIZERS = (
    "@huggingface/tokenizers",
    "0.2.0",
    "LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
)
ONNXRUNTIME = File(
    *_ONNXRUNTIME,
    "dist/ort.wasm.bundle.min.mjs",
    "PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    73_054,
)
"""onnxruntime for WebAssembly alone (MIT)."""
WASM = File(
    *_ONNXRUNTIME,
    "dist/ort-wasm-simd-threaded.wasm",
    "vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
    14_239_897,
)
"""The program that `ONNXRUNTIME` runs."""
TOKENIZERS = File(
    *_TOKENIZERS,
    "dist/tokenizers.min.mjs",
    "Tl2lMbeE3RCGFLOUGQ7LhvaagysxiOw/9dulz2sD6jxNa1MckRJQBbYdVHhOoqEs",
    36_601,
)
"""The tokenizers of transformers.js (Apache-2.0)."""
LICENCE = File(
    *_TOKENIZERS,
    "LICENSE",
    "FpFtzV8m58dpDyvTpZ8htCgBPTjkNp1plYQuZckY7SU0rnDgCYZJgZrAs69bWKU+",
    11_357,
)
"""That of `TOKENIZERS`. `ONNXRUNTIME` names its own in its first lines."""


def registry() -> str:
    """The npm registry: that of npm's environment variable, else of the user's `.npmrc`, else the
    public one.
    """
    settings = {name.lower(): value for name, value in os.environ.items()}
    if address := settings.get("npm_config_registry"):
        return address.rstrip("/")
    npmrc = Path(settings.get("npm_config_userconfig") or Path.home() / ".npmrc")
    if npmrc.is_file():
        for line in npmrc.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "registry":
                return value.strip().strip("\"'").rstrip("/")
    return _REGISTRY


def _has(content: bytes, algorithm: str, digest: str) -> bool:
    return base64.b64encode(hashlib.new(algorithm, content).digest()).decode() == digest


def _archive(file: File) -> bytes:
    """The archive of a file's package, checked.

    Raises:
        InputError: It cannot be downloaded, or is not what was pinned.
    """
    name = file.package.rpartition("/")[2]
    address = f"{registry()}/{quote(file.package, safe='@/')}/-/{name}-{file.version}.tgz"
    otherwise = "the page's JavaScript comes from there. With --cdn, browsers load it from a CDN"
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT) as answer:
            content: bytes = answer.read()
    except (OSError, HTTPException, ValueError) as error:
        raise InputError(f"{address} cannot be downloaded ({error}); {otherwise}") from error
    if not _has(content, "sha512", file.archive):
        raise InputError(
            f"{address} is not the package that was pinned: its SHA-512 is another than "
            f"{file.archive[:16]}...; use another registry ({otherwise})"
        )
    return content


def content_of(*files: File) -> list[bytes]:
    """The content of `files`, from the user's cache or from the npm registry, checked each time.

    Raises:
        InputError: A package cannot be downloaded, or is not what was pinned.
    """
    contents, archives = [], dict[str, bytes]()
    for file in files:
        name = f"{file.package.replace('/', '+')}-{file.version}"
        kept = user_cache().parent / "javascript" / name / file.path
        content = kept.read_bytes() if kept.is_file() else b""
        if not _has(content, "sha384", file.sha384):
            if file.archive not in archives:
                archives[file.archive] = _archive(file)
            with tarfile.open(fileobj=io.BytesIO(archives[file.archive]), mode="r:gz") as archive:
                member = archive.extractfile(f"package/{file.path}")
                content = member.read() if member else b""
            with written_whole(kept) as temporary:
                temporary.write_bytes(content)
        contents.append(content)
    return contents

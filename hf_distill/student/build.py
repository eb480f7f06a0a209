"""Building the student: backbone, kept layers, pooling and projection head.

A student consists of standard sentence-transformers modules only: Transformer, Pooling, Dense and
Normalize, or StaticEmbedding and Normalize (and, while it trains, Dropout before Normalize).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, Pooling, StaticEmbedding
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.compute.device import device_type
from hf_distill.compute.models import load_sentence_transformer, most_tokens
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import StudentArguments
from hf_distill.run.stage import sha256_of
from hf_distill.student.layers import (
    SEARCH,
    count_layers,
    keep_layers,
    parse_layers,
    parse_search,
)
from hf_distill.student.vocabulary import (
    cut_tokenizer,
    kept_tokens,
    static_vectors,
    token_embeddings,
    tokenizer_of,
    trim_vocabulary,
)
from hf_distill.teachers.base import EmbeddingTeacher, Teacher

STATIC = "static"
"""The `student_backbone` without a transformer: one vector for each token of the teacher's
tokenizer.
"""

_MODEL_FILES = (".safetensors", ".json", ".txt", ".model")
_DROPOUT_ATTRIBUTES = ("dropout_prob", "attention_dropout")
_DROPOUT_SETTINGS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attention_dropout",
    "hidden_dropout",
    "dropout",
)


@dataclass(frozen=True)
class Initialisation:
    """What is decided about a student from the training data, before it is trained.

    Attributes:
        components: (at most student_dim, teacher's dimension) float32, principal components of the
            teacher's embeddings, or the identity for a student in its space; None if the teacher
            does not embed.
        layers: The layers that `student_layers: search=K` chose; None without a search.
        token_counts: (vocabulary,) int64, how often the training texts use each token of the
            backbone; None where nothing depends on it.
        head: (student_dim, backbone's dimension) float32, how the head of a student in the
            teacher's space starts; of a static one, (student_dim, teacher's dimension). None for a
            student with a space of its own.
    """

    components: np.ndarray | None = None
    layers: tuple[int, ...] | None = None
    token_counts: np.ndarray | None = None
    head: np.ndarray | None = None


def set_dropout(backbone: PreTrainedModel, probability: float) -> None:
    """Set every dropout probability of `backbone`, in modules and configuration, in place."""
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name in _DROPOUT_ATTRIBUTES:  # attention keeps it in an attribute of its own
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)
    for name in _DROPOUT_SETTINGS:
        if isinstance(getattr(backbone.config, name, None), float):
            setattr(backbone.config, name, probability)


def backbone_identity(arguments: StudentArguments) -> list[tuple[str, str]] | None:
    """Path and SHA-256 of each file of a backbone in a local folder, because the folder may get
    another model under the same name; None for any other backbone.
    """
    folder = Path(arguments.student_backbone)
    if arguments.student_backbone in ("teacher", STATIC) or not folder.is_dir():
        return None
    files = sorted(path for path in folder.rglob("*") if path.suffix in _MODEL_FILES)
    return [(path.relative_to(folder).as_posix(), sha256_of(path)) for path in files]


def load_backbone(name: str, teacher: Teacher) -> Transformer:
    """The transformer of the model that `student_backbone` names, as a copy that may be changed.

    Raises:
        InputError: It cannot be loaded, has no transformer, or needs code from its repository.
    """
    if name == "teacher":
        if teacher.backbone is None:
            raise InputError(
                f"--student_backbone teacher: the teacher {teacher.name} is not a local "
                "transformer that a student can be cut from; name a backbone, e.g. "
                "--student_backbone microsoft/MiniLM-L12-H384-uncased"
            )
        first = copy.deepcopy(teacher.backbone[0])
    else:
        first = load_sentence_transformer(name, "student_backbone")[0]
    if not isinstance(first, Transformer):
        raise InputError(
            f"--student_backbone {name}: its first module is a {type(first).__name__}, but a "
            "student starts from a Transformer; name another backbone"
        )
    transformer: Transformer = first
    if type(transformer.auto_model).__module__.startswith("transformers_modules"):
        raise InputError(
            f"--student_backbone {name}: {type(transformer.auto_model).__name__} is code from the "
            "model's repository, and a student must load without such code; name a backbone that "
            "transformers itself supports"
        )
    return transformer


def _dimension(teacher: Teacher) -> int | None:
    """Dimensions of the teacher's embeddings; None if it does not embed."""
    return cast(EmbeddingTeacher, teacher).dimension if teacher.embeds else None


def _counts(initialisation: Initialisation, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """(vocabulary,) int64; every token counts once where nothing was counted."""
    if initialisation.token_counts is None:
        return np.ones(len(tokenizer), dtype=np.int64)
    return initialisation.token_counts


def _static_modules(
    arguments: StudentArguments, teacher: Teacher, initialisation: Initialisation
) -> list[nn.Module]:
    """One vector for each token of the teacher's vocabulary; a text is the mean of its tokens."""
    if teacher.backbone is None:
        raise InputError(
            "--student_backbone static: a static student takes its tokenizer from the teacher, and "
            f"the teacher {teacher.name} has no model here; name a transformer instead"
        )
    for name in ("student_layers", "student_dropout"):
        if getattr(arguments, name) is not None:
            raise InputError(
                f"--{name} {getattr(arguments, name)}: a static student has no layers; set "
                f"--{name} none"
            )
    tokenizer = tokenizer_of(teacher.backbone)
    counts = _counts(initialisation, tokenizer)
    if arguments.student_vocabulary == "used":
        kept = kept_tokens(tokenizer, counts)
        tokenizer = cut_tokenizer(tokenizer, kept)
    else:
        kept = np.arange(len(tokenizer))
    own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # the teacher keeps its own
    own.no_padding()
    own.enable_truncation(arguments.student_max_length)
    dimension = _dimension(teacher)
    pca = arguments.student_init == "pca"
    if pca and (dimension is None or arguments.student_dim > dimension):
        raise InputError(
            f"--student_init pca: --student_dim {arguments.student_dim} is above the teacher's "
            f"{dimension} dimensions; set it to {dimension} or less, or set --student_init random"
        )
    head = initialisation.components if pca else initialisation.head
    if head is None:
        return [StaticEmbedding(own, embedding_dim=arguments.student_dim)]
    vectors = token_embeddings(teacher.backbone, kept)
    return [StaticEmbedding(own, static_vectors(vectors, counts[kept], head))]


def _kept_layers(
    arguments: StudentArguments, available: int, searched: tuple[int, ...] | None
) -> list[int]:
    """Which of the backbone's layers stay; before a search, its number of the lowest ones."""
    wanted = arguments.student_layers
    if wanted is None:
        return list(range(available))
    if wanted.startswith(SEARCH):
        number = parse_search(wanted, available)
        return list(searched or range(number))
    return parse_layers(wanted, available)


def _head(
    arguments: StudentArguments, hidden: int, teacher: Teacher, initialisation: Initialisation
) -> Dense:
    """The linear map from the backbone's `hidden` dimensions to `student_dim`."""
    pca, given, components = (
        arguments.student_init == "pca", initialisation.head, initialisation.components
    )  # fmt: skip
    bias = not pca and given is None
    head = Dense(hidden, arguments.student_dim, bias=bias, activation_function=nn.Identity())
    if given is not None:
        head.linear.weight.data.copy_(torch.from_numpy(given))
    if not pca:
        return head
    dimension = _dimension(teacher) or 0
    # A teacher that is cut to `truncate_dim` gives the first dimensions of its backbone's.
    whole = dimension == hidden or getattr(teacher.backbone, "truncate_dim", None) == dimension
    if not whole or not arguments.student_dim <= dimension <= hidden:
        raise InputError(
            f"--student_init pca: the backbone has {hidden} dimensions, the teacher's embeddings "
            f"have {dimension or 'none'}, and --student_dim is {arguments.student_dim}. The first "
            "two must be equal (as with --student_backbone teacher; a teacher with truncate_dim "
            "may have fewer), and the third must not be above the second; or set --student_init "
            "random"
        )
    if components is not None:
        head.linear.weight.data.zero_()
        head.linear.weight.data[: len(components), :dimension] = torch.from_numpy(components)
    return head


def _encoder_modules(
    arguments: StudentArguments, teacher: Teacher, initialisation: Initialisation, seed: int
) -> list[nn.Module]:
    """A transformer, its pooling and the head."""
    transformer = load_backbone(arguments.student_backbone, teacher)
    backbone = transformer.auto_model
    backbone.float()  # type: ignore[no-untyped-call]  # transformers wraps it without types
    if arguments.student_layers:
        keep_layers(
            backbone, _kept_layers(arguments, count_layers(backbone), initialisation.layers)
        )
    if arguments.student_dropout is not None:
        set_dropout(backbone, arguments.student_dropout)
    declared = getattr(backbone.config, "max_position_embeddings", None)
    limits = [limit for limit in (declared, most_tokens(transformer)) if limit and limit > 0]
    if arguments.student_max_length > (limit := min(limits, default=arguments.student_max_length)):
        raise InputError(
            f"--student_max_length {arguments.student_max_length}: the backbone reads at most "
            f"{limit} tokens; name a smaller number"
        )
    if arguments.student_vocabulary == "used":
        tokenizer = tokenizer_of(transformer)
        trim_vocabulary(transformer, kept_tokens(tokenizer, _counts(initialisation, tokenizer)))
    hidden = int(transformer.get_embedding_dimension())
    torch.manual_seed(seed)  # the head is the same for every backbone
    head = _head(arguments, hidden, teacher, initialisation)
    return [transformer, Pooling(hidden, pooling_mode=arguments.student_pooling), head]


def build_student(
    arguments: StudentArguments, teacher: Teacher, initialisation: Initialisation | None, seed: int
) -> SentenceTransformer:
    """Build the untrained student: float32, in evaluation mode.

    Args:
        arguments: What to build.
        teacher: Gives the backbone if `student_backbone` is `teacher`, the tokenizer if it is
            `static`, and the prompts.
        initialisation: The result of `hf_distill.student.initialise.initialise`. None is enough
            to find out whether the student can be built: the head is random, a layer search takes
            the lowest layers, and every token counts as used.
        seed: Seeds random weights. The caller's random state stays as it was.

    Raises:
        InputError: The backbone cannot be loaded or cut, or the sizes of a `pca` head do not fit.
    """
    initialisation = initialisation or Initialisation()
    static = arguments.student_backbone == STATIC
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules = (
            _static_modules(arguments, teacher, initialisation)
            if static
            else _encoder_modules(arguments, teacher, initialisation, seed)
        )
    if arguments.head_dropout:
        modules.append(Dropout(arguments.head_dropout))
    modules.append(Normalize())
    student = SentenceTransformer(
        modules=modules, device=device_type(), similarity_fn_name="cosine"
    )
    if not static:
        student.max_seq_length = arguments.student_max_length
    prompts = teacher.prompts
    if prompts.query or prompts.document:
        student.prompts = {"query": prompts.query, "document": prompts.document}
    return student.eval()

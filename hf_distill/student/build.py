"""Building the student: backbone, kept layers, pooling, projection head and how that is
initialised.

A student is standard sentence-transformers modules only: Transformer, Pooling, Dense, Normalize, or
StaticEmbedding, Normalize (and, while it trains, Dropout before Normalize).
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, Pooling, StaticEmbedding
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.compute.device import device_type
from hf_distill.compute.encode import encode
from hf_distill.compute.models import load_sentence_transformer
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import StudentArguments
from hf_distill.run.folder import (
    RunFolder,
    fingerprint,
    main_makes,
    read_json_if_current,
    sha256_of,
    write_json,
    written_whole,
)
from hf_distill.scoring.scores import ScoredPairs
from hf_distill.student.head import (
    principal_components,
    teacher_components,
)
from hf_distill.student.layers import (
    SEARCH,
    count_layers,
    keep_layers,
    only_layers,
    parse_layers,
    parse_search,
    search_layers,
)
from hf_distill.student.vocabulary import (
    count_tokens,
    cut_tokenizer,
    kept_tokens,
    static_vectors,
    token_embeddings,
    tokenizer_of,
    trim_vocabulary,
)
from hf_distill.teachers.base import (
    EmbeddingTeacher,
    Kind,
    Teacher,
    similarity,
)
from hf_distill.teachers.bi_encoder import BiEncoderTeacher
from hf_distill.teachers.load import prompts_of

__all__ = [
    "STATIC",
    "Blueprint",
    "backbone_digest",
    "build_student",
    "draw_blueprint",
    "layer_search",
    "principal_components",
    "set_dropout",
    "teacher_components",
]

STATIC = "static"
"""The `student_backbone` that is none: a vector for each token of the teacher's tokenizer."""

SEARCH_QUERIES, SEARCH_DOCUMENTS, TOP = 256, 1024, 10
KINDS: tuple[Kind, ...] = ("query", "document")
_READ = 1000


def set_dropout(backbone: PreTrainedModel, probability: float) -> None:
    """Set every dropout probability of `backbone`, in modules and configuration, in place."""
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name in (
            "dropout_prob",
            "attention_dropout",
        ):  # attention reads it from an attribute of its own
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)
    for name in (
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "attention_dropout",
        "hidden_dropout",
        "dropout",
    ):
        if isinstance(getattr(backbone.config, name, None), float):
            setattr(backbone.config, name, probability)


def backbone_digest(arguments: StudentArguments) -> str | None:
    """Of the files of a backbone that is a folder here, which may be replaced under the same name;
    None of another.
    """
    folder = Path(arguments.student_backbone)
    if arguments.student_backbone in ("teacher", STATIC) or not folder.is_dir():
        return None
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in (".safetensors", ".json", ".txt", ".model")
    )
    return fingerprint([(str(path.relative_to(folder)), sha256_of(path)) for path in files])


def _transformer(name: str, teacher: Teacher) -> Transformer:
    """The first module of the model that `student_backbone` names, to be changed at will."""
    if name == "teacher":
        if not isinstance(teacher, BiEncoderTeacher):
            raise InputError(
                f"--student_backbone teacher: {teacher.name} is no SentenceTransformer that a student could be cut from; name a "
                "backbone, e.g. --student_backbone microsoft/MiniLM-L12-H384-uncased"
            )
        first = copy.deepcopy(teacher.model[0])
    else:
        first = load_sentence_transformer(name, "student_backbone")[0]
    if not isinstance(first, Transformer):
        raise InputError(
            f"--student_backbone {name}: its first module is a {type(first).__name__}, not a Transformer"
        )
    transformer: Transformer = first
    if type(transformer.auto_model).__module__.startswith("transformers_modules"):
        raise InputError(
            f"--student_backbone {name}: its {type(transformer.auto_model).__name__} is code from its repository, and a "
            "student loads without any; name a backbone that transformers knows"
        )
    return transformer


@dataclass(frozen=True)
class Blueprint:
    """What the training data decide about a student, found once, before training.

    Attributes:
        components: (at most student_dim, teacher's dimension) principal components of the teacher's
            embeddings; None without embeddings.
        layers: The layers that `student_layers: search=K` has found; None where nothing was
            searched for.
        token_counts: (vocabulary,) int64, how often the training texts use each token of the
            backbone; None where it plays no part.
    """

    components: np.ndarray | None = None
    layers: tuple[int, ...] | None = None
    token_counts: np.ndarray | None = None


def _counts(blueprint: Blueprint, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    return (
        np.ones(len(tokenizer), dtype=np.int64)
        if blueprint.token_counts is None
        else blueprint.token_counts
    )


def _static_modules(
    arguments: StudentArguments, teacher: Teacher, blueprint: Blueprint
) -> list[nn.Module]:
    """A vector for each token of the teacher's vocabulary, a text being their mean: no transformer
    at all.
    """
    if not isinstance(teacher, BiEncoderTeacher):
        raise InputError(
            f"--student_backbone static: it takes its tokenizer from the teacher, and {teacher.name} is no SentenceTransformer"
        )
    for name in ("student_layers", "student_dropout"):
        if getattr(arguments, name) is not None:
            raise InputError(f"--{name}: a static student has no layers; leave the key out")
    tokenizer = tokenizer_of(teacher.model)
    counts = _counts(blueprint, tokenizer)
    if arguments.student_vocabulary == "used":
        kept = kept_tokens(tokenizer, counts)
        tokenizer = cut_tokenizer(tokenizer, kept)
    else:
        kept = np.arange(len(tokenizer))
    cut = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # the teacher keeps its own
    cut.no_padding()
    cut.enable_truncation(arguments.student_max_length)
    if arguments.student_init == "random":
        return [StaticEmbedding(cut, embedding_dim=arguments.student_dim)]
    if arguments.student_dim > teacher.dimension:
        raise InputError(
            f"--student_init pca: student_dim {arguments.student_dim} is above the teacher's {teacher.dimension} dimensions"
        )
    if blueprint.components is None:
        return [StaticEmbedding(cut, embedding_dim=arguments.student_dim)]
    return [
        StaticEmbedding(
            cut,
            static_vectors(
                token_embeddings(teacher.model, kept), counts[kept], blueprint.components
            ),
        )
    ]


def _encoder_modules(
    arguments: StudentArguments, teacher: Teacher, blueprint: Blueprint, seed: int
) -> list[nn.Module]:
    """A transformer, its pooling and the head."""
    transformer = _transformer(arguments.student_backbone, teacher)
    backbone = transformer.auto_model
    backbone.float().train()  # type: ignore[no-untyped-call]  # transformers wraps `float` without types
    if arguments.student_layers:
        available = count_layers(backbone)
        if arguments.student_layers.startswith(SEARCH):
            kept = list(
                blueprint.layers or range(parse_search(arguments.student_layers, available))
            )
        else:
            kept = parse_layers(arguments.student_layers, available)
        keep_layers(backbone, kept)
    if arguments.student_dropout is not None:
        set_dropout(backbone, arguments.student_dropout)
    limit = getattr(backbone.config, "max_position_embeddings", arguments.student_max_length)
    if arguments.student_max_length > limit:
        raise InputError(
            f"--student_max_length {arguments.student_max_length}: the backbone reads {limit} tokens at most"
        )
    if arguments.student_vocabulary == "used":
        trim_vocabulary(
            transformer,
            kept_tokens(tokenizer_of(transformer), _counts(blueprint, tokenizer_of(transformer))),
        )

    hidden = int(transformer.get_embedding_dimension())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Dense(
            hidden,
            arguments.student_dim,
            bias=arguments.student_init == "random",
            activation_function=nn.Identity(),
        )
    if arguments.student_init == "pca":
        dimension = teacher.dimension if isinstance(teacher, EmbeddingTeacher) else None
        if dimension != hidden or arguments.student_dim > hidden:
            raise InputError(
                f"--student_init pca: the backbone has {hidden} dimensions, the teacher's embeddings {dimension or 'do not exist'}, "
                f"and student_dim is {arguments.student_dim}; the first two must be equal (e.g. student_backbone: teacher), "
                "the third no larger; or take student_init: random"
            )
        if blueprint.components is not None:
            head.linear.weight.data = torch.from_numpy(blueprint.components.copy())
    return [transformer, Pooling(hidden, pooling_mode=arguments.student_pooling), head]


def build_student(
    arguments: StudentArguments, teacher: Teacher, blueprint: Blueprint | None, seed: int
) -> SentenceTransformer:
    """Build the untrained student, in float32.

    Args:
        arguments: What from.
        teacher: Gives the backbone if `student_backbone` is `teacher`, the tokenizer if it is
            `static`, and the prompts, where it has them.
        blueprint: What `draw_blueprint` found. None is enough to find out whether a student can be
            built: its head stays random, a search has the lowest layers as its outcome, and no
                token is unused.
        seed: Seeds the random head.

    Raises:
        InputError: A backbone that cannot be loaded or cut, or a `pca` head whose sizes do not fit.
    """
    blueprint = blueprint or Blueprint()
    static = arguments.student_backbone == STATIC
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules = (
            _static_modules(arguments, teacher, blueprint)
            if static
            else _encoder_modules(arguments, teacher, blueprint, seed)
        )
    if arguments.head_dropout:
        modules.append(Dropout(arguments.head_dropout))
    modules.append(Normalize())
    student = SentenceTransformer(
        modules=modules, device=device_type(), similarity_fn_name="cosine"
    )
    if not static:
        student.max_seq_length = arguments.student_max_length
    prompts: dict[str, str | None] = {**prompts_of(teacher)}
    if any(prompts.values()):
        student.prompts = prompts
    return student


def layer_search(
    arguments: StudentArguments,
    teacher: Teacher,
    components: np.ndarray | None,
    scored: ScoredPairs,
    seed: int,
) -> dict[str, Any]:
    """Find which layers of the backbone rank most as the teacher does, before any training.

    Each subset is given the student's head and ranks the documents of a sample of training pairs
    for some of their queries. Its quality is the share of the teacher's `TOP` best documents that
    are among its own `TOP` best, averaged over these queries.

    Returns:
        `queries`, `documents`, `top`, and `subsets`: a list of {layers, overlap}, the best first.

    Raises:
        InputError: A teacher that embeds no texts: it has no ranking of a pool.
    """
    if scored.embeddings is None:
        raise InputError(
            f"--student_layers {arguments.student_layers}: the teacher {teacher.name} embeds no texts, so it ranks no pool"
        )
    rows = scored.train.select(
        np.random.default_rng(seed).permutation(len(scored.train))[:SEARCH_DOCUMENTS]
    )
    document_of = dict(zip(rows["document_id"], rows["document"], strict=True))
    query_of = dict(
        list(dict(zip(rows["query_id"], rows["query"], strict=True)).items())[:SEARCH_QUERIES]
    )
    of_queries, of_documents = (
        torch.from_numpy(scored.embeddings.of(names)).float() for names in (query_of, document_of)
    )
    top = min(TOP, len(document_of))
    wanted = similarity(scored.scale.measure, of_queries, of_documents).topk(top).indices

    whole = dataclasses.replace(
        arguments, student_layers=None, student_vocabulary="all", head_dropout=0.0
    )
    student = build_student(whole, teacher, Blueprint(components), seed).eval()
    transformer = student[0]
    assert isinstance(transformer, Transformer)
    backbone = transformer.auto_model
    queries = [(student.prompts.get("query") or "") + text for text in query_of.values()]
    documents = [(student.prompts.get("document") or "") + text for text in document_of.values()]

    def quality(kept: list[int]) -> float:
        with only_layers(backbone, kept):
            found = (encode(student, queries) @ encode(student, documents).T).topk(top).indices
        return float((found[:, :, None] == wanted[:, None, :]).any(dim=2).float().mean())

    available = count_layers(backbone)
    subsets = search_layers(
        available, parse_search(str(arguments.student_layers), available), quality
    )
    return {
        "queries": len(queries),
        "documents": len(documents),
        "top": top,
        "subsets": [
            {"layers": list(kept), "overlap": round(value, 4)} for kept, value in subsets.items()
        ],
    }


def draw_blueprint(
    arguments: StudentArguments, teacher: Teacher, scored: ScoredPairs, folder: RunFolder, seed: int
) -> Blueprint:
    """What the training pairs decide about the student. What takes time is kept in the run's
    folder: `layer_search.json`, and token counts among the working files.

    Args:
        arguments: What the student is made from.
        teacher: The teacher.
        scored: Its scores; only training pairs are looked at.
        folder: The run's folder.
        seed: Seeds the sample of the layer search.
    """
    components = teacher_components(scored.embeddings, arguments.student_dim)
    layers, counts = None, None
    if (arguments.student_layers or "").startswith(SEARCH):
        key = fingerprint(scored.key, vars(arguments), backbone_digest(arguments), seed)

        def search() -> None:
            write_json(
                folder.layer_search,
                {"fingerprint": key, **layer_search(arguments, teacher, components, scored, seed)},
            )

        main_makes(
            folder.layer_search, search, lambda path: read_json_if_current(path, key) is not None
        )
        found = read_json_if_current(folder.layer_search, key)
        assert found is not None
        layers = tuple(found["subsets"][0]["layers"])
    if arguments.student_vocabulary == "used" or arguments.student_backbone == STATIC:
        name = "teacher" if arguments.student_backbone == STATIC else arguments.student_backbone
        tokenizer = tokenizer_of(_transformer(name, teacher))
        path = (
            folder.cache
            / f"tokens-{fingerprint(scored.key, name, backbone_digest(arguments), arguments.student_max_length)}.npy"
        )

        def count() -> None:
            texts = (
                scored.train[start : start + _READ] for start in range(0, len(scored.train), _READ)
            )
            batches = (
                [prompts_of(teacher)[kind] + text for text in rows[kind]]
                for rows in texts
                for kind in KINDS
            )
            with written_whole(path) as temporary, temporary.open("wb") as file:
                np.save(file, count_tokens(tokenizer, batches, arguments.student_max_length))

        main_makes(path, count)
        counts = np.load(path)
    return Blueprint(components, layers, counts)

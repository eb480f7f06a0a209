"""What is decided about a student from the training data, before it is trained: the head's
principal components, the layers that a search chooses, and how often each token is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer

from hf_distill.compute.device import device_type
from hf_distill.compute.encode import encode
from hf_distill.data.collection import Collection
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe, StudentArguments
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import stage, written_whole
from hf_distill.scoring.scores import Scores
from hf_distill.student.build import (
    STATIC,
    Initialisation,
    backbone_identity,
    build_student,
    load_backbone,
)
from hf_distill.student.head import least_squares_map, principal_components
from hf_distill.student.layers import (
    SEARCH,
    count_layers,
    only_layers,
    parse_search,
    search_layers,
)
from hf_distill.student.space import TEACHER, starts_as_teacher
from hf_distill.student.vocabulary import count_tokens, tokenizer_of
from hf_distill.teachers.base import Prompts, Teacher, similarity

__all__ = ["Initialisation", "LayerSearch", "Subset", "TokenCounts", "initialise"]

SEARCH_QUERIES, SEARCH_DOCUMENTS, TOP = 256, 1024, 10
"""The layer search: its queries, the documents that they search, and how many of the best count."""

HEAD_PAIRS = 2048
"""Training pairs whose texts a head is fitted on: some ten texts for each dimension."""

_READ = 1000


@dataclass(frozen=True)
class Subset:
    """Some layers, and the mean share of the teacher's best documents that they find."""

    layers: list[int]
    overlap: float


@dataclass(frozen=True)
class LayerSearch:
    """`layer_search.json`: how well each subset of layers ranks, the best first.

    Attributes:
        key: The fingerprint of what the search depends on.
        queries, documents: How many there were in the sample.
        top: How many of the best documents of each query are compared.
        subsets: Every subset that was tried.
    """

    key: str
    queries: int
    documents: int
    top: int
    subsets: list[Subset]


@dataclass(frozen=True)
class TokenCounts:
    """How often the training texts use each token of the backbone, by token id."""

    key: str
    counts: list[int]


@dataclass(frozen=True)
class HeadRecord:
    """`cache/head-*.json`: on how many texts a head was fitted, which is in the array beside it."""

    key: str
    texts: int


def _unique(numbers: np.ndarray) -> np.ndarray:
    """Each of `numbers` once, in the order of its first occurrence."""
    return np.array(list(dict.fromkeys(numbers.tolist())), dtype=np.int64)


def _whole(arguments: StudentArguments) -> StudentArguments:
    """The student of a layer search, which has all layers."""
    return dataclasses.replace(
        arguments, student_layers=None, student_vocabulary="all", head_dropout=0.0
    )


def search(
    recipe: Recipe,
    teacher: Teacher,
    collection: Collection,
    scores: Scores,
    initialisation: Initialisation,
    key: str,
) -> LayerSearch:
    """Find the layers of the backbone that rank most like the teacher, before any training.

    Each subset gets the student's head and ranks the documents of a sample of training pairs for
    some of their queries. Its overlap is the share of the teacher's `TOP` best documents that are
    among its own `TOP` best, averaged over these queries.

    Args:
        recipe: What the student is made from, and the seed of the sample.
        teacher: Gives the backbone, if the recipe says so.
        collection: Only its training pairs are read.
        scores: Hold the teacher's embeddings.
        initialisation: The head's components.
        key: The key of the result.

    Raises:
        InputError: A teacher that does not embed texts, and so cannot rank documents.
    """
    arguments, wanted = recipe.student, str(recipe.student.student_layers)
    if scores.embeddings is None:
        raise InputError(
            f"--student_layers {wanted}: the search compares with the teacher's ranking, and the "
            f"teacher {teacher.name} does not embed texts; name the layers, e.g. 0,2,5"
        )
    pairs = collection.pairs("train")
    order = np.random.default_rng(recipe.seed).permutation(len(pairs))
    sample = pairs.take(order[:SEARCH_DOCUMENTS])
    query_numbers, document_numbers = _unique(sample.queries), _unique(sample.documents)
    query_numbers = query_numbers[:SEARCH_QUERIES]
    top = min(TOP, len(document_numbers))
    best_of_teacher = (
        similarity(
            scores.scale.similarity,
            torch.from_numpy(scores.embeddings.of_queries(query_numbers)).float(),
            torch.from_numpy(scores.embeddings.of_documents(document_numbers)).float(),
        )
        .topk(top)
        .indices
    )
    student = build_student(_whole(arguments), teacher, initialisation, recipe.seed)
    transformer = student[0]
    assert isinstance(transformer, Transformer)
    backbone = transformer.auto_model
    prompts = teacher.prompts
    queries = [prompts.query + text for text in collection.student_queries(query_numbers)]
    documents = [prompts.document + text for text in collection.document_texts(document_numbers)]

    def overlap(kept: list[int]) -> float:
        with only_layers(backbone, kept):
            cosines = encode(student, queries) @ encode(student, documents).T
        best = cosines.topk(top).indices
        return float((best[:, :, None] == best_of_teacher[:, None, :]).any(dim=2).float().mean())

    available = count_layers(backbone)
    subsets = search_layers(available, parse_search(wanted, available), overlap)
    return LayerSearch(
        key=key,
        queries=len(queries),
        documents=len(documents),
        top=top,
        subsets=[Subset(list(kept), round(share, 4)) for kept, share in subsets.items()],
    )


def _training_texts(
    collection: Collection, prompts: Prompts
) -> Iterator[tuple[list[str], np.ndarray]]:
    """The unique texts of the training pairs that the student reads, with their prompts, some at a
    time, and how many pairs each occurs in; then the texts alone, as teacher and student read them.
    """
    alone = collection.text_numbers("train")
    for start in range(0, len(alone), _READ):
        some = alone[start : start + _READ]
        texts = [*collection.teacher_texts(some), *collection.student_texts(some)]
        yield [prompts.document + text for text in texts], np.ones(len(texts), dtype=np.int64)
    pairs = collection.pairs("train")
    for prompt, numbers, texts_of in (
        (prompts.query, pairs.queries, collection.student_queries),
        (prompts.document, pairs.documents, collection.document_texts),
    ):
        unique, times = np.unique(numbers, return_counts=True)
        for start in range(0, len(unique), _READ):
            part = slice(start, start + _READ)
            yield [prompt + text for text in texts_of(unique[part])], times[part]


def _head_into_space(
    recipe: Recipe,
    teacher: Teacher,
    collection: Collection,
    scores: Scores,
    initialisation: Initialisation,
    path: Path,
) -> np.ndarray:
    """How the head of a student in the teacher's space starts: (student_dim, backbone's dimension)
    float32.

    The identity, if the backbone is a copy of the teacher, whichever layers it keeps. Otherwise the
    least-squares map from what the backbone makes of training texts to the teacher's embeddings of
    them, which is kept at `path`.

    Raises:
        InputError: As `build_student`.
    """
    arguments, embeddings = recipe.student, scores.embeddings
    if arguments.student_backbone == STATIC:  # each token starts as the teacher's embedding of it
        return np.eye(arguments.student_dim, dtype=np.float32)
    if teacher.backbone is not None and starts_as_teacher(arguments, teacher):
        hidden = cast(Transformer, teacher.backbone[0]).get_embedding_dimension()
        return np.eye(arguments.student_dim, hidden, dtype=np.float32)

    def make(key: str) -> HeadRecord:
        assert embeddings is not None  # `in_space` has refused a teacher without
        pairs = collection.pairs("train")
        order = np.random.default_rng(recipe.seed).permutation(len(pairs))
        sample = pairs.take(order[:HEAD_PAIRS])
        queries, documents = np.unique(sample.queries), np.unique(sample.documents)
        texts = [teacher.prompts.query + text for text in collection.query_texts(queries)]
        texts += [teacher.prompts.document + text for text in collection.document_texts(documents)]
        student = build_student(arguments, teacher, initialisation, recipe.seed)
        without_head = SentenceTransformer(modules=list(student)[:2], device=device_type())
        targets = [embeddings.of_queries(queries), embeddings.of_documents(documents)]
        head = least_squares_map(encode(without_head, texts).numpy(), np.concatenate(targets))
        with written_whole(path) as temporary:
            np.save(temporary, head)
        return HeadRecord(key, len(texts))

    identity = backbone_identity(arguments), initialisation.layers, recipe.seed
    inputs = [scores.key, dataclasses.asdict(arguments), *identity]
    stage(path.with_suffix(".json"), HeadRecord, inputs, make, [path])
    head: np.ndarray = np.load(path)
    return head


def initialise(
    recipe: Recipe, teacher: Teacher, collection: Collection, scores: Scores, folder: RunFolder
) -> Initialisation:
    """What is decided about the student from the training pairs.

    The slow parts are kept: the layer search in `layer_search.json`, the token counts among the
    working files.

    Raises:
        InputError: As `search` and `load_backbone`.
    """
    arguments, embeddings = recipe.student, scores.embeddings
    space = recipe.training.student_space
    components = None
    if space == TEACHER:  # `in_space` has refused a teacher without embeddings
        components = np.eye(arguments.student_dim, dtype=np.float32)
    elif embeddings is not None:
        components = principal_components(
            embeddings.vectors, min(arguments.student_dim, embeddings.dimension)
        )
    initialisation = Initialisation(components)
    identity = backbone_identity(arguments)

    def with_head(arguments: StudentArguments, name: str) -> Initialisation:
        if space != TEACHER:
            return initialisation
        of_student = dataclasses.replace(recipe, student=arguments)
        path = folder.cache / f"head-{name}.npy"
        head = _head_into_space(of_student, teacher, collection, scores, initialisation, path)
        return dataclasses.replace(initialisation, head=head)

    if (arguments.student_layers or "").startswith(SEARCH):
        initialisation = with_head(_whole(arguments), "whole")
        result = stage(
            folder.layer_search,
            LayerSearch,
            [scores.key, dataclasses.asdict(arguments), identity, recipe.seed, space],
            lambda key: search(recipe, teacher, collection, scores, initialisation, key),
        )
        initialisation = dataclasses.replace(initialisation, layers=tuple(result.subsets[0].layers))
    static = arguments.student_backbone == STATIC
    if static or arguments.student_vocabulary == "used":
        backbone = "teacher" if static else arguments.student_backbone
        length = arguments.student_max_length

        def count(key: str) -> TokenCounts:
            tokenizer = tokenizer_of(load_backbone(backbone, teacher))
            texts = _training_texts(collection, teacher.prompts)
            return TokenCounts(key, count_tokens(tokenizer, texts, length).tolist())

        counted = stage(
            folder.cache / "token_counts.json",
            TokenCounts,
            [scores.key, backbone, identity, length],
            count,
        )
        initialisation = dataclasses.replace(
            initialisation, token_counts=np.array(counted.counts, dtype=np.int64)
        )
    return with_head(arguments, "kept")

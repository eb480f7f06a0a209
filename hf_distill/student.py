"""Building the student: backbone, kept layers, pooling, projection head and how that is initialised.

A student is standard sentence-transformers modules only: Transformer, Pooling, Dense, Normalize (and, while it trains,
Dropout before Normalize).
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, Pooling
from torch import nn
from transformers import PreTrainedModel

from hf_distill.arguments import StudentArguments
from hf_distill.errors import InputError
from hf_distill.hardware import device_type
from hf_distill.scoring import EmbeddingTable
from hf_distill.teachers import BiEncoderTeacher, EmbeddingTeacher, Teacher, load_sentence_transformer


def parse_layers(text: str, available: int) -> list[int]:
    """Read kept layers such as `0,2,5`, or `every=2` for each second one from the first.

    Raises:
        InputError: Not whole numbers in ascending order, or a layer that the backbone does not have.
    """
    if text.startswith("every="):
        step = text.removeprefix("every=")
        if not step.isdecimal() or not 1 <= int(step) <= available:
            raise InputError(f"--student_layers {text!r}: the step is a whole number from 1 to the backbone's {available} layers")
        return list(range(0, available, int(step)))
    try:
        layers = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--student_layers {text!r}: name layers by number, e.g. 0,2,5, or every=2") from None
    if layers != sorted(set(layers)) or layers[0] < 0:
        raise InputError(f"--student_layers {text!r}: each layer once, in ascending order")
    if layers[-1] >= available:
        raise InputError(f"--student_layers {text!r}: the backbone has {available} layers, 0 to {available - 1}")
    return layers


def _layer_stack(model: nn.Module) -> tuple[nn.Module, str, nn.ModuleList]:
    """The module that holds the backbone's layers, the name it holds them under, and the layers."""
    for holder in model.modules():
        for name in ("layer", "layers", "h", "block"):
            stack = getattr(holder, name, None)
            if isinstance(stack, nn.ModuleList) and len(stack) > 0:
                return holder, name, stack
    raise InputError(f"--student_layers: {type(model).__name__} keeps its layers in a place that is not known here; leave the key out")


def keep_layers(backbone: PreTrainedModel, text: str) -> None:
    """Cut `backbone` (a transformers model) down to the layers named by `text`, in place."""
    holder, name, stack = _layer_stack(backbone)
    kept = parse_layers(text, len(stack))
    setattr(holder, name, nn.ModuleList([stack[i] for i in kept]))
    config = backbone.config
    if config.num_hidden_layers != len(stack):
        raise InputError(f"--student_layers: the backbone's configuration says {config.num_hidden_layers} layers, it has {len(stack)}")
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept]


def set_dropout(backbone: PreTrainedModel, probability: float) -> None:
    """Set every dropout probability of `backbone`, in modules and configuration, in place."""
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name in ("dropout_prob", "attention_dropout"):  # attention reads it from an attribute of its own
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "hidden_dropout", "dropout"):
        if isinstance(getattr(backbone.config, name, None), float):
            setattr(backbone.config, name, probability)


def principal_components(embeddings: np.ndarray, dimension: int) -> np.ndarray:
    """The `dimension` leading principal components of `embeddings`, as rows: (dimension, d), float32, orthonormal.

    Eigenvectors of the uncentred second moment: of all projections to `dimension` they keep most of the dot products. Each
    component's sign is fixed (its largest entry is positive), so that equal input gives equal output.

    Args:
        embeddings: (n, d), any float type; read in blocks, so it may be memory-mapped.
        dimension: At most d.

    Raises:
        InputError: `dimension` above d.
    """
    d = embeddings.shape[1]
    if dimension > d:
        raise InputError(
            f"--student_init pca: {dimension} components of {d}-dimensional teacher embeddings; student_dim can be {d} at most"
        )
    moment = np.zeros((d, d))
    for start in range(0, len(embeddings), 8192):
        block = np.asarray(embeddings[start : start + 8192], dtype=np.float64)
        moment += block.T @ block
    _, vectors = np.linalg.eigh(moment)
    components = vectors[:, ::-1][:, :dimension].T
    signs = np.sign(components[np.arange(dimension), np.abs(components).argmax(axis=1)])
    return np.ascontiguousarray(components * signs[:, None], dtype=np.float32)


def teacher_components(embeddings: EmbeddingTable | None, student_dim: int) -> np.ndarray | None:
    """`principal_components` of the teacher's embeddings, as many as the student has dimensions or the teacher can give; None without."""
    return None if embeddings is None else principal_components(embeddings.rows, min(student_dim, embeddings.rows.shape[1]))


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
        raise InputError(f"--student_backbone {name}: its first module is a {type(first).__name__}, not a Transformer")
    transformer: Transformer = first
    return transformer


def build_student(arguments: StudentArguments, teacher: Teacher, components: np.ndarray | None, seed: int) -> SentenceTransformer:
    """Build the untrained student, in float32.

    Args:
        arguments: What from.
        teacher: Gives the backbone if `student_backbone` is `teacher`, and the prompts, where it has them.
        components: Principal components (student_dim, teacher's dimension) of the teacher's embeddings, for `pca`. None leaves
            that head at random: enough to find out whether a student can be built.
        seed: Seeds the random head.

    Raises:
        InputError: A backbone that cannot be loaded or cut, or a `pca` head whose sizes do not fit.
    """
    transformer = _transformer(arguments.student_backbone, teacher)
    backbone = transformer.auto_model
    backbone.float().train()  # type: ignore[no-untyped-call]
    if arguments.student_layers:
        keep_layers(backbone, arguments.student_layers)
    if arguments.student_dropout is not None:
        set_dropout(backbone, arguments.student_dropout)
    limit = getattr(backbone.config, "max_position_embeddings", arguments.student_max_length)
    if arguments.student_max_length > limit:
        raise InputError(f"--student_max_length {arguments.student_max_length}: the backbone reads {limit} tokens at most")

    hidden = int(transformer.get_embedding_dimension())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Dense(hidden, arguments.student_dim, bias=arguments.student_init == "random", activation_function=nn.Identity())
    if arguments.student_init == "pca":
        dimension = teacher.dimension if isinstance(teacher, EmbeddingTeacher) else None
        if dimension != hidden or arguments.student_dim > hidden:
            raise InputError(
                f"--student_init pca: the backbone has {hidden} dimensions, the teacher's embeddings {dimension or 'do not exist'}, "
                f"and student_dim is {arguments.student_dim}; the first two must be equal (e.g. student_backbone: teacher), "
                "the third no larger; or take student_init: random"
            )
        if components is not None:
            head.linear.weight.data = torch.from_numpy(components.copy())
    modules: list[nn.Module] = [transformer, Pooling(hidden, pooling_mode=arguments.student_pooling), head]
    if arguments.head_dropout:
        modules.append(Dropout(arguments.head_dropout))
    modules.append(Normalize())
    student = SentenceTransformer(modules=modules, device=device_type(), similarity_fn_name="cosine")
    student.max_seq_length = arguments.student_max_length
    if isinstance(teacher, EmbeddingTeacher):
        prompts: dict[str, str | None] = {"query": teacher.prompted("", "query"), "document": teacher.prompted("", "document")}
        if any(prompts.values()):
            student.prompts = prompts
    return student

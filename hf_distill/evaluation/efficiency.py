"""What models cost on this machine, measured side by side."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from torch.profiler import ProfilerActivity, profile

from hf_distill.compute.device import peak_bytes
from hf_distill.evaluation.results import Cost, Efficiency

_WEIGHTS = {
    ".safetensors", ".bin", ".h5", ".msgpack", ".ot", ".onnx", ".xml", ".pt", ".ckpt", ".gguf",
    ".tflite",
}  # fmt: skip

_DOCUMENTS, _QUERIES, _BATCH, _ROUNDS = 128, 24, 16, 3


def _documents_per_second(model: SentenceTransformer, documents: list[str]) -> float:
    start = time.perf_counter()
    model.encode_document(documents, batch_size=_BATCH, show_progress_bar=False)
    return len(documents) / (time.perf_counter() - start)


def _latency(model: SentenceTransformer, query: str) -> float:
    start = time.perf_counter()
    model.encode_query(query, show_progress_bar=False)
    return 1000 * (time.perf_counter() - start)


def bytes_on_disk(folder: Path) -> int:
    """Bytes of the files that loading the SentenceTransformer in `folder` reads. A snapshot of the
    Hub may hold weights in other formats, which do not count: of the weights, only the safetensors
    do, or `pytorch_model.bin` in a folder without any.
    """
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".md"]
    with_safetensors = {file.parent for file in files if file.suffix == ".safetensors"}
    read = [
        file
        for file in files
        if file.suffix not in _WEIGHTS
        or file.suffix == ".safetensors"
        or (file.name == "pytorch_model.bin" and file.parent not in with_safetensors)
    ]
    return sum(
        file.stat().st_size
        for file in read
        if not {"onnx", "openvino", "model2vec"} & set(file.relative_to(folder).parts[:-1])
    )


def _folder_of(model: SentenceTransformer) -> Path | None:
    """The folder that `model` was loaded from, if it was."""
    name = getattr(
        getattr(getattr(model[0], "auto_model", None), "config", None), "_name_or_path", ""
    )
    return Path(name) if name and (Path(name) / "config.json").is_file() else None


def silence_profiler() -> None:
    """Keep torch's profiler from printing when it starts. It reads the level when it is first used
    in a process; above 5 it prints nothing.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")


def peak_megabytes(model: SentenceTransformer, documents: list[str]) -> float:
    """The most memory that tensors take while `model` embeds `documents` as one batch, its weights
    included.

    That is what the allocator hands out, counted by the device or, on a CPU, by torch's profiler.
    The interpreter, the libraries and the tokenizer take the same for every model and do not count.
    """
    weights = sum(p.numel() * p.element_size() for p in [*model.parameters(), *model.buffers()])

    def embed() -> None:
        model.encode_document(documents, batch_size=len(documents), show_progress_bar=False)

    if (taken := peak_bytes(model.device, embed)) is not None:
        return (weights + taken) / 1e6
    silence_profiler()
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        embed()
    events = [
        event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return (weights + float(np.maximum(np.cumsum(sizes), 0).max(initial=0))) / 1e6


def efficiency(
    models: Mapping[str, SentenceTransformer],
    queries: Sequence[str],
    documents: Sequence[str],
    folders: Mapping[str, Path] | None = None,
    own_queries: Mapping[str, Sequence[str]] | None = None,
) -> Efficiency:
    """The cost of each model, in the precision in which it is loaded. The models take turns.

    Args:
        models: Name -> model.
        queries: The first 24 are timed, one by one.
        documents: The first 128 are timed, in batches of 16, three times. Peak memory is that of a
            batch of the 16 longest of these.
        folders: Name -> the model's folder, for models that do not know it themselves.
        own_queries: Name -> what a model reads in place of `queries`, one for one.
    """
    sample, asked = list(documents[:_DOCUMENTS]), list(queries[:_QUERIES])
    for model in models.values():
        model.encode_document(sample[:4], show_progress_bar=False)  # the first call takes longer
    speeds: dict[str, list[float]] = {name: [] for name in models}
    latencies: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(_ROUNDS):
        for name, model in models.items():
            speeds[name].append(_documents_per_second(model, sample))
    for place, query in enumerate(asked):
        for name, model in models.items():
            own = (own_queries or {}).get(name)
            latencies[name].append(_latency(model, query if own is None else own[place]))
    longest = sorted(sample, key=len)[-_BATCH:]

    def cost(name: str, model: SentenceTransformer) -> Cost:
        parameters = list(model.parameters())
        place = (folders or {}).get(name) or _folder_of(model)
        return Cost(
            parameters=sum(p.numel() for p in parameters),
            megabytes=round(sum(p.numel() * p.element_size() for p in parameters) / 1e6, 1),
            bytes_on_disk=bytes_on_disk(place) if place else None,
            peak_megabytes=round(peak_megabytes(model, longest), 1),
            dimension=int(model.get_embedding_dimension() or 0),
            backend=str(getattr(model, "backend", "torch")),
            dtype=str(parameters[0].dtype).removeprefix("torch."),
            documents_per_second=round(float(np.median(speeds[name])), 1),
            query_ms_p50=round(float(np.percentile(latencies[name], 50)), 2),
            query_ms_p95=round(float(np.percentile(latencies[name], 95)), 2),
        )

    return Efficiency(
        documents=len(sample),
        queries=len(asked),
        device=str(next(iter(models.values())).device),
        systems={name: cost(name, model) for name, model in models.items()},
    )

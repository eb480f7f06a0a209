"""Does `torch.compile` speed up a training step on a CPU? `python benchmarks/compiled.py MODEL`.

Steps (forward, backward, clipping, AdamW) of a student with three of MODEL's layers and packed
texts, plain and with the element-wise parts of each layer compiled (residuals and norms, GELU), in
turns on the same batches. A C++ compiler is needed. Times are the processor's, on one thread, so
that other work on the machine does not count. The last line is JSON: the medians, in seconds, their
ratio, and how long the first compiled step took.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time

import torch
from sentence_transformers import SentenceTransformer
from tiny_models import WORDS
from torch import nn

from hf_distill.compute.device import keep_freed_memory
from hf_distill.training.packing import Packer, fast_on_cpu

_LAYERS, _TEXTS, _WARM_UP = (0, 4, 5), 64, 3


def student_of(name: str) -> SentenceTransformer:
    """Three layers of a model, without dropout, on the CPU."""
    model = SentenceTransformer(name, device="cpu").train()
    encoder = model[0].auto_model.encoder
    encoder.layer = nn.ModuleList([encoder.layer[i] for i in _LAYERS])
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.max_seq_length = 256
    return model


def batches_of(model: SentenceTransformer, count: int) -> list[dict[str, object]]:
    """`count` packed batches of texts of 4 to 200 words, most of them short."""
    draw, packer = random.Random(0), Packer.of(model)
    assert packer is not None
    batches = []
    for _ in range(count):
        lengths = [min(200, max(4, int(draw.lognormvariate(3.6, 0.8)))) for _ in range(_TEXTS)]
        texts = [" ".join(draw.choices(WORDS, k=length)) for length in lengths]
        batches.append(packer.pack(model.preprocess(texts))[0])
    return batches


def compile_parts(model: SentenceTransformer) -> None:
    """Compile what lies between the matrix products of each layer, in place."""
    for layer in model[0].auto_model.encoder.layer:
        for part in (layer.attention.output, layer.intermediate, layer.output):
            part.compile(dynamic=True)


def step(
    model: SentenceTransformer,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, object],
    bf16: bool,
) -> float:
    """One training step. Returns its seconds of the processor."""
    start = time.process_time()
    with fast_on_cpu(model), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        embeddings = model(dict(batch))["sentence_embedding"].float()
    (embeddings @ embeddings.T).pow(2).mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return time.process_time() - start


def main() -> None:
    """Take turns, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="A SentenceTransformer with six layers of BERT.")
    parser.add_argument("--steps", type=int, default=12, help="Default: 12.")
    parser.add_argument("--bf16", action="store_true", help="Under autocast to bfloat16.")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    plain = student_of(options.model)
    compiled = copy.deepcopy(plain)
    compile_parts(compiled)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=2e-5) for model in (plain, compiled)]
    times: list[list[float]] = [[], []]
    for batch in batches_of(plain, options.steps + _WARM_UP):
        for i, model in enumerate((plain, compiled)):
            times[i].append(step(model, optimizers[i], batch, options.bf16))
    own, other = (statistics.median(seconds[_WARM_UP:]) for seconds in times)
    figures = {"plain": own, "compiled": other, "x": own / other, "first": times[1][0]}
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()

"""A student in numpy: the embeddings of sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling

from hf_distill.release.probes import PROBES
from hf_distill.serving.without_torch import load_bert
from hf_distill.student.save import save_student


@pytest.mark.parametrize(("pooling", "bias"), [("mean", True), ("cls", False)])
def test_numpy_embeds_as_torch_does(
    backbone_dir: Path, tmp_path: Path, pooling: str, bias: bool
) -> None:
    torch.manual_seed(0)
    head = Dense(32, 16, bias=bias, activation_function=torch.nn.Identity())
    parts = [Transformer(str(backbone_dir)), Pooling(32, pooling_mode=pooling), head, Normalize()]
    model = SentenceTransformer(modules=parts, device="cpu", prompts={"query": "who "})
    for parameter in model.parameters():  # a fresh layer normalisation scales by 1 and shifts by 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.max_seq_length = 24
    save_student(model.eval(), tmp_path)
    encoder = load_bert(tmp_path)
    assert encoder is not None
    expected = model.encode_query(list(PROBES), show_progress_bar=False)
    np.testing.assert_allclose(encoder.encode(PROBES, "query"), expected, atol=2e-6)
    assert np.abs(encoder.encode(PROBES) - expected).max() > 0.1, "the prompt matters"
    for file, key, value in (
        ("config.json", "model_type", "mpnet"),
        ("config.json", "hidden_act", "relu"),
        ("1_Pooling/config.json", "pooling_mode_max_tokens", True),
        ("1_Pooling/config.json", "include_prompt", False),
        ("2_Dense/config.json", "activation_function", "torch.nn.modules.activation.Tanh"),
    ):
        path = tmp_path / file
        before = path.read_text(encoding="utf-8")
        path.write_text(json.dumps({**json.loads(before), key: value}), encoding="utf-8")
        assert load_bert(tmp_path) is None, "left to ONNX or torch"
        path.write_text(before, encoding="utf-8")

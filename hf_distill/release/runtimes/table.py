"""The runtimes that `hf-distill verify` can try. A further one is one file beside this one, and one
line here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FLOAT32, _INT8 = "onnx/model.onnx", "onnx/model_quantized.onnx"


@dataclass(frozen=True)
class Runtime:
    """A library that embeds texts with a student.

    Attributes:
        script: A file in this folder. A Python file has `embed(student, queries, documents)`, which
            returns the embeddings of both; `harness.py` calls it. `harness.mjs` says what a
            JavaScript file has.
        packages: What must be installed. Their versions are reported.
        install: The line that installs them.
        file: The file in the student's folder that it reads, if that is not the saved model.
    """

    script: str
    packages: tuple[str, ...]
    install: str
    file: str | None = None

    @property
    def precision(self) -> str:
        """`float32`, or `int8`, which is judged by what it retrieves."""
        return "int8" if self.file and re.search("quantized|int8", self.file) else "float32"

    @property
    def form(self) -> str | None:
        """The `--format` of `hf-distill export` that writes `file`: its folder has the name."""
        return self.file.partition("/")[0] if self.file else None

    @property
    def in_node(self) -> bool:
        """Whether it needs Node in place of Python."""
        return self.script.endswith(".mjs")


def _pip(script: str, packages: tuple[str, ...], file: str | None = None) -> Runtime:
    return Runtime(script, packages, f"pip install {' '.join(packages)}", file)


def _npm(script: str, package: str, file: str) -> Runtime:
    return Runtime(script, (package,), f"npm install {package}", file)


_JS = "@huggingface/transformers"
_SESSION = ("onnxruntime", "tokenizers")
_OPENVINO = ("openvino", "tokenizers")

RUNTIMES: dict[str, Runtime] = {
    "sentence-transformers": _pip(
        "sentence_transformers.py", ("sentence-transformers", "transformers")
    ),
    "transformers": _pip("transformers.py", ("transformers", "torch", "safetensors")),
    "onnxruntime": _pip("onnxruntime.py", _SESSION, _FLOAT32),
    "onnxruntime-int8": _pip("onnxruntime.py", _SESSION, _INT8),
    "openvino": _pip("openvino.py", _OPENVINO, _FLOAT32),
    "openvino-int8": _pip("openvino.py", _OPENVINO, "openvino/model_int8.xml"),
    "fastembed": _pip("fastembed.py", ("fastembed",), _FLOAT32),
    "fastembed-int8": _pip("fastembed.py", ("fastembed",), _INT8),
    "model2vec": _pip("model2vec.py", ("model2vec",), "model2vec/model.safetensors"),
    "infinity": Runtime(
        "infinity.py",
        ("infinity-emb", "sentence-transformers", "transformers"),
        "pip install 'infinity-emb[torch]'",
    ),
    "langchain": _pip("langchain.py", ("langchain-huggingface", "sentence-transformers")),
    "llama-index": _pip("llama_index.py", ("llama-index-embeddings-huggingface",)),
    "haystack": _pip("haystack.py", ("haystack-ai", "sentence-transformers-haystack")),
    "transformers.js": _npm("transformers_js.mjs", _JS, _FLOAT32),
    "transformers.js-int8": _npm("transformers_js.mjs", _JS, _INT8),
    "transformers.js-chromium": _npm("transformers_js_chromium.mjs", _JS, _FLOAT32),
    "transformers.js-chromium-int8": _npm("transformers_js_chromium.mjs", _JS, _INT8),
}
"""Name -> runtime, in the order of the result."""

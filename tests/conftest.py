"""Tiny models, built once in memory, and the real data where it is."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # before anything imports huggingface_hub: no test may ask the Hub
)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tests run two at a time, on models too small for more threads

import json
import random
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

from hf_distill.data.collection import PairData
from hf_distill.data.load import load_pair_data
from hf_distill.recipe.arguments import DataArguments
from hf_distill.run.folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
REAL_DATA = ROOT.parent / "shared" / "data"

WORDS = """
a an the of in on and or to from with for is are was by at red green blue cat dog bird fish sun moon star tree leaf stone river lake
sea hill road house door window table chair book page word line point circle square north south east west who what where when why how
many first last best small large old new open close read write run walk swim fly
""".split()  # noqa: SIM905  (a list of seventy strings reads worse)


def sentences(count: int, offset: int = 0) -> list[str]:
    """`count` random sentences of ten words, the same each time."""
    return [" ".join(random.Random(i).choices(WORDS, k=10)) for i in range(offset, offset + count)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {
        token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


@pytest.fixture(scope="session")
def backbone_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 4-layer, 32-dimensional BERT with a vocabulary of some 80 words, as transformers
    saves it.
    """
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "backbone"
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def teacher_dir(backbone_dir: Path) -> Path:
    """The same as a SentenceTransformer: mean pooling, L2-normalised."""
    folder = backbone_dir.parent / "teacher"
    transformer = Transformer(str(backbone_dir))
    model = SentenceTransformer(
        modules=[transformer, Pooling(32, pooling_mode="mean"), Normalize()], device="cpu"
    )
    model.max_seq_length = 32
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="session")
def cross_encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny real cross-encoder whose logits leave [-1, 1], as transformers saves it."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("models") / "cross-encoder"
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.5, num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 pairs in JSONL, a group of four after another."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    queries, documents = sentences(200), sentences(200, 1000)
    rows = [
        {"query": q, "document": d, "topic": i // 4}
        for i, (q, d) in enumerate(zip(queries, documents, strict=True))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """The folder of a run that has not begun."""
    return RunFolder(tmp_path / "run")


@pytest.fixture
def data(pairs_file: Path, folder: RunFolder) -> PairData:
    """`pairs_file`, split."""
    return load_pair_data(
        DataArguments(dataset="files", dataset_path=str(pairs_file), group_column="topic"),
        0,
        folder,
    )


@pytest.fixture(scope="session")
def qrecc_train() -> Path:
    path = REAL_DATA / "qrecc_quac_train.json"
    if not path.is_file():
        pytest.skip(f"the real QReCC file is not here ({path.name})")
    return path

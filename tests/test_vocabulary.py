"""A student with a cut vocabulary reads the training texts as before and spells the rest. A static
student begins with the teacher's vectors.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import sentences
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tiny_models import WORDS, word_pieces
from tiny_teacher import TinyTeacher, tiny_teacher
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import StudentArguments
from hf_distill.student.build import Initialisation, build_student
from hf_distill.student.head import principal_components
from hf_distill.student.save import save_student
from hf_distill.student.vocabulary import (
    SIF,
    count_tokens,
    cut_tokenizer,
    kept_tokens,
    static_vectors,
)

USED = ["a cat and a dog", "the river of the moon"]


@pytest.fixture(scope="module")
def teacher(teacher_dir: Path) -> TinyTeacher:
    return tiny_teacher(teacher_dir)


def counted(tokenizer: Any, texts: list[str], max_length: int = 32) -> np.ndarray:
    return count_tokens(tokenizer, [(texts, np.ones(len(texts), dtype=np.int64))], max_length)


def mixed_pieces() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer with word endings and letters, its special tokens last and first, as in
    MPNet.
    """
    tokens = "[PAD] [CLS] [SEP] play ##ing ##er run walk w ##a ##l ##k r ##u ##n [UNK] [MASK]"
    return word_pieces(tokens.split())


def unigrams() -> PreTrainedTokenizerFast:
    pieces = [
        ("<s>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁play", -2.0),
        ("ing", -2.5),
        ("▁run", -2.0),
        ("▁", -3.0),
        ("r", -5.0),
        ("u", -5.0),
    ]
    pieces += [("n", -5.0), ("p", -5.0), ("l", -5.0), ("a", -5.0), ("y", -5.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
    )


@pytest.mark.parametrize("make", [mixed_pieces, unigrams])
def test_used_texts_are_tokenised_as_before_and_others_are_spelled(make) -> None:
    tokenizer = make()
    counts = counted(tokenizer, ["playing", "play"])
    cut = cut_tokenizer(tokenizer, kept_tokens(tokenizer, counts))
    assert len(cut) < len(tokenizer)
    assert cut.tokenize("playing play") == tokenizer.tokenize("playing play")
    assert cut.convert_ids_to_tokens(
        cut("playing")["input_ids"]
    ) == tokenizer.convert_ids_to_tokens(tokenizer("playing")["input_ids"])
    assert len(tokenizer.tokenize("run")) == 1
    assert len(cut.tokenize("run")) > 1
    assert "".join(cut.tokenize("run")).replace("##", "").removeprefix("▁") == "run"
    assert cut.unk_token not in cut.tokenize("run")
    assert cut.pad_token_id == cut.convert_tokens_to_ids(tokenizer.pad_token) < len(cut)
    assert cut("zz")["input_ids"][1:-1].count(cut.unk_token_id) >= 1


def test_tokens_are_counted_with_special_ones_up_to_the_limit_as_often_as_their_text() -> None:
    tokenizer = mixed_pieces()
    batches = [(["play play playing"], np.array([3])), (["run", "walk"], np.array([1, 2]))]
    counts = count_tokens(tokenizer, batches, 4)
    named = {
        token: int(counts[tokenizer.convert_tokens_to_ids(token)])
        for token in ("play", "##ing", "run", "walk", "[CLS]")
    }
    assert named == {"play": 6, "##ing": 0, "run": 1, "walk": 2, "[CLS]": 6}


def test_a_vocabulary_of_merges_is_refused() -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])),
        pad_token="a",
    )
    with pytest.raises(InputError, match=r"--student_vocabulary used.* BPE "):
        kept_tokens(tokenizer, np.ones(3))


@pytest.mark.parametrize("backbone", ["teacher", "static"])
def test_a_student_with_a_cut_vocabulary_equals_the_whole_one_on_used_texts(
    teacher: TinyTeacher, tmp_path: Path, backbone: str
) -> None:
    components = principal_components(teacher.embed(sentences(100)), 16)
    counts = counted(teacher.backbone.tokenizer, USED)
    arguments = StudentArguments(
        student_backbone=backbone, student_dim=16, student_max_length=32, student_init="pca"
    )
    whole = build_student(arguments, teacher, Initialisation(components, None, counts), 0).eval()
    arguments = StudentArguments(**{**vars(arguments), "student_vocabulary": "used"})
    small = build_student(arguments, teacher, Initialisation(components, None, counts), 0).eval()
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in whole.parameters())
    np.testing.assert_allclose(small.encode(USED), whole.encode(USED), atol=1e-6)
    save_student(small, tmp_path / "small")
    loaded = SentenceTransformer(str(tmp_path / "small"), device="cpu")
    texts = [*USED, "a stone", "unknown"]
    np.testing.assert_allclose(loaded.encode(texts), small.encode(texts), atol=1e-6)
    assert len(teacher.backbone.tokenizer) == len(WORDS) + 5, "the teacher keeps its vocabulary"


def test_static_vectors_by_hand() -> None:
    embeddings, components = (
        np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 4.0]]),
        np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
    )
    vectors = static_vectors(embeddings, np.array([3, 1]), components)
    np.testing.assert_allclose(
        vectors,
        [[2 * SIF / (SIF + 0.75), 0], [SIF / (SIF + 0.25), 4 * SIF / (SIF + 0.25)]],
        rtol=1e-6,
    )


def test_a_static_student_is_the_mean_of_its_tokens_and_truncates(
    teacher: TinyTeacher,
) -> None:
    components = principal_components(teacher.embed(sentences(100)), 16)
    arguments = StudentArguments(
        student_backbone="static", student_dim=16, student_max_length=3, student_init="pca"
    )
    student = build_student(arguments, teacher, Initialisation(components), 0).eval()
    assert isinstance(student[0], StaticEmbedding)
    table = student[0].embedding.weight
    assert table.requires_grad
    mean = (
        table.detach()[student.tokenizer.encode("cat dog", add_special_tokens=False).ids]
        .mean(dim=0)
        .numpy()
    )
    expected = mean / np.linalg.norm(mean)
    np.testing.assert_allclose(student.encode(["cat dog"])[0], expected, atol=1e-6)
    np.testing.assert_allclose(
        student.encode(["cat dog sun moon tree"]), student.encode(["cat dog sun"]), atol=1e-6
    )
    cosines = student.encode(["cat"]) @ (teacher.embed(["cat"]) @ components.T).T
    assert cosines.item() == pytest.approx(
        np.linalg.norm(teacher.embed(["cat"]) @ components.T), abs=1e-4
    ), "one word is the teacher's"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"student_layers": "0"}, "--student_layers 0"),
        ({"student_dropout": 0.1}, "--student_dropout 0.1"),
        ({"student_dim": 64, "student_init": "pca"}, "--student_dim 64 .* 32 "),
    ],
)
def test_a_static_student_that_cannot_be_built_is_refused(
    teacher: TinyTeacher, changes: dict, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        build_student(
            StudentArguments(**{"student_backbone": "static", "student_dim": 16, **changes}),
            teacher,
            None,
            0,
        )


def test_a_static_student_of_a_tokenizer_of_merges(teacher: TinyTeacher) -> None:
    """Its vocabulary can only be kept whole."""
    letters = {letter: i for i, letter in enumerate("[]abcdefghijklmnopqrstuvwxyz ")}
    merges = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(letters, [])), pad_token="["
    )
    model = copy.deepcopy(teacher.backbone)
    model[0].processor = merges
    other = dataclasses.replace(teacher, backbone=model)
    arguments = StudentArguments(student_backbone="static", student_dim=16, student_init="random")
    student = build_student(arguments, other, None, 0)
    assert student.encode(["abc"]).shape == (1, 16)
    with pytest.raises(InputError, match=r"--student_vocabulary used.* BPE "):
        build_student(dataclasses.replace(arguments, student_vocabulary="used"), other, None, 0)

"""The model card, and which names and texts a card may show."""

import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from run_results import run_results

from hf_distill.data.collection import Source
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import TeacherArguments
from hf_distill.recipe.read import read_recipe
from hf_distill.release.cards import code, escape_markdown, hub_id, public_name, public_teacher
from hf_distill.release.dataset_repo import write_dataset
from hf_distill.release.hub import check_publishing, publish_run, releases_of
from hf_distill.release.model_card import write_model_card
from hf_distill.report.headline import verdict
from hf_distill.report.results import RunResults
from hf_distill.run.folder import RunFolder, save_recipe
from hf_distill.run.stage import write_result


@given(st.text())
def test_escaped_text_is_one_line_of_neither_markdown_nor_html(text: str) -> None:
    escaped = escape_markdown(text)
    assert "\n" not in escaped
    assert "<" not in escaped
    assert not re.search(r"(?<!\\)(?:\\\\)*[|*_`\[\]]", escaped), escaped


def test_escaping_by_hand() -> None:
    escaped = r"a \| b &lt;b&gt;\*c\*&lt;/b&gt; &amp; \`d\`"
    assert escape_markdown("a | b\n<b>*c*</b> & `d`") == escaped


@given(st.text())
def test_a_code_span_is_not_closed_by_its_text(text: str) -> None:
    span = code(text)
    fence = re.match("`+", span).group()
    inside = span[len(fence) : -len(fence)]
    assert span.endswith(fence)
    assert fence not in re.findall("`+", inside)
    assert not set(inside) & {"\n", "\r", "|"}


def test_only_a_hub_id_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "model").mkdir(parents=True)
    name = "sentence-transformers/all-MiniLM-L6-v2"
    assert hub_id(name) == name
    assert hub_id("me/model") is None, "a folder of that name is a folder"
    assert hub_id("/tmp/model") is None
    assert public_name("/home/somebody/secret/model") == "model"


def test_a_card_names_every_member_of_an_ensemble() -> None:
    members = ["bi-encoder:/secret/one=1", "cross-encoder:you/two=0.5"]
    assert public_teacher(TeacherArguments(ensemble=members)) == (
        "an ensemble of `one` (bi-encoder, weight 1), `you/two` (cross-encoder, weight 0.5)"
    )


# --- the model card -------------------------------------------------------------------------------


def released(folder: RunFolder, *line: str, source: Source) -> RunResults:
    """A run whose data set and model card are written, around a student that is only files."""
    results, *rest = run_results(folder, *line, rules=("percentile=50",), source=source)
    save_recipe(results.recipe, folder)
    (folder.student / "2_Dense").mkdir(parents=True)
    prompts = {"prompts": {"query": "query: ", "document": ""}}
    (folder.student / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    (folder.student / "2_Dense" / "config.json").write_text(json.dumps({"bias": False}))
    write_result(folder.training, results.training, [folder.student])
    write_dataset(results, *rest)
    write_model_card(results)
    return results


def test_the_model_card_tells_what_was_measured(folder: RunFolder) -> None:
    source = Source("you/pairs", license="cc-by-4.0", description="<b>Pairs</b>.")
    line = (
        "--hub_model_id", "you/student", "--hub_dataset_id", "you/scored", "--teacher", "org/big",
        "--push_to_hub", "true",
        "--student_layers", "0,2", "--student_license", "apache-2.0", "--kl_weight", "0",
    )  # fmt: skip
    results = released(folder, *line, source=source)
    card = ModelCard.load(folder.student / "README.md")
    assert card.data.base_model == "org/big"
    assert card.data.datasets == ["you/scored", "you/pairs"]
    student = results.evaluation.retrieval.systems["student"]["nDCG@10"]
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("ndcg_10", round(student.value, 4))
    comparison = results.evaluation.significance.comparisons["bm25"].difference
    rule = results.audit.rules[0]
    text = " ".join(card.text.split())
    for part in (
        "# student", "`org/big`", verdict(results.evaluation),
        'SentenceTransformer("you/student")',
        'needs the prompt `"query: "` before it; `encode_query` adds it',
        f"| student | {student.value:.3f} (", "&lt;b&gt;Pairs&lt;/b&gt;.",
        f"minus BM25: {comparison.value:+.3f} ({comparison.low:+.3f}", "`apache-2.0`.",
        f"| `percentile=50` | 140 | {rule.dropped} |", "4 of them were removed",
        "The student is layers 0, 2 of the teacher's backbone", "That of the texts is `cc-by-4.0`",
        "| `contrastive_weight` |", "[`you/scored`](https://huggingface.co/datasets/you/scored)",
    ):  # fmt: skip
        assert part in text, part
    assert "kl_weight" not in card.text, "a term of weight 0 is left out"
    (entry,) = yaml.safe_load((folder.student / ".eval_results" / "retrieval.yaml").read_text())
    assert entry["dataset"]["id"] == "you/scored"
    assert entry["value"] == round(student.value, 4)


def test_the_model_card_escapes_names_and_hides_paths(folder: RunFolder) -> None:
    line = ("--teacher", "/secret/a_*big*", "--hub_model_id", "none")
    released(folder, *line, source=Source("p|q<b>"))
    text = (folder.student / "README.md").read_text(encoding="utf-8")
    assert r"# a\_\*big\*\-quickstart\-student" in text
    assert "documents of p\\|q&lt;b&gt;" in text
    assert "secret" not in text.split("---")[2]
    assert "datasets" not in ModelCard(text).data.to_dict()
    assert not (folder.student / ".eval_results").exists()


# --- publishing -----------------------------------------------------------------------------------


def test_the_data_set_goes_first_and_links_to_the_student(folder: RunFolder) -> None:
    line = (
        "--push_to_hub", "true", "--hub_model_id", "you/student", "--hub_dataset_id", "you/scored",
    )  # fmt: skip
    results = released(folder, *line, "--dataset_license", "mit", source=Source("pairs"))
    data_set, student = releases_of(results)
    assert (data_set.repo, data_set.kind, data_set.folder) == (
        "you/scored",
        "dataset",
        folder.dataset,
    )
    assert (student.repo, student.kind, student.folder) == ("you/student", "model", folder.student)
    card = data_set.instead["README.md"].decode()
    assert 'load_dataset("you/scored", "selected"' in card
    assert "[`you/student`](https://huggingface.co/you/student)" in card
    assert "license: mit" in card


def test_without_push_to_hub_nothing_is_published(folder: RunFolder) -> None:
    results = released(folder, "--hub_model_id", "you/student", source=Source("pairs"))
    assert publish_run(results) == []
    assert [release.repo for release in releases_of(results)] == ["you/student"]


def test_publishing_needs_a_name() -> None:
    with pytest.raises(InputError, match=r"--push_to_hub true.*--hub_model_id"):
        check_publishing(read_recipe(["--push_to_hub", "true"]))

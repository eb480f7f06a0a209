import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import read_recipe
from hf_distill.release.cards import (
    escape_markdown,
    hub_id,
    public_name,
)
from hf_distill.release.dataset_repo import _size_category
from hf_distill.release.model_card import check_publishing


@given(st.text())
def test_escaped_text_is_one_line_of_neither_markdown_nor_html(text: str) -> None:
    escaped = escape_markdown(text)
    assert "\n" not in escaped
    assert "<" not in escaped
    assert not re.search(r"(?<!\\)(?:\\\\)*[|*_`\[\]]", escaped), escaped


def test_escaping_by_hand() -> None:
    assert (
        escape_markdown("a | b\n<b>*c*</b> & `d`") == r"a \| b &lt;b&gt;\*c\*&lt;/b&gt; &amp; \`d\`"
    )


def test_only_a_hub_id_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "model").mkdir(parents=True)
    assert (
        hub_id("sentence-transformers/all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
    )
    assert hub_id("me/model") is None, "a folder of that name is a folder"
    assert hub_id("/tmp/model") is None
    assert public_name("/home/somebody/secret/model") == "model"


def test_size_categories() -> None:
    assert [_size_category(n) for n in (5, 1000, 12269, 10**9)] == [
        "n<1K",
        "1K<n<10K",
        "10K<n<100K",
        "100M<n<1B",
    ]


def test_publishing_needs_a_name(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"push_to_hub": True, "bf16": False}))
    with pytest.raises(InputError, match="push_to_hub needs --hub_model_id"):
        check_publishing(read_recipe([str(recipe)]))

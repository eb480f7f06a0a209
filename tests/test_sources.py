"""Several sources in one training: how many pairs of each are drawn, and into which batches."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from conftest import call, recipe_of, run_tiny, sentences
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from test_trainer import largest_difference
from tiny_training import Tiny, tiny

from hf_distill.data.load import load_collection
from hf_distill.errors import InputError
from hf_distill.recipe.config import DistillationConfig
from hf_distill.run.folder import RunFolder
from hf_distill.training.sources import (
    NO_SOURCE,
    Plan,
    SourceBatches,
    Sources,
    apportion,
    check_mixing,
    check_sources,
    first_steps,
    parse_shares,
    shares_of,
    sources_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")

SIZES = st.lists(st.integers(1, 500), min_size=2, max_size=6)


def config_of(**keys: Any) -> DistillationConfig:
    return DistillationConfig("out", use_cpu=True, per_device_train_batch_size=4, **keys)


def sources_with(**sizes: int) -> Sources:
    """So many pairs of each source, the sources taking turns as long as they have pairs."""
    names = tuple(sorted(sizes))
    codes = np.concatenate([np.full(sizes[name], i) for i, name in enumerate(names)])
    return Sources(names, np.random.default_rng(0).permutation(codes).astype(np.int32))


def plan_with(sizes: dict[str, int], **keys: Any) -> Plan:
    return Plan.of(sources_with(**sizes), config_of(**keys))


def codes_of(plan: Plan, epoch: int) -> list[int]:
    return plan.sources.codes[plan.draw(epoch)].tolist()


# --- shares ---------------------------------------------------------------------------------------


def test_shares_are_in_proportion_to_the_size_to_the_power_alpha() -> None:
    pairs = {"faq": 100, "wiki": 900}
    assert shares_of(pairs, config_of(source_alpha=0.5)) == pytest.approx([10 / 40, 30 / 40])
    assert shares_of(pairs, config_of(source_alpha=0.0)) == pytest.approx([0.5, 0.5])
    assert shares_of(pairs, config_of(source_alpha=2)) == pytest.approx([1 / 82, 81 / 82])
    assert shares_of(pairs, config_of(one_source_per_batch=True)) == pytest.approx([0.1, 0.9])


def test_given_shares_need_not_add_up_to_one() -> None:
    shares = shares_of({"a=b": 5, "c": 7}, config_of(source_shares=["c=1", "a=b=3"]))
    assert shares == pytest.approx([0.75, 0.25])


def test_what_remains_goes_to_the_largest_remainders() -> None:
    # 10 * (.45, .35, .20) = 4.5, 3.5, 2: one pair is left, and the first of two equal ones gets it
    assert apportion(10, np.array([0.45, 0.35, 0.2])).tolist() == [5, 3, 2]
    assert apportion(7, np.array([1.0, 1.0, 2.0])).tolist() == [2, 2, 3]


@given(st.integers(0, 1000), SIZES)
def test_numbers_add_up_and_are_less_than_one_from_the_share(total: int, sizes: list[int]) -> None:
    shares = np.array(sizes) / sum(sizes)
    numbers = apportion(total, shares)
    assert numbers.sum() == total
    assert (np.abs(numbers - total * shares) < 1).all()


@given(st.integers(0, 300), st.integers(0, 100), SIZES)
def test_a_later_epoch_never_takes_steps_back(total: int, more: int, sizes: list[int]) -> None:
    shares = np.array([0, *sizes]) / sum(sizes)
    before, after = first_steps(total, shares), first_steps(total + more, shares)
    assert (before.sum(), after.sum()) == (total, total + more)
    assert (after >= before).all()
    assert before[0] == 0


# --- plans ----------------------------------------------------------------------------------------


def test_an_epoch_has_as_many_pairs_as_there_are_in_the_given_shares() -> None:
    plan = plan_with({"faq": 10, "wiki": 90}, source_shares=["faq=0.4", "wiki=0.6"])
    for epoch in range(3):
        assert Counter(codes_of(plan, epoch)) == {0: 40, 1: 60}


def test_a_small_source_repeats_evenly_and_a_large_one_is_seen_as_a_whole() -> None:
    plan = plan_with({"faq": 10, "wiki": 90}, source_shares=["faq=0.4", "wiki=0.6"])
    first, second = plan.draw(0), plan.draw(1)
    small, large = (np.flatnonzero(plan.sources.codes == code) for code in (0, 1))
    assert sorted(pair for pair in first if pair in small) == sorted([*small] * 4)
    drawn = [pair for pair in [*first, *second] if pair in large]  # 120 of 90 pairs
    assert set(Counter(drawn).values()) == {1, 2}
    assert Counter(drawn[:60]).most_common(1)[0][1] == 1
    assert set(drawn) == set(large)


@given(SIZES, st.integers(1, 8), st.sampled_from([0.0, 0.5, 2.0]))
def test_after_enough_epochs_no_pair_was_drawn_twice_more_than_another(
    sizes: list[int], epochs: int, alpha: float
) -> None:
    plan = plan_with({f"s{i}": size for i, size in enumerate(sizes)}, source_alpha=alpha)
    drawn = np.bincount(
        np.concatenate([plan.draw(epoch) for epoch in range(epochs)]), minlength=sum(sizes)
    )
    for code in range(len(sizes)):
        of_source = drawn[plan.sources.codes == code]
        assert of_source.max() - of_source.min() <= 1


def test_epochs_differ_and_the_seed_draws_them() -> None:
    sizes = {"a": 20, "b": 60}
    plan, same = (plan_with(sizes, source_alpha=0.5) for _ in range(2))
    assert plan.draw(1).tolist() == same.draw(1).tolist()
    assert plan.draw(1).tolist() != plan.draw(0).tolist()
    assert plan_with(sizes, source_alpha=0.5, seed=1).draw(0).tolist() != plan.draw(0).tolist()


def test_sources_are_mixed_within_an_epoch() -> None:
    codes = codes_of(plan_with({"a": 50, "b": 50}, source_alpha=0.5), 0)
    changes = sum(one != other for one, other in itertools.pairwise(codes))
    assert 30 < changes < 70


def test_every_step_is_of_one_source_and_what_is_left_comes_in_the_next_epochs() -> None:
    # 30 pairs fill 7 steps of 4: 10 / 30 of 7 steps are 2.33, so the epochs have 2, 3 and 2
    plan = plan_with({"a": 10, "b": 20}, one_source_per_batch=True)
    steps = [np.array(codes_of(plan, epoch)).reshape(7, 4) for epoch in range(3)]
    assert all((codes == codes[:, :1]).all() for codes in steps)
    assert [int((codes[:, 0] == 0).sum()) for codes in steps] == [2, 3, 2]
    drawn = np.bincount(np.concatenate([plan.draw(epoch) for epoch in range(3)]), minlength=30)
    assert set(drawn.tolist()) == {2, 3}  # 84 of 3 * 30


def test_steps_of_one_source_take_turns() -> None:
    first = np.array(codes_of(plan_with({"a": 40, "b": 40}, one_source_per_batch=True), 0))[::4]
    assert first.tolist() != sorted(first.tolist())


def test_a_share_of_zero_leaves_a_source_out() -> None:
    plan = plan_with({"a": 10, "b": 20}, source_shares=["a=0", "b=1"])
    assert plan.drawn(7, config_of()) == {"a": 0, "b": 28}
    assert plan.drawn(8, config_of()) == {"a": 0, "b": 30}  # the last batch of an epoch has two


def test_several_processes_draw_what_one_would() -> None:
    for keys in ({"source_alpha": 0.5}, {"one_source_per_batch": True}):
        config = config_of(**keys)
        config.per_device_train_batch_size = 8
        plan = Plan.of(sources_with(a=24, b=56), config)  # 8 at a time: 1 x 8 or 2 x 4
        whole = list(SourceBatches(plan, 8, drop_last=True))
        sharded = [
            list(
                BatchSamplerShard(
                    SourceBatches(plan, 4, drop_last=True), 2, rank, even_batches=False
                )
            )
            for rank in range(2)
        ]
        together = [[*one, *other] for one, other in zip(*sharded, strict=True)]
        assert together == whole
        assert len(whole) == 10


def test_a_sampler_that_skips_goes_on_where_it_would_have_been() -> None:
    batches = SourceBatches(plan_with({"a": 24, "b": 56}, source_alpha=0.5), 4, drop_last=True)
    batches.epoch.fill_(3)
    assert list(SkipBatchSampler(batches, 5)) == list(batches)[5:]
    assert len(batches) == len(list(batches)) == 20


def test_what_was_drawn_is_counted_up_to_the_last_step() -> None:
    sizes, keys = {"a": 10, "b": 30}, {"source_shares": ["a=1", "b=1"]}
    plan = plan_with(sizes, **keys)
    assert plan.drawn(10, config_of(**keys)) == {"a": 20, "b": 20}
    part = Counter(codes_of(plan, 0) + codes_of(plan, 1)[:12])
    assert plan.drawn(13, config_of(**keys)) == {"a": part[0], "b": part[1]}
    # Two batches at a time: five steps an epoch, the sixth sees the first eight pairs of the next.
    part = Counter(codes_of(plan, 0) + codes_of(plan, 1)[:8])
    accumulated = config_of(**keys, gradient_accumulation_steps=2)
    assert plan.drawn(6, accumulated) == {"a": part[0], "b": part[1]}


# --- where pairs come from ------------------------------------------------------------------------


def test_pairs_without_a_source_are_a_source_of_their_own() -> None:
    sources = Sources.of(Dataset.from_dict({"source": ["b", None, "a", "b"]}))
    assert sources.count == {NO_SOURCE: 1, "a": 1, "b": 2}
    assert sources.column.tolist() == ["b", NO_SOURCE, "a", "b"]
    only = Sources.of(Dataset.from_dict({"source": ["b", None, "a", "b"]}), np.array([3, 0]))
    assert only.count == {"b": 2}


@pytest.fixture(scope="module")
def sourced_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 pairs: each fourth is from `faq`, the others from `wiki`; four are from nowhere."""
    path = tmp_path_factory.mktemp("sourced") / "pairs.jsonl"
    names = [None if i % 40 == 1 else "faq" if i % 4 == 0 else "wiki" for i in range(160)]
    rows = zip(sentences(160), sentences(160, 1000), names, strict=True)
    path.write_text(
        "".join(json.dumps({"query": q, "document": d, "from": s}) + "\n" for q, d, s in rows)
    )
    return path


def sourced(sourced_file: Path) -> dict[str, Any]:
    return {"dataset": "files", "dataset_path": sourced_file, "source_column": "from"}


def test_a_collection_knows_the_sources_of_its_pairs(sourced_file: Path, folder: RunFolder) -> None:
    recipe = recipe_of(run_dir=folder.path, **sourced(sourced_file))
    collection = load_collection(recipe, folder)
    assert sources_of(collection.every_pair()).count == {NO_SOURCE: 4, "faq": 40, "wiki": 116}
    check_sources(collection, recipe.training)  # nothing is said of sources
    with pytest.raises(InputError, match=r"--source_shares news=1.*faq.*wiki"):
        check_sources(collection, config_of(source_shares=["news=1"]))


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "key"),
    [
        (["faq"], "--source_shares faq"),
        (["=1"], "--source_shares =1"),
        (["faq=much"], "--source_shares faq=much"),
        (["faq=-1"], "--source_shares faq=-1"),
        (["faq=nan"], "--source_shares faq=nan"),
        (["faq=1", "faq=2"], "--source_shares faq=2"),
        (["faq=0", "wiki=0"], "--source_shares faq=0 wiki=0"),
    ],
)
def test_shares_that_cannot_be_read_are_refused(shares: list[str], key: str) -> None:
    with pytest.raises(InputError, match=key):
        parse_shares(shares)


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"source_alpha": -1.0}, "--source_alpha -1"),
        ({"source_alpha": float("inf")}, "--source_alpha inf"),
        ({"source_alpha": 0.5, "source_shares": ["a=1"]}, r"--source_alpha 0.5.*--source_shares"),
        ({"source_alpha": 0.5, "batch_sampler": "no_duplicates"}, "--batch_sampler no_duplicates"),
    ],
)
def test_what_excludes_each_other_is_refused(keys: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=key):
        check_mixing(config_of(**keys))


def test_no_duplicates_stays_allowed_where_pairs_are_taken_as_they_come() -> None:
    check_mixing(config_of(batch_sampler="no_duplicates"))


@pytest.mark.parametrize(
    ("pairs", "keys", "key"),
    [
        ({"a": 9, "b": 9}, {"source_shares": ["a=1"]}, r"--source_shares a=1.*b \(9 pairs\)"),
        ({"a": 9, "b": 9}, {"source_shares": ["a=1", "c=2"]}, "--source_shares c=2"),
        ({"a": 9}, {"source_alpha": 0.5}, r"--source_alpha 0.5.*a \(9 pairs\).*--source_column"),
        ({"a": 9}, {"one_source_per_batch": True}, "--one_source_per_batch"),
        ({"a": 3, "b": 9}, {"one_source_per_batch": True}, r"a has 3 .*takes 4"),
    ],
)
def test_sources_that_the_pairs_do_not_have_are_refused(
    pairs: dict[str, int], keys: dict[str, Any], key: str
) -> None:
    with pytest.raises(InputError, match=key):
        shares_of(pairs, config_of(**keys))


def test_an_unknown_source_is_refused_before_the_scoring(
    tiny_recipe: Path, sourced_file: Path, tmp_path: Path
) -> None:
    line = ["--group_column", "none", "--source_column", "from", "--source_shares", "news=0.5"]
    said = call([tiny_recipe, "--run_dir", tmp_path / "run", "--dataset_path", sourced_file, *line])
    assert said.code == 2
    assert "--source_shares news=0.5" in said.err
    assert all(name in said.err for name in ("faq", "wiki"))
    assert not (tmp_path / "run" / "soft_labels").exists()


# --- training -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(teacher_dir: Path) -> Tiny:
    return tiny(teacher_dir)


@pytest.fixture(scope="module")
def rows(parts: Tiny) -> Dataset:
    """32 pairs by number, eight of them from `a`."""
    names = ["a" if i % 4 == 0 else "b" for i in range(32)]
    return parts.numbers.add_column("source", names).with_format("numpy")


def drawn_by(trainer: Any) -> list[list[int]]:
    """The queries (which are the pairs' numbers) of every batch that the trainer computes."""
    batches: list[list[int]] = []
    compute = trainer.compute_loss

    def watched(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        batches.append(inputs["query_key"].tolist())
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = watched
    trainer.train()
    return batches


def test_without_a_word_about_sources_nothing_changes(
    parts: Tiny, rows: Dataset, tmp_path: Path
) -> None:
    settings = {"lookup": parts.lookup, "num_train_epochs": 2}
    plain = parts.trainer(tmp_path / "plain", parts.numbers, **settings)
    with_sources = parts.trainer(tmp_path / "sources", rows, **settings)
    assert drawn_by(plain) == drawn_by(with_sources)
    assert largest_difference(plain.model, with_sources.model) == 0


@pytest.mark.parametrize("keys", [{"source_alpha": 0.0}, {"one_source_per_batch": True}])
def test_the_training_sees_what_the_plan_says(
    parts: Tiny, rows: Dataset, tmp_path: Path, keys: dict[str, Any]
) -> None:
    trainer = parts.trainer(tmp_path, rows, lookup=parts.lookup, num_train_epochs=2, **keys)
    batches = drawn_by(trainer)
    plan = trainer.plan
    assert batches == np.stack([plan.draw(0), plan.draw(1)]).reshape(8, 8).tolist()
    of_a = sum(pair % 4 == 0 for batch in batches for pair in batch)
    drawn = plan.drawn(trainer.state.global_step, trainer.args)
    assert drawn == {"a": of_a, "b": 64 - of_a}
    assert of_a == (32 if "source_alpha" in keys else 16)


def test_the_evaluation_takes_every_pair_once(parts: Tiny, rows: Dataset, tmp_path: Path) -> None:
    trainer = parts.trainer(
        tmp_path, rows, lookup=parts.lookup, source_alpha=0.0, eval_dataset=rows.select(range(16))
    )
    batches = list(trainer.get_eval_dataloader())
    seen = [int(key) for batch in batches for key in batch["query_key"]]
    assert sorted(seen) == list(range(16))


@pytest.mark.parametrize("keys", [{"source_alpha": 0.0}, {"one_source_per_batch": True}])
def test_a_resumed_training_goes_on_in_its_epoch(
    parts: Tiny, rows: Dataset, tmp_path: Path, keys: dict[str, Any]
) -> None:
    settings = {
        "lookup": parts.lookup, "save_strategy": "steps", "save_steps": 5, "num_train_epochs": 3,
        **keys,
    }  # fmt: skip
    whole = parts.trainer(tmp_path / "whole", rows, **settings)
    whole.train()
    assert whole.state.global_step == 12
    resumed = parts.trainer(tmp_path / "resumed", rows, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert largest_difference(whole.model, resumed.model) == 0


def test_rows_without_sources_are_refused(parts: Tiny, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--source_alpha 0.5.*--source_column"):
        parts.trainer(tmp_path, parts.numbers, lookup=parts.lookup, source_alpha=0.5)


@pytest.fixture(scope="module")
def tiny_recipe(tiny: Path) -> Path:
    """The file of the recipe `TINY` (the fixture; `tiny` here is the function)."""
    return tiny


def test_a_run_says_what_it_drew(tiny_recipe: Path, sourced_file: Path, tmp_path: Path) -> None:
    shares = [f"{NO_SOURCE}=0", "faq=0.5", "wiki=0.5"]
    said = run_tiny(
        tiny_recipe, tmp_path / "run", "--dataset_path", sourced_file, "--group_column", "none",
        "--source_column", "from", "--source_shares", *shares, "--until", "train",
    )  # fmt: skip
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    epochs = round(record["epochs"])
    half = record["pairs"] * epochs / 2
    assert record["sources"][NO_SOURCE] == 0
    assert record["sources"]["faq"] + record["sources"]["wiki"] == record["pairs"] * epochs
    assert abs(record["sources"]["faq"] - half) <= epochs / 2
    assert f"faq {record['sources']['faq']}" in said.out


def test_two_files_are_two_sources_of_one_run(tiny_recipe: Path, tmp_path: Path) -> None:
    files = {"faq": (40, "question", "answer"), "wiki": (120, "query", "document")}
    given = []
    for number, (name, (count, *columns)) in enumerate(files.items()):
        path = tmp_path / f"{name}.jsonl"
        texts = [sentences(count, start + 200 * number) for start in (0, 1000)]
        rows = [dict(zip(columns, pair, strict=True)) for pair in zip(*texts, strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given.append(f"{name}={path}")
    line = ["--dataset", "auto", "--dataset_path", "none", "--group_column", "none"]
    said = run_tiny(
        tiny_recipe, tmp_path / "run", *line, "--sources", *given, "--source_alpha", 0,
        "--until", "train", "--per_device_train_batch_size", 4, "--one_source_per_batch", "true",
    )  # fmt: skip
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert set(record["sources"]) == {"faq", "wiki"}
    assert all(number % 4 == 0 for number in record["sources"].values())
    assert abs(record["sources"]["faq"] - record["sources"]["wiki"]) <= 4
    assert "faq" in said.out.split("Training")[1]

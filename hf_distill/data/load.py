"""From a source to pairs that are split without leaks: `load_pair_data`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset, Features, concatenate_datasets

from hf_distill.data.collection import (
    CORPUS_FEATURES,
    LEAKED_FEATURES,
    PAIR_FEATURES,
    TEST_FEATURES,
    PairData,
    Source,
    SourcePairs,
    dataset_of,
    map_rows,
    text_id,
    write_table,
)
from hf_distill.data.sources.beir import read_beir
from hf_distill.data.sources.pydocs import read_pydocs
from hf_distill.data.sources.qrecc import read_qrecc
from hf_distill.data.sources.table import read_table
from hf_distill.data.split import (
    HeldOut,
    check_enough,
    count_leaks,
    limit_pairs,
    seeded_order,
    separate_leaks,
    split_groups,
    where,
)
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments
from hf_distill.run.folder import (
    RunFolder,
    fingerprint,
    read_json_if_current,
    write_json,
)

__all__ = [
    "CORPUS_FEATURES",
    "PAIR_FEATURES",
    "TEST_FEATURES",
    "PairData",
    "Source",
    "load_pair_data",
    "text_id",
]

TABLES = {
    "train": PAIR_FEATURES,
    "validation": PAIR_FEATURES,
    "test": TEST_FEATURES,
    "leaked": LEAKED_FEATURES,
    "corpus": CORPUS_FEATURES,
}


def read_source(arguments: DataArguments, seed: int, cache: Path) -> SourcePairs:
    """Read the pairs of `arguments.dataset` (see the modules of this package for what each
    raises).
    """
    path = Path(arguments.dataset_path) if arguments.dataset_path else None
    readers: dict[str, Callable[[], SourcePairs]] = {
        "pydocs": lambda: read_pydocs(path, arguments.max_pairs, seed, cache),
        "qrecc": lambda: read_qrecc(Path(str(path)), cache),
        "beir": lambda: read_beir(Path(str(path)), cache),
        "files": lambda: read_table(arguments, cache),
        "hub": lambda: read_table(arguments, cache),
    }
    return readers[arguments.dataset]()


def _corpus_of(pairs: Dataset, cache: Path) -> Dataset:
    """Every document of `pairs`, once, in order of appearance."""
    unique = dict.fromkeys(pairs["document"])
    rows = ({"document_id": text_id(document), "document": document} for document in unique)
    return dataset_of(rows, CORPUS_FEATURES, cache, "corpus")


def _with_column(pairs: Dataset, name: str, values: list[Any], features: Features) -> Dataset:
    return map_rows(pairs, lambda rows, indices: {name: [values[i] for i in indices]}, features)


def split_pairs(read: SourcePairs, arguments: DataArguments, seed: int, cache: Path) -> PairData:
    """Split what a source read; remove from training and validation what a held-out pair shares;
    check that nothing is left.

    Groups go to test, validation and train by seeded shares; a source with judgements of its own
    (BEIR) keeps them as its test. Test pairs are never removed: training pairs give way to them,
    validation pairs too.

    Raises:
        InputError: No pairs, too few groups, or nothing left of a split.
    """
    pairs = read.pairs
    if not len(pairs):
        reasons = ", ".join(f"{reason}: {count}" for reason, count in read.counts.items())
        raise InputError(
            f"{read.source.name} has no valid (query, document) pair ({reasons or 'it is empty'})"
        )
    if arguments.max_pairs is not None and len(pairs) > arguments.max_pairs:
        chosen = limit_pairs(pairs["group"], arguments.max_pairs, seed)
        pairs = where(pairs, chosen)
    if read.judged is None:
        split_of = split_groups(
            pairs["group"], arguments.test_fraction, arguments.validation_fraction, seed
        )
        parts = {
            name: where(pairs, {g for g, split in split_of.items() if split == name})
            for name in ("train", "validation", "test")
        }
        judged = _with_column(parts["test"], "relevance", [1] * len(parts["test"]), TEST_FEATURES)
    else:
        judged = read.judged
        held_out_groups = set(judged["group"])
        rest = where(pairs, set(pairs["group"]) - held_out_groups)
        check_enough(len(rest), "training")
        n_validation = round(arguments.validation_fraction * len(set(rest["group"])))
        chosen = set(seeded_order(rest["group"], seed)[:n_validation])
        parts = {
            "train": where(rest, set(rest["group"]) - chosen),
            "validation": where(rest, chosen),
        }
    corpus = read.corpus if read.corpus is not None else _corpus_of(judged, cache)

    held_out = HeldOut()
    held_out.add(judged)
    validation, leaked_validation, validation_reasons = separate_leaks(
        parts["validation"], held_out
    )
    held_out_and_validation = HeldOut()
    held_out_and_validation.add(judged)
    held_out_and_validation.add(validation)
    train, leaked_train, train_reasons = separate_leaks(parts["train"], held_out_and_validation)
    check_enough(len(train), "training")
    check_enough(len(judged), "the evaluation")
    leaked = concatenate_datasets([leaked_train, leaked_validation])
    return PairData(
        train=train,
        validation=validation,
        test=judged,
        leaked=_with_column(leaked, "reason", train_reasons + validation_reasons, LEAKED_FEATURES),
        corpus=corpus,
        source=read.source,
        counts={
            "source": dict(read.counts),
            "split": {
                "pairs": len(train) + len(validation) + len(judged) + len(leaked),
                "groups": len(set(pairs["group"])),
                "train": len(train),
                "validation": len(validation),
                "test": len(judged),
                "test queries": len(set(judged["query"])),
                "corpus documents": len(corpus),
            },
            "leaks": {
                "removed": dict(Counter(train_reasons + validation_reasons)),
                "removed from train": len(train_reasons),
                "removed from validation": len(validation_reasons),
                "left": sum(count_leaks(train, held_out_and_validation).values())
                + sum(count_leaks(validation, held_out).values()),
            },
        },
    )


def _content_of(arguments: DataArguments) -> Any:
    """What the data depends on beyond its keys: names, sizes and times of the files, or the
    installed packages.
    """
    if arguments.dataset_path:
        path = Path(arguments.dataset_path)
        files = (
            sorted(p for p in path.rglob("*") if p.is_file())
            if path.is_dir()
            else [path]
            if path.exists()
            else []
        )
        return [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    if arguments.dataset == "pydocs":
        return sorted(
            f"{d.metadata['Name']} {d.version}" for d in importlib.metadata.distributions()
        )
    return None


def load_pair_data(arguments: DataArguments, seed: int, folder: RunFolder) -> PairData:
    """The pairs of a run: read and split once, then kept in `folder.pairs` until an input changes.

    Args:
        arguments: Which data.
        seed: Seeds the split.
        folder: The run's folder; nothing is written to it if this raises.

    Raises:
        InputError: As `read_source` and `split_pairs`.
    """
    keys = {k: v for k, v in vars(arguments).items() if k not in ("dataset_license", "language")}
    key = fingerprint(keys, seed, _content_of(arguments))
    manifest_path = folder.pairs / "manifest.json"
    if PartialState().is_main_process:
        for stale in folder.pairs.glob("cache-*.arrow"):  # what `map` left there in an earlier call
            stale.unlink(missing_ok=True)  # another process may be at it, too
    manifest = read_json_if_current(manifest_path, key)
    if manifest is None:
        existed = folder.path.exists()
        try:
            data = split_pairs(
                read_source(arguments, seed, folder.cache), arguments, seed, folder.cache
            )
        except InputError:
            if not existed:  # leave nothing half-written behind
                shutil.rmtree(folder.path, ignore_errors=True)
            raise
        shutil.rmtree(folder.pairs, ignore_errors=True)
        for name, features in TABLES.items():
            write_table(getattr(data, name), features, folder.pairs / f"{name}.arrow")
        manifest = {"fingerprint": key, "source": vars(data.source), "counts": data.counts}
        write_json(manifest_path, manifest)
    tables = {name: Dataset.from_file(str(folder.pairs / f"{name}.arrow")) for name in TABLES}
    source = Source(**manifest["source"])
    if arguments.dataset_license:
        source = dataclasses.replace(source, license=arguments.dataset_license)
    return PairData(**tables, source=source, counts=manifest["counts"], key=key)

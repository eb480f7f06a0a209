"""A whole run of seconds for the campaigns of kills and damage, with mined lists, a ranker, and a
pool with texts of its own: its inputs are built here, and it runs in a forked process, which has
imported everything already.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# ruff: noqa: E402  (conftest lies in tests/; it keeps a run off the Hub and to one thread)
import torch
import yaml
from conftest import TINY
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tiny_models import make_tokenizer, sentences
from transformers import BertConfig, BertForSequenceClassification, BertModel

from hf_distill.commands.main import main
from hf_distill.commands.train import main as train

gc.freeze()  # each training collects garbage, and need not look for it in what is imported

_LONGEST = 500
"""Seconds after which a run hangs; alone on a core it takes six."""

_TIMED = re.compile(
    r"seconds|resumed_from|efficiency|sealed|runtime|per_second|train_loss|total_flos|environment"
)
"""Keys of JSON that say how long something took, or what is told by others."""

_OF_THE_CALL = re.compile(
    r"(cache|checkpoints|search|export|study|host\d)/.*|report\.html|recipe\.yaml|text_lengths\.json"
    r"|student_model_sd/README\.md|.*\.lock"
)
"""Files that hold times, or that nothing is read from."""


def prepare(folder: Path) -> Path:
    """A teacher, a ranker, pairs, further texts, and a recipe with checkpoints inside epochs.
    Returns the recipe.

    They are made in a process of their own: a process that has computed holds threads, which are
    not there in those that it forks, and may be waited for.
    """
    process = os.fork()
    if not process:
        _prepare(folder)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    if status:
        raise RuntimeError(f"no teacher could be made in {folder}")
    return folder / "tiny.yaml"


def _prepare(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    modules = [Transformer(str(folder / "backbone")), Pooling(32, pooling_mode="mean"), Normalize()]
    teacher = SentenceTransformer(modules=modules, device="cpu")
    teacher.max_seq_length = 32
    teacher.save_pretrained(str(folder / "teacher"), create_model_card=False)
    config.num_labels, config.num_hidden_layers = 1, 2
    BertForSequenceClassification(config).save_pretrained(folder / "ranker")
    tokenizer.save_pretrained(folder / "ranker")
    further = [{"text": f"{text} {text}"} for text in sentences(40, 3000)]
    (folder / "further.jsonl").write_text("".join(json.dumps(line) + "\n" for line in further))
    rows = zip(sentences(200), sentences(200, 1000), strict=True)
    lines = [{"query": q, "document": d, "topic": i // 4} for i, (q, d) in enumerate(rows)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    keys = {
        **TINY, "dataset_path": str(folder / "pairs.jsonl"), "teacher": str(folder / "teacher"),
        "save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4,
        "texts_per_pair": 1, "logging_steps": 3, "pool_path": str(folder / "further.jsonl"),
        "candidates": ["teacher", "bm25"], "candidates_per_query": 6, "hard_negatives_per_pair": 2,
        "list_kl_weight": 1.0, "ranker": f"cross-encoder:{folder / 'ranker'}", "rerank_queries": 10,
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(keys))


def started(
    line: list[str],
    log: Path,
    command: bool = False,
    processes: int = 1,
    hosts: Sequence[Path] = (),
) -> int:
    """Run a command line of `hf-distill` (or of `train.py`, on several processes) in a process of
    its own. What it says goes to `log`. Returns its process, which leads a group.

    Args:
        line: The command line.
        log: A file.
        command: Whether it is one of `hf-distill`.
        processes: How many a launcher starts, if there are no hosts.
        hosts: The working folder of each host, each with one process and a launcher of its own.
    """
    process = os.fork()
    if process:
        return process
    os.setsid()
    with log.open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        several = processes > 1 or hosts
        os._exit(_launched(line, processes, hosts) if several else _work(line, command))


def _work(line: list[str], command: bool) -> int:
    """Run a command line. Returns its exit code."""
    faulthandler.dump_traceback_later(_LONGEST, exit=True)  # a run that hangs says where
    code = 3
    try:
        code = (main if command else train)(line)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # the traceback is what is looked for
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _launched(line: list[str], processes: int, hosts: Sequence[Path]) -> int:
    """As launchers do: several processes work on one run. If one fails, the others on its host are
    killed; on another host nobody kills them. Returns the exit code of the first that fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    count = len(hosts) or processes
    workers = []
    for rank in range(count):
        workers.append(os.fork())
        if not workers[-1]:
            of_rank = {"RANK": rank, "LOCAL_RANK": 0 if hosts else rank, "MASTER_PORT": port}
            of_all = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": 1 if hosts else count}
            os.environ.update({name: str(value) for name, value in (of_rank | of_all).items()})
            os.environ["MASTER_ADDR"] = "127.0.0.1"
            if hosts:
                os.chdir(hosts[rank])
            os._exit(_work(line, command=False))
    first = 0
    while workers:
        ended, status = os.wait()
        workers.remove(ended)
        first = first or os.waitstatus_to_exitcode(status) % 256
        if first and not hosts:
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            return first
    return first


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _untimed(v) for k, v in value.items() if not _TIMED.search(k)}
    if isinstance(value, list):
        return [_untimed(item) for item in value if item != {}]
    return value


def artefacts(run: Path) -> dict[str, object]:
    """Path in the run -> content, without times."""
    found: dict[str, object] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if not path.is_file() or _OF_THE_CALL.fullmatch(name):
            continue
        content = path.read_bytes()
        found[name] = content
        timed = path.parent == run or path.name in ("manifest.json", "mined.json")
        if path.suffix == ".json" and timed:
            with contextlib.suppress(ValueError):  # it is damaged
                found[name] = _untimed(json.loads(content))
    return found

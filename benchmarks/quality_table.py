"""The comparison of students that `quality.py` trained: figures with intervals, tests against the
best peer, a table and a plot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as Plot

from hf_distill.evaluation.fidelity import (
    mae,
    pearson,
)
from hf_distill.evaluation.intervals import (
    LEVEL,
    RESAMPLES,
    figure,
    mean,
)
from hf_distill.evaluation.significance import (
    ALPHA,
    crossed_interval,
    holm,
    paired_tests,
)

COMPARED = {"home nDCG@10": 1, "abroad nDCG@10": 1, "Pearson": 1, "MAE": -1}
"""What an arm is compared with the best peer on, and whether more (1) or less (-1) is better."""
TITLES = {"pydocs": "the Python documentation", "conversations": "conversations"}
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Results:
    """What the trainings left, each as `quality.run_job` writes it, the references of each domain,
    and which arms are this project's.
    """

    trainings: Sequence[Mapping[str, Any]]
    references: Mapping[str, Mapping[str, Any]]
    own: Sequence[str]

    def of(self, home: str, arm: str) -> list[Mapping[str, Any]]:
        """The trainings of an arm, by seed."""
        return sorted(
            (t for t in self.trainings if (t["home"], t["arm"]) == (home, arm)),
            key=lambda t: int(t["seed"]),
        )


def pearson_difference(
    teacher: np.ndarray, ours: np.ndarray, theirs: np.ndarray, seed: int
) -> dict[str, Any]:
    """The difference of two arms' mean Pearson correlations with the teacher, over other pairs and
    other seeds.

    A bootstrap that draws pairs (the same for both arms) and seeds, each with replacement; p is how
    often a resampled difference lies as far from the observed one as that lies from 0 (Efron &
    Tibshirani, 1993, sec. 16.4). Few seeds make it somewhat too narrow.

    Args:
        teacher: (n,) scores of the pairs.
        ours, theirs: (S, n) scores by the students of each arm, row i of both with the same seed.
        seed: Seeds the bootstrap.
    """
    rng = np.random.default_rng(seed)

    def difference(pairs: np.ndarray, seeds: np.ndarray) -> float:
        target = np.broadcast_to(teacher[pairs], (len(seeds), len(pairs)))
        return float(
            (
                pearson(target, ours[np.ix_(seeds, pairs)])
                - pearson(target, theirs[np.ix_(seeds, pairs)])
            ).mean()
        )

    seeds, n = ours.shape
    observed = difference(np.arange(n), np.arange(seeds))
    drawn = np.array(
        [
            difference(rng.integers(0, n, n), rng.integers(0, seeds, seeds))
            for _ in range(RESAMPLES // 4)
        ]
    )
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    extreme = int((np.abs(drawn - observed) >= abs(observed)).sum())
    p = (1 + extreme) / (1 + len(drawn))
    return {"value": observed, "low": float(low), "high": float(high), "n": n, "p": p}


def _crossed(gaps: np.ndarray, seed: int) -> dict[str, Any]:
    """The mean of gaps (S, n), with interval and p for other seeds and queries; with one seed, for
    other queries only.
    """
    if len(gaps) > 1:
        made = crossed_interval(gaps)
        return {**made["difference"], "p": made["p"]}
    tests = paired_tests(gaps[0], np.zeros_like(gaps[0]), seed)
    return {**tests["difference"], "p": tests["paired_t_test"]["p"]}


def values_of(trainings: Sequence[Mapping[str, Any]], teacher: np.ndarray) -> dict[str, np.ndarray]:
    """(S, n) of every measure: per query, or per pair (`score`, and `MAE`: the absolute error of
    the score).
    """
    score = np.array([t["at_home"]["student_score"] for t in trainings])
    return {
        "home nDCG@10": np.array([t["at_home"]["nDCG@10"] for t in trainings]),
        "abroad nDCG@10": np.array([t["abroad"]["nDCG@10"] for t in trainings]),
        "Recall@100": np.array([t["at_home"]["R@100"] for t in trainings]),
        "overlap@10": np.array([t["at_home"]["overlap@10"] for t in trainings]),
        "score": score,
        "MAE": np.abs(score - teacher),
    }


def difference(
    measure: str,
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
    teacher: np.ndarray,
) -> dict[str, Any]:
    """One arm less another on one of `COMPARED`, on the seeds that both have."""
    seeds = min(len(ours["score"]), len(theirs["score"]))
    if measure == "Pearson":
        return pearson_difference(teacher, ours["score"][:seeds], theirs["score"][:seeds], 0)
    return _crossed(ours[measure][:seeds] - theirs[measure][:seeds], 0)


def _mean_of(measure: str, values: Mapping[str, np.ndarray], teacher: np.ndarray) -> float:
    if measure == "Pearson":
        return float(np.mean([pearson(teacher, score) for score in values["score"]]))
    return float(values[measure].mean())


def _ratio(ours: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    return np.asarray(ours.mean(-1) / teacher.mean(-1))


def _row(
    arm: str, home: str, abroad: str, results: Results, values: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The figures of an arm: means over its seeds, with intervals over queries or pairs."""
    at_home, far = results.references[home], results.references[abroad]
    teacher = at_home["teacher_score"]
    scores = list(values["score"])
    trainings = results.of(home, arm)
    seconds = [t["training_seconds"] for t in trainings]

    def over(statistic: Any) -> Any:
        return lambda target, *students: np.mean(
            [statistic(target, student) for student in students], axis=0
        )

    return {
        "arm": arm,
        "is_own": arm in results.own,
        "seeds": len(trainings),
        "pairs": trainings[0]["pairs"],
        "home ratio": figure(
            _ratio, [values["home nDCG@10"].mean(0), at_home["teacher"]["nDCG@10"]], 0
        ),
        "home ratio by seed": (
            values["home nDCG@10"].mean(1) / at_home["teacher"]["nDCG@10"].mean()
        ).tolist(),
        "abroad ratio": figure(
            _ratio, [values["abroad nDCG@10"].mean(0), far["teacher"]["nDCG@10"]], 0
        ),
        "abroad ratio by seed": (
            values["abroad nDCG@10"].mean(1) / far["teacher"]["nDCG@10"].mean()
        ).tolist(),
        "home nDCG@10": figure(mean, [values["home nDCG@10"].mean(0)], 0),
        "Recall@100": figure(mean, [values["Recall@100"].mean(0)], 0),
        "Pearson": figure(over(pearson), [teacher, *scores], 0),
        "MAE": figure(over(mae), [teacher, *scores], 0),
        "overlap@10": figure(mean, [values["overlap@10"].mean(0)], 0),
        "examples/s": round(trainings[0]["examples"] / float(np.median(seconds)), 1)
        if min(seconds)
        else None,
    }


def compile_home(results: Results, home: str) -> dict[str, Any]:
    """The rows of one home, and each own arm against the best peer on each of `COMPARED`; p-values
    corrected by Holm over all of these.
    """
    abroad = next(name for name in results.references if name != home)
    reference = results.references[home]
    teacher = reference["teacher_score"]
    arms = list(dict.fromkeys(t["arm"] for t in results.trainings if t["home"] == home))
    values = {arm: values_of(results.of(home, arm), teacher) for arm in arms}
    peers = [arm for arm in arms if arm not in results.own and arm != UNTRAINED]
    comparisons = []
    for arm in (arm for arm in arms if arm in results.own and peers):
        for measure, sign in COMPARED.items():
            best = max(peers, key=lambda peer: sign * _mean_of(measure, values[peer], teacher))
            comparisons.append(
                {
                    "arm": arm,
                    "measure": measure,
                    "peer": best,
                    **difference(measure, values[arm], values[best], teacher),
                }
            )
    for comparison, p in zip(comparisons, holm([c["p"] for c in comparisons]), strict=True):
        comparison["p_holm"] = p
        clear = p is not None and p < ALPHA
        better = comparison["value"] * COMPARED[comparison["measure"]] > 0
        comparison["verdict"] = (
            ("better" if better else "worse") if clear else "no clear difference"
        )
    return {
        "home": home,
        "abroad": abroad,
        "teacher nDCG@10": float(reference["teacher"]["nDCG@10"].mean()),
        "bm25 nDCG@10": float(reference["bm25"]["nDCG@10"].mean()),
        "abroad teacher nDCG@10": float(results.references[abroad]["teacher"]["nDCG@10"].mean()),
        "queries": len(reference["teacher"]["nDCG@10"]),
        "abroad queries": len(results.references[abroad]["teacher"]["nDCG@10"]),
        "test pairs": len(teacher),
        "leaks": reference["leaks"],
        "rows": [_row(arm, home, abroad, results, values[arm]) for arm in arms],
        "comparisons": comparisons,
    }


def compile_results(
    results: Results, homes: Sequence[str], seeds: int, examples: int
) -> dict[str, Any]:
    """Everything that `quality.json` holds; `summary` is the last line of the benchmark."""
    compiled = [compile_home(results, home) for home in homes]
    summary = {
        part["home"]: {row["arm"]: {key: round(row[key]["value"], 4) for key in ("home ratio", "abroad ratio", "Pearson", "MAE")}
                       for row in part["rows"]}
        for part in compiled
    }  # fmt: skip
    return {"examples": examples, "seeds": seeds, "homes": compiled, "summary": summary}


def _plain(value: Mapping[str, Any], digits: int = 3, sign: str = "") -> str:
    return f"{value['value']:{sign}.{digits}f} ({value['low']:{sign}.{digits}f} to {value['high']:{sign}.{digits}f})"


def _p(p: float | None) -> str:
    return "undefined" if p is None else "< .001" if p < 0.001 else f"{p:.3f}"


def markdown(content: Mapping[str, Any]) -> str:
    """Tables, what they are over, and the comparisons."""
    lines = []
    for part in content["homes"]:
        leaks = part["leaks"]
        lines += [
            f"### Trained on {TITLES[part['home']]}, {content['examples']:,} examples",
            "",
            "| trained with | seeds | nDCG@10 at home (of the teacher's) | abroad | Recall@100 | Pearson | MAE | overlap@10 | examples/s |",
            "|---|---:|---|---|---|---|---|---|---:|",
        ]
        for row in part["rows"]:
            name = f"**{row['arm']}**" if row["is_own"] else row["arm"]
            lines.append(
                f"| {name} | {row['seeds']} | {_plain(row['home ratio'])} | {_plain(row['abroad ratio'])} | {_plain(row['Recall@100'])} "
                f"| {_plain(row['Pearson'])} | {_plain(row['MAE'], 4)} | {_plain(row['overlap@10'])} | {row['examples/s'] or '–'} |"
            )
        lines += [
            "",
            f"nDCG@10 of the teacher {part['teacher nDCG@10']:.3f}, of BM25 {part['bm25 nDCG@10']:.3f} (of the teacher's "
            f"{part['bm25 nDCG@10'] / part['teacher nDCG@10']:.3f}), over {part['queries']:,} held-out queries; abroad the teacher's "
            f"{part['abroad teacher nDCG@10']:.3f} over {part['abroad queries']:,}. {part['test pairs']:,} held-out pairs. In parentheses "
            "95% bootstrap intervals over queries or pairs, of the mean over the seeds. Pairs removed from training because they share a "
            f"query, a document or a near-duplicate of one with the held-out pairs: "
            f"{leaks['removed from train'] + leaks['removed from validation']:,}; left: {leaks['left']}.",
            "",
        ]
        if part["comparisons"]:
            lines += [
                "| arm | measure | best peer | difference | p (Holm) | verdict |",
                "|---|---|---|---|---|---|",
            ]
            lines += [
                f"| {c['arm']} | {c['measure']} | {c['peer']} | {_plain(c, 4, '+')} | {_p(c['p_holm'])} | {c['verdict']} |"
                for c in part["comparisons"]
            ]
            lines.append("")
    return "\n".join(lines)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending `heights` moved up where they are less than `gap` apart, and all down if the last
    then lies above 1.
    """
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    return [height - max(0.0, placed[-1] - 1) for height in placed]


def plot(content: Mapping[str, Any]) -> Plot:
    """nDCG@10 at home against abroad, as shares of the teacher's: each arm a point with both
    intervals, a panel for each home.
    """
    with mpl.rc_context(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.hashsalt": "hf_distill",
        }
    ):
        figure_ = Plot(figsize=(7.0 * len(content["homes"]), 4.6))
        panels = figure_.subplots(1, len(content["homes"]), squeeze=False)[0]
        for axes, part in zip(panels, content["homes"], strict=True):
            points: list[tuple[float, float, str, str]] = []
            for row in part["rows"]:
                x, y = row["home ratio"], row["abroad ratio"]
                colour = (
                    "#c8642b"
                    if row["is_own"]
                    else "#2f6fb3"
                    if row["arm"] != UNTRAINED
                    else "#8a8f98"
                )
                errors = [[[v["value"] - v["low"]], [v["high"] - v["value"]]] for v in (x, y)]
                axes.errorbar(
                    x["value"],
                    y["value"],
                    xerr=errors[0],
                    yerr=errors[1],
                    fmt="o",
                    color=colour,
                    elinewidth=0.8,
                    alpha=0.9,
                )
                points.append((y["value"], x["value"], row["arm"], colour))
            low, high = axes.get_ylim()
            points.sort()  # labels stand beside the panel, in the order of the points' heights: among these they would cover each other
            heights = spread([(y - low) / (high - low) for y, *_ in points], 0.055)
            for (y_value, x_value, name, colour), height in zip(points, heights, strict=True):
                axes.annotate(
                    name, (x_value, y_value), xytext=(1.03, height), textcoords="axes fraction", va="center", fontsize=8, color=colour,
                    arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": colour, "alpha": 0.5},
                )  # fmt: skip
            axes.axvline(1, color="#b0b4ba", linewidth=0.8)
            axes.axhline(1, color="#b0b4ba", linewidth=0.8)
            axes.set_title(f"Trained on {TITLES[part['home']]}")
            axes.set_xlabel("nDCG@10 at home / the teacher's")
            axes.set_ylabel("nDCG@10 abroad / the teacher's")
        figure_.tight_layout()
    return figure_

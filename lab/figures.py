"""Figures (by matplotlib, which is imported only here): of a folder of compare, of one run, of a memory.

Every line has its own dashes and markers, so that a figure can be read in black and white.
"""

import importlib.util
import json
import math
import re
import time
from itertools import cycle
from pathlib import Path

from lab.compare import MODES
from lab.runs import read_json
from lab.samples import shorten
from lab.settings import check

STYLES = [("black", "-", "o"), ("tab:blue", "--", "s"), ("tab:orange", "-.", "^"), ("tab:green", ":", "D"),
          ("tab:red", (0, (6, 1, 1, 1, 1, 1)), "v"), ("tab:purple", (0, (1, 1)), "x"), ("gray", "-", "P"),
          ("tab:brown", "--", "*")]
RIGHT, WRONG = ("tab:blue", "o"), ("tab:red", "X")  # how rewards of 1 and 0 are drawn


def plot(config) -> None:
    """`python train.py plot RUN or FOLDER`: one page of a run (drawn again while it trains, with --watch
    SECONDS), or figures of the runs that compare made in a folder."""
    root = Path(config.output_dir or "runs/compare")
    if not (root / "metrics.jsonl").is_file():
        print(*draw(root, config.label_ratio), sep="\n")
        return
    print(draw_run(root))
    while config.watch and not (root / "results.json").is_file():
        time.sleep(config.watch)
        draw_run(root)


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1):
    """A figure and its panels in one list; made without a window."""
    check(importlib.util.find_spec("matplotlib"), "matplotlib is not installed; pip install matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def save(figure, path: Path) -> Path:
    """Write a figure; the path again."""
    figure.savefig(path, dpi=130, bbox_inches="tight", pad_inches=0.1)
    return path


# ----------------------------------------------------------------------------------------------- compare


def finished(root: Path) -> list[tuple[Path, str, float, bool]]:
    """The results.json of a folder of compare with the row's name, its label ratio, and whether labels were
    picked, by the names that `compare` gives; what else lies there is the user's."""
    named = [(path, re.fullmatch(r"([a-z0-9]+)-(\d\.\d+)(-coverage)?-\d+", path.parent.name))
             for path in sorted(root.glob("*/results.json"))]
    return [(path, name[1], float(name[2]), bool(name[3])) for path, name in named if name]


def curves(root: Path, label_ratio: float) -> dict[str, dict[str, list[tuple[list, list]]]]:
    """What the figures of a folder of compare show: for each figure and line the steps and values of every
    seed's run with this label ratio, labels at random.

    "accuracy" is greedy test accuracy, "predictions" the share of predicted rewards that were right since the
    evaluation before.
    """
    runs: dict[str, list[list]] = {}  # evaluations of every seed
    memories = {"memreward": "as by default", "grow": "grows", "refit": "refitted"}
    for path, name, ratio, picked in finished(root):
        wanted = 1.0 if name == "oracle" else label_ratio
        if name in (*MODES, *memories) and ratio == wanted and not picked:
            runs.setdefault(name, []).append(read_json(path)["evaluations"])
    check("memreward" in runs,
          f"plot: {root} holds no finished runs of compare with label_ratio {label_ratio}, labels at random")

    def curve(rows: list[dict], kind: str, name: str) -> tuple[list, list]:
        rows = [row for row in rows if row[kind]]
        return [row["step"] for row in rows], [row[kind][name] for row in rows]

    return {
        "accuracy": {name: [curve(rows, "greedy", "all") for rows in runs[name]]
                     for name in MODES if name in runs},
        "predictions": {f"memory {title}": [curve(rows, "audit", "accuracy") for rows in runs[name]]
                        for name, title in memories.items() if name in runs and runs[name][0][-1]["audit"]}}


def draw(root: Path, label_ratio: float) -> list[Path]:
    """`curves` as accuracy.png and predictions.png in that folder: means over seeds, with standard errors;
    where a line of `by_labels` has several shares of the labels, labels.png beside them."""
    import numpy as np

    titles = {"accuracy": "greedy test accuracy", "predictions": "predicted rewards that are right"}
    written = []
    for name, lines in curves(root, label_ratio).items():
        figure, (axes,) = new_figure(6, 3.6)
        for (title, seeds), (colour, dashes, marker) in zip(lines.items(), cycle(STYLES)):
            steps = seeds[0][0]
            if any(other != steps for other, _ in seeds):
                raise ValueError(f"output_dir: the runs of {title} in {root} were not evaluated at the same "
                                 "steps; plot them one by one")
            values = np.array([values for _, values in seeds])  # (seeds, points)
            middle = values.mean(0)
            error = values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0
            axes.plot(steps, middle, color=colour, linestyle=dashes, marker=marker,
                      label=f"{title} ({len(values)} seeds)")
            axes.fill_between(steps, middle - error, middle + error, color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel="training step", ylabel=titles[name])
        axes.grid(alpha=0.3)
        axes.legend()
        written.append(save(figure, root / f"{name}.png"))
    lines = by_labels(root)
    several = any(len(ratios) > 1 for ratios in lines.values())
    return [*written, draw_labels(root, lines)] if several else written


def by_labels(root: Path) -> dict[str, dict[float, list[float]]]:
    """Greedy test accuracy at the end of every seed's run of a folder of compare: by line (who rewards, which
    labels) and share of the labels. Oracle is the same run whoever picks its labels: once a seed."""
    found: dict[str, dict[float, dict[str, float]]] = {}
    for path, name, ratio, picked in finished(root):
        if name in ("memreward", "r1p", "oracle"):
            line = name if name == "oracle" else f"{name}, labels {'picked' if picked else 'at random'}"
            scores = read_json(path)["evaluations"][-1].get("greedy")
            if scores:  # not where --eval_every is 0
                seed = path.parent.name.rpartition("-")[2]
                found.setdefault(line, {}).setdefault(ratio, {})[seed] = scores["all"]
    return {line: {ratio: list(seeds.values()) for ratio, seeds in ratios.items()}
            for line, ratios in found.items()}


def draw_labels(root: Path, lines: dict[str, dict[float, list[float]]]) -> Path:
    """`by_labels` as labels.png in that folder: means over seeds, with standard errors."""
    from statistics import mean, stdev

    figure, (axes,) = new_figure(6, 3.6)
    for (line, seeds), (colour, dashes, marker) in zip(sorted(lines.items()), cycle(STYLES)):
        ratios = sorted(seeds)
        errors = [stdev(seeds[r]) / len(seeds[r]) ** 0.5 if len(seeds[r]) > 1 else 0 for r in ratios]
        axes.errorbar([100 * r for r in ratios], [mean(seeds[r]) for r in ratios], errors, color=colour,
                      linestyle=dashes, marker=marker, capsize=3, label=line)
    shares = sorted({100 * ratio for seeds in lines.values() for ratio in seeds})
    axes.set(xlabel="labelled training tasks, per cent", ylabel="greedy test accuracy", xscale="log")
    axes.set_xticks(shares, [f"{share:g}" for share in shares])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    return save(figure, root / "labels.png")


# ----------------------------------------------------------------------------------------------- one run

PAGE = {  # panels of a run's page: lines and the numbers of metrics.jsonl that they show
    "reward": {"verified": "reward/verified", "predicted": "reward/predicted"},
    "test accuracy": {"greedy": "test/greedy/all", "sampled": "test/sampled/all",
                      "greedy, out of domain": "test/greedy/out of domain"},
    "predicted rewards that are right": {"audit (hidden labels)": "audit_since/accuracy",
                                         "drift (held-out labels)": "drift_since/accuracy"},
    "KL to the reference": {"KL": "kl"},
    "entropy (nats a token)": {"entropy": "entropy"},
    "response length (tokens)": {"length": "response_length"},
    "shares": {"groups without signal": "groups_without_signal", "no answer": "no_answer",
               "cut off": "truncated", "abstained groups": "abstained"},
    "seconds a step": {},  # all that begin with seconds/
    "fit of the memory: loss on held-out labels": {}}  # of the newest fit, by epoch


def page(rows: list[dict]) -> dict[str, dict[str, tuple[list, list]]]:
    """What each panel shows: for each line its steps and values; panels without any are left out."""
    seconds = {name[8:]: name for row in rows for name in row if name.startswith("seconds/")}
    panels = {}
    for title, lines in {**PAGE, "seconds a step": seconds}.items():
        for line, name in lines.items():
            found = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            if found:
                panels.setdefault(title, {})[line] = tuple(map(list, zip(*found)))
    fits = [row["fits"] for row in rows if row.get("fits")]
    for number, fit in enumerate(fits[-1] if fits else ()):
        losses = [loss for loss in fit["val_loss"] if loss is not None]
        if losses:
            panels.setdefault([*PAGE][-1], {})[f"network {number + 1}"] = list(range(len(losses))), losses
    return panels


def smooth(values: list[float], width: int) -> list[float]:
    """Means over the last `width` values.

    >>> smooth([0.0, 2.0, 4.0], 2)
    [0.0, 1.0, 3.0]
    """
    parts = [values[max(0, i + 1 - width) : i + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def draw_run(run: Path) -> Path:
    """The page of a run, page.png in its folder. Lines of many steps are means over a twentieth of them."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    panels = page(rows)
    check(panels, f"plot: {run} has no step yet")
    figure, axes = new_figure(9.6, 7.6, 3, 3)
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, (title, lines) in zip(axes, panels.items()):
        for (line, (steps, values)), (colour, dashes, marker) in zip(lines.items(), cycle(STYLES)):
            width = max(1, len(values) // 20)
            every = max(1, len(values) // 6)
            axis.plot(steps, smooth(values, width), color=colour, linestyle=dashes, marker=marker,
                      markersize=4, markevery=every, label=line)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("epoch" if title == [*PAGE][-1] else "training step")
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend(fontsize=9)
    figure.suptitle(run.name)
    return save(figure, run / "page.png")


# ----------------------------------------------------------------------------------- one rollout's neighbours


def neighbourhood(trace: dict) -> list[dict]:
    """Where a rollout's neighbours stand around it: its memory queries by angle, farther the less they are
    alike, and the thinkings and answers it listens to around their own query. Each has kind (query, thinking,
    answer), x, y, of (the place its edge begins at), cosine, reward (a share for a query), moved (a
    query's)."""
    queries, places = trace["queries"], []
    groups = list(dict.fromkeys([*(query["id"] for query in queries),
                                 *(one["id"] for kind in ("thinkings", "answers") for one in trace[kind])]))
    about = {query["id"]: query for query in queries}
    for number, name in enumerate(groups):
        angle = 2 * math.pi * number / len(groups) + math.pi / 2
        query = about.get(name)
        far = 0.7 + 1.3 * (1 - query["cosine"]) if query else 1.6
        centre = far * math.cos(angle), far * math.sin(angle)
        if query:
            share = sum(query["rewards"]) / len(query["rewards"])
            places.append({"kind": "query", "id": name, "x": centre[0], "y": centre[1], "of": (0.0, 0.0),
                           "cosine": query["cosine"], "reward": share, "moved": query["moved"],
                           "question": query.get("question", "")})
        near = [(kind, one) for kind in ("thinking", "answer")
                for one in trace[f"{kind}s"] if one["id"] == name]
        for place, (kind, one) in enumerate(near):
            turn = angle + (place - (len(near) - 1) / 2) * 0.45
            places.append({"kind": kind, "id": name, "x": centre[0] + 0.5 * math.cos(turn),
                           "y": centre[1] + 0.5 * math.sin(turn), "of": centre, "cosine": one["cosine"],
                           "reward": one["reward"]})
    return places


def draw_neighbourhood(trace: dict, question: str, response: str, true: str, path: Path) -> Path:
    """The graph around one rollout as a picture."""
    figure, (axes,) = new_figure(7, 6.5)
    for place in neighbourhood(trace):
        where = place["x"], place["y"]
        axes.plot(*zip(place["of"], where), color="gray", zorder=1,
                  linewidth=0.5 + 4 * max(0.0, place["cosine"]) ** 4)
        colour, mark = RIGHT if place["reward"] > 0.5 else WRONG
        if place["kind"] == "query":
            axes.scatter(*where, s=650, c="white", edgecolors="black", marker="o", zorder=2)
            axes.annotate(f"{place['reward']:.0%}", where, ha="center", va="center", fontsize=10, zorder=3)
            words = f"cosine {place['cosine']:.2f}, moved {place['moved']:+.2f}"
            words = f"{shorten(place['question'], 32)}\n{words}".strip()
            axes.annotate(words, where, textcoords="offset points", xytext=(0, -17), ha="center", va="top",
                          fontsize=10, zorder=4,
                          bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1})
        else:
            axes.scatter(*where, s=110, c=colour, marker=mark, edgecolors="black", zorder=2)
            axes.annotate(place["kind"][0], where, textcoords="offset points", xytext=(8, 5), fontsize=11)
    axes.scatter(0, 0, s=1300, c="lightgray", edgecolors="black", marker="s", zorder=3)
    axes.annotate(f"{trace['probability']:.2f}", (0, 0), ha="center", va="center", zorder=4, weight="bold",
                  fontsize=13)
    for (colour, mark), label in ((RIGHT, "right"), (WRONG, "wrong")):
        axes.scatter([], [], c=colour, marker=mark, edgecolors="black", label=f"its rollouts, {label}")
    axes.scatter([], [], s=90, c="white", edgecolors="black", marker="o",
                 label="remembered query, share of its rollouts that is right")
    axes.plot([], [], color="gray", linewidth=4, label="the wider, the more alike (t thinking, a answer)")
    axes.legend(fontsize=10, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=1)
    axes.set_title(f"{shorten(question, 70)}\n{shorten(response, 60, end=True)}\npredicted reward "
                   f"{trace['probability']:.2f} (in the middle), truly right: {true}", fontsize=11)
    axes.set_aspect("equal")
    axes.margins(0.2)
    axes.axis("off")
    return save(figure, path)

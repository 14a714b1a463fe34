"""Figures of runs (by matplotlib, which is imported only here)."""

import importlib.util
import json
from pathlib import Path

from lab.compare import MODES
from lab.settings import check


def plot(config) -> None:
    """`python train.py plot FOLDER`: figures of the runs that compare made there."""
    print(*draw(Path(config.output_dir or "runs/compare"), config.label_ratio), sep="\n")


def curves(root: Path, label_ratio: float) -> dict[str, dict[str, list[tuple[list, list]]]]:
    """What the figures of a folder of compare show: for each figure and line the steps and values of every
    seed's run with this label ratio.

    "accuracy" is greedy test accuracy, "predictions" the share of predicted rewards that were right since the
    evaluation before.
    """
    runs: dict[str, list[list]] = {}  # evaluations of every seed
    for path in sorted(root.glob("*-*-*/results.json")):
        name, ratio, _ = path.parent.name.split("-", 2)
        if name in (*MODES, "refit") and float(ratio) == (1.0 if name == "oracle" else label_ratio):
            runs.setdefault(name, []).append(json.loads(path.read_text())["evaluations"])
    check("memreward" in runs,
          f"plot: {root} holds no finished runs of compare with label_ratio {label_ratio}")

    def curve(rows: list[dict], kind: str, name: str) -> tuple[list, list]:
        rows = [row for row in rows if row[kind]]
        return [row["step"] for row in rows], [row[kind][name] for row in rows]

    frozen = {"memreward": "frozen after the warm-up", "refit": "refitted every 50 steps"}
    return {
        "accuracy": {name: [curve(rows, "greedy", "all") for rows in runs[name]]
                     for name in MODES if name in runs},
        "predictions": {title: [curve(rows, "audit", "accuracy") for rows in runs[name]]
                        for name, title in frozen.items() if name in runs and runs[name][0][-1]["audit"]}}


def draw(root: Path, label_ratio: float) -> list[Path]:
    """`curves` as accuracy.png and predictions.png in that folder: means over seeds, with standard errors."""
    import numpy as np

    check(importlib.util.find_spec("matplotlib"), "plot: matplotlib is not installed; pip install matplotlib")
    from matplotlib.figure import Figure

    titles = {"accuracy": "greedy test accuracy", "predictions": "predicted rewards that are right"}
    written = []
    for figure_name, lines in curves(root, label_ratio).items():
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.subplots()
        for name, seeds in lines.items():
            steps, values = seeds[0][0], np.array([values for _, values in seeds])  # (seeds, points)
            middle = values.mean(0)
            error = values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0
            axes.plot(steps, middle, label=f"{name} ({len(values)} seeds)")
            axes.fill_between(steps, middle - error, middle + error, alpha=0.2)
        axes.set(xlabel="training step", ylabel=titles[figure_name])
        axes.grid(alpha=0.3)
        axes.legend()
        written.append(root / f"{figure_name}.png")
        figure.savefig(written[-1], dpi=110)
    return written

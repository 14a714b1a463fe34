"""The paper's table: every mode and variant with every seed, and the tables that runs print."""

import dataclasses
import os
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

from lab.runs import begun_version, read_json, version
from lab.settings import MEMORY, check, check_refit

MODES = ("r1p", "majority", "memreward", "oracle")
LABEL_RATIO = 0.2  # of the comparison; VARIANTS has others
VARIANTS = {  # rows of compare beside the four modes
    "grow": {"memory": "grow"}, "refit": {"memory": "refit"}, "soft": {"reward": "soft"},
    "abstain": {"abstain": 0.5},
    **{f"{mode} {ratio} {pick}": {"mode": mode, "label_ratio": ratio, "label_pick": pick}
       for ratio in (0.05, 0.1, 0.2, 0.4, 0.7) for pick in ("random", "coverage")
       for mode in ("r1p", "memreward") if (ratio, pick) != (LABEL_RATIO, "random")}}
UNIMPORTANT = ("output_dir", "resume", "tracker", "traceback", "keep")  # settings that change no result


def compare(config, train: Callable) -> None:
    """Run every mode (and variant) with every seed by `train`, go on where it stopped, print the table."""
    check(os.environ.get("WORLD_SIZE", "1") == "1",
          "compare: its runs are small, start it without accelerate launch")
    check(config.eval_every > 0, "eval_every: compare shows test accuracy, 0 never measures it")
    asked = [name.strip() for name in config.variants.split(",") if name.strip()]
    names = list(VARIANTS) if config.variants == "all" else asked
    unknown = ", ".join(name for name in names if name not in VARIANTS)
    check(not unknown, f"variants: {unknown}: not among {', '.join(VARIANTS)}")
    begin = ("oracle", *MODES)  # Oracle first: it tells at once where a label is missing
    rows = {mode: {"mode": mode} for mode in begin}
    for name, changes in VARIANTS.items():  # no row shall stand there twice
        one = dataclasses.replace(config, **changes)
        if name in names and all(dataclasses.replace(config, **other) != one for other in rows.values()):
            rows[name] = changes
    root, plan, finished = Path(config.output_dir or "runs/compare"), [], []
    for seed in range(config.seed, config.seed + config.seeds):
        for name, changes in rows.items():
            one = dataclasses.replace(config, seed=seed, seeds=1, variants="", **changes)
            pick = "-coverage" if one.label_pick == "coverage" else ""
            check_refit(one)
            one.output_dir = str(root / f"{name.split()[0]}-{one.label_ratio}{pick}-{seed}")
            plan.append((name, one))
    check_folder(root, [one for _, one in plan])
    for name, one in plan:
        done = Path(one.output_dir) / "results.json"
        if not done.exists():
            if done.with_name("config.json").exists():
                one.resume = one.output_dir
            if finished:
                print(comparison(finished), flush=True)  # so far
            train(one, first_evaluation(finished))
        finished.append(read_json(done) | {"row": name})
    print(comparison(finished))


def first_evaluation(finished: list[dict]) -> dict | None:
    """The test accuracy of the untrained policy, which is the same in every run: no run but the first has to
    evaluate it."""
    before = finished[0]["before"] if finished else {}
    return {name: part for name, part in before.items() if name not in ("step", "audit", "drift")} or None


def check_folder(root: Path, configs: list) -> None:
    """Refuse to mix results of two versions of the method, or of other settings, in one table. What is
    finished and all of one other version is only printed: its runs need only agree with each other."""
    begun = [one for one in configs if (Path(one.output_dir) / "config.json").exists()]
    results = [Path(one.output_dir) / "results.json" for one in begun]
    done = [read_json(path) for path in results if path.exists()]
    for folder in (path.parent for path in results if not path.exists()):
        check(begun_version(folder) in (None, version()), f"output_dir: {folder} was begun by another "
              "version of the method; remove it to run it anew, or name another folder")
    versions = {result.get("version") for result in done}
    check(len(versions) < 2, f"output_dir: {root} mixes results of several versions of the method "
          f"({', '.join(map(str, versions))}); name another folder, or remove those of the older ones")
    if not versions or versions == {version()}:
        for one in begun:
            check_settings(one, Path(one.output_dir) / "config.json")
        return
    check(len(done) == len(configs), f"output_dir: {root} holds results of another version of the method; "
          f"{len(configs) - len(done)} runs are missing, name another folder to run all of them")
    common: dict = {}
    for one in begun:
        saved = read_json(Path(one.output_dir) / "config.json")
        varied = {"mode", "seed", *UNIMPORTANT, *(MEMORY if one.mode != "memreward" else ()),
                  *(name for changes in VARIANTS.values() for name in changes)}
        saved = {name: value for name, value in saved.items() if name not in varied}
        other = [name for name, value in saved.items() if common.get(name, value) != value]
        check(not other, f"output_dir: {one.output_dir} was run with another {', '.join(other)} than those "
              "beside it; name another folder")
        common |= saved


def check_settings(config, path: Path) -> None:
    """Refuse to go on with a run that was made with other settings, those that change nothing aside."""
    old = read_json(path)
    free = (*UNIMPORTANT, *(MEMORY if config.mode != "memreward" else ()))
    other = [f.name for f in dataclasses.fields(config)  # a setting that came later was at its default
             if f.name not in free and old.get(f.name, f.default) != getattr(config, f.name)]
    check(not other, f"output_dir: {config.output_dir} was run with another {', '.join(other)}; "
          "name another folder")


def comparison(runs: list[dict]) -> str:
    """The paper's table of finished runs: means and errors over seeds, paired differences, ratios."""
    names = dict.fromkeys([*MODES, *(run["row"] for run in runs)])
    by_row = {name: {run["seed"]: run for run in runs if run["row"] == name} for name in names}
    before = {"after": runs[0]["before"], "labels_used": 0, "labels_available": runs[0]["labels_available"]}
    kinds = [(kind, title) for title in ("all", "out of domain") for kind in ("greedy", "sampled")
             if title in runs[0]["after"].get(kind, ())]
    head = "".join(f"{f'{kind} {title}'.removesuffix(' all').replace('out of domain', 'outside'):>16}"
                   for kind, title in kinds)
    scores = {"accuracy": "predictions right", "auc": "AUC", "group_auc": "AUC inside groups",
              "agreement_auc": "agreement's AUC"}
    scores = {key: title for key, title in scores.items() if any(key in run["audit"] for run in runs)}
    told = "".join(f"{title:>20}" for title in scores.values())
    lines = [f"{'test accuracy, %':<24}{head}{'labels':>11}{told}{'seeds':>7}"]
    for name, rows in {"before training": {0: before}, **by_row}.items():
        if rows := list(rows.values()):
            cells = "".join(f"{mean_error([100 * row['after'][kind][title] for row in rows]):>16}"
                            for kind, title in kinds)
            labels = f"{rows[0]['labels_used']}/{rows[0]['labels_available']}"
            audits = [[row["audit"].get(key) for row in rows if row.get("audit")] for key in scores]
            audit = ["" if None in values or not values else mean_error(values, 3) for values in audits]
            told = "".join(f"{text:>20}" for text in audit)
            lines.append(f"{name:<24}{cells}{labels:>11}{told}{len(rows):>7}")
    return "\n".join(lines + differences(by_row))


def differences(by_row: dict[str, dict[int, dict]]) -> list[str]:
    """Lines of paired differences MemReward - other row, then of MemReward / Oracle, over seeds of both."""

    def score(run: dict) -> float:
        return 100 * run["after"]["greedy"]["all"]

    lines = []
    for other in by_row:
        kind, _, ratio = other.partition(" ")
        ours = "memreward" + (ratio and f" {ratio}")  # each label ratio is compared with itself
        pairs = [score(by_row[ours][seed]) - score(run) for seed, run in by_row[other].items()
                 if seed in by_row.get(ours, ())]
        if kind != "memreward" and pairs:
            lines.append(f"{f'{ours} - {other}':<48}{mean_error(pairs):>14}   paired over {len(pairs)} seeds")
    for ours in (name for name in by_row if name.startswith("memreward")):
        both = [seed for seed in by_row[ours] if seed in by_row["oracle"]]
        if both:
            mine, best = (sum(score(by_row[name][seed]) for seed in both) for name in (ours, "oracle"))
            lines.append(f"{f'{ours} / oracle':<48}{100 * mine / best:12.1f} %")
    return lines


def accuracies(columns: dict[str, dict]) -> list[str]:
    """A table of test accuracy: a line for each data set (or domain) and average, columns {title: scores}."""
    from support.benchmarks import CUT_BY_HASH

    last = list(columns.values())[-1]
    kinds = [kind for kind in ("greedy", "sampled") if kind in last]
    titles = [(kind, title) for kind in kinds for title in columns]
    head = "".join(f"{f'{kind} {title}'.strip():>16}" for kind, title in titles)
    lines = [f"{'test accuracy':<18}{'tasks':>7}{head}"]
    averaged = ("all", "out of domain") if all("answered" in scores for scores in columns.values()) else ()
    for name in last[kinds[0]]:
        title, _, of_sets = name.partition(", ")
        in_domain = title == "all" and "out of domain" in last[kinds[0]]
        label = "in domain" if in_domain else title + " *" * (name in CUT_BY_HASH)
        cells = "".join(f"{columns[title][kind][name]:16.3f}" for kind, title in titles)
        count = "" if of_sets else last["tasks"][name]
        lines.append(f"  {f'  {of_sets}' if of_sets else label:<16}{count:>7}{cells}")
        for key, text in (("errors", "+-"), ("answered", "answered")) if name in averaged else ():
            found = [columns[title][key][kind].get(name) for kind, title in titles]
            if None not in found:
                cells = "".join(f"{value:16.3f}" for value in found)
                lines.append(f"  {f'  {text}':<16}{'':>7}{cells}")
    if any("*" in line for line in lines):
        lines.append("  * no split of its own: cut by a checksum of the ids, "
                     "not comparable with published numbers")
    return lines


def report(results: dict) -> str:
    """The table at the end of a run."""
    measured = "greedy" in results["after"]
    lines = accuracies({"before": results["before"], "after": results["after"]}) if measured else []
    lines.append(f"labels used         {results['labels_used']} of {results['labels_available']}")
    if results["audit"]:
        audit = {name: "-" if value is None else f"{value:.3f}" for name, value in results["audit"].items()}
        alone = f" (agreement alone {audit['agreement_auc']})" if "agreement_auc" in audit else ""
        right = results["audit"].get("right")
        lines.append(f"predicted rewards   accuracy {audit['accuracy']}, precision {audit['precision']}, "
                     f"recall {audit['recall']}, false positives {audit['fp_rate']}, "
                     f"AUC {audit['auc']}{alone} on {results['audit']['rollouts']} rollouts"
                     + ("" if right is None else f", {right:.0%} of them right"))
        if results["audit"].get("group_auc") is not None:
            told, mistaken = (results["audit"][name] for name in ("told_apart", "mistaken"))
            lines.append(f"  in a group        AUC {audit['group_auc']}; of pairs of a right and a wrong one "
                         f"the threshold tells {told:.0%} apart, {mistaken:.0%} the wrong way round")
        for kind in (name.removesuffix("/accuracy") for name in audit if name.endswith("/accuracy")):
            part = {name: audit[f"{kind}/{name}"] for name in ("accuracy", "fp_rate", "auc", "group_auc")}
            lines.append(f"  {kind:<18}accuracy {part['accuracy']}, false positives {part['fp_rate']}, "
                         f"AUC {part['auc']}, in a group {part['group_auc']}")
    if results["dropped"]:
        counts = (f"{name}: {n} {why}" for name, reasons in results["dropped"].items()
                  for why, n in reasons.items())
        lines.append("tasks left out      " + "; ".join(counts))
    lines.append(f"time                {results['seconds']:.0f} s for {results['steps']} steps")
    return "\n".join(lines)


def mean_error(values: list[float], digits: int = 1) -> str:
    """Mean and standard error of the mean.

    >>> mean_error([1.0, 2.0, 3.0]), mean_error([1.0])
    ('2.0 +- 0.6', '1.0')
    """
    middle = f"{mean(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} +- {stdev(values) / sqrt(len(values)):.{digits}f}"

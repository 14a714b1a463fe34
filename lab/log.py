"""What a run says: metrics.jsonl, the clock, and how good its predicted rewards are (audit and drift)."""

import dataclasses
import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from math import isnan, sqrt
from statistics import mean, stdev

from lab.processes import gather, tell
from lab.runs import version


class Log:
    """metrics.jsonl, the trackers, and what the table at the end needs."""

    def __init__(self, run, labels: dict):
        self.run, self.labels, self.evaluations, self.shown = run, labels, [], {}
        self.marks = []  # how many rollouts audit and drift had at each evaluation
        self.versions = [version()]  # of the method, in the order in which the run had them
        self.start = time.perf_counter()
        if run.config.tracker != "none":
            settings = {k: v for k, v in dataclasses.asdict(run.config).items() if v is not None}
            run.accelerator.init_trackers("memreward", config=settings)

    @property
    def audited(self) -> int:
        """Rollouts of the audit that are in an evaluation already."""
        return self.marks[-1][0] if self.marks else 0

    @property
    def checked(self) -> int:
        """Rollouts of the drift slice that are in an evaluation already."""
        return self.marks[-1][1] if self.marks else 0

    def mark(self, audit: "Audit", drift: "Drift") -> None:
        """Audit and drift of the next evaluation begin here."""
        self.marks.append((len(audit.rewards), len(drift.rewards)))

    def begin(self, tasks: list, test: list, labels: str) -> None:
        """Say what the run is, and where something is missing that it needs."""
        run, config = self.run, self.run.config
        if not run.accelerator.is_main_process:
            return
        weights = sum(weight.numel() for weight in run.reference.parameters())
        size = f"{weights / 1e9:.1f} billion" if weights > 1e9 else f"{weights / 1e6:.1f} million"
        encoder = f", encoder {config.encoder}" if run.encode is not None else ""
        ranks = run.accelerator.num_processes
        precision = "bf16" if run.accelerator.mixed_precision == "bf16" else "fp32"
        tell(f"policy      {config.model}, {size} weights, {precision} on {run.device}"
             f"{f' x {ranks}' if ranks > 1 else ''}{encoder}")
        tell(f"tasks       train {counts(tasks)}; test {counts(test)}")
        tell(f"labels      {labels}")
        tell(f"  of        {counts([task for task in tasks if task.labelled])}")
        for name, reasons in run.dropped.items():
            tell(f"left out    {name}: " + "; ".join(f"{count} {why}" for why, count in reasons.items()))
        tell(f"run folder  {run.folder}")
        if run.memory is not None:
            kinds = {(task.dataset, task.domain) for task in tasks if task.labelled}
            for name, kind in sorted({(task.dataset, task.domain) for task in tasks} - kinds):
                tell(f"warning: no {kind} task of {name} has a label, so the memory knows nothing like them")

    def warm_up(self, histories: list[list[dict]], groups: list[list[float]], truncated: float) -> None:
        """Log what the warm-up found: the initial policy's verified groups, and how well the networks fit
        them."""
        right = mean(reward for group in groups for reward in group)
        mixed = mean(min(group) < max(group) for group in groups)
        row = {"warm_up/right": right, "warm_up/mixed_groups": mixed, "warm_up/truncated": truncated}
        self.fits(0, histories, row)
        if not self.run.accelerator.is_main_process:
            return
        kept = [best for history in histories for best in history if best["best"]]
        aucs = [best["val_auc"] for best in kept if not isnan(best["val_auc"])]
        tell(f"warm-up     {len(groups)} groups: {right:.0%} right, {mixed:.0%} with both outcomes, "
             f"{truncated:.0%} cut off" + (f"; AUC on held-out labels {mean(aucs):.3f}" if aucs else ""))
        if all(isnan(best["val_loss"]) for best in kept):
            tell("warning: too few labelled queries to hold any out from fitting, so the networks neither "
                 "stop early nor are calibrated: believe their probabilities little")
        if mixed == 0:
            kind = {0.0: "wrong", 1.0: "right"}.get(right, "all right or all wrong")
            tell(f"warning: the rollouts of every labelled task are {kind}, so there is nothing to learn "
                 "from: take another model, other tasks or a higher temperature")
        if truncated > 0.5:
            tell(f"warning: {truncated:.0%} of the responses are cut off at max_response_length "
                 f"({self.run.config.max_response_length}): raise it")

    def fits(self, step: int, histories: list[list[dict]], more: dict | None = None) -> None:
        """One line with how the reward networks were fitted: for each its losses by epoch, and the epoch
        kept."""
        names = ("train_loss", "val_loss", "val_auc")
        fits = []
        for history in histories:
            columns = {name: [row[name] for row in history] for name in names}
            fit = {name: [None if isnan(x) else round(x, 5) for x in xs] for name, xs in columns.items()}
            fits.append(fit | {"kept": next(row["epoch"] for row in history if row["best"])})
        self.write(step, {**(more or {}), "fits": fits})

    def end(self) -> None:
        """Say so where the run could learn nothing, or learnt something else than to be right."""
        if not self.run.accelerator.is_main_process:
            return
        rows = [json.loads(line) for line in (self.run.folder / "metrics.jsonl").read_text().splitlines()]
        steps = [row for row in rows if "loss" in row]
        tenth = max(1, len(steps) // 10)
        first, last = steps[:tenth], steps[-tenth:]
        if all(row["groups_without_signal"] == 1 for row in steps):
            tell("warning: in no step had any group both outcomes, so nothing was learnt")
        if mean(row["truncated"] for row in last) > 0.5:
            tell("warning: at the end most responses were cut off at max_response_length "
                 f"({self.run.config.max_response_length})")
        early, late = ([x for row in part if (x := row["reward/predicted"]) is not None]
                       for part in (first, last))
        looks = (self.evaluations[0], self.evaluations[-1])
        before, after = (look.get("greedy", {"all": 0.0})["all"] for look in looks)
        if early and late and mean(late) > mean(early) and after < before - 0.05:
            tell(f"warning: predicted rewards rose from {mean(early):.2f} to {mean(late):.2f} while test "
                 f"accuracy fell from {before:.2f} to {after:.2f}: it learnt what the rewards pay, not what "
                 "is right")

    def write(self, step: int, row: dict) -> None:
        """One line of metrics.jsonl; the trackers get its numbers."""
        if self.run.accelerator.is_main_process:
            with open(self.run.folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        self.run.accelerator.log(numbers, step=step)

    def step(self, step: int, experience, rewards, source: list[str], stats: dict, seconds: dict, audit: dict,
             drift: dict) -> None:
        """Log a training step, over the rollouts of all processes; docs/log.md explains the numbers."""
        rollouts, size = experience.rollouts, self.run.config.group_size
        lengths = (rollouts.mask.sum(1), rollouts.attention_mask.sum(1), rollouts.truncated.float())
        columns = (rewards, *(column.view(-1, size) for column in lengths))  # (B, G) each
        unanswered = [[float(key is None) for key in keys] for keys in experience.keys]
        groups = gather(self.run, list(zip(source, unanswered, *(column.tolist() for column in columns))))
        sources, unanswered, rewards, response, tokens, truncated = zip(*groups)

        def average(groups: list, kinds: tuple[str, ...] = tuple(set(sources))) -> float | None:
            values = [value for kind, group in zip(sources, groups) if kind in kinds for value in group]
            return mean(values) if values else None

        row = {
            "reward/verified": average(rewards, ("verifier",)),
            "reward/predicted": average(rewards, ("memory", "majority")),
            "abstained": mean(kind == "abstained" for kind in sources),
            "groups_without_signal": mean(float(min(group) == max(group)) for group in rewards),
            "response_length": average(response),
            "truncated": average(truncated),
            "no_answer": average(unanswered),
            **stats,
            **seconds,
            "tokens_per_second": sum(sum(tokens, [])) / sum(seconds.values()),
            **{f"audit/{name}": value for name, value in audit.items()},
            **{f"drift/{name}": value for name, value in drift.items()},
        }
        self.write(step, row)
        shown = {"verified": row["reward/verified"], "predicted": row["reward/predicted"],
                 "audit": audit.get("accuracy")}
        self.shown = {name: f"{value:.2f}" for name, value in shown.items() if value is not None}

    def evaluation(self, step: int, accuracy: dict, audit: dict, drift: dict) -> None:
        """Log accuracies on the test tasks, audit and drift since the last evaluation."""
        self.evaluations.append({"step": step, **accuracy, "audit": audit, "drift": drift})
        kinds = [kind for kind in ("greedy", "sampled") if kind in accuracy]
        row = {f"test/{kind}/{name}": value for kind in kinds for name, value in accuracy[kind].items()}
        row |= {f"test/{kind}/answered": accuracy["answered"][kind]["all"] for kind in kinds}
        for part, numbers in (("audit", audit), ("drift", drift)):
            row |= {f"{part}_since/{name}": value for name, value in numbers.items()}
        self.write(step, row)
        if self.run.accelerator.is_main_process:
            parts = ["test accuracy " + ", ".join(f"{accuracy[kind]['all']:.3f} {kind}" for kind in kinds)]
            parts = (parts if kinds else [])
            if audit:
                parts.append(f"predicted rewards {audit['accuracy']:.3f} right")
            if parts:
                tell(f"step {step}: {'; '.join(parts)}")


def counts(tasks: list) -> str:
    """How many tasks there are of each set and domain.

    >>> from types import SimpleNamespace as Task
    >>> counts(2 * [Task(dataset="a", domain="qa")] + [Task(dataset="b", domain="math")])
    '3 (a qa 2, b math 1)'
    """
    of = Counter(f"{task.dataset} {task.domain}" for task in tasks)
    return f"{len(tasks)} ({', '.join(f'{name} {count}' for name, count in sorted(of.items()))})"


class Stopwatch(dict):
    """Seconds by stage: stopwatch(name) is called where a stage ends."""

    def __init__(self):
        self.last = time.perf_counter()

    def __call__(self, name: str) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()  # a GPU works behind the program's back
        now = time.perf_counter()
        self[f"seconds/{name}"], self.last = self.get(f"seconds/{name}", 0.0) + now - self.last, now


def profile(run):
    """A torch profiler that skips two steps and writes the next three to trace.json in the run folder."""
    import torch

    def finish(profiler) -> None:
        profiler.export_chrome_trace(str(run.folder / "trace.json"))
        tell(profiler.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40))

    ready = finish if run.accelerator.is_main_process else None
    steps = torch.profiler.schedule(wait=1, warmup=1, active=3, repeat=1)
    profiler = torch.profiler.profile(schedule=steps, on_trace_ready=ready)
    profiler.start()
    return profiler


class Tally:
    """Predicted probabilities beside true rewards, and how well they agree."""

    def __init__(self, threshold: float):
        self.threshold, self.probabilities, self.rewards = threshold, [], []

    def extend(self, pairs: list[tuple[float, float]]) -> None:
        """Add pairs of a probability and a reward."""
        for probability, reward in pairs:
            self.probabilities.append(probability)
            self.rewards.append(reward)

    def metrics(self, first: int = 0) -> dict:
        """Accuracy, precision, recall, f1, fp_rate, auc of the rollouts from number `first` on; {} of
        none."""
        import torch

        from gnn import metrics

        if len(self.rewards) <= first:
            return {}
        probabilities, rewards = torch.tensor(self.probabilities[first:]), torch.tensor(self.rewards[first:])
        part = metrics(probabilities, rewards, self.threshold)
        part = {name: None if isnan(value) else value for name, value in part.items()}
        return part | {"right": rewards.mean().item(), "rollouts": len(rewards)}


BY_DOMAIN = ("accuracy", "fp_rate", "auc", "group_auc", "right", "rollouts")  # what the audit tells of each


class Audit(Tally):
    """Compares predicted rewards with the truth on unlabelled rollouts. It alone holds the hidden labels,
    which only an experiment has; what it returns goes to the log and nowhere else. Beside each prediction
    stand the rollout's agreement, the share of its group with this answer (what can be had for nothing), and
    the task's domain."""

    def __init__(self, tasks: list, config):
        super().__init__(config.threshold)
        self.truth, self.size = {task.id: task for task in tasks}, config.group_size
        self.agreement, self.domains = [], []
        self.thread = ThreadPoolExecutor(1)

    def verify(self, tasks: list, texts: list[str]) -> list[float | None]:
        """The true rewards of responses, None where nobody knows. Nothing else touches a hidden label."""
        from data import verify_batch

        known = [self.truth[task.id].labelled for task in tasks]
        pairs = [(self.truth[task.id], text) for task, text, has in zip(tasks, texts, known) if has]
        rewards = iter(verify_batch(*zip(*pairs)) if pairs else ())
        return [next(rewards) if has else None for has in known]

    def begin(self, experience) -> None:
        """Start to verify the unlabelled groups with their true labels, in a thread: programs run in
        processes of their own, so that the update need not wait for them. `add` does."""
        self.rows = [b for b, task in enumerate(experience.tasks)
                     if not task.labelled and self.truth[task.id].labelled]
        texts = [experience.rollouts.texts[b * self.size + g] for b in self.rows for g in range(self.size)]
        tasks = [experience.tasks[b] for b in self.rows for _ in range(self.size)]
        self.verdicts = self.thread.submit(self.verify, tasks, texts)

    def add(self, run, experience) -> None:
        """Predict the unlabelled groups of all processes again, those too that `--abstain` left out, beside
        what `begin` has found of them. A soft reward is right where it is on the right side of the
        threshold."""
        import torch

        from memreward import predict_rewards

        found, size = [], self.size
        if self.rows:
            groups = experience.groups and experience.groups.rows(torch.tensor(self.rows))
            keys = [experience.keys[b] for b in self.rows]
            probabilities = predict_rewards(run.memory, groups, keys)
            agreement = [group.count(key) / size if key is not None else 0.0
                         for group in keys for key in group]
            domains = [experience.tasks[b].domain for b in self.rows for _ in range(size)]
            found = list(zip(probabilities.flatten().tolist(), self.verdicts.result(), agreement, domains))
        groups = [found[first : first + size] for first in range(0, len(found), size)]
        self.extend([row for group in gather(run, groups) for row in group])

    def extend(self, rows: list[tuple[float, float, float, str]]) -> None:
        """Add probability, reward, agreement and domain of rollouts, group by group."""
        super().extend([(probability, reward) for probability, reward, *_ in rows])
        self.agreement += [agreement for *_, agreement, _ in rows]
        self.domains += [domain for *_, domain in rows]

    def metrics(self, first: int = 0) -> dict:
        """The same, agreement_auc: that of agreement as a score, and what `inside_groups` tells; where there
        are several domains, DOMAIN/accuracy and so on of each."""
        columns = (self.probabilities, self.rewards, self.agreement, self.domains)
        rows = list(zip(*(column[first:] for column in columns)))
        found = self.measure(rows)
        kinds = sorted({domain for *_, domain in rows})
        for kind in kinds if len(kinds) > 1 else ():
            part = self.measure([row for row in rows if row[-1] == kind])
            found |= {f"{kind}/{name}": part[name] for name in BY_DOMAIN}
        return found

    def measure(self, rows: list[tuple[float, float, float, str]]) -> dict:
        """All numbers of some groups' rollouts, as `extend` takes them."""
        score, alone = Tally(self.threshold), Tally(self.threshold)
        score.extend([(probability, reward) for probability, reward, *_ in rows])
        alone.extend([(agreement, reward) for _, reward, agreement, _ in rows])
        part = score.metrics()
        return part and part | {"agreement_auc": alone.metrics()["auc"]} | inside_groups(
            score.probabilities, score.rewards, self.size, self.threshold)


def inside_groups(probabilities: list[float], rewards: list[float], size: int, threshold: float) -> dict:
    """How well predictions tell a right from a wrong rollout of the same group, which is all that an
    advantage sees: over all such pairs group_auc, how often the right one has the higher probability (a tie
    counts one half); told_apart, how often it alone is above the threshold; mistaken, how often the wrong one
    is. None where no group has both.

    >>> inside_groups([0.9, 0.8, 0.1, 0.3, 0.3, 0.2], [1, 0, 0, 1, 0, 0], size=3, threshold=0.5)
    {'group_auc': 0.875, 'told_apart': 0.25, 'mistaken': 0.0}
    """
    import torch

    p, right = torch.tensor(probabilities).view(-1, size), torch.tensor(rewards).view(-1, size) > 0.5
    pairs = right[:, :, None] & ~right[:, None]  # (B, G, G) of a right and a wrong one
    higher = (p[:, :, None] - p[:, None]).sign()[pairs]
    order = ((p > threshold).float()[:, :, None] - (p > threshold).float()[:, None])[pairs]
    values = {"group_auc": (higher + 1) / 2, "told_apart": (order > 0).float(),
              "mistaken": (order < 0).float()}
    return {name: value.mean().item() if len(value) else None for name, value in values.items()}


class Drift(Tally):
    """The same without hidden labels, so that any user has it: a fixed slice of the labelled queries, on
    which the reward networks neither train nor stop nor calibrate. They are verified at every visit anyway;
    the memory predicts them too, with its own entries of that query hidden."""

    def __init__(self, labelled: list, config):
        super().__init__(config.threshold)
        count = round(config.drift_fraction * len(labelled)) if config.mode == "memreward" else 0
        ids = [task.id for task in labelled]
        if 0 < len(ids) <= count:
            raise ValueError(f"drift_fraction: {config.drift_fraction} keeps all {count} labelled tasks from "
                             "the reward networks; take less")
        self.ids = set(random.Random(f"audit {config.seed}").sample(ids, count))  # the word decides the draw
        self.queries, self.warm_up = [], 0  # whose rollouts they are; the first so many are the warm-up's

    def check(self, run, experience, rewards) -> list[tuple[float, float, str]]:
        """Predicted and verified reward (of (B, G)) and query, of each rollout of the slice in this
        process."""
        import torch

        from memreward import predict_rewards

        rows = [b for b, task in enumerate(experience.tasks) if task.id in self.ids]
        if not rows:
            return []
        groups, ids = experience.groups.rows(torch.tensor(rows)), [experience.tasks[b].id for b in rows]
        keys = [experience.keys[b] for b in rows]
        probabilities = predict_rewards(run.memory, groups, keys, exclude=ids)  # (rows, G)
        queries = [query for query in ids for _ in range(rewards.shape[1])]
        return list(zip(probabilities.flatten().tolist(), rewards[rows].flatten().tolist(), queries))

    def extend(self, rows: list[tuple[float, float, str]]) -> None:
        """Add what `check` returned."""
        super().extend([(probability, reward) for probability, reward, _ in rows])
        self.queries += [query for *_, query in rows]

    def right(self, first: int, last: int | None = None) -> dict[str, float]:
        """For each query the share of its predictions, from number `first` to before `last`, that were
        right."""
        found: dict[str, list[bool]] = {}
        columns = (self.queries, self.probabilities, self.rewards)
        for query, probability, reward in zip(*(column[first:last] for column in columns)):
            found.setdefault(query, []).append((probability > self.threshold) == (reward > 0.5))
        return {query: mean(values) for query, values in found.items()}

    def warn(self, run, step: int, first: int) -> None:
        """Say so where, since rollout number `first`, fewer predictions were right than in the warm-up, by
        more than two standard errors: of the mean over queries, as the rollouts of a query are nearly
        alike."""
        before, now = self.right(0, self.warm_up), self.right(first)
        changes = [share - before[query] for query, share in now.items()]
        if len(changes) < 2 or not run.accelerator.is_main_process:
            return
        if mean(changes) + 2 * stdev(changes) / sqrt(len(changes)) < 0:
            once = mean(before[query] for query in now)
            tell(f"step {step}: the memory drifts: of its rewards for {len(now)} labelled queries that it "
                 f"was not fitted on {mean(now.values()):.2f} are right, {once:.2f} were at the start")

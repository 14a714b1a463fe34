"""A run beside its method: several processes, the log and its audits, the run folder with checkpoints that survive, tables.

Nothing here changes what is trained; read it when you want to know what a run leaves behind and how it goes on. `run` is
always a train.Run.
"""

import dataclasses
import importlib.util
import json
import os
import random
import shutil
import tempfile
import time
import zlib
from itertools import zip_longest
from math import isnan, sqrt
from pathlib import Path
from statistics import mean, stdev

HERE = Path(__file__).resolve().parent
MODES = ("r1p", "majority", "memreward", "oracle")
LABEL_RATIO = 0.2  # of the comparison; VARIANTS has others
VARIANTS = {  # rows of compare beside the four modes
    "grow": {"memory": "grow"}, "refit": {"memory": "refit"}, "soft": {"reward": "soft"}, "abstain": {"abstain": 0.5},
    **{f"{mode} {ratio}": {"mode": mode, "label_ratio": ratio} for ratio in (0.1, 0.4, 0.7) for mode in ("r1p", "memreward")}}


def check(condition: bool, message: str) -> None:
    """Raise ValueError with the message where the condition fails."""
    if not condition:
        raise ValueError(message)


# -------------------------------------------------------------------------------------------------- the policy, the data


def load_policy(config, dtype) -> tuple:
    """The causal LM and the tokenizer that config.model names: 'builtin', a model folder, a run folder, a model of the hub."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from data import reach_hub

    name = str(HERE / "assets" / "policy") if config.model == "builtin" else config.model
    if (Path(name) / "results.json").is_file():
        name = str(Path(name) / "policy")  # of a finished run
    try:
        reach_hub(name)
        settings = AutoConfig.from_pretrained(name)
        for key, value in vars(settings).items():
            if "drop" in key and isinstance(value, float):
                setattr(settings, key, 0.0)  # with dropout the policy that is trained is not the policy that sampled
        attention = None if config.attention == "auto" else config.attention
        model = AutoModelForCausalLM.from_pretrained(name, config=settings, dtype=dtype, attn_implementation=attention)
        return model, AutoTokenizer.from_pretrained(name, padding_side="left")
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"model: cannot load {name!r}, neither 'builtin', a model or run folder nor a model at hand: "
                         f"{str(error).strip().splitlines()[0]}") from None  # fmt: skip


def render(tokenizer, task) -> str:
    """The prompt of a task as the policy reads it: its chat template where it has one, else the plain text."""
    from data import make_prompt

    if tokenizer.chat_template is None:
        return (tokenizer.bos_token or "") + make_prompt(task) + "\n"
    message = [{"role": "user", "content": make_prompt(task)}]
    return tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)


def load_data(run, training: bool = True) -> tuple[list, list]:
    """Training tasks (none where there is no training) and test tasks. A prompt beyond the limit is left out and counted; a
    missing label is refused where one is needed."""
    from accelerate.utils import broadcast_object_list

    from data import load_splits

    config, ranks = run.config, run.accelerator.num_processes
    limits, splits = (config.train_tasks, config.test_tasks, config.seed), None
    if run.accelerator.is_main_process:  # a download, and programs whose time is limited: all must see the same
        if training:
            splits = load_splits(config.tasks, config.ood, *limits)
        else:
            (_, test, dropped), (_, more, others) = (load_splits("", sets, *limits) for sets in (config.tasks, config.ood))
            splits = test, test + more, dropped | others
    tasks, test, run.dropped = broadcast_object_list([splits])[0]
    run.inside = frozenset(task.dataset for task in tasks)
    kept = []
    for part, candidates in (("train", tasks if training else []), ("test", test)):
        kept.append(some := [])
        for task in candidates:
            if len(run.tokenizer(render(run.tokenizer, task), add_special_tokens=False).input_ids) <= config.max_prompt_length:
                some.append(task)
            else:
                reasons, why = run.dropped.setdefault(task.dataset, {}), f"{part}: prompt longer than max_prompt_length"
                reasons[why] = reasons.get(why, 0) + 1
        check(len(some) >= ranks or part == "train" and not training,
              f"{part}_tasks: {len(some)} are too few for every process (left out: {run.dropped or 'none'})")
        unlabelled = [task.id for task in some if not task.labelled]
        check(not unlabelled or (part == "train" and config.mode != "oracle" and len(unlabelled) < len(some)),
              f"tasks: {config.tasks}: {len(unlabelled)} {part} tasks have no label, the first is {unlabelled[:1]}")
    return tuple(kept)


# ---------------------------------------------------------------------------------------------------- several processes


def whole_weights(run):
    """Name and value of every weight of the policy, one by one; of a sharded one gathered, a meeting point of all processes."""
    for name, weight in run.accelerator.unwrap_model(run.model).named_parameters():
        yield name, weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def refresh(run) -> None:
    """Give the copy that samples the newest weights."""
    if run.sampler is not None:
        for copy, (_, weight) in zip(run.sampler.parameters(), whole_weights(run), strict=True):
            copy.data.copy_(weight.data)


def gather(run, rows: list) -> list:
    """The rows of all processes in the order one process would have them: row i of process p is number i * world + p."""
    from accelerate.utils import gather_object

    if run.accelerator.num_processes == 1:
        return rows
    absent = object()
    columns = zip_longest(*gather_object([rows]), fillvalue=absent)
    return [row for column in columns for row in column if row is not absent]


def share(run, rows: list) -> list:
    """The rows that are this process's part."""
    return rows[run.accelerator.process_index :: run.accelerator.num_processes]


def fit_memory(run, seed: int, drift) -> None:
    """Train the reward networks once, on the first process, and give the same to all."""
    from accelerate.utils import broadcast_object_list

    main = run.accelerator.is_main_process
    if main:
        run.memory.fit(seed, without=drift.ids)
    if run.accelerator.num_processes > 1:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "memory.pt"
            if main:
                run.memory.save(file)
            file.write_bytes(broadcast_object_list([file.read_bytes() if main else None])[0])
            run.memory.load(file, run.device)


# ----------------------------------------------------------------------------------------------- the log and its audits


class Log:
    """metrics.jsonl, the trackers, and what the table at the end needs."""

    def __init__(self, run, labels: dict):
        self.run, self.labels, self.evaluations, self.audited, self.checked, self.shown = run, labels, [], 0, 0, {}
        self.start = time.perf_counter()
        if run.config.tracker != "none":
            settings = {k: v for k, v in dataclasses.asdict(run.config).items() if v is not None}
            run.accelerator.init_trackers("memreward", config=settings)

    def write(self, step: int, row: dict) -> None:
        """One line of metrics.jsonl; the trackers get its numbers."""
        if self.run.accelerator.is_main_process:
            with open(self.run.folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        self.run.accelerator.log(numbers, step=step)

    def step(self, step: int, experience, rewards, source, stats: dict, seconds: dict, audit: dict, drift: dict) -> None:
        """Log a training step, over the rollouts of all processes; README explains every number."""
        rollouts, size = experience.rollouts, self.run.config.group_size
        lengths = (rollouts.mask.sum(1), rollouts.attention_mask.sum(1), rollouts.truncated.float())
        columns = (rewards, *(column.view(-1, size) for column in lengths))  # (B, G) each
        groups = gather(self.run, list(zip(source, *(column.tolist() for column in columns))))
        average = lambda groups: mean(sum(groups, [])) if groups else None  # noqa: E731
        of_source = lambda *kinds: average([group for kind, group, *_ in groups if kind in kinds])  # noqa: E731
        sources, rewards, response, tokens, truncated = zip(*groups)
        row = {
            "reward/verified": of_source("verifier"),
            "reward/predicted": of_source("memory", "majority"),
            "abstained": mean(kind == "abstained" for kind in sources),
            "groups_without_signal": mean(float(min(group) == max(group)) for group in rewards),
            "response_length": average(response),
            "truncated": average(truncated),
            **stats,
            **seconds,
            "tokens_per_second": sum(sum(tokens, [])) / sum(seconds.values()),
            **{f"audit/{name}": value for name, value in audit.items()},
            **{f"drift/{name}": value for name, value in drift.items()},
        }
        self.write(step, row)
        shown = {"verified": row["reward/verified"], "predicted": row["reward/predicted"], "audit": audit.get("accuracy")}
        self.shown = {name: f"{value:.2f}" for name, value in shown.items() if value is not None}

    def evaluation(self, step: int, accuracy: dict, audit: dict, drift: dict) -> None:
        """Log accuracies on the test tasks, audit and drift since the last evaluation."""
        from tqdm import tqdm

        self.evaluations.append({"step": step, **accuracy, "audit": audit, "drift": drift})
        kinds = [kind for kind in accuracy if kind != "tasks"]
        row = {f"test/{kind}/{name}": value for kind in kinds for name, value in accuracy[kind].items()}
        for part, numbers in (("audit", audit), ("drift", drift)):
            row |= {f"{part}_since/{name}": value for name, value in numbers.items()}
        self.write(step, row)
        if self.run.accelerator.is_main_process:
            line = ", ".join(f"{accuracy[kind]['all']:.3f} {kind}" for kind in kinds)
            predicted = f"; predicted rewards {audit['accuracy']:.3f} right" if audit else ""
            tqdm.write(f"step {step}: test accuracy {line}{predicted}")


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
    """A torch profiler that, step by step, skips two steps and writes the next three to trace.json in the run folder."""
    import torch

    def finish(profiler) -> None:
        profiler.export_chrome_trace(str(run.folder / "trace.json"))
        tell(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40))

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
        """Accuracy, precision, recall, f1, fp_rate, auc over the rollouts from number `first` on; {} where there are none."""
        import torch

        from gnn import metrics

        if len(self.rewards) <= first:
            return {}
        probabilities, rewards = torch.tensor(self.probabilities[first:]), torch.tensor(self.rewards[first:])
        part = {k: None if isnan(v) else v for k, v in metrics(probabilities, rewards, self.threshold).items()}
        return part | {"rollouts": len(rewards)}


class Audit(Tally):
    """Compares predicted rewards with the truth on unlabelled rollouts. It alone holds the hidden labels, which only an
    experiment has; what it returns goes to the log and nowhere else."""

    def __init__(self, tasks: list, threshold: float):
        super().__init__(threshold)
        self.truth = {task.id: task for task in tasks}

    def add(self, run, experience) -> None:
        """Predict the unlabelled groups of all processes again, those too that `--abstain` left out, and verify them with
        their true labels. A soft reward counts as right where it is on the right side of the threshold."""
        import torch

        from data import verify_batch
        from memreward import predict_rewards

        rows = [b for b, task in enumerate(experience.tasks) if not task.labelled and self.truth[task.id].labelled]
        judged, size = [], run.config.group_size
        if rows:
            groups = experience.groups and experience.groups.rows(torch.tensor(rows))
            probabilities = predict_rewards(run.memory, groups, [experience.keys[b] for b in rows]).flatten().tolist()
            texts = [experience.rollouts.texts[b * size + g] for b in rows for g in range(size)]
            truth = [self.truth[experience.tasks[b].id] for b in rows for _ in range(size)]
            judged = list(zip(probabilities, verify_batch(truth, texts)))
        self.extend(gather(run, judged))


class Drift(Tally):
    """The same without hidden labels, so that any user has it: a fixed slice of the labelled queries, on which the reward
    networks neither train nor stop nor calibrate. They are verified at every visit anyway; the memory predicts them too, with
    its own entries of that query hidden."""

    def __init__(self, labelled: list, config):
        super().__init__(config.threshold)
        count = round(config.drift_fraction * len(labelled)) if config.mode == "memreward" else 0
        self.ids = set(random.Random(f"audit {config.seed}").sample([task.id for task in labelled], count))
        self.queries, self.warm_up = [], 0  # whose rollouts they are; the first so many are the warm-up's

    def judge(self, run, experience, rewards) -> list[tuple[float, float, str]]:
        """Predicted and verified reward (of (B, G)) and query, of each rollout of the slice that this process has."""
        import torch

        from memreward import predict_rewards

        rows = [b for b, task in enumerate(experience.tasks) if task.id in self.ids]
        if not rows:
            return []
        groups, ids = experience.groups.rows(torch.tensor(rows)), [experience.tasks[b].id for b in rows]
        probabilities = predict_rewards(run.memory, groups, [experience.keys[b] for b in rows], ids)  # (rows, G)
        queries = [query for query in ids for _ in range(rewards.shape[1])]
        return list(zip(probabilities.flatten().tolist(), rewards[rows].flatten().tolist(), queries))

    def extend(self, rows: list[tuple[float, float, str]]) -> None:
        """Add what `judge` returned."""
        super().extend([(probability, reward) for probability, reward, _ in rows])
        self.queries += [query for *_, query in rows]

    def right(self, first: int, last: int | None = None) -> dict[str, float]:
        """For each query the share of its predictions, from number `first` on and before `last`, that were right."""
        found: dict[str, list[bool]] = {}
        for query, probability, reward in zip(*(part[first:last] for part in (self.queries, self.probabilities, self.rewards))):
            found.setdefault(query, []).append((probability > self.threshold) == (reward > 0.5))
        return {query: mean(values) for query, values in found.items()}

    def warn(self, run, step: int, first: int) -> None:
        """Say so where, since rollout number `first`, fewer predictions were right than in the warm-up, by more than two
        standard errors: of the mean over queries, as the rollouts of a query are nearly alike."""
        start, now = self.right(0, self.warm_up), self.right(first)
        changes = [share - start[query] for query, share in now.items()]
        if len(changes) > 1 and mean(changes) + 2 * stdev(changes) / sqrt(len(changes)) < 0 and run.accelerator.is_main_process:
            tell(f"step {step}: the memory drifts: of its rewards for {len(now)} labelled queries that it was not fitted on "
                 f"{mean(now.values()):.2f} are right, {mean(start[query] for query in now):.2f} were at the start")


# ------------------------------------------------------------------------------------------------------- the run folder


def open_folder(run, tasks: list, test: list) -> None:
    """The run folder with config.json and tasks.json: a new one, or the one to resume. One with a run in it is never reused."""
    from accelerate.utils import broadcast_object_list

    run.folder = folder = Path(broadcast_object_list([run.config.output_dir])[0])
    parts = {"labelled": [task for task in tasks if task.labelled], "test": test,
             "unlabelled": [task for task in tasks if not task.labelled]}  # fmt: skip
    chosen = {name: [task.id for task in part] for name, part in parts.items()} | {"dropped": run.dropped}
    if run.accelerator.is_main_process:
        if (folder / "tasks.json").exists() and run.config.resume:
            check(json.loads((folder / "tasks.json").read_text()) == chosen,
                  f"tasks: {run.config.tasks} gives others than {folder / 'tasks.json'}: the data changed since the run began")
            return
        holds_run = any((folder / name).exists() for name in ("checkpoints", "results.json"))
        check(not holds_run, f"output_dir: {folder} holds a run already; --resume it, or name another")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "metrics.jsonl", "")
            write_json(folder / "tasks.json", chosen)
            write_json(folder / "config.json", dataclasses.asdict(run.config))
        except OSError as error:
            raise ValueError(f"output_dir: cannot write to {folder} ({error.strerror}); name another folder") from None


def save_checkpoint(run, step: int, log: Log, audit, drift) -> None:
    """Write policy, optimizer, memory, random states and position aside, then rename: a checkpoint is whole or not there.
    Where the disk is full the older ones stay, and training goes on."""
    import torch
    from safetensors import SafetensorError

    main, new, folder = run.accelerator.is_main_process, run.folder / "checkpoint.new", run.folder / "checkpoints"
    if main:
        shutil.rmtree(new, ignore_errors=True)  # of a run that was killed while it wrote
    run.accelerator.wait_for_everyone()
    failure = None
    try:
        run.accelerator.save_state(str(new))  # every process writes its random state
        save_policy(run, new)
        if main:
            if run.memory is not None:
                run.memory.save(new / "memory.pt")
            state = {"evaluations": log.evaluations, "seconds": time.perf_counter() - log.start,
                     "audit": (audit.probabilities, audit.rewards), "warm_up": drift.warm_up,
                     "drift": list(zip(drift.probabilities, drift.rewards, drift.queries))}  # fmt: skip
            torch.save(state, new / "progress.pt")
    except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as RuntimeError
        failure = str(error).splitlines()[0]
    failure = next((f for f in gather(run, [failure]) if f), None)
    if main and not failure:
        try:
            write_json(new / "checksums.json", checksums(new))
            folder.mkdir(exist_ok=True)
            target = folder / f"{step:06}"
            shutil.rmtree(target, ignore_errors=True)  # damaged, otherwise the run would have gone on from it
            os.replace(new, target)
        except OSError as error:  # some disks notice only now
            failure = str(error)
        else:
            for old in sorted(folder.iterdir())[: -run.config.keep]:
                shutil.rmtree(old, ignore_errors=True)
    if main and failure:
        shutil.rmtree(new, ignore_errors=True)
        tell(f"checkpoint: step {step} could not be written ({failure}); the run goes on, with the checkpoints it has")
    run.accelerator.wait_for_everyone()


def checksums(folder: Path) -> dict[str, int]:
    """The checksum of every file below a folder; each is on the disk before its checksum is."""
    sums = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "checksums.json"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            total = 0
            while block := file.read(1 << 24):
                total = zlib.crc32(block, total)
        sums[str(path.relative_to(folder))] = total
    return sums


def load_checkpoint(run, log: Log, audit, drift) -> int | None:
    """Go back to the newest checkpoint that is whole, cut metrics.jsonl back to it, and return its step; None where the
    run was stopped before it wrote any."""
    import torch
    from accelerate.utils import broadcast_object_list

    found = sorted((run.folder / "checkpoints").glob("*"), reverse=True)
    whole = None
    for folder in found if run.accelerator.is_main_process else ():
        expected = json.loads((folder / "checksums.json").read_text()) if (folder / "checksums.json").exists() else {}
        actual = checksums(folder)
        wrong = [name for name in sorted(expected.keys() | actual.keys()) if expected.get(name) != actual.get(name)]
        if not wrong:
            whole = folder
            break
        tell(f"checkpoint: {folder} is damaged ({', '.join(wrong[:3])}); falling back to the one before")
    whole = broadcast_object_list([whole])[0]
    check(whole or not found, f"resume: no checkpoint of {run.folder} is whole; start the run anew in another folder")
    step = int(whole.name) if whole else -1
    if run.accelerator.is_main_process:
        lines = (run.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_text(run.folder / "metrics.jsonl", "".join(kept))
    if whole is None:
        return None
    run.accelerator.load_state(str(whole))
    refresh(run)
    if run.memory is not None:
        run.memory.load(whole / "memory.pt", run.device)
    state = torch.load(whole / "progress.pt", weights_only=True)
    log.evaluations, log.start = state["evaluations"], time.perf_counter() - state["seconds"]
    audit.probabilities, audit.rewards = state["audit"]
    drift.extend(state["drift"])
    log.audited, log.checked, drift.warm_up = len(audit.rewards), len(drift.rewards), state["warm_up"]
    return step


def save_policy(run, folder: Path) -> None:
    """Write the policy as a folder that from_pretrained loads."""
    main = run.accelerator.is_main_process
    weights = {name: weight.detach().cpu() for name, weight in whole_weights(run) if main}
    if main:
        run.reference.save_pretrained(folder, state_dict=weights)  # it has the policy's architecture, and is never sharded
        run.tokenizer.save_pretrained(folder)


def finish(run, log: Log, audit) -> dict:
    """Save the policy as a model folder and write results.json."""
    config = run.config
    save_policy(run, run.folder / "policy")
    results = {"mode": config.mode, "label_ratio": config.label_ratio, "seed": config.seed, "steps": config.steps,
               **log.labels, "before": log.evaluations[0], "after": log.evaluations[-1], "evaluations": log.evaluations,
               "audit": audit.metrics(), "dropped": run.dropped, "seconds": time.perf_counter() - log.start}  # fmt: skip
    if run.accelerator.is_main_process:
        write_json(run.folder / "results.json", results)
    run.accelerator.end_training()
    return results


def write_json(path: Path, value) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    path.with_suffix(".tmp").write_text(text)
    os.replace(path.with_suffix(".tmp"), path)


def tell(text: str) -> None:
    """Say something in one line, above the progress bars."""
    from tqdm import tqdm

    tqdm.write(text)


# --------------------------------------------------------------------------------------------------------------- tables


def accuracies(columns: dict[str, dict]) -> list[str]:
    """A table of test accuracy: a line for each data set (or domain) and average, columns of {title: evaluate(...)}."""
    from data import CUT_BY_HASH

    last = list(columns.values())[-1]
    kinds = [kind for kind in ("greedy", "sampled") if kind in last]
    titles = [(kind, title) for kind in kinds for title in columns]
    lines = [f"{'test accuracy':<18}{'tasks':>7}" + "".join(f"{f'{kind} {title}'.strip():>16}" for kind, title in titles)]
    for name in last[kinds[0]]:
        label = "in domain" if name == "all" and "out of domain" in last[kinds[0]] else name + " *" * (name in CUT_BY_HASH)
        cells = "".join(f"{columns[title][kind][name]:16.3f}" for kind, title in titles)
        lines.append(f"  {label:<16}{last['tasks'][name]:>7}{cells}")
    if any("*" in line for line in lines):
        lines.append("  * no split of its own: cut by a checksum of the ids, not comparable with published numbers")
    return lines


def report(results: dict) -> str:
    """The table at the end of a run."""
    lines = accuracies({"before": results["before"], "after": results["after"]})
    lines.append(f"labels used         {results['labels_used']} of {results['labels_available']}")
    if results["audit"]:
        audit = {name: "-" if value is None else f"{value:.3f}" for name, value in results["audit"].items()}
        lines.append(f"predicted rewards   accuracy {audit['accuracy']}, precision {audit['precision']}, recall "
                     f"{audit['recall']}, false positives {audit['fp_rate']}, AUC {audit['auc']} "
                     f"on {results['audit']['rollouts']} rollouts")  # fmt: skip
    if results["dropped"]:
        counts = (f"{name}: {n} {reason}" for name, why in results["dropped"].items() for reason, n in why.items())
        lines.append("tasks left out      " + "; ".join(counts))
    lines.append(f"time                {results['seconds']:.0f} s for {results['steps']} steps")
    return "\n".join(lines)


def comparison(runs: list[dict]) -> str:
    """The paper's table over finished runs: mean and standard error over seeds, paired differences, MemReward / Oracle."""
    names = dict.fromkeys([*MODES, *(run["row"] for run in runs)])
    by_row = {name: {run["seed"]: run for run in runs if run["row"] == name} for name in names}
    before = {"after": runs[0]["before"], "labels_used": 0, "labels_available": runs[0]["labels_available"]}
    lines = ["test accuracy, %          greedy       sampled     labels   predictions right               AUC   seeds"]
    for name, rows in {"before training": [before], **{name: list(of.values()) for name, of in by_row.items()}}.items():
        if rows:
            cells = [mean_error([100 * row["after"][kind]["all"] for row in rows]) if kind in rows[0]["after"] else ""
                     for kind in ("greedy", "sampled")]  # fmt: skip
            labels = f"{rows[0]['labels_used']}/{rows[0]['labels_available']}"
            audits = [[row["audit"].get(name) for row in rows if row.get("audit")] for name in ("accuracy", "auc")]
            audit = ["" if None in values or not values else mean_error(values, 3) for values in audits]
            lines.append(f"{name:<18}{cells[0]:>14}{cells[1]:>14}{labels:>11}{audit[0]:>20}{audit[1]:>18}{len(rows):>8}")

    score = lambda run: 100 * run["after"]["greedy"]["all"]  # noqa: E731
    for other in names:
        kind, _, ratio = other.partition(" ")
        ours = "memreward" + (ratio and f" {ratio}")  # rows of another label ratio are compared among themselves
        pairs = [score(by_row[ours][seed]) - score(run) for seed, run in by_row[other].items() if seed in by_row.get(ours, ())]
        if kind != "memreward" and pairs:
            lines.append(f"{f'{ours} - {other}':<32}{mean_error(pairs):>14}   paired over {len(pairs)} seeds")
    for ours in (name for name in names if name.startswith("memreward")):
        both = [seed for seed in by_row[ours] if seed in by_row["oracle"]]
        if both:
            ratio = sum(score(by_row[ours][seed]) for seed in both) / sum(score(by_row["oracle"][seed]) for seed in both)
            lines.append(f"{f'{ours} / oracle':<32}{100 * ratio:12.1f} %")
    return "\n".join(lines)


def curves(root: Path, label_ratio: float) -> dict[str, dict[str, list[tuple[list, list]]]]:
    """What the figures of a folder of compare show: for each figure and line the steps and values of every seed's run with this label ratio.
    "accuracy" is greedy test accuracy, "predictions" the share of predicted rewards that were right since the evaluation before."""
    runs: dict[str, list[list]] = {}  # evaluations of every seed
    for path in sorted(root.glob("*-*-*/results.json")):
        name, ratio, _ = path.parent.name.split("-", 2)
        if name in (*MODES, "refit") and float(ratio) == (1.0 if name == "oracle" else label_ratio):
            runs.setdefault(name, []).append(json.loads(path.read_text())["evaluations"])
    check("memreward" in runs, f"plot: {root} holds no finished runs of compare with label_ratio {label_ratio}")
    curve = lambda rows, kind, name: ([row["step"] for row in rows if row[kind]], [row[kind][name] for row in rows if row[kind]])  # noqa: E731
    frozen = {"memreward": "frozen after the warm-up", "refit": "refitted every 50 steps"}
    return {"accuracy": {name: [curve(rows, "greedy", "all") for rows in runs[name]] for name in MODES if name in runs},
            "predictions": {title: [curve(rows, "audit", "accuracy") for rows in runs[name]]
                            for name, title in frozen.items() if name in runs and runs[name][0][-1]["audit"]}}  # fmt: skip


def draw(root: Path, label_ratio: float) -> list[Path]:
    """`curves` as accuracy.png and predictions.png in that folder: means over seeds, the bands are standard errors."""
    import numpy as np

    check(importlib.util.find_spec("matplotlib"), "plot: matplotlib is not installed; pip install matplotlib")
    from matplotlib.figure import Figure

    titles, written = {"accuracy": "greedy test accuracy", "predictions": "predicted rewards that are right"}, []
    for figure_name, lines in curves(root, label_ratio).items():
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.subplots()
        for name, seeds in lines.items():
            steps, values = seeds[0][0], np.array([values for _, values in seeds])  # (seeds, points)
            middle, error = values.mean(0), values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0
            axes.plot(steps, middle, label=f"{name} ({len(values)} seeds)")
            axes.fill_between(steps, middle - error, middle + error, alpha=0.2)
        axes.set(xlabel="training step", ylabel=titles[figure_name])
        axes.grid(alpha=0.3)
        axes.legend()
        written.append(root / f"{figure_name}.png")
        figure.savefig(written[-1], dpi=110)
    return written


def mean_error(values: list[float], digits: int = 1) -> str:
    """Mean and standard error of the mean.

    >>> mean_error([1.0, 2.0, 3.0]), mean_error([1.0])
    ('2.0 +- 0.6', '1.0')
    """
    middle = f"{mean(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} +- {stdev(values) / sqrt(len(values)):.{digits}f}"

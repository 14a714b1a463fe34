"""What the policy writes: rollouts.jsonl, whole groups of a few tasks, the same ones every time."""

import json
import random
from collections.abc import Callable

from lab.log import Audit, Stopwatch
from lab.processes import tell

TASKS = 2  # labelled and unlabelled ones


class Samples:
    """Samples, rewards and logs groups of a few training tasks, with the same noise every time, so that one
    sees the policy change. Nothing else hears of it. `audit` tells what is truly right;
    `roll_out` is train.py's."""

    def __init__(self, run, tasks: list, audit: Audit, roll_out: Callable):
        self.run, self.audit, self.roll_out = run, audit, roll_out
        draw = random.Random(f"samples {run.config.seed}")
        parts = [[task for task in tasks if task.labelled == kind] for kind in (True, False)]
        self.tasks = [task for part in parts for task in draw.sample(part, min(TASKS, len(part)))]

    def write(self, step: int, show: int = 0) -> None:
        """Append a line for each task to rollouts.jsonl, and print the first `show` of them."""
        if not self.run.accelerator.is_main_process:
            return
        rows = self.rows(step)
        with open(self.run.folder / "rollouts.jsonl", "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        unlabelled_first = sorted(rows, key=lambda row: row["labelled"])
        for row in unlabelled_first[:show]:
            tell("\n".join(table(row)))

    def rows(self, step: int) -> list[dict]:
        """The groups as plain data."""
        import torch

        from grpo import expected_advantages, group_advantages
        from memreward import acquire_rewards, predict_rewards

        config, tasks, size = self.run.config, self.tasks, self.run.config.group_size
        with torch.no_grad():
            visits = [f"{task.id} sample" for task in tasks]
            experience = self.roll_out(self.run, tasks, visits, 0, Stopwatch())
        texts, keys, memory = experience.rollouts.texts, experience.keys, self.run.memory
        rewards, source = acquire_rewards(tasks, texts, memory, experience.groups, keys, config.threshold,
                                          config.reward == "soft", config.abstain)
        advantages_of = expected_advantages if config.reward == "soft" else group_advantages
        advantages = advantages_of(rewards, config.advantage_norm)
        if config.mask_truncated:
            advantages = advantages * ~experience.rollouts.truncated.view_as(advantages).to(advantages.device)
        believed = memory is not None or config.mode == "majority"
        if believed:
            probabilities = predict_rewards(memory, experience.groups, keys, [task.id for task in tasks])
        lengths = experience.rollouts.mask.sum(1).tolist()
        rows = []
        for b, task in enumerate(tasks):
            truth = self.audit.verify([task] * size, texts[b * size : (b + 1) * size])
            rollouts = [
                {"response": texts[b * size + g], "answer": keys[b][g], "reward": rewards[b, g].item(),
                 "probability": round(probabilities[b, g].item(), 4) if believed else None, "truth": truth[g],
                 "advantage": round(advantages[b, g].item(), 4), "length": int(lengths[b * size + g]),
                 "truncated": bool(experience.rollouts.truncated[b * size + g])} for g in range(size)]
            rows.append({"step": step, "id": task.id, "dataset": task.dataset, "domain": task.domain,
                         "question": task.question, "choices": task.choices, "labelled": task.labelled,
                         "source": source[b], "prompt": self.run.render(task), "rollouts": rollouts})
        return rows


def table(row: dict) -> list[str]:
    """A line of rollouts.jsonl for the terminal; equal responses are one line.

    >>> one = {"response": "6 + 1\\n#### 7", "reward": 1.0, "probability": 0.9, "truth": 0.0,
    ...        "advantage": 0.5, "truncated": False}
    >>> row = {"step": 4, "id": "q", "source": "memory", "question": "6 * 7?", "rollouts": [one, one]}
    >>> print(*table(row), sep="\\n")
    step 4: rewards by memory for 6 * 7?
      2 x  reward 1.00  believed 0.90  truly 0  advantage +0.50  6 + 1 #### 7
    """
    lines = [f"step {row['step']}: rewards by {row['source']} for {shorten(row['question'], 70)}"]
    seen: dict[str, list[dict]] = {}
    for rollout in row["rollouts"]:
        seen.setdefault(rollout["response"], []).append(rollout)
    for response, equal in seen.items():
        one = equal[0]
        believed = "" if one["probability"] is None else f"  believed {one['probability']:.2f}"
        true = "" if one["truth"] is None else f"  truly {one['truth']:.0f}"
        cut = " [cut off]" if one["truncated"] else ""
        lines.append(f"{len(equal):>3} x  reward {one['reward']:.2f}{believed}{true}  advantage "
                     f"{one['advantage']:+.2f}  {shorten(response, 60, end=True)}{cut}")
    return lines


def shorten(text: str, width: int, end: bool = False) -> str:
    """A text in one line of at most so many characters: its beginning, or its end.

    >>> shorten("one two\\nthree", 9), shorten("one two\\nthree", 9, end=True)
    ('one tw...', '... three')
    """
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    return "..." + text[3 - width :] if end else text[: width - 3] + "..."

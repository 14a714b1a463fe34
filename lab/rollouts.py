"""Rollouts that others wrote: read from a file with their rewards, tokenized like sampled ones."""

from pathlib import Path


def read_rollouts(path: Path) -> tuple[list, list[str], list[float]]:
    """B tasks, and B*G responses and rewards, of a JSONL file whose lines also hold `rollouts`.

    Beside a task's fields a line has `"rollouts": [{"response": text, "reward": 0 or 1}, ...]`.
    """
    from data import read_jsonl
    from support.jsonl import json_lines

    tasks = read_jsonl(path)
    groups = [row.get("rollouts") for _, row in json_lines(path)]
    try:
        pairs = [(one["response"], float(one["reward"])) for group in groups for one in group]
        if wrong := [text for text, _ in pairs if not isinstance(text, str)]:
            raise TypeError(f"the response {wrong[0]!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'rollouts: {path}: every line needs "rollouts": [{{"response": text, "reward": 0 '
                         f"or 1}}, ...], one has {error!r}") from None
    if not pairs or len({len(group) for group in groups}) > 1 or {reward for _, reward in pairs} - {0.0, 1.0}:
        raise ValueError(f"rollouts: {path}: wanted equally many rollouts in every line, rewards of 0 or 1")
    return tasks, *map(list, zip(*pairs, strict=True))


def tokenize_rollouts(tokenizer, prompts: list[str], texts: list[str]):
    """What others wrote as grpo.Rollouts: B prompts and B*G responses, each closed by EOS; without
    log-probabilities."""

    import torch

    from grpo import Rollouts

    def encode(texts: list[str]) -> list[list[int]]:
        return [tokenizer(text, add_special_tokens=False).input_ids for text in texts]

    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    asked = [ids for ids in encode(prompts) for _ in range(len(texts) // len(prompts))]
    written = [ids + eos for ids in encode(texts)]
    left, right = max(map(len, asked)), max(map(len, written))
    pairs = list(zip(asked, written, strict=True))
    ids = [[0] * (left - len(p)) + p + r + [0] * (right - len(r)) for p, r in pairs]
    seen = [[0] * (left - len(p)) + [1] * len(p + r) + [0] * (right - len(r)) for p, r in pairs]
    mask = torch.tensor(seen)[:, left:].float()
    whole = torch.zeros(len(texts), dtype=torch.bool)
    return Rollouts(torch.tensor(ids), torch.tensor(seen), mask, torch.zeros_like(mask), texts, whole)

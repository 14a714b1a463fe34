"""Whether a policy agrees with itself: rollouts sampled and scored in every way, against the plain model.

Rollouts of two prompts of unequal length, one longer than any window of its attention, are sampled and then
scored in one row, in rows of their own and in training mode: their log-probabilities must be the plain
model's. A model that draws at random in training mode is refused, too.

The plain model reads one row at a time, without padding, cache, positions or mask. Where sampling or scoring
says anything else beyond rounding, training would go on and learn from wrong numbers.
"""

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor

from support.traits import position_limit, some_tokens, tolerance, windows

GROUP, LENGTH = 3, 8  # rollouts of each of two prompts, and their tokens


class Ids:
    """A tokenizer as far as `sample` needs one: a prompt is the number of a row of ids."""

    def __init__(self, rows: list[list[int]], tokenizer):
        self.rows, self.eos_token_id, self.pad_token_id = rows, tokenizer.eos_token_id, tokenizer.pad_token_id

    def __call__(self, text: str, add_special_tokens: bool = False) -> "Ids":
        self.input_ids = self.rows[int(text)]
        return self

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """No text: nobody reads it."""
        return ""


def check(model, tokenizer, sample: Callable, forward_responses: Callable, longest: int | None) -> None:
    """See `check_policy` in grpo.py, whose functions it is given."""
    name = f"model: {getattr(model.config, '_name_or_path', '') or type(model).__name__}"
    training = model.training
    try:
        with errors_in_one_line(name):
            rollouts = some_rollouts(model, tokenizer, sample, longest)
            plain = plain_logprobs(model, rollouts)
            compare(name, model, "its samples", rollouts.logprobs, plain)
            given = rollouts.ids, rollouts.attention_mask, LENGTH
            for mode, share in ((False, True), (False, False), (True, True), (True, False)):
                model.train(mode)
                with torch.no_grad():
                    scores = forward_responses(model, *given, share_prompts=share)
                how = ("in rows of their own", "in one row")[share] + (" in training mode" if mode else "")
                compare(name, model, f"its tokens scored {how}", scores.logprobs, plain)
            noise = gradient_noise(model, lambda: forward_responses(model, *given).logprobs)
    finally:
        model.train(training)
    if noise > 1e-3:
        raise ValueError(f"{name} draws at random in training mode (dropout or a router's noise): gradients "
                         f"differ by {noise:.2g} of their norm; choose a model that does not")


@contextmanager
def errors_in_one_line(name: str):
    """Whatever goes wrong inside is a ValueError that names the model."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("model: "):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{name} cannot be sampled and scored ({reason}); choose another model") from error


def some_rollouts(model, tokenizer, sample: Callable, longest: int | None):
    """Rollouts of two prompts, one longer than any window (at most `longest` tokens); a row ends early, two
    of a prompt begin alike."""
    most = min(position_limit(model), longest or float("inf")) - LENGTH
    short = int(min(5, most))
    long = int(max(short, min(most, max(32, windows(model.config) + 2))))
    ids = some_tokens(model, 2, long, seed=1).tolist()
    noise = torch.rand(2 * GROUP, LENGTH, generator=torch.Generator().manual_seed(2))
    noise[1::GROUP, : LENGTH // 2] = noise[::GROUP, : LENGTH // 2]  # these two part in the middle
    words = Ids([ids[0], ids[1][:short]], tokenizer)
    first = sample(model, words, ["1"], GROUP, LENGTH, 1.0, noise[GROUP:])
    words.eos_token_id = int(first.ids[0, short + int(first.mask[0].sum()) // 2])
    return sample(model, words, ["0", "1"], GROUP, LENGTH, 1.0, noise)


@torch.no_grad()
def plain_logprobs(model, rollouts) -> Tensor:
    """(N, T), one row after the other."""
    table = torch.zeros_like(rollouts.mask)
    for row, seen in enumerate(rollouts.attention_mask.bool()):
        ids, count = rollouts.ids[row, seen], int(rollouts.mask[row].sum())
        logits = model(input_ids=ids[None], use_cache=False).logits[0, -count - 1 : -1].float()
        table[row, :count] = logits.log_softmax(-1).gather(1, ids[-count:, None])[:, 0]
    return table


def compare(name: str, model, what: str, mine: Tensor, plain: Tensor) -> None:
    """Raise ValueError where log-probabilities are further apart than rounding can bring them."""
    far = float((mine - plain).abs().max())
    if not far <= tolerance(model):
        raise ValueError(f"{name} disagrees with itself: {what} have log-probabilities up to {far:.2g} nats "
                         "from the plain model's, so training would learn from wrong numbers; choose another "
                         "model or another --attention")


def gradient_noise(model, score: Callable[[], Tensor]) -> float:
    """How far gradients of the same score() in training mode lie apart, relative to their norm. It takes one
    pass, and is 0, where none of the model's parts draws random numbers."""
    gpu = [model.device] if model.device.type == "cuda" else []

    def states() -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in gpu)]

    def gradient() -> Tensor:
        return torch.autograd.grad(score().sum(), model.get_input_embeddings().weight)[0].float()

    with torch.random.fork_rng(devices=gpu):
        before = states()
        with torch.no_grad():
            score()
        if all(map(torch.equal, before, states())):
            return 0.0
        first, *others = (gradient() for _ in range(4))
        return max(float((other - first).norm() / first.norm()) for other in others)

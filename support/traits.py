"""What one may do with a causal LM of transformers, asked of the model itself instead of a list of names.

    takes_padding(model)    may prompts of different lengths be decoded together, padded on the left?
    after_head(model)       what does it do to logits behind the output head (scaling, soft-capping)?
    position_limit(model)   how many tokens may a row have?
    last_logits(model)      can it be asked for the logits of the last token alone?
    windows(config)         how far do its sliding windows and chunks reach?
    without_noise(config)   the configuration without dropout and without noise in routers

An answer costs a pass or two over a few tokens and is kept as long as the model.
"""

import functools
import re
from collections.abc import Callable
from contextlib import contextmanager
from inspect import signature
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from transformers import Cache, PreTrainedConfig, PreTrainedModel


def unwrapped(model):
    """The model without what accelerate puts around it. (accelerate's function walks through all modules, and
    this is asked several times a pass.)"""
    return model if isinstance(model, PreTrainedModel) else extract_model_from_parallel(model)


def asked_once(question: Callable) -> Callable:
    """Keep the answers of question(model), which is asked in eval mode and without gradients."""
    answers = WeakKeyDictionary()

    @functools.wraps(question)
    def ask(model):
        bare = unwrapped(model)
        if bare not in answers:
            with eval_mode(bare), torch.no_grad():
                answers[bare] = question(model)
        return answers[bare]

    return ask


@contextmanager
def eval_mode(model):
    """Evaluation mode inside the block, and whatever mode it was afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def text_config(model) -> PreTrainedConfig:
    """The configuration of the part that reads text: of a model that also sees or hears it is a part of the
    whole."""
    return unwrapped(model).config.get_text_config(decoder=True)


def some_tokens(model, rows: int = 1, length: int | None = None, seed: int = 0) -> Tensor:
    """Arbitrary ids (rows, length), by default a few. That of padding, which some models skip when they count
    positions, is not among them."""
    config, length = text_config(model), length or int(min(24, position_limit(model) // 2))
    ids = torch.randint(config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))
    pad = getattr(config, "pad_token_id", None)
    ids = ids if pad is None else ids.where(ids != pad, (pad + 1) % config.vocab_size)
    return ids.to(unwrapped(model).device)


@asked_once
def tolerance(model) -> float:
    """Nats by which rounding may move the model's log-probabilities: thousands of roundings of float32, a few
    of 16 bits, which weights may have or (autocast) the logits alone."""
    bare = unwrapped(model)
    seen, head = [bare.dtype], bare.get_output_embeddings()
    if head is not None:
        hook = head.register_forward_hook(lambda module, given, logits: seen.append(logits.dtype))
        model(input_ids=some_tokens(model), use_cache=False)
        hook.remove()
    return 1e-3 if all(torch.finfo(dtype).bits >= 32 for dtype in seen) else 0.5


def agree(model, mine: Tensor, theirs: Tensor) -> bool:
    """Whether two kinds of log-probabilities of the model differ by no more than rounding."""
    return bool((mine - theirs).abs().amax() <= tolerance(model))


def position_limit(model) -> float:
    """How many tokens a row may have, infinity where nothing limits it. Tables of positions that keep a place
    for padding (roberta's) begin behind it."""
    bare = unwrapped(model)
    limit = getattr(text_config(model), "max_position_embeddings", None) or -1
    tables = (m for name, m in bare.named_modules() if name.endswith("position_embeddings"))
    places = [table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None]
    return limit - (max(places, default=-1) + 1) if limit > 0 else float("inf")


def eos_ids(model, tokenizer) -> list[int]:
    """Every token that ends a response: the tokenizer's EOS and those of the model's generation config (chat
    models often have several)."""
    config = getattr(model, "generation_config", None)
    ids = getattr(config, "eos_token_id", None)
    ids = set(ids if isinstance(ids, list) else [ids]) | {tokenizer.eos_token_id}
    if ids == {None}:
        raise ValueError("model: neither tokenizer nor generation config names an EOS token")
    return sorted(ids - {None})


def read_prompts(model, tokenizer, prompts: list[str], room: int, pad: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (B, P) of the prompts, padded on the left. Raises ValueError where
    one is empty, or leaves no room for that many new tokens."""
    prompt_ids = [tokenizer(prompt, add_special_tokens=False).input_ids for prompt in prompts]
    lengths = [len(ids) for ids in prompt_ids]
    limit = position_limit(model)
    if min(lengths) == 0:
        raise ValueError(f"prompts: number {lengths.index(0)} is empty, at least one token is needed")
    if max(lengths) + room > limit:
        raise ValueError(f"max_new_tokens: the longest prompt ({max(lengths)} tokens) plus {room} "
                         f"new tokens exceed the model's {limit} positions")
    ids = torch.tensor([[pad] * (max(lengths) - len(row)) + row for row in prompt_ids], device=model.device)
    return ids, torch.tensor([[0] * (max(lengths) - n) + [1] * n for n in lengths], device=model.device)


def windows(config: PreTrainedConfig) -> int:
    """The longest of the windows and chunks that the model's layers are limited to, 0 where there are
    none."""
    found = [value for key, value in vars(config.get_text_config(decoder=True)).items()
             if ("window" in key or "chunk" in key) and type(value) is int]
    return max(found, default=0)


def without_noise(config: PreTrainedConfig) -> PreTrainedConfig:
    """Set every dropout and every router's jitter of the configuration to 0, in its parts, too, and return
    it: with them, the policy that is trained is not the policy that sampled."""

    def still(settings: dict) -> dict:
        for key, value in settings.items():
            if isinstance(value, PreTrainedConfig):
                still(vars(value))
            elif isinstance(value, dict):
                still(value)
            elif isinstance(value, float) and re.search("drop|jitter", str(key)):
                settings[key] = 0.0
        return settings

    still(vars(config))
    return config


# ---------------------------------------------------------------------------------------- padding on the left


def positions(attention_mask: Tensor) -> Tensor:
    """Position ids that count tokens from 0, whatever the padding.

    >>> positions(torch.tensor([[0, 0, 1, 1, 1, 0]]))
    tensor([[0, 0, 0, 1, 2, 2]])
    """
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def reading(attention_mask: Tensor | None, last: int = 0) -> dict[str, Tensor]:
    """What a model is told beside its tokens: nothing where rows have no padding (mask None), else the mask
    and the positions, those of the `last` columns (0: of all)."""
    if attention_mask is None:
        return {}
    return {"attention_mask": attention_mask, "position_ids": positions(attention_mask)[:, -last:]}


def last_logits(model) -> dict[str, int]:
    """Asks for the logits of the last token alone, where a model can be asked: those of all tokens of many
    prompts may take more memory than the model."""
    return {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}


def kept_cache(model, output):
    """The cache of what the model has read, out of its output."""
    cache = getattr(output, "cache", None)
    if not hasattr(cache, "reorder_cache"):
        raise ValueError(f"model: {type(model).__name__} keeps no cache of what it has read, or one whose "
                         "rows cannot be chosen, and is not sampled without; choose another model")
    return cache


def choose_rows(cache, rows: Tensor) -> None:
    """Keep these rows of a model's cache, some of them several times, in place."""
    if type(cache).batch_select_indices is Cache.batch_select_indices:
        cache.reorder_cache(rows)  # unlike the other it knows every kind of layer
    else:
        cache.batch_select_indices(rows)  # a cache of the model's own


@asked_once
def takes_padding(model) -> bool:
    """Whether a row says the same with padding on its left, an attention mask and position ids, read and
    decoded with a cache. It does not where positions are counted otherwise, or padding runs into a state."""
    ids = some_tokens(model, rows=2)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    try:
        first = model(input_ids=ids[:, :-1], use_cache=True, **reading(mask[:, :-1]))
        second = model(input_ids=ids[:, -1:], cache=first.cache, use_cache=True, **reading(mask, 1))
        padded = torch.stack([first.logits[:, -1], second.logits[:, -1]], 1)  # (2, 2, V)
        plain = [model(input_ids=row[None, seen.bool()], use_cache=False).logits[0, -2:]
                 for row, seen in zip(ids, mask, strict=True)]
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):  # then without
        return False
    return agree(model, *(x.float().log_softmax(-1) for x in (padded, torch.stack(plain))))


# ------------------------------------------------------------------------------------- behind the output head


class AfterHead(NamedTuple):
    """What becomes of a logit x behind the output head: scale * x, or cap * tanh(scale * x / cap)."""

    scale: float
    cap: float | None

    def __call__(self, logits: Tensor) -> Tensor:
        logits = logits * self.scale if self.scale != 1 else logits
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


@contextmanager
def replaced_forward(module, forward: Callable):
    """The module calls `forward` instead of its own, until the block ends."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


@asked_once
def after_head(model) -> AfterHead:
    """Measured: the head is made to give known numbers. Raises ValueError where it has no head or does other
    things to them."""
    bare = unwrapped(model)
    head, given = bare.get_output_embeddings(), {}
    if head is None:
        raise ValueError(f"model: {type(bare).__name__} names no output head, which log-probabilities need")

    def forward(states: Tensor) -> Tensor:
        given["x"] = x = torch.linspace(-40, 40, len(head.weight), device=states.device)
        x[0], x[1] = 2**-10, 2**12  # where a soft cap is a line, and where it is flat
        return x.expand(*states.shape[:-1], -1).clone()

    with replaced_forward(head, forward):
        seen = model(input_ids=some_tokens(model), use_cache=False).logits
    x = given.get("x", seen.new_empty(0))
    if seen.shape[-1:] == x.shape:
        y = seen.flatten(0, -2)[-1].float()
        scale, limit = float(y[0] / x[0]), float(y[1])
        found = AfterHead(scale, None if abs(limit / float(x[1]) - scale) < 1e-3 * abs(scale) else limit)
        found = found._replace(scale=1.0) if abs(scale - 1) < 1e-4 else found
        if torch.allclose(found(x), y, rtol=1e-3, atol=1e-4):
            return found
    raise ValueError(f"model: {type(bare).__name__} makes other logits than those of its output head, not "
                     "scaled nor soft-capped; its log-probabilities would be wrong, choose another model")

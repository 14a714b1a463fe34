"""Log-probabilities of many rollouts in one pass that spends nothing on padding and never holds all logits.

    from support.packing import forward_responses
    scores = forward_responses(model, ids, mask, length)    # .logprobs, .entropy, (N, T) each

`model` is any causal LM of transformers, wrapped by accelerate or not. N rollouts of P prompt tokens (padded
on the left) and T response tokens (padded on the right), `ids` and `mask` (N, P+T). Four tricks, none of
which changes a number beyond rounding:

    once          equal rollouts are computed once                        `same_rows`
    one row       rollouts stand in one row of S tokens, a prompt once    `one_row`, `group_attention`
    two numbers   the head gives log-probability and entropy, no logits   `score_tokens`
    short rows    common padding is cut, like lengths go together         `padding`, `in_passes`
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from support.traits import (
    after_head,
    agree,
    asked_once,
    positions,
    replaced_forward,
    some_tokens,
    text_config,
    unwrapped,
)

LOGITS_AT_ONCE = 2**25  # 128 MiB in float32


class Scores(NamedTuple):
    """What one forward pass says about responses. All are 0 where masked; only logprobs carries a
    gradient."""

    logprobs: Tensor  # (N, T)
    entropy: Tensor  # (N, T) of the whole next-token distribution, in nats
    hidden: Tensor | None  # (N, P+T, d) last hidden states


def forward_responses(model, ids: Tensor, mask: Tensor, length: int, temperature: float = 1.0,
                      hidden: bool = False, batch_size: int | None = None,
                      share_prompts: bool = True) -> Scores:
    """Log-probabilities and entropies of the last `length` columns of `ids` (N, P+T), attention mask `mask`
    (N, P+T).

    Rows that are the same are computed once, and a prompt that rows have in common, too, where the model
    allows it (see `can_share`); share_prompts=False computes everything for every row: slower, the same
    numbers.
    batch_size: different rows of one pass (None: all), see `in_passes`.
    hidden: give the last hidden states, too. Raises ValueError for a model that this cannot be right for.
    """
    parts = [] if batch_size is None else in_passes(ids, mask, length, batch_size, share_prompts)
    if len(parts) > 1:
        scores = [forward_responses(model, ids[rows], mask[rows], length, temperature, hidden, None,
                                    share_prompts) for rows in parts]
        order = torch.cat(parts).argsort()
        return Scores(*(None if values[0] is None else torch.cat(values)[order]
                        for values in zip(*scores, strict=True)))
    same, first = same_rows(ids, mask)
    if share_prompts and len(first) < len(ids):
        once = forward_responses(model, ids[first], mask[first], length, temperature, hidden, None,
                                 share_prompts)
        return Scores(*(None if value is None else value[same] for value in once))
    left, right = padding(mask, length)  # of all rows: cut off here, and put back at the end
    width = ids.shape[1] - right
    ids, mask, length = ids[:, left:width], mask[:, left:width], length - right
    arrange = one_row if share_prompts and can_share(model) else padded_rows
    scores, states, place = score_rows(model, ids, mask, length, temperature, arrange)
    response = mask[:, -length:].bool()
    empty = torch.zeros_like(response, dtype=scores.dtype)
    logprobs, entropy = (F.pad(empty.masked_scatter(response, x), (0, right))
                         for x in (scores[:, 0], scores[:, 1].detach()))  # (N, T)
    if not hidden:
        return Scores(logprobs, entropy, None)
    states = states[place].where(mask[..., None].bool(), 0.0)  # (N, P+T, d)
    return Scores(logprobs, entropy, F.pad(states, (0, 0, left, right)))


# ---------------------------------------------------------------------------------------- two numbers a token


def score_rows(model, ids: Tensor, mask: Tensor, length: int, temperature: float,
               arrange: Callable) -> tuple[Tensor, Tensor, Tensor]:
    """One forward pass over the rows as `arrange` lays them out: log-probability and entropy (n, 2) of the n
    response tokens, all hidden states (tokens, d), and the place of each token among them (N, P+T).

    The output head gives the two numbers inside the model's own forward, where sharded weights are whole.
    What a model does to logits behind the head (soft-capping, scaling) we do inside it, as it was measured
    (`after_head`). The model then does the same to our two numbers: its output must be what we expect of
    that, or the measurement was wrong, and the numbers from before it are returned.
    """
    inputs, place = arrange(ids, mask, length)
    response = mask[:, -length:].bool()
    before, targets = place[:, -length - 1 : -1][response], ids[:, -length:][response]  # n each
    after, bare, seen = after_head(model), unwrapped(model), {}
    head = bare.get_output_embeddings()
    plain_forward = head.forward

    def logits(states: Tensor) -> Tensor:
        return after(plain_forward(states).float())

    def forward(states: Tensor) -> Tensor:  # (rows, L, d) -> (n, 2)
        states = states.flatten(0, 1)
        seen["states"] = states.detach()
        states = states.index_select(0, before)
        seen["scores"] = score_tokens(logits, len(head.weight), states, targets, temperature)
        return seen["scores"].clone()

    with replaced_forward(head, forward):
        output = model(**inputs, use_cache=False).logits
    scores = seen["scores"]
    if not torch.allclose(output.detach(), after(scores.detach()), rtol=1e-3, atol=1e-4, equal_nan=True):
        raise ValueError(f"model: {type(bare).__name__} changes what its output head gives in its own way; "
                         "log-probabilities would be wrong, choose another model")
    if after == (1.0, None):
        return output, seen["states"], place
    return scores + 0.0 * output, seen["states"], place  # sharded weights wait for a gradient of the output


def score_tokens(logits_of: Callable[[Tensor], Tensor], words: int, states: Tensor, targets: Tensor,
                 temperature: float) -> Tensor:
    """Log-probability of the `targets` (n,) and entropy of the distribution, (n, 2), from the head's input
    (n, d). Chunks form their logits again in the backward pass, so that memory does not grow with n times
    vocabulary."""

    def score(states: Tensor, targets: Tensor) -> Tensor:
        logits = logits_of(states)  # (n, V)
        if temperature != 1:  # spares a copy of the largest tensor of all
            logits = logits / temperature
        all_logprobs = logits.log_softmax(-1)
        with torch.no_grad():
            entropy = -(all_logprobs.exp() * all_logprobs).sum(-1)
        return torch.stack([all_logprobs.gather(-1, targets[:, None]).squeeze(-1), entropy], dim=-1)

    size = max(1, LOGITS_AT_ONCE // words)
    if len(targets) <= size:
        return score(states, targets)
    return torch.cat([checkpoint(score, *chunk, use_reentrant=False, preserve_rng_state=False)
                      for chunk in zip(states.split(size), targets.split(size), strict=True)])


# ------------------------------------------------------------------------------ rows with padding, the others


def padded_rows(ids: Tensor, mask: Tensor, length: int) -> tuple[dict[str, Tensor], Tensor]:
    """The model's inputs, N rows of L tokens that all begin at the first column, and each token's place among
    all of them (N, P+T). Padding is on the right alone, where nothing that predicts a token can see it:
    whatever the model, it needs no mask and no positions.
    """
    start = mask.long().argmax(1, keepdim=True)  # (N, 1)
    width = int((mask.shape[1] - start - mask.flip(1).long().argmax(1, keepdim=True)).max())  # L
    column = torch.arange(mask.shape[1], device=ids.device)
    rows = ids.gather(1, (start + column[:width]).clamp(max=len(column) - 1))  # (N, L)
    first = width * torch.arange(len(ids), device=ids.device)[:, None]
    return {"input_ids": rows}, first + (column - start).clamp(0, width - 1)


def batches_of_prompts(mask: Tensor, size: int, padded: bool) -> list[Tensor]:
    """Row numbers of prompts (B, P), at most `size` at a time, the longest first; without padding only
    prompts of one length go together.

    >>> batches_of_prompts(torch.tensor([[0, 1, 1], [1, 1, 1], [0, 1, 1]]), size=2, padded=False)
    [tensor([1]), tensor([0, 2])]
    """
    order = by_length(mask, torch.arange(len(mask)))
    lengths = torch.zeros(len(mask), dtype=torch.long, device=mask.device) if padded else mask.sum(1)
    groups = order.split(lengths[order].unique_consecutive(return_counts=True)[1].tolist())
    return [batch for group in groups for batch in group.split(size)]


def padding(mask: Tensor, length: int) -> tuple[int, int]:
    """How many columns of `mask` (N, P+T) are padding in all rows: on the left of the prompts, on the right
    of the responses of T = `length` tokens (one stays).

    >>> padding(torch.tensor([[0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0]]), length=3)
    (1, 1)
    >>> padding(torch.tensor([[1, 1, 0, 0]]), length=2)  # nothing but EOS was left out
    (0, 1)
    """
    used = mask.any(0).nonzero().squeeze(1)
    return int(used[0]), min(mask.shape[1] - 1 - int(used[-1]), length - 1)


def in_passes(ids: Tensor, mask: Tensor, length: int, size: int | None, share: bool = True) -> list[Tensor]:
    """Row numbers in parts of at most `size` different rows (None: all in one), the longest first: copies of
    a row stay together, and rows of one prompt and of like length as far as they can. share=False: a copy
    counts as a row of its own.

    >>> ids = torch.tensor([[5, 7], [5, 6], [5, 7], [5, 8]])
    >>> in_passes(ids, torch.ones_like(ids), length=1, size=2)
    [tensor([0, 1, 2]), tensor([3])]
    """
    row = torch.arange(len(ids), device=ids.device)
    same, first = same_rows(ids, mask) if share else (row, row)
    order = by_length(mask[first], same_prompts(ids[first], mask[first], length)[1])
    return [torch.isin(same, kinds).nonzero().squeeze(1) for kinds in order.split(size or len(order))]


def same_rows(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """For each row (N,) which of the n different ones it is, and a row of each kind (n,). A policy repeats
    itself, the more so the surer it is.

    >>> ids = torch.tensor([[5, 7], [5, 6], [5, 8], [5, 0]])
    >>> same_rows(ids, mask=torch.tensor([[1, 0], [1, 1], [1, 0], [1, 1]]))
    (tensor([0, 2, 0, 1]), tensor([2, 3, 1]))
    """
    same = ids.where(mask.bool(), -1).unique(dim=0, return_inverse=True)[1]
    row = torch.arange(len(ids), device=ids.device)
    return same, row.new_zeros(int(same.max()) + 1).scatter(0, same, row)


def same_prompts(ids: Tensor, mask: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The different prompts (b, P), -1 where padding is, and which of them each row has (N,).

    >>> ids = torch.tensor([[5, 6, 1], [0, 5, 2], [5, 6, 3]])
    >>> same_prompts(ids, mask=torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 1]]), length=1)
    (tensor([[-1,  5],
            [ 5,  6]]), tensor([1, 0, 1]))
    """
    return ids.where(mask.bool(), -1)[:, :-length].unique(dim=0, return_inverse=True)


def by_length(mask: Tensor, groups: Tensor) -> Tensor:
    """Row indices, the longest first, rows of a group together (by the mean of their lengths).

    >>> by_length(torch.tensor([[0, 1, 1], [0, 1, 1], [1, 1, 1], [0, 1, 1]]), torch.tensor([0, 1, 0, 2]))
    tensor([0, 2, 1, 3])
    """
    groups = groups.to(mask.device)
    sums = torch.zeros(len(mask), device=mask.device).index_add(0, groups, mask.sum(1).float())
    means = sums / groups.bincount(minlength=len(mask)).clamp(min=1)
    return means[groups].argsort(descending=True, stable=True)


# ------------------------------------------------------------------------------------ all rollouts in one row


def can_share(model) -> bool:
    """Whether all rollouts may stand in one row: attention must be the function we name, and nothing else may
    carry over from token to token (no state, no sliding window, no distance but that of position ids)."""
    bare, config = unwrapped(model), text_config(model)
    windows = set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}
    return (bare._supports_attention_backend and not bare._is_stateful and not windows
            and getattr(config, "sliding_window", None) is None
            and bare.config._attn_implementation in ("sdpa", "grouped") and hears_layout(model))


@asked_once
def hears_layout(model) -> bool:
    """Whether rollouts in one row score as they do in rows of their own. If so, "grouped" is the model's
    attention from now on: gradient checkpointing calls it again in the backward pass."""
    bare = unwrapped(model)
    ids = some_tokens(model, rows=2).repeat_interleave(2, 0)  # (4, P+T), two rows a prompt
    length, mask = ids.shape[1] // 2, torch.ones_like(ids)
    ids[1::2, -length:] = ids[1::2, -length:].flip(1)
    mask[2:, :3] = mask[1, -3:] = 0
    bare.set_attn_implementation("grouped")
    try:
        layout = one_row(ids, mask, length)
        shared = score_rows(model, ids, mask, length, 1.0, lambda *_: layout)[0]
        alone = score_rows(model, ids, mask, length, 1.0, padded_rows)[0]
        if layout[0]["layout"].heard and agree(model, shared, alone):
            return True
    except (RuntimeError, TypeError, IndexError):  # code of its own tried the layout's mask on one row
        pass
    bare.set_attn_implementation("sdpa")
    return False


@dataclass
class Layout:
    """Where `group_attention` finds whose tokens in the one row of S that the model reads."""

    prompts: Tensor  # (b, P) place of every prompt token
    rollouts: Tensor  # (N, P+T) place of every rollout's tokens, those of its prompt and its own
    prompt_mask: Tensor  # (b, 1, P, P) which prompt tokens a prompt token attends to
    order: Tensor  # (S,) place of every token of the row among the b*P + N*T
    heard: bool = False  # whether any attention layer has used it


def one_row(ids: Tensor, mask: Tensor, length: int) -> tuple[dict, Tensor]:
    """The model's inputs, one row of S tokens without any padding: b different prompts once each, then all
    responses; and each token's place in it (N, P+T).

    All that a model does token by token (matrix products, norms) does not care who stands beside whom.
    Attention does, and must be `group_attention`.
    """
    prompts, groups = same_prompts(ids, mask, length)  # (b, P), (N,)
    asked, answered = prompts >= 0, mask[:, -length:].bool()  # (b, P), (N, T)
    real = torch.cat([asked.flatten(), answered.flatten()])  # (b*P + N*T,)
    place = (real.cumsum(0) - 1).clamp(min=0)  # padding gets any, what it holds is never read
    of_prompts, of_responses = place[: asked.numel()].view_as(asked), place[asked.numel() :].view_as(answered)
    rollouts = torch.cat([of_prompts[groups], of_responses], dim=1)  # (N, P+T)

    def causal(keys: Tensor, queries: int) -> Tensor:  # (n, L) -> (n, 1, queries, L): before, and itself
        column = torch.arange(keys.shape[1], device=keys.device)
        row = column[-queries:, None]
        return ((column < row) & keys[:, None] | (column == row))[:, None]

    tokens = torch.cat([prompts.flatten(), ids[:, -length:].flatten()])[real]
    position = torch.cat([positions(asked).flatten(), positions(mask)[:, -length:].flatten()])[real]
    layout = Layout(of_prompts, rollouts, causal(asked, asked.shape[1]), real.nonzero().squeeze(1))
    return {"input_ids": tokens[None], "position_ids": position[None], "layout": layout,
            "attention_mask": causal(mask.bool(), length)}, rollouts


def group_attention(module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                    layout: Layout | None = None, **settings) -> tuple[Tensor, None]:
    """Attention for `one_row`: query, key, value (1, heads, S, width) -> (1, S, heads, width). A prompt
    attends to itself, a response to its prompt and to itself, as `attention_mask` (N, 1, T, P+T) says.
    Without a layout it is transformers' "sdpa"."""
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if layout is None:
        return sdpa(module, query, key, value, attention_mask, **settings)
    length = attention_mask.shape[2]
    layout.heard = True

    def take(x: Tensor, place: Tensor) -> Tensor:  # (1, heads, S, width), (n, L) -> (n, heads, L, width)
        return x[0].transpose(0, 1).index_select(0, place.flatten()).unflatten(0, place.shape).transpose(1, 2)

    asked = [take(x, layout.prompts) for x in (query, key, value)]
    answered = [take(query, layout.rollouts[:, -length:]), *(take(x, layout.rollouts) for x in (key, value))]
    outputs = [sdpa(module, *states, mask, **settings)[0].flatten(0, 1)
               for states, mask in ((asked, layout.prompt_mask), (answered, attention_mask))]
    return torch.cat(outputs).index_select(0, layout.order)[None], None


AttentionInterface.register("grouped", group_attention)
AttentionMaskInterface.register("grouped", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])

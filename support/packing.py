"""Log-probabilities of many rollouts in one pass that spends nothing on padding and never holds all logits.

    from support.packing import forward_responses
    scores = forward_responses(model, ids, mask, length)    # .logprobs, .entropy, (N, T) each

`model` is any causal LM of transformers, wrapped by accelerate or not. N rollouts of P prompt tokens (padded
on the left) and T response tokens (padded on the right), `ids` and `mask` (N, P+T). Three tricks, none of
which changes a number beyond rounding:

    one row       rollouts stand in one row of S tokens, a prompt once    `one_row`, `group_attention`
    two numbers   the head gives log-probability and entropy, no logits   `score_tokens`
    short rows    common padding is cut, like lengths go together         `padding`, `by_length`
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

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

    A prompt that rows have in common is computed once where the model allows it (see `can_share`);
    share_prompts=False computes it for every row: slower, the same numbers.
    batch_size: rows of one pass, rows of one prompt and of like length together (None: all).
    hidden: give the last hidden states, too. Raises ValueError for a model that this cannot be right for.
    """
    if batch_size is not None and batch_size < len(ids):
        order = by_length(mask, same_prompts(ids, mask, length)[1])
        parts = [forward_responses(model, ids[rows], mask[rows], length, temperature, hidden, None,
                                   share_prompts) for rows in order.split(batch_size)]
        return Scores(*(None if values[0] is None else torch.cat(values)[order.argsort()]
                        for values in zip(*parts, strict=True)))
    left, right = padding(mask, length)  # of all rows: cut off here, and put back at the end
    width = ids.shape[1] - right
    ids, mask, length = ids[:, left:width], mask[:, left:width], length - right
    bare = extract_model_from_parallel(model)
    share = share_prompts and can_share(bare)
    if share:  # for good: gradient checkpointing calls the attention again in the backward pass
        bare.set_attn_implementation("grouped")
    inputs, place = one_row(ids, mask, length) if share else padded_rows(ids, mask)
    response = mask[:, -length:].bool()
    before = place[:, -length - 1 : -1][response]  # a token is predicted by the one before it
    scores, states = score_in_place(model, bare, inputs, before, ids[:, -length:][response], temperature)
    empty = torch.zeros_like(response, dtype=scores.dtype)
    logprobs, entropy = (F.pad(empty.masked_scatter(response, x), (0, right))
                         for x in (scores[:, 0], scores[:, 1].detach()))  # (N, T)
    if not hidden:
        return Scores(logprobs, entropy, None)
    states = states[place].where(mask[..., None].bool(), 0.0)  # (N, P+T, d)
    return Scores(logprobs, entropy, F.pad(states, (0, 0, left, right)))


# ---------------------------------------------------------------------------------------- two numbers a token


def score_in_place(model, bare, inputs: dict, places: Tensor, targets: Tensor,
                   temperature: float) -> tuple[Tensor, Tensor]:
    """One forward pass of `model` (`bare` inside it) whose output head gives, for the hidden states at
    `places` (n,), log-probability of the `targets` (n,) and entropy, (n, 2), and all hidden states (tokens,
    d).

    This happens inside the model's own forward, where sharded weights are whole. A model that does something
    to logits after the head (soft-capping, scaling) does it to these, which is noticed and raises ValueError.
    """
    head, seen, layout = bare.get_output_embeddings(), {}, inputs.get("layout")
    plain_forward = head.forward
    deaf = (f"attention: {type(bare).__name__} has an attention of its own, which cannot tell rollouts in "
            'one row apart; name another than "sdpa", such as "eager"')

    def forward(states: Tensor) -> Tensor:  # (rows, L, d) -> (n, 2)
        states = states.flatten(0, 1)
        before = states.index_select(0, places)
        scores = score_tokens(plain_forward, head.weight, before, targets, temperature)
        seen.update(states=states.detach(), scores=scores.detach().clone())
        return scores

    try:
        with replaced_forward(head, forward):
            scores = model(**inputs, use_cache=False).logits
    except (RuntimeError, TypeError, IndexError) as error:  # it tried the layout's mask on one row
        if layout is not None and not layout.heard:
            raise ValueError(deaf) from error
        raise
    if layout is not None and not layout.heard:
        raise ValueError(deaf)
    if not torch.equal(scores, seen["scores"]):
        raise ValueError(f"model: {type(bare).__name__} changes its logits after the output head (soft-"
                         "capping or scaling), which log-probabilities would miss; choose one that does not")
    return scores, seen["states"]


@contextmanager
def replaced_forward(module, forward: Callable):
    """The module calls `forward` instead of its own, until the block ends."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def score_tokens(head: Callable[[Tensor], Tensor], weight: Tensor, states: Tensor, targets: Tensor,
                 temperature: float) -> Tensor:
    """Log-probability of the `targets` (n,) and entropy of the distribution, (n, 2), from the head's input
    (n, d). Chunks form their logits again in the backward pass, so that memory does not grow with n times
    vocabulary."""

    def score(states: Tensor, targets: Tensor) -> Tensor:
        logits = head(states).float()  # (n, V)
        if temperature != 1:  # spares a copy of the largest tensor of all
            logits = logits / temperature
        all_logprobs = logits.log_softmax(-1)
        with torch.no_grad():
            entropy = -(all_logprobs.exp() * all_logprobs).sum(-1)
        return torch.stack([all_logprobs.gather(-1, targets[:, None]).squeeze(-1), entropy], dim=-1)

    size = max(1, LOGITS_AT_ONCE // len(weight))
    if len(targets) <= size:
        return score(states, targets)
    return torch.cat([checkpoint(score, *chunk, use_reentrant=False, preserve_rng_state=False)
                      for chunk in zip(states.split(size), targets.split(size), strict=True)])


# ------------------------------------------------------------------------------ rows with padding, the others


def positions(attention_mask: Tensor) -> Tensor:
    """Position ids that count tokens from 0, whatever the padding.

    >>> positions(torch.tensor([[0, 0, 1, 1, 1, 0]]))
    tensor([[0, 0, 0, 1, 2, 2]])
    """
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def padded_rows(ids: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The model's inputs as they are, N rows of P+T tokens, and each token's place among all of them (N,
    P+T)."""
    place = torch.arange(ids.numel(), device=ids.device).view_as(ids)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)}, place


def padding(mask: Tensor, length: int) -> tuple[int, int]:
    """How many columns of `mask` (N, P+T) are padding in all rows: on the left of the prompts, on the right
    of the responses of T = `length` tokens (one stays).

    >>> padding(torch.tensor([[0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0]]), length=3)
    (1, 1)
    """
    used = mask.any(0).nonzero().squeeze(1)
    return int(used[0]), min(mask.shape[1] - 1 - int(used[-1]), length - 1)


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
    config = model.config
    windows = set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}
    return (model._supports_attention_backend and not model._is_stateful and not windows
            and getattr(config, "sliding_window", None) is None
            and config._attn_implementation in ("sdpa", "grouped"))


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

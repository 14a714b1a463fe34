"""GRPO from scratch: sample groups of rollouts, score their tokens, turn rewards into advantages, update the policy.

Rewards come in as plain numbers; whether a verifier or the memory gave them makes no difference here. B prompts of P
tokens (padded on the left), G rollouts of each, N = B*G rows (row b*G + g is rollout g of prompt b) of T response
tokens (padded on the right), V words, pi the policy, tau the temperature. For rollout i, reward r_i, and its token t:

    (1) sampling    u ~ U[0, 1),  o_t = min {v : sum_{w <= v} pi(w | q, o_<t) > u}         `choose_tokens`
    (2) log-prob    l_it = log pi(o_t | q, o_<t) = log softmax(logits_it / tau)[o_t]       `forward_responses`
    (3) advantage   A_i = (r_i - mean(r_1..r_G)) / (std(r_1..r_G) + eps)                   `group_advantages`
    (4) ratio       rho_it = exp(l_it - l_it^old)                                          `grpo_loss`
    (5) objective   J_it = min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i)  `grpo_loss`
    (6) k3 KL       D_it = exp(l_it^ref - l_it) - (l_it^ref - l_it) - 1                    `grpo_loss`
    (7) weights     w_it = 1 / (N |o_i|), or one of two variants                           `token_weights`
    (8) loss        L = sum_it w_it (kl_coef D_it - J_it)                                  `grpo_loss`
    (9) update      dL/dtheta over micro-batches and processes, clipped, one step          `policy_update`

Source: DeepSeekMath (arXiv 2402.03300), section 4. Kept: groups instead of a critic, the clipped objective, the k3 KL
inside the loss, the mean over rollouts of the mean over tokens. Dropped: process rewards (one reward a rollout, (3) is
the same for all of its tokens), the outer loop that moves the reference and retrains a reward model (the reference
stays frozen). With one update a batch, the usual case, rho is 1 and the clip in (5) never acts.
One flag away: Dr. GRPO (arXiv 2503.20783) is normalize="none" with loss_norm="constant"; of DAPO (arXiv 2503.14476)
there are token normalisation, loss_norm="token", and clip-higher, clip_high > clip_low, but not its dynamic sampling.

Log-probabilities are those of the whole softmax at the sampling temperature (no top-k, no top-p, no penalties), so the
policy that is trained is the policy that sampled. This also needs a model without dropout.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Callable, Iterator, NamedTuple
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


@dataclass
class Rollouts:
    """N sampled responses. The padding of both sides is told by the masks, never by an id: pad may be EOS."""

    ids: Tensor  # (N, P+T) prompt, left-padded, then response, right-padded
    attention_mask: Tensor  # (N, P+T) 1 on the tokens of prompt and response
    mask: Tensor  # (N, T) 1 up to and including the first EOS, 0 after it
    logprobs: Tensor  # (N, T) of the sampled tokens under the sampling policy, 0 where masked
    texts: list[str]  # N responses without EOS and other special tokens
    truncated: Tensor  # (N,) True: no EOS within T tokens


class Scores(NamedTuple):
    """What one forward pass says about responses. All are 0 where masked; only logprobs carries a gradient."""

    logprobs: Tensor  # (N, T)
    entropy: Tensor  # (N, T) of the whole next-token distribution, in nats
    hidden: Tensor | None  # (N, P+T, d) last hidden states


def uniform_noise(seed: int, step: int, keys: list[str], group_size: int, length: int) -> Tensor:
    """Uniform numbers in [0, 1) that decide the sampled tokens, (B*G, length): a function of seed, step, the task's key
    and the rollout's place in its group alone, so that neither rank, batch nor a resumed run changes what is sampled.
    A key that stands twice in a batch gets the same numbers twice.

    >>> alone = uniform_noise(0, 7, ["task-b"], group_size=2, length=3)
    >>> torch.equal(alone, uniform_noise(0, 7, ["task-a", "task-b"], group_size=2, length=3)[2:])
    True
    """
    streams = (np.random.default_rng([seed, step, crc32(key.encode()), g]) for key in keys for g in range(group_size))
    return torch.from_numpy(np.stack([stream.random(length, dtype=np.float32) for stream in streams]))


def eos_ids(model, tokenizer) -> list[int]:
    """Every token that ends a response: the tokenizer's EOS and those of the model's generation config (chat models
    often have several)."""
    config = getattr(model, "generation_config", None)
    ids = getattr(config, "eos_token_id", None)
    ids = set(ids if isinstance(ids, list) else [ids]) | {tokenizer.eos_token_id}
    if ids == {None}:
        raise ValueError("model: neither tokenizer nor generation config names an EOS token that ends a response")
    return sorted(ids - {None})


def choose_tokens(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Equation (1): invert the cumulative distribution of softmax(logits / temperature) at one uniform number a row.

    logits (n, V), uniforms (n,) -> token ids (n,), their log-probabilities (n,). Temperature 0 takes the most probable
    token and gives its log-probability at temperature 1. A token of probability 0 is never chosen.

    >>> choose_tokens(torch.tensor([[0.2, 0.5, 0.3]] * 3).log(), torch.tensor([0.1, 0.6, 0.8]), 1.0)[0]
    tensor([0, 1, 2])
    """
    logits = logits.float() / (temperature or 1.0)
    logprobs = logits.log_softmax(-1)  # (n, V)
    if temperature == 0:
        tokens = logits.argmax(-1)
    else:
        probabilities = logprobs.exp()
        cumulative = probabilities.cumsum(-1) * (probabilities > 0)  # a GPU's sums can rise, by rounding, where p is 0
        # float32 may round u * total up to total, above which nothing lies; 1 - 2^-24 is the largest float below 1
        target = uniforms[:, None].clamp(max=1 - 2**-24) * cumulative.amax(-1, keepdim=True)
        tokens = (cumulative > target).byte().argmax(-1)  # argmax gives the first of equals
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)


@torch.no_grad()
def sample(model, tokenizer, prompts: list[str], group_size: int, max_new_tokens: int, temperature: float = 1.0,
           noise: Tensor | None = None, batch_size: int = 256) -> Rollouts:
    """Sample `group_size` responses to each prompt, B*G rows in the order of the prompts; T is always `max_new_tokens`.

    prompts: rendered text; a chat template has already put the special tokens in, so none are added here.
    noise (B*G, T): one uniform number a row and token (see `uniform_noise`); None draws them from torch's generator.
    batch_size: rows decoded at a time, in whole groups; prompts of like length go together.
    model: unwrapped (accelerator.unwrap_model), since ranks may need unequal numbers of forward passes.
    Runs in eval mode and restores the mode. Raises ValueError for a prompt that is empty or leaves no room within the
    model's positions, FloatingPointError when the model's logits are not finite.
    """
    prompt_ids = [tokenizer(prompt, add_special_tokens=False).input_ids for prompt in prompts]
    lengths = [len(ids) for ids in prompt_ids]
    limit = getattr(model.config, "max_position_embeddings", None) or float("inf")
    if min(lengths) == 0:
        raise ValueError(f"prompts: number {lengths.index(0)} is empty, at least one token is needed")
    if max(lengths) + max_new_tokens > limit:
        raise ValueError(f"max_new_tokens: the longest prompt ({max(lengths)} tokens) plus {max_new_tokens} new tokens "
                         f"exceed the model's {limit} positions")
    stop, rows, width, device = eos_ids(model, tokenizer), len(prompts) * group_size, max(lengths), model.device
    pad = stop[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    prompt = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompt_ids], device=device)  # (B, P)
    prompt_mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths], device=device)
    noise = (torch.rand(rows, max_new_tokens) if noise is None else noise).to(device)
    response = torch.full((rows, max_new_tokens), pad, device=device)
    mask, logprobs = torch.zeros(2, rows, max_new_tokens, device=device)
    truncated = torch.ones(rows, dtype=torch.bool, device=device)

    was_training = model.training
    model.eval()
    for chunk in by_length(prompt_mask, torch.arange(len(prompts))).split(max(1, batch_size // group_size)):
        where = (chunk[:, None] * group_size + torch.arange(group_size, device=device)).flatten()  # (n,)
        left = int(prompt_mask[chunk].any(0).long().argmax())  # padding of the whole chunk
        tokens = decode(model, prompt[chunk, left:], prompt_mask[chunk, left:], group_size, noise[where],
                        torch.tensor(stop, device=device), temperature)
        for t, (live, chosen, chosen_logprobs, ended) in enumerate(tokens):
            row = where[live]
            response[row, t], logprobs[row, t], mask[row, t] = chosen, chosen_logprobs, 1.0
            truncated[row[ended]] = False
    model.train(was_training)
    if not logprobs.isfinite().all():
        raise FloatingPointError("sample: the model's logits are not finite, its weights are damaged")

    ids = torch.cat([prompt.repeat_interleave(group_size, 0), response], 1)
    attention_mask = torch.cat([prompt_mask.repeat_interleave(group_size, 0), mask], 1).long()
    spans = mask.sum(1).long() - (~truncated).long()  # cut EOS by place: it may be no special token
    texts = [tokenizer.decode(row[:n], skip_special_tokens=True) for row, n in zip(response.tolist(), spans.tolist())]
    return Rollouts(ids, attention_mask, mask, logprobs, texts, truncated)


def tokenize_rollouts(tokenizer, prompts: list[str], texts: list[str]) -> Rollouts:
    """What others wrote as Rollouts: B prompts and B*G responses, each closed by EOS. There are no log-probabilities."""
    encode = lambda texts: [tokenizer(text, add_special_tokens=False).input_ids for text in texts]  # noqa: E731
    group, eos = len(texts) // len(prompts), [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    asked = [ids for ids in encode(prompts) for _ in range(group)]
    written = [ids + eos for ids in encode(texts)]
    left, right = max(map(len, asked)), max(map(len, written))
    ids = torch.tensor([[0] * (left - len(p)) + p + r + [0] * (right - len(r)) for p, r in zip(asked, written)])
    seen = torch.tensor([[0] * (left - len(p)) + [1] * len(p + r) + [0] * (right - len(r)) for p, r in zip(asked, written)])
    mask = seen[:, left:].float()
    return Rollouts(ids, seen, mask, torch.zeros_like(mask), texts, torch.zeros(len(texts), dtype=torch.bool))


def decode(model, prompt: Tensor, attention_mask: Tensor, group_size: int, noise: Tensor, stop: Tensor,
           temperature: float) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Decode n = b*G rows with a key-value cache; yields for every position t the rows still unfinished (m,), their
    tokens (m,), log-probabilities (m,) and which of them end here (m,).

    prompt and attention_mask (b, p), left-padded; noise (n, T); stop: every EOS. A prompt is read once and its cache
    repeated for its group; rows that end leave batch and cache.
    """
    output = model(input_ids=prompt, attention_mask=attention_mask, position_ids=positions(attention_mask),
                   use_cache=True, logits_to_keep=1)
    cache, logits = output.cache, output.logits[:, -1].repeat_interleave(group_size, 0)  # (n, V)
    cache.batch_repeat_interleave(group_size)
    attention_mask = attention_mask.repeat_interleave(group_size, 0)
    live = torch.arange(len(noise), device=prompt.device)
    for t in range(noise.shape[1]):
        tokens, logprobs = choose_tokens(logits, noise[live, t], temperature)
        ended = torch.isin(tokens, stop)
        yield live, tokens, logprobs, ended
        going = (~ended).nonzero().squeeze(1)
        if len(going) == 0 or t + 1 == noise.shape[1]:
            return
        if len(going) < len(live):
            live, tokens, attention_mask = live[going], tokens[going], attention_mask[going]
            cache.batch_select_indices(going)
        attention_mask = F.pad(attention_mask, (0, 1), value=1)
        logits = model(input_ids=tokens[:, None], attention_mask=attention_mask, cache=cache, use_cache=True,
                       position_ids=positions(attention_mask)[:, -1:]).logits[:, -1]


def positions(attention_mask: Tensor) -> Tensor:
    """Position ids that count tokens from 0, whatever the padding.

    >>> positions(torch.tensor([[0, 0, 1, 1, 1, 0]]))
    tensor([[0, 0, 0, 1, 2, 2]])
    """
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def forward_responses(model, ids: Tensor, mask: Tensor, length: int, temperature: float = 1.0, hidden: bool = False,
                      batch_size: int | None = None, share_prompts: bool = True) -> Scores:
    """Equation (2) and the entropy for the last `length` columns of `ids` (N, P+T), whose attention mask is `mask`.

    A prompt that rows have in common is computed once where the model allows it (see `one_row`); share_prompts=False
    computes it for every row: slower, the same numbers.
    batch_size: rows of one pass, rows of one prompt and of like length together (None: all).
    The logits of all tokens never exist at once: inside the model's own forward, where sharded weights are whole, its
    output head returns the two numbers of each token in their place. A model that does something to logits after the
    head (soft-capping, scaling) does it to these, which is noticed and raises ValueError.
    """
    bare = extract_model_from_parallel(model)
    if batch_size is not None and batch_size < len(ids):
        order = by_length(mask, same_prompts(ids, mask, length)[1])
        parts = [forward_responses(model, ids[rows], mask[rows], length, temperature, hidden, None, share_prompts)
                 for rows in order.split(batch_size)]
        return Scores(*(None if values[0] is None else torch.cat(values)[order.argsort()] for values in zip(*parts)))
    left, right = padding(mask, length)  # of all rows: cut off here, and put back at the end
    width = ids.shape[1] - right
    ids, mask, length = ids[:, left:width], mask[:, left:width], length - right
    share = share_prompts and can_share(bare)
    if share:  # for good: gradient checkpointing calls the attention again in the backward pass
        bare.set_attn_implementation("grouped")
    inputs, place = one_row(ids, mask, length) if share else padded_rows(ids, mask)
    response, head, seen = mask[:, -length:].bool(), bare.get_output_embeddings(), {}
    plain_forward = head.forward
    deaf = (f"attention: {type(bare).__name__} has an attention of its own, which cannot tell rollouts in one row apart; "
            'name another than "sdpa", such as "eager"')

    def forward(states: Tensor) -> Tensor:  # (rows, L, d) -> (tokens, 2)
        states = states.flatten(0, 1)
        before = states.index_select(0, place[:, -length - 1:-1][response])  # a token is predicted by the one before it
        scores = score_tokens(plain_forward, head.weight, before, ids[:, -length:][response], temperature)
        seen.update(states=states.detach(), scores=scores.detach().clone())
        return scores

    head.forward = forward
    try:
        scores = model(**inputs, use_cache=False).logits
    except (RuntimeError, TypeError, IndexError) as error:  # code of its own tried the layout's mask on one row
        if share and not inputs["layout"].heard:
            raise ValueError(deaf) from error
        raise
    finally:
        del head.forward
    if share and not inputs["layout"].heard:
        raise ValueError(deaf)
    if not torch.equal(scores, seen["scores"]):
        raise ValueError(f"model: {type(bare).__name__} changes its logits after the output head (soft-capping or "
                         "scaling), which its log-probabilities would miss; choose a model that does not")
    logprobs, entropy = (F.pad(torch.zeros_like(response, dtype=scores.dtype).masked_scatter(response, x), (0, right))
                         for x in (scores[:, 0], scores[:, 1].detach()))  # (N, T)
    states = F.pad(seen["states"][place].where(mask[..., None].bool(), 0.0), (0, 0, left, right)) if hidden else None
    return Scores(logprobs, entropy, states)


def padding(mask: Tensor, length: int) -> tuple[int, int]:
    """How many columns of `mask` (N, P+T) are padding in all rows: on the left of the prompts, on the right of the
    responses of T = `length` tokens (one stays).

    >>> padding(torch.tensor([[0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0]]), length=3)
    (1, 1)
    """
    used = mask.any(0).nonzero().squeeze(1)
    return int(used[0]), min(mask.shape[1] - 1 - int(used[-1]), length - 1)


LOGITS_AT_ONCE = 2**25  # 128 MiB in float32


def score_tokens(head: Callable[[Tensor], Tensor], weight: Tensor, states: Tensor, targets: Tensor,
                 temperature: float) -> Tensor:
    """Log-probability of the `targets` (n,) and entropy of the distribution, (n, 2), from the head's input (n, d).
    Chunks form their logits again in the backward pass, so that memory does not grow with n times vocabulary."""
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
                      for chunk in zip(states.split(size), targets.split(size))])


def can_share(model) -> bool:
    """Whether all rollouts may stand in one row: attention must be the function we name, and nothing else may carry over
    from token to token (no state, no sliding window, no distance but that of position ids)."""
    config = model.config
    windows = set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}
    return (model._supports_attention_backend and not model._is_stateful and not windows
            and getattr(config, "sliding_window", None) is None and config._attn_implementation in ("sdpa", "grouped"))


def same_prompts(ids: Tensor, mask: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The different prompts (b, P), -1 where padding is, and which of them each row has (N,).

    >>> ids, mask = torch.tensor([[5, 6, 1], [0, 5, 2], [5, 6, 3]]), torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 1]])
    >>> same_prompts(ids, mask, length=1)
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


def padded_rows(ids: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The model's inputs as they are, N rows of P+T tokens, and each token's place among all of them (N, P+T)."""
    place = torch.arange(ids.numel(), device=ids.device).view_as(ids)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)}, place


@dataclass
class Layout:
    """Where `group_attention` finds whose tokens in the one row of S that the model reads."""

    prompts: Tensor  # (b, P) place of every prompt token
    rollouts: Tensor  # (N, P+T) place of every rollout's tokens, those of its prompt and its own
    prompt_mask: Tensor  # (b, 1, P, P) which prompt tokens a prompt token attends to
    order: Tensor  # (S,) place of every token of the row among the b*P + N*T
    heard: bool = False  # whether any attention layer has used it


def one_row(ids: Tensor, mask: Tensor, length: int) -> tuple[dict, Tensor]:
    """The model's inputs, one row of S tokens without any padding: b different prompts once each, then all responses;
    and each token's place in it (N, P+T).

    All that a model does token by token (matrix products, norms) does not care who stands beside whom. Attention does,
    and must be `group_attention`.
    """
    prompts, groups = same_prompts(ids, mask, length)  # (b, P), (N,)
    asked, answered = prompts >= 0, mask[:, -length:].bool()  # (b, P), (N, T)
    real = torch.cat([asked.flatten(), answered.flatten()])  # (b*P + N*T,)
    place = (real.cumsum(0) - 1).clamp(min=0)  # padding gets any, what it holds is never read
    of_prompts, of_responses = place[: asked.numel()].view_as(asked), place[asked.numel() :].view_as(answered)
    rollouts = torch.cat([of_prompts[groups], of_responses], dim=1)  # (N, P+T)

    def causal(keys: Tensor, queries: int) -> Tensor:  # (n, L) -> (n, 1, queries, L): what came before, and itself
        column = torch.arange(keys.shape[1], device=keys.device)
        row = column[-queries:, None]
        return ((column < row) & keys[:, None] | (column == row))[:, None]

    tokens = torch.cat([prompts.flatten(), ids[:, -length:].flatten()])[real]
    position = torch.cat([positions(asked).flatten(), positions(mask)[:, -length:].flatten()])[real]
    layout = Layout(of_prompts, rollouts, causal(asked, asked.shape[1]), real.nonzero().squeeze(1))
    return {"input_ids": tokens[None], "position_ids": position[None], "attention_mask": causal(mask.bool(), length),
            "layout": layout}, rollouts


def group_attention(module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                    layout: Layout | None = None, **settings) -> tuple[Tensor, None]:
    """Attention for `one_row`: query, key, value (1, heads, S, width) -> (1, S, heads, width). A prompt attends to
    itself, a response to its prompt and to itself, as `attention_mask` (N, 1, T, P+T) says. Without a layout it is
    transformers' "sdpa"."""
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if layout is None:
        return sdpa(module, query, key, value, attention_mask, **settings)
    length = attention_mask.shape[2]
    layout.heard = True

    def take(x: Tensor, place: Tensor) -> Tensor:  # (1, heads, S, width), (n, L) -> (n, heads, L, width)
        return x[0].transpose(0, 1).index_select(0, place.flatten()).unflatten(0, place.shape).transpose(1, 2)

    asked = [take(x, layout.prompts) for x in (query, key, value)]
    answered = take(query, layout.rollouts[:, -length:]), take(key, layout.rollouts), take(value, layout.rollouts)
    outputs = [sdpa(module, *states, mask, **settings)[0].flatten(0, 1)
               for states, mask in ((asked, layout.prompt_mask), (answered, attention_mask))]
    return torch.cat(outputs).index_select(0, layout.order)[None], None


AttentionInterface.register("grouped", group_attention)
AttentionMaskInterface.register("grouped", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def token_logprobs(model, ids: Tensor, mask: Tensor, length: int, temperature: float = 1.0,
                   batch_size: int | None = None) -> Tensor:
    """Log-probabilities (N, T) of the last `length` = T columns of `ids` (N, P+T), 0 where `mask` (N, P+T) is 0."""
    return forward_responses(model, ids, mask, length, temperature, batch_size=batch_size).logprobs


def group_advantages(rewards: Tensor, normalize: str = "std", eps: float = 1e-4) -> Tensor:
    """Equation (3), rewards (B, G) -> advantages (B, G): how much better a rollout did than the rest of its group.

    "std" divides by the unbiased standard deviation (G - 1, as TRL does) plus eps; "none" does not divide (Dr. GRPO).
    A group of equal rewards carries no signal and gets exactly 0.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]), normalize="none")
    tensor([[ 0.5000, -0.5000, -0.5000,  0.5000],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(f"group_size: advantages need 2 or more rollouts a group, rewards are {tuple(rewards.shape)}")
    if normalize not in ("std", "none"):
        raise ValueError(f'normalize: "std" or "none", not {normalize!r}')
    rewards = rewards.float()
    centered = rewards - rewards.mean(1, keepdim=True)
    centered = centered.masked_fill((rewards == rewards[:, :1]).all(1, keepdim=True), 0.0)  # the mean may be rounded
    return centered / (rewards.std(1, keepdim=True) + eps) if normalize == "std" else centered


def token_weights(mask: Tensor, loss_norm: str = "sequence",
                  reduce: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Equation (7): the weight (N, T) of every token in the loss, to be computed once for the whole batch, before it is
    cut into micro-batches. `reduce` sums a tensor over processes (accelerator.reduce).

    "sequence": mean over rollouts of the mean over their tokens (DeepSeekMath). "token": mean over all tokens (DAPO).
    "constant": sum over tokens divided by N * T, T the limit on the response's length (Dr. GRPO).

    >>> token_weights(torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    tensor([[0.2500, 0.2500],
            [0.5000, 0.0000]])
    """
    mask = mask.float()
    count = reduce(torch.tensor(float(len(mask)), device=mask.device))
    if loss_norm == "sequence":
        return mask / (count * mask.sum(1, keepdim=True).clamp(min=1.0))
    if loss_norm == "token":
        return mask / reduce(mask.sum()).clamp(min=1.0)
    if loss_norm == "constant":
        return mask / (count * mask.shape[1])
    raise ValueError(f'loss_norm: "sequence", "token" or "constant", not {loss_norm!r}')


def grpo_loss(logprobs: Tensor, old_logprobs: Tensor | None, ref_logprobs: Tensor | None, advantages: Tensor,
              mask: Tensor, clip_low: float = 0.2, clip_high: float = 0.2, kl_coef: float = 0.001,
              weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Equations (4) to (8): the loss, a scalar, and its metrics. Everything is (N, T) but the advantages (N,).

    old_logprobs None: the policy has not moved since it sampled, the ratio is 1. ref_logprobs None: no KL term (and no
    metric of it). weights None: `token_weights(mask, "sequence")`. What stands at masked places is never read.
    Metrics, means over the tokens: kl, ratio, clip_fraction (share whose gradient the clip removes).
    """
    mask = mask.bool()
    weights = token_weights(mask) if weights is None else weights
    logprobs, old, ref = (None if x is None else x.where(mask, 0.0) for x in (logprobs, old_logprobs, ref_logprobs))
    old = logprobs.detach() if old is None else old
    advantages = advantages[:, None].to(logprobs.dtype)
    ratio = (logprobs - old).exp()
    plain, clipped = ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    losses = -torch.minimum(plain, clipped)
    metrics = {"ratio": ratio, "clip_fraction": (clipped < plain).float()}
    if ref is not None:
        metrics["kl"] = (ref - logprobs).exp() - (ref - logprobs) - 1
        losses = losses + kl_coef * metrics["kl"]
    loss = (losses * weights).where(mask, 0.0).sum()
    return loss, {name: value.detach()[mask].mean() for name, value in metrics.items()}


def policy_update(model, optimizer, accelerator, rollouts: Rollouts, advantages: Tensor,
                  ref_logprobs: Tensor | None = None, *, temperature: float = 1.0, clip_low: float = 0.2,
                  clip_high: float = 0.2, kl_coef: float = 0.001, loss_norm: str = "sequence",
                  updates_per_batch: int = 1, micro_batch_size: int | None = None,
                  max_grad_norm: float = 1.0, share_prompts: bool = True) -> dict[str, float]:
    """Equation (9): `updates_per_batch` optimizer steps on one batch of rollouts; returns metrics over all processes.

    model and optimizer as accelerator.prepare returned them; this process's rows of rollouts, advantages (N,) and
    ref_logprobs (N, T). The weights of equation (7) are normalised over the whole batch of all processes, so neither
    micro_batch_size (rows of one pass; None: all) nor the number of processes changes the gradient. Every process must
    hold the same number of rows: a pass is a meeting point. Without a KL term, rows of advantage 0 have no gradient and
    are left out. With one update a batch the ratio is 1 and the clip never acts; with more, the old log-probabilities
    are those of the first. share_prompts: see `forward_responses`.
    Raises FloatingPointError on a non-finite loss or gradient before the optimizer's step; the weights stay good.
    Metrics (means over the tokens of all rows that were passed, and over updates): loss, entropy, ratio, clip_fraction,
    grad_norm before clipping, and kl.
    """
    model.train()  # gradient checkpointing acts in training mode only
    ids, attention_mask, mask, length = rollouts.ids, rollouts.attention_mask, rollouts.mask, rollouts.mask.shape[1]
    advantages = advantages.to(mask.device)
    counts = torch.ones_like(advantages, dtype=torch.bool) if ref_logprobs is not None else advantages != 0
    batches = update_batches(accelerator, by_length(attention_mask, same_prompts(ids, attention_mask, length)[1]), counts,
                             micro_batch_size or len(ids))
    weights = token_weights(mask, loss_norm, accelerator.reduce)
    share = token_weights(mask * counts[:, None], "token", accelerator.reduce)
    old, history = torch.zeros_like(mask), []
    for update in range(updates_per_batch):
        sums = {}
        for number, rows in enumerate(batches, 1):
            last = number == len(batches)  # processes exchange gradients once, in the last backward pass
            with nullcontext() if last else accelerator.no_sync(model):
                scores = forward_responses(model, ids[rows], attention_mask[rows], length, temperature,
                                           share_prompts=share_prompts)
                if update == 0:
                    old[rows] = scores.logprobs.detach()
                ref = None if ref_logprobs is None else ref_logprobs[rows]
                loss, metrics = grpo_loss(scores.logprobs, old[rows], ref, advantages[rows], mask[rows], clip_low,
                                          clip_high, kl_coef, weights[rows])
                accelerator.backward(loss * accelerator.num_processes)  # which averages gradients over processes
            metrics["entropy"] = scores.entropy[mask[rows].bool()].mean()
            metrics = {name: value * share[rows].sum() for name, value in metrics.items()} | {"loss": loss.detach()}
            sums = {name: sums.get(name, 0.0) + value for name, value in metrics.items()}
        grad_norm = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
        totals = accelerator.reduce(torch.stack(list(sums.values()))).tolist()
        history.append(numbers := dict(zip(sums, totals)) | {"grad_norm": float(grad_norm)})
        if not np.isfinite([numbers["loss"], numbers["grad_norm"]]).all():
            optimizer.zero_grad()
            raise FloatingPointError(f"policy_update: loss {numbers['loss']}, gradient norm {numbers['grad_norm']}; "
                                     "the weights are unchanged, try a lower learning_rate")
        optimizer.step()
        optimizer.zero_grad()
    return {name: float(np.mean([numbers[name] for numbers in history])) for name in history[0]}


def update_batches(accelerator, order: Tensor, counts: Tensor, size: int) -> list[Tensor]:
    """The rows of `order` for which `counts` is True in micro-batches of `size`, on every process equally many: where
    some are missing, a row that does not count stands in."""
    batches = list(order[counts[order]].split(size)) if counts.any() else []
    passes = max(1, int(accelerator.gather(torch.tensor([len(batches)], device=order.device)).max()))
    return batches + [order[~counts[order]][:1]] * (passes - len(batches))

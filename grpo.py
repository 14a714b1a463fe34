"""GRPO from scratch: sample groups of rollouts, score their tokens, turn rewards into advantages, update.

Rewards come in as plain numbers; whether a verifier or the memory gave them makes no difference here. B
prompts of P tokens (padded on the left), G rollouts of each, N = B*G rows (row b*G + g is rollout g of prompt
b) of T response tokens (padded on the right), V words, pi the policy, tau the temperature. For rollout i,
reward r_i, and token t:

    (1) sampling    u ~ U[0, 1),  o_t = min {v : sum_{w <= v} pi(w | q, o_<t) > u}         `choose_tokens`
    (2) log-prob    l_it = log pi(o_t | q, o_<t) = log softmax(logits_it / tau)[o_t]       `token_logprobs`
    (3) advantage   A_i = (r_i - mean(r_1..r_G)) / (std(r_1..r_G) + eps)                   `group_advantages`
    (4) ratio       rho_it = exp(l_it - l_it^old)                                          `grpo_loss`
    (5) objective   J_it = min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i)  `grpo_loss`
    (6) k3 KL       D_it = exp(l_it^ref - l_it) - (l_it^ref - l_it) - 1                    `grpo_loss`
    (7) weights     w_it = 1 / (N |o_i|), or one of two variants                           `token_weights`
    (8) loss        L = sum_it w_it (kl_coef D_it - J_it)                                  `grpo_loss`
    (9) update      dL/dtheta over micro-batches and processes, clipped, one step          `policy_update`

Source: DeepSeekMath (arXiv 2402.03300), section 4. Kept: groups instead of a critic, the clipped objective,
the k3 KL inside the loss, the mean over rollouts of the mean over tokens. Dropped: process rewards (one
reward a rollout, (3) is the same for all of its tokens), the outer loop that moves the reference and retrains
a reward model (the reference stays frozen). With one update a batch, the usual case, rho is 1 and the clip in
(5) never acts. One flag away: Dr. GRPO (arXiv 2503.20783) is normalize="none" with loss_norm="constant"; of
DAPO (arXiv 2503.14476) there are token normalisation, loss_norm="token", and clip-higher, clip_high above
clip_low, but no dynamic sampling.

Log-probabilities are those of the whole softmax at the sampling temperature (no top-k, no top-p, no
penalties), so the policy that is trained is the policy that sampled. This also needs a model without dropout.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from support import selfcheck
from support.answers import opened_thought
from support.calibration import others_right
from support.packing import batches_of_prompts, forward_responses, in_passes
from support.traits import (
    choose_rows,
    eos_ids,
    eval_mode,
    kept_cache,
    last_logits,
    positions,
    read_prompts,
    reading,
    takes_padding,
)


@dataclass
class Rollouts:
    """N sampled responses. The padding of both sides is told by the masks, never by an id: pad may be EOS."""

    ids: Tensor  # (N, P+T) prompt, left-padded, then response, right-padded
    attention_mask: Tensor  # (N, P+T) 1 on the tokens of prompt and response
    mask: Tensor  # (N, T) 1 up to and including the first EOS, 0 after it
    logprobs: Tensor  # (N, T) of the sampled tokens under the sampling policy, 0 where masked
    texts: list[str]  # N responses without EOS and other special tokens
    truncated: Tensor  # (N,) True: no EOS within T tokens


# --------------------------------------------------------------------------------------------------- sampling


def uniform_noise(seed: int, step: int, keys: list[str], group_size: int, length: int) -> Tensor:
    """Uniform numbers in [0, 1) that decide the sampled tokens, (B*G, length): a function of seed, step, the
    task's key and the rollout's place in its group alone, so that neither rank, batch nor a resumed run
    changes what is sampled. A key that stands twice in a batch gets the same numbers twice.

    >>> alone = uniform_noise(0, 7, ["task-b"], group_size=2, length=3)
    >>> torch.equal(alone, uniform_noise(0, 7, ["task-a", "task-b"], group_size=2, length=3)[2:])
    True
    """
    streams = (np.random.default_rng([seed, step, crc32(key.encode()), g])
               for key in keys for g in range(group_size))
    return torch.from_numpy(np.stack([stream.random(length, dtype=np.float32) for stream in streams]))


def choose_tokens(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Equation (1): invert the cumulative distribution of softmax(logits / temperature) at one uniform number
    a row.

    logits (n, V), uniforms (n,) -> token ids (n,), their log-probabilities (n,), in float32 whatever the
    logits are. Temperature 0 takes the most probable token and gives its log-probability at temperature 1. A
    token of probability 0 is never chosen, also where rounded sums end below u.

    >>> choose_tokens(torch.tensor([[0.2, 0.5, 0.3]] * 3).log(), torch.tensor([0.1, 0.6, 0.8]), 1.0)[0]
    tensor([0, 1, 2])
    """
    logits = logits.float() / (temperature or 1.0)
    logprobs = logits.log_softmax(-1)  # (n, V)
    if temperature == 0:
        tokens = logits.argmax(-1)
    else:
        probabilities = logprobs.exp()
        cumulative = probabilities.cumsum(-1) * (probabilities > 0)  # rounded sums can rise where p is 0
        # u * total may be rounded to total, above which nothing lies; 1 - 2^-24 is the largest float below 1
        target = uniforms[:, None].clamp(max=1 - 2**-24) * cumulative.amax(-1, keepdim=True)
        tokens = (cumulative > target).byte().argmax(-1)  # argmax gives the first of equals
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)


@torch.no_grad()
def sample(model, tokenizer, prompts: list[str], group_size: int, max_new_tokens: int,
           temperature: float = 1.0, noise: Tensor | None = None, batch_size: int = 256,
           stop: list[str] | None = None) -> Rollouts:
    """Sample `group_size` responses of at most T = `max_new_tokens` tokens to each prompt, B*G rows in order.

    prompts: rendered text; a chat template has already put the special tokens in, so none are added here.
    noise (B*G, T): one uniform number a row and token (see `uniform_noise`), -1 in rows that take the most
    probable tokens; None draws them. batch_size: rows decoded at a time, in whole groups; prompts of like
    length go together. stop: a response also ends where its text holds one of these strings; the text is cut
    there, the tokens that wrote it are still trained.
    model: unwrapped (accelerator.unwrap_model), since ranks may need unequal numbers of forward passes. Runs
    in eval mode and restores the mode. Raises ValueError for a prompt that is empty or leaves no room within
    the model's positions, FloatingPointError when the model's logits are not finite.
    """
    ends, rows, device = eos_ids(model, tokenizer), len(prompts) * group_size, model.device
    pad = ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    prompt, prompt_mask = read_prompts(model, tokenizer, prompts, max_new_tokens, pad)  # (B, P)
    noise = (torch.rand(rows, max_new_tokens) if noise is None else noise).to(device)
    response, ends = torch.full((rows, max_new_tokens), pad, device=device), torch.tensor(ends, device=device)
    mask, logprobs = torch.zeros(2, rows, max_new_tokens, device=device)
    by_eos, by_text = torch.zeros(2, rows, dtype=torch.bool, device=device)

    padded = takes_padding(model)
    for chunk in batches_of_prompts(prompt_mask, max(1, batch_size // group_size), padded):
        where = (chunk[:, None] * group_size + torch.arange(group_size, device=device)).flatten()  # (n,)
        left = int(prompt_mask[chunk].any(0).long().argmax())  # padding of the whole chunk
        running = torch.ones_like(where, dtype=torch.bool)
        steps = decode(model, prompt[chunk, left:], prompt_mask[chunk, left:] if padded else None, running,
                       noise[where], temperature)
        with eval_mode(model):
            for t, (live, chosen, chosen_logprobs) in enumerate(steps):
                row = where[live]
                response[row, t], logprobs[row, t], mask[row, t] = chosen, chosen_logprobs, 1.0
                by_eos[row] = torch.isin(chosen, ends)
                if stop:
                    texts = tokenizer.batch_decode(response[row, : t + 1], skip_special_tokens=True)
                    by_text[row] = torch.tensor([any(s in text for s in stop) for text in texts],
                                                device=device)
                running[live] = ~(by_eos[row] | by_text[row])
    if not logprobs.isfinite().all():
        raise FloatingPointError("sample: the model's logits are not finite, its weights are damaged")

    ids = torch.cat([prompt.repeat_interleave(group_size, 0), response], 1)
    attention_mask = torch.cat([prompt_mask.repeat_interleave(group_size, 0), mask], 1).long()
    spans = mask.sum(1).long() - by_eos.long()  # cut EOS by place: it may be no special token
    texts = [tokenizer.decode(row[:n], skip_special_tokens=True)
             for row, n in zip(response.tolist(), spans.tolist(), strict=True)]
    for mark in stop or []:
        texts = [text.partition(mark)[0] for text in texts]
    opened = [opened_thought(prompt) for prompt in prompts for _ in range(group_size)]  # by the chat template
    texts = [tag + text for tag, text in zip(opened, texts, strict=True)]
    return Rollouts(ids, attention_mask, mask, logprobs, texts, ~(by_eos | by_text))


def decode(model, prompt: Tensor, attention_mask: Tensor | None, running: Tensor, noise: Tensor,
           temperature: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Decode n = b*G rows with a key-value cache; yields for every position t the rows still running (m,),
    their tokens (m,) and log-probabilities (m,).

    prompt and attention_mask (b, p), left-padded, or None: no padding; noise (n, T). The caller sets running
    (n,) to False where a row has ended. Rows of one prompt that have the same tokens so far are read as one,
    a state: four rows of a prompt are one at first, and when they choose the tokens a, a, b, a they become
    the states 0, 0, 1, 0, of which the model reads a and b with its cache twice.
    """
    live, greedy = torch.arange(len(noise), device=prompt.device), noise[:, 0] < 0  # (n,)
    mixed = temperature > 0 and bool(greedy.any())  # an evaluation: greedy rows beside sampled ones
    state = live // (len(noise) // len(prompt))  # (m,) each live row's state, of which there are s
    output = model(input_ids=prompt, use_cache=True, **reading(attention_mask), **last_logits(model))
    cache, logits = kept_cache(model, output), output.logits[:, -1]  # (s, V)
    for t in range(noise.shape[1]):
        tokens, logprobs = choose_tokens(logits[state], noise[live, t], temperature)
        if mixed:
            surest = choose_tokens(logits[state], noise[live, t], 0.0)
            tokens, logprobs = (a.where(greedy[live], b) for a, b in zip(surest, (tokens, logprobs)))
        yield live, tokens, logprobs
        going = running[live].nonzero().squeeze(1)
        if len(going) == 0 or t + 1 == noise.shape[1]:
            return
        live, words = live[going], logits.shape[1]
        pairs, state = (state * words + tokens)[going].unique(return_inverse=True)
        before, tokens = pairs // words, pairs % words  # before: the states gone on from
        if not torch.equal(before, torch.arange(len(logits), device=before.device)):
            choose_rows(cache, before)
        if attention_mask is not None:
            attention_mask = F.pad(attention_mask[before], (0, 1), value=1)
        output = model(input_ids=tokens[:, None], cache=cache, use_cache=True, **reading(attention_mask, 1))
        logits = output.logits[:, -1]


def check_policy(model, tokenizer, longest: int | None = None) -> None:
    """Raise ValueError, in one line, where a model (unwrapped, before the first batch) does not agree with
    itself in what `sample` and `forward_responses` say: see `support.selfcheck`. longest: prompt and response
    of the run at most, in tokens; what lies beyond is not looked at."""
    selfcheck.check(model, tokenizer, sample, forward_responses, longest)


# --------------------------------------------------------------------------------- log-probabilities and loss


def token_logprobs(model, ids: Tensor, mask: Tensor, length: int, temperature: float = 1.0,
                   batch_size: int | None = None) -> Tensor:
    """Equation (2): log-probabilities (N, T) of the last `length` = T columns of `ids` (N, P+T), 0 where the
    attention mask `mask` (N, P+T) is 0. batch_size: rows of one pass (None: all).

    The plain version, with all padding and all logits. The update uses `forward_responses`
    (support/packing.py): the same numbers, and the entropy, without either.
    """
    if batch_size is not None:
        parts = zip(ids.split(batch_size), mask.split(batch_size), strict=True)
        return torch.cat([token_logprobs(model, *part, length, temperature) for part in parts])
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False).logits
    logits = logits[:, -length - 1 : -1].float() / temperature  # (N, T, V): each predicts the next column
    logprobs = logits.log_softmax(-1).gather(-1, ids[:, -length:, None]).squeeze(-1)  # (N, T)
    return logprobs.where(mask[:, -length:].bool(), 0.0)


def group_advantages(rewards: Tensor, normalize: str = "std", eps: float = 1e-4) -> Tensor:
    """Equation (3), rewards (B, G) -> advantages (B, G): how much better a rollout did than the rest of its
    group.

    "std" divides by the unbiased standard deviation (G - 1, as TRL does) plus eps; "none" does not (Dr.
    GRPO). A group of equal rewards carries no signal and gets exactly 0. Raises ValueError for groups of one
    rollout, which has nothing to be compared with, and for another `normalize`.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]), normalize="none")
    tensor([[ 0.5000, -0.5000, -0.5000,  0.5000],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError("group_size: advantages need 2 or more rollouts a group, "
                         f"rewards are {tuple(rewards.shape)}")
    if normalize not in ("std", "none"):
        raise ValueError(f'normalize: "std" or "none", not {normalize!r}')
    rewards = rewards.float()
    centered = rewards - rewards.mean(1, keepdim=True)
    equal = (rewards == rewards[:, :1]).all(1, keepdim=True)
    centered = centered.masked_fill(equal, 0.0)  # the mean may be rounded
    return centered / (rewards.std(1, keepdim=True) + eps) if normalize == "std" else centered


def expected_advantages(probabilities: Tensor, normalize: str = "std", eps: float = 1e-4) -> Tensor:
    """Equation (3) for rewards that are believed, not known: the mean of `group_advantages` over all that
    they may be, each rollout of (B, G) right with its own probability; nearly 0 where these are alike.

    >>> expected_advantages(torch.tensor([[0.6, 0.5], [1.0, 0.0]])).round(decimals=2)
    tensor([[ 0.0700, -0.0700],
            [ 0.7100, -0.7100]])
    """
    plain = group_advantages(probabilities, normalize, eps)
    if normalize == "none":  # without a quotient the mean of advantages is the advantage of means
        return plain
    p, size = probabilities.float(), probabilities.shape[1]
    chances = others_right(p)  # (B, G, G) that 0, 1, .. of the other rollouts are right

    def mean_advantage(reward: float) -> Tensor:  # (B, G) of a rollout that has this reward
        right = torch.arange(size, device=p.device) + reward  # in the whole group, (G,)
        std = (right * (size - right) / size / (size - 1)).sqrt()
        return chances @ ((reward - right / size) / (std + eps))

    return (p * mean_advantage(1.0) + (1 - p) * mean_advantage(0.0)) * plain.any(1, keepdim=True)


def token_weights(mask: Tensor, loss_norm: str = "sequence",
                  reduce: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Equation (7): the weight (N, T) of every token in the loss, to be computed once for the whole batch,
    before it is cut into micro-batches. `reduce` sums a tensor over processes (accelerator.reduce).

    "sequence": mean over rollouts of the mean over their tokens (DeepSeekMath). "token": mean over all tokens
    (DAPO). "constant": sum over tokens divided by N * T, T the limit on the response's length (Dr. GRPO). A
    rollout without tokens counts in N. Another `loss_norm` raises ValueError.

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
    """Equations (4) to (8): the loss, a scalar, and its metrics. All is (N, T) but the advantages (N,).

    old_logprobs None: the policy has not moved since it sampled, the ratio is 1. ref_logprobs None: no KL
    term (and no metric of it). weights None: `token_weights(mask, "sequence")`. What stands at masked places
    is never read. Metrics, plain means over the tokens, detached: kl, ratio, clip_fraction (share whose
    gradient the clip removes).
    """
    mask = mask.bool()
    weights = token_weights(mask) if weights is None else weights
    logprobs, old, ref = (None if x is None else x.where(mask, 0.0)
                          for x in (logprobs, old_logprobs, ref_logprobs))
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


# ------------------------------------------------------------------------------------------------- the update


def policy_update(model, optimizer, accelerator, rollouts: Rollouts, advantages: Tensor,
                  ref_logprobs: Tensor | None = None, *, temperature: float = 1.0, clip_low: float = 0.2,
                  clip_high: float = 0.2, kl_coef: float = 0.001, loss_norm: str = "sequence",
                  updates_per_batch: int = 1, micro_batch_size: int | None = None,
                  max_grad_norm: float = 1.0, share_prompts: bool = True) -> dict[str, float]:
    """Equation (9): `updates_per_batch` optimizer steps on a batch of rollouts; returns metrics over all
    processes.

    model and optimizer as accelerator.prepare returned them; this process's rows of rollouts, advantages (N,)
    and ref_logprobs (N, T). The weights of equation (7) are normalised over the whole batch of all processes,
    so neither micro_batch_size (different rows of one pass; None: all) nor the number of processes changes
    the gradient. Without a KL term, rows of advantage 0 have no gradient and are left out. share_prompts: see
    `forward_responses`. Raises FloatingPointError on a non-finite loss or gradient before the optimizer's
    step; the weights stay good. Metrics (means over the tokens of all rows passed, and over updates): loss,
    entropy, kl, ratio, clip_fraction, mismatch (mean |sampled - trained logprob|), grad_norm before clipping.
    """
    model.train()  # gradient checkpointing acts in training mode only
    ids, attention_mask, mask = rollouts.ids, rollouts.attention_mask, rollouts.mask
    length, advantages = mask.shape[1], advantages.to(mask.device)
    counts = torch.ones_like(advantages, dtype=torch.bool) if ref_logprobs is not None else advantages != 0
    batches = update_batches(accelerator, rollouts, counts, micro_batch_size, share_prompts)
    weights = token_weights(mask, loss_norm, accelerator.reduce)
    share = token_weights(mask * counts[:, None], "token", accelerator.reduce)
    old, history = torch.zeros_like(mask), []
    for update in range(updates_per_batch):
        sums = {}
        for number, (rows, real) in enumerate(batches, 1):
            with nullcontext() if number == len(batches) else accelerator.no_sync(model):  # meet at the end
                scores = forward_responses(model, ids[rows], attention_mask[rows], length, temperature,
                                           share_prompts=share_prompts)
                if update == 0:
                    old[rows] = scores.logprobs.detach()
                ref = None if ref_logprobs is None else ref_logprobs[rows]
                loss, metrics = grpo_loss(scores.logprobs, old[rows], ref, advantages[rows], mask[rows],
                                          clip_low, clip_high, kl_coef, weights[rows] * real)
                accelerator.backward(loss * accelerator.num_processes)  # it averages over processes
            kept = mask[rows].bool()
            metrics["entropy"] = scores.entropy[kept].mean()
            metrics["mismatch"] = (old[rows] - rollouts.logprobs[rows])[kept].abs().mean()
            metrics = {name: value * share[rows].sum() * real for name, value in metrics.items()}
            metrics["loss"] = loss.detach()
            sums = {name: sums.get(name, 0.0) + value for name, value in metrics.items()}
        history.append(take_step(model, optimizer, accelerator, sums, max_grad_norm))
    return {name: float(np.mean([numbers[name] for numbers in history])) for name in history[0]}


def update_batches(accelerator, rollouts: Rollouts, counts: Tensor, size: int | None,
                   share_prompts: bool) -> list[tuple[Tensor, float]]:
    """Passes (rows, real) over the rows for which `counts` is True, at most `size` different ones each; on
    every process equally many: where some are missing, row 0 stands in, and real, else 1, is 0."""
    rows, length = counts.nonzero().squeeze(1), rollouts.mask.shape[1]
    inputs = rollouts.ids[rows], rollouts.attention_mask[rows], length
    parts = in_passes(*inputs, size, share_prompts) if len(rows) else []
    most = max(1, int(accelerator.gather(torch.tensor([len(parts)], device=rows.device)).max()))
    return [(rows[part], 1.0) for part in parts] + [(rows.new_zeros(1), 0.0)] * (most - len(parts))


def take_step(model, optimizer, accelerator, sums: dict[str, Tensor],
              max_grad_norm: float) -> dict[str, float]:
    """Clip the gradient and move the weights, unless loss or gradient are not finite; `sums` added over
    processes."""
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
    totals = accelerator.reduce(torch.stack(list(sums.values()))).tolist()
    numbers = dict(zip(sums, totals, strict=True)) | {"grad_norm": float(grad_norm)}
    if finite := np.isfinite([numbers["loss"], numbers["grad_norm"]]).all():
        optimizer.step()
    optimizer.zero_grad()
    if not finite:
        raise FloatingPointError(f"policy_update: loss {numbers['loss']}, gradient norm {grad_norm:g}; "
                                 "the weights are unchanged, try a lower learning_rate")
    return numbers

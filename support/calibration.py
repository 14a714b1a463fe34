"""Probabilities that mean what they say, and what follows from several. Knows numbers only, and is of use
without the rest of the project."""

import torch
import torch.nn.functional as F
from torch import Tensor


def calibrate(inputs: Tensor, rewards: Tensor, strength: float = 3.0) -> Tensor:
    """Weights (f,) of a logistic regression of rewards (n,) on inputs (n, f), of which the first is a logit.
    They are held near (1, 0, .., 0), the logit as it is: what is minimised is the cross-entropy, summed over
    the rewards, plus strength/2 times the squared distance. With a logit and a 1 as inputs it is Platt
    scaling. The weights are of float32, whatever they were computed in.

    >>> logit, one = torch.linspace(-4, 4, 999), torch.ones(999)
    >>> round(calibrate(torch.stack([4 * logit, one], 1), logit.sigmoid())[0].item(), 2)
    0.25
    """
    inputs, rewards = inputs.double(), rewards.double()
    start = torch.eye(inputs.shape[1])[0].to(inputs)
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(inputs @ weights, rewards, reduction="sum")
        loss = loss + strength / 2 * (weights - start).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach().float()


def calibration_error(probabilities: Tensor, rewards: Tensor, bins: int = 10) -> float:
    """Expected calibration error: |mean probability - share of right ones| in `bins` bins of [0, 1] of equal
    width, weighted by size; 1 is in the last.

    >>> round(calibration_error(torch.tensor([0.9, 0.9, 0.2, 0.1]), torch.tensor([1.0, 0.0, 0.0, 0.0])), 3)
    0.275
    """
    bin_of = (probabilities * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, device=rewards.device).index_add(0, bin_of, probabilities - rewards)
    return gaps.abs().sum().item() / len(rewards)


def others_right(probabilities: Tensor) -> Tensor:
    """For each of G rollouts, right with `probabilities` (B, G): how likely 0, 1, .., G - 1 of the others are
    right, (B, G, G). The Poisson binomial distribution, by one rollout after the other.

    >>> others_right(torch.tensor([[0.9, 0.25, 1.0]]))[0, 0].tolist()  # of 0.25 and 1.0
    [0.0, 0.75, 0.25]
    """
    number = torch.arange(probabilities.shape[1], device=probabilities.device)
    chances = (number == 0).to(probabilities).expand(*probabilities.shape, -1)  # of none yet
    for g in number:
        right = probabilities[:, g, None, None] * (number != g)[:, None]  # (B, G, 1): itself is no other
        chances = chances * (1 - right) + chances.roll(1, -1) * right
    return chances

"""Which examples to label: those that together stand nearest to all. Of use without the rest of the
project."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def facility_location(embeddings: Tensor, count: int, picked: Sequence[int] = (),
                      block: int = 1024) -> tuple[list[int], list[float]]:
    """The `count` rows of `embeddings` (n, d) that together stand nearest to all, best first: greedily the
    row j that adds most to sum_i max(0, max_{j picked} cos_ij), which is within 1 - 1/e of the best choice
    (Nemhauser et al., 1978). Every prefix is a choice of its own. `picked` rows are there already and are not
    chosen again; a tie goes to the first row. Where fewer than `count` rows are left, all of them are chosen.

    Returns the rows and, for each, what it added, as a share of n: their sum is the mean of
    max(0, cosine to the nearest pick), less what `picked` had. Only rows that a pick brings nearer change
    what others would add, so the cosines are computed for these, `block` rows at a time; all of them never
    exist at once.

    >>> facility_location(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]]), count=2)[0]
    [2, 3]
    """
    x = F.normalize(embeddings.float(), dim=-1)
    nearest, gains = x.new_zeros(len(x)), x.new_zeros(len(x), dtype=torch.float64)
    for rows in torch.arange(len(x), device=x.device).split(block):
        gains += (x[rows] @ x.T).clamp(min=0).sum(0)
    order, added, picked = [], [], list(picked)
    for number in range(len(picked) + min(count, len(x) - len(picked))):
        best = picked[number] if number < len(picked) else int(gains.round(decimals=5).argmax())
        if number >= len(picked):
            order.append(best)
            added.append(gains[best].item() / len(x))
        nearer = torch.maximum(nearest, x @ x[best])
        for rows in (nearer > nearest).nonzero().squeeze(1).split(block):
            cosines = (x[rows] @ x.T).minimum(nearer[rows, None])  # what lies beyond can still be gained
            gains -= cosines.sub_(nearest[rows, None]).clamp_(min=0).sum(0)
        nearest, gains[best] = nearer, -math.inf
    return order, added

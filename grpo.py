"""Credit assignment and the policy loss, as pure functions on tensors.

Shapes: G rollouts of one pack form a group; S tasks in the pack, hence S - 1 hint updates between them.

    rewards -> episode_returns -> group_advantages -> (whole batch) rebalance -> policy_loss
    [G, S]       [G, S]             [G, S]                 [N]                    scalar
"""

import torch
from torch import Tensor

CREDITS = ("mean", "window", "discount", "sum")
CLIPS = ("one-side", "two-side", "none")


def episode_returns(
    solve: Tensor, update: Tensor, mode: str = "mean", window: int = 2, gamma: float = 0.9
) -> tuple[Tensor, Tensor]:
    """Returns of every episode from the rewards that come with and after it.

    solve [G, S]: r^x, the task rewards; update [G, S-1]: r^z, the format rewards of the hint updates.
    With terms_j = own reward, r^x_{j+1}, ..., r^x_{S-1} (own reward: r^x_j, or r^z_j for the update after task j,
    which therefore gets no credit for the task before it):

        mean      R_j = mean(terms_j)                       the paper's fine-grained credit
        window    R_j = mean of the first `window` terms
        discount  R_j = sum_k gamma^k * terms_j[k]          no mean
        sum       R_j = sum of all task rewards of the pack, for every episode    coarse credit (Orbit style)

    Returns (R^x [G, S], R^z [G, S-1]).
    """
    rollouts, tasks = solve.shape
    if update.shape != (rollouts, tasks - 1):
        raise ValueError(f"update has shape {tuple(update.shape)}, expected {(rollouts, tasks - 1)}")
    if mode not in CREDITS:
        raise ValueError(f"mode={mode!r}: choose from {', '.join(CREDITS)}")
    if mode == "sum":
        total = solve.sum(dim=1, keepdim=True)  # [G, 1]
        return total.expand_as(solve).clone(), total.expand_as(update).clone()

    def rewards_to_go(own: Tensor, j: int) -> Tensor:  # own [G] -> [G]
        terms = torch.cat([own[:, None], solve[:, j + 1 :]], dim=1)  # [G, S - j]
        if mode == "discount":
            return terms @ (gamma ** torch.arange(tasks - j, dtype=terms.dtype, device=terms.device))
        return terms[:, : window if mode == "window" else tasks].mean(dim=1)

    solve_returns = torch.stack([rewards_to_go(solve[:, j], j) for j in range(tasks)], dim=1)  # [G, S]
    update_returns = torch.empty_like(update)  # [G, S-1], stays empty for S = 1
    for j in range(tasks - 1):
        update_returns[:, j] = rewards_to_go(update[:, j], j)
    return solve_returns, update_returns


def group_advantages(returns: Tensor) -> Tensor:
    """A = R - mean over the group, per position; returns [G, ...]. No division by a standard deviation."""
    return returns - returns.mean(dim=0, keepdim=True)


def rebalance(advantages: Tensor, n_tokens: Tensor) -> Tensor:
    """Adaptive re-weighting over the whole batch, against a negative token-weighted sum of advantages.

    advantages [N], n_tokens [N] (sampled tokens of each episode). If sum(A * n) < 0, A becomes A * exp(A / T):
    negative advantages shrink and positive ones grow, the more the smaller T is. T comes from a bisection on
    [0.8, 100], down to a bracket under 0.05, for the largest T that brings the sum up to about zero; where no T in the
    bracket does, it is about the smallest.
    """

    def weighted(temperature: float) -> Tensor:
        return advantages * torch.exp(advantages / temperature)  # [N]

    if (advantages * n_tokens).sum() >= 0:
        return advantages
    low, high = 0.8, 100.0
    while high - low >= 0.05:
        middle = (low + high) / 2
        if (weighted(middle) * n_tokens).sum() < 0:
            high = middle
        else:
            low = middle
    return weighted(middle)


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    n_tokens: float,
    clip: str = "one-side",
    eps: float = 0.2,
    importance: bool = False,
    ref_logp: Tensor | None = None,
    kl_coef: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """-sum(keep * A * logp) / n_tokens: by default REINFORCE with a one-side clip and no importance weight.

    logp [B, T] now (with gradient); old_logp [B, T] when sampled; advantages [B, T] (its episode's value at every
    token); mask [B, T] true at sampled tokens. What stands where the mask is false has no effect at all.
    `n_tokens` is the number of sampled tokens of the whole optimiser step, so the losses of micro-batches add up.

    keep depends on ratio = exp(logp - old_logp), which carries no gradient:
        one-side  A >= 0 and ratio <= 1 + eps, or A <= 0 and ratio >= 1 - eps   (stop where the step went far enough)
        two-side  1 - eps <= ratio <= 1 + eps
        none      every token
    `importance` multiplies A by the ratio. With `ref_logp` [B, T], kl_coef * 0.5 * (logp - ref_logp)^2 is added (k2).

    Returns the loss and sums over the sampled tokens: "clipped", "log_ratio_abs", "log_ratio_max" (a maximum), "kl".
    """
    if clip not in CLIPS:
        raise ValueError(f"clip={clip!r}: choose from {', '.join(CLIPS)}")
    # select sampled tokens first: garbage elsewhere (inf, nan) must not meet a zero mask
    logp, old_logp, advantages = logp[mask], old_logp[mask], advantages[mask]  # [n]
    log_ratio = (logp - old_logp).detach()  # [n]
    ratio = log_ratio.exp()  # [n]
    if clip == "one-side":
        keep = ((advantages >= 0) & (ratio <= 1 + eps)) | ((advantages <= 0) & (ratio >= 1 - eps))  # [n]
    elif clip == "two-side":
        keep = (ratio >= 1 - eps) & (ratio <= 1 + eps)  # [n]
    else:
        keep = torch.ones_like(advantages, dtype=torch.bool)  # [n]
    weight = advantages * ratio if importance else advantages  # [n]
    loss = -(weight[keep] * logp[keep]).sum() / n_tokens  # selected, not multiplied: 0 * inf is nan
    metrics = {
        "clipped": (~keep).sum(),
        "log_ratio_abs": log_ratio.abs().sum(),
        "log_ratio_max": log_ratio.abs().max() if len(log_ratio) else log_ratio.sum(),
        "kl": log_ratio.new_zeros(()),
    }
    if ref_logp is not None:
        k2 = 0.5 * (logp - ref_logp[mask]).square().sum()
        loss = loss + kl_coef * k2 / n_tokens
        metrics["kl"] = k2.detach()
    return loss, metrics

"""grpo.py against plain-Python versions of the formulas, written with lists and loops."""

import math
import random

import pytest
import torch

from grpo import episode_returns, group_advantages, policy_loss, rebalance

MODES = ("mean", "window", "discount", "sum")
CLIPS = ("one-side", "two-side", "none")
EPS = 0.2


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------
# Returns and advantages


def plain_return(own, later, mode, window, gamma):
    """Return of one episode: `own` is its reward, `later` are the rewards of the tasks that follow."""
    terms = [own] + later
    if mode == "window":
        terms = terms[:window]
    if mode == "discount":
        return sum(gamma**k * term for k, term in enumerate(terms))
    return sum(terms) / len(terms)


def plain_returns(solve, update, mode, window, gamma):
    solve_returns, update_returns = [], []
    for tasks, updates in zip(solve, update, strict=True):
        if mode == "sum":
            solve_returns.append([sum(tasks) for _ in tasks])
            update_returns.append([sum(tasks) for _ in updates])
        else:
            solve_returns.append([plain_return(r, tasks[j + 1 :], mode, window, gamma) for j, r in enumerate(tasks)])
            update_returns.append([plain_return(r, tasks[j + 1 :], mode, window, gamma) for j, r in enumerate(updates)])
    return solve_returns, update_returns


def plain_advantages(returns):
    means = [sum(column) / len(returns) for column in zip(*returns, strict=True)]
    return [[value - mean for value, mean in zip(row, means, strict=True)] for row in returns]


def random_rewards(rng, groups, tasks):
    solve = [[rng.uniform(0, 1) for _ in range(tasks)] for _ in range(groups)]
    update = [[rng.choice([0.0, -0.1]) for _ in range(tasks - 1)] for _ in range(groups)]
    return solve, update


def as_update(update, groups, tasks):
    return tensor(update).reshape(groups, tasks - 1)  # keeps [G, 0] when there is one task


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 8])
def test_returns_and_advantages_match_plain_python(mode, tasks):
    rng = random.Random(f"{mode}/{tasks}")
    for groups in (1, 2, 5):
        for window in (1, 2, 3, 20):
            gamma = rng.uniform(0.1, 1)
            solve, update = random_rewards(rng, groups, tasks)
            got = episode_returns(tensor(solve), as_update(update, groups, tasks), mode, window=window, gamma=gamma)
            want = plain_returns(solve, update, mode, window, gamma)
            torch.testing.assert_close(got[0], tensor(want[0]))
            torch.testing.assert_close(got[1], as_update(want[1], groups, tasks))
            torch.testing.assert_close(group_advantages(got[0]), tensor(plain_advantages(want[0])))
            want_update = as_update(plain_advantages(want[1]), groups, tasks)
            torch.testing.assert_close(group_advantages(got[1]), want_update)


def test_worked_example():
    solve_returns, update_returns = episode_returns(tensor([[0, 1, 1], [1, 0, 0]]), tensor([[0, 0], [-0.1, 0]]))
    torch.testing.assert_close(solve_returns, tensor([[2 / 3, 1, 1], [1 / 3, 0, 0]]))
    torch.testing.assert_close(update_returns, tensor([[2 / 3, 1 / 2], [-1 / 30, 0]]))
    want_solve = tensor([[1 / 6, 1 / 2, 1 / 2], [-1 / 6, -1 / 2, -1 / 2]])
    torch.testing.assert_close(group_advantages(solve_returns), want_solve)
    torch.testing.assert_close(group_advantages(update_returns), tensor([[0.35, 0.25], [-0.35, -0.25]]))


@pytest.mark.parametrize("mode", ["mean", "window", "discount"])
def test_no_episode_gets_credit_for_what_came_before_it(mode):
    rng = random.Random(mode)
    solve, update = (tensor(rewards) for rewards in random_rewards(rng, 3, 4))
    base_solve, base_update = episode_returns(solve, update, mode)
    for task in range(4):
        changed = solve.clone()
        changed[:, task] += 1
        got_solve, got_update = episode_returns(changed, update, mode)
        assert torch.equal(got_solve[:, task + 1 :], base_solve[:, task + 1 :])
        assert torch.equal(got_update[:, task:], base_update[:, task:])  # nor does the update right after the task
        assert (got_solve[:, task] > base_solve[:, task]).all()
    for j in range(3):
        changed = update.clone()
        changed[:, j] += 1
        got_solve, got_update = episode_returns(solve, changed, mode)
        assert torch.equal(got_solve, base_solve)
        others = [k for k in range(3) if k != j]
        assert torch.equal(got_update[:, others], base_update[:, others])
        assert (got_update[:, j] > base_update[:, j]).all()


def test_inputs_stay_unchanged_and_results_can_be_written_to():
    for mode in MODES:
        solve, update = tensor([[0, 1], [1, 1]]), tensor([[0], [-0.1]])
        for result in episode_returns(solve, update, mode):
            before = result.flatten().tolist()
            result[0, 0] = 7
            assert result.flatten().tolist() == [7, *before[1:]]
        assert solve.tolist() == [[0, 1], [1, 1]] and update.tolist() == [[0], [-0.1]]


def test_bad_mode_and_bad_shape_raise():
    with pytest.raises(ValueError) as error:
        episode_returns(torch.zeros(2, 3), torch.zeros(2, 2), "median")
    assert all(name in str(error.value) for name in ("median", *MODES))
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 2\)"):
        episode_returns(torch.zeros(2, 3), torch.zeros(2, 3))


# ---------------------------------------------------------------------------------------------------------
# Re-weighting


def weighted_sum(advantages, n_tokens, temperature=None):
    """sum of A exp(A / T) n, or of A n without a temperature."""
    return sum(
        a * n * (1 if temperature is None else math.exp(a / temperature))
        for a, n in zip(advantages, n_tokens, strict=True)
    )


def plain_rebalance(advantages, n_tokens):
    if weighted_sum(advantages, n_tokens) >= 0:
        return list(advantages)
    low, high, halvings = 0.8, 100.0, 0
    while halvings < 20 and high - low >= 0.05:
        temperature = (low + high) / 2
        if weighted_sum(advantages, n_tokens, temperature) < 0:
            high = temperature
        else:
            low = temperature
        halvings += 1
    return [a * math.exp(a / temperature) for a in advantages]


def random_batch(rng):
    """Advantages of a batch and token counts, longer where the advantage is negative (so that the sum often is)."""
    advantages = [rng.uniform(-1, 1) for _ in range(rng.randint(1, 12))]
    return advantages, [rng.randint(1, 50) * (rng.randint(1, 4) if a < 0 else 1) for a in advantages]


def test_rebalance_matches_plain_bisection():
    rng = random.Random(0)
    for _ in range(300):
        advantages, n_tokens = random_batch(rng)
        got = rebalance(tensor(advantages), torch.tensor(n_tokens))
        torch.testing.assert_close(got, tensor(plain_rebalance(advantages, n_tokens)))


def test_rebalance_leaves_a_sum_that_is_not_negative_alone():
    rng = random.Random(1)
    batches = [batch for batch in (random_batch(rng) for _ in range(300)) if weighted_sum(*batch) >= 0]
    assert len(batches) > 20
    for advantages, n_tokens in batches + [([0.5, -0.5], [3, 3]), ([0.0], [9])]:
        assert rebalance(tensor(advantages), torch.tensor(n_tokens)).tolist() == advantages


def test_rebalance_solved_by_hand():
    """A = (-1, 1) with 3 and 1 tokens: exp(1/T) = 3 exp(-1/T) at T = 2 / ln 3, which gives (-1/sqrt 3, sqrt 3)."""
    got = rebalance(tensor([-1, 1]), torch.tensor([3, 1]))
    torch.testing.assert_close(got, tensor([-(3**-0.5), 3**0.5]), rtol=0.02, atol=0)
    assert weighted_sum([-1, 1], [3, 1]) == -2
    assert abs(weighted_sum(got.tolist(), [3, 1])) < 0.05


def test_rebalance_finds_the_temperature_where_the_sum_is_zero():
    """One temperature for all episodes, within 0.05 of the root, or at the end of the bracket next to it."""
    rng = random.Random(2)
    inside = below = 0
    for _ in range(300):
        advantages, n_tokens = random_batch(rng)
        if weighted_sum(advantages, n_tokens) >= 0:
            continue
        got = rebalance(tensor(advantages), torch.tensor(n_tokens)).tolist()
        temperatures = [a / math.log(b / a) for a, b in zip(advantages, got, strict=True)]
        temperature = temperatures[0]
        assert temperatures == pytest.approx([temperature] * len(temperatures))
        assert weighted_sum(got, n_tokens) > weighted_sum(advantages, n_tokens)
        assert weighted_sum(advantages, n_tokens, temperature + 0.05) < 0 or temperature > 99.9
        if weighted_sum(advantages, n_tokens, 0.8) >= 0:
            inside += 1
            assert weighted_sum(advantages, n_tokens, max(0.8, temperature - 0.05)) >= 0
        else:
            below += 1
            assert 0.8 < temperature < 0.85
    assert inside > 20 and below > 20


# ---------------------------------------------------------------------------------------------------------
# Policy loss


def plain_keep(advantage, ratio, clip):
    if clip == "one-side":
        return (advantage >= 0 and ratio <= 1 + EPS) or (advantage <= 0 and ratio >= 1 - EPS)
    return clip == "none" or 1 - EPS <= ratio <= 1 + EPS


def plain_loss(batch, n_tokens, clip, importance, kl_coef):
    """Loss and its gradient by logp, the ratio being a constant."""
    loss, grad = 0.0, [[0.0] * len(row) for row in batch["mask"].tolist()]
    for b, row in enumerate(batch["mask"].tolist()):
        for t, sampled in enumerate(row):
            if not sampled:
                continue
            logp, old, advantage, ref = (batch[name][b, t].item() for name in ("logp", "old", "advantages", "ref"))
            ratio = math.exp(logp - old)
            keep = plain_keep(advantage, ratio, clip)
            weight = advantage * (ratio if importance else 1) * keep
            loss += (-weight * logp + kl_coef * 0.5 * (logp - ref) ** 2) / n_tokens
            grad[b][t] = (-weight + kl_coef * (logp - ref)) / n_tokens
    return loss, grad


def random_tokens(seed, rows=5, length=7):
    """A batch where rows differ in length and the mask has holes; about half of the ratios are beyond the clip."""
    make = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(*shape, generator=make, dtype=torch.float64)

    logp = uniform(-3, -0.1, rows, length)
    mask = uniform(0, 1, rows, length) < 0.7
    mask[0, 0] = True
    advantages = uniform(-1, 1, rows, 1).expand(rows, length).clone()
    advantages[-1] = 0.0
    ref = logp + uniform(-1, 1, rows, length)
    return {
        "logp": logp,
        "old": logp + uniform(-0.5, 0.5, rows, length),
        "advantages": advantages,
        "mask": mask,
        "ref": ref,
    }


def call(batch, n_tokens, clip="one-side", importance=False, kl_coef=0.0):
    ref = batch["ref"] if kl_coef else None
    return policy_loss(
        batch["logp"],
        batch["old"],
        batch["advantages"],
        batch["mask"],
        n_tokens,
        clip=clip,
        eps=EPS,
        importance=importance,
        ref_logp=ref,
        kl_coef=kl_coef,
    )


def loss_and_grad(batch, *args, **kwargs):
    batch = {**batch, "logp": batch["logp"].clone().requires_grad_()}
    loss, _ = call(batch, *args, **kwargs)
    loss.backward()
    return loss.detach(), batch["logp"].grad


VARIANTS = [(clip, importance, kl_coef) for clip in CLIPS for importance in (False, True) for kl_coef in (0.0, 0.3)]
every_variant = pytest.mark.parametrize(("clip", "importance", "kl_coef"), VARIANTS)


@every_variant
def test_loss_and_gradient_match_plain_python(clip, importance, kl_coef):
    for seed in range(5):
        batch = random_tokens(seed)
        loss, grad = loss_and_grad(batch, 11.0, clip, importance, kl_coef)
        want_loss, want_grad = plain_loss(batch, 11.0, clip, importance, kl_coef)
        assert loss.item() == pytest.approx(want_loss)
        torch.testing.assert_close(grad, tensor(want_grad))


@every_variant
def test_gradient_matches_finite_differences(clip, importance, kl_coef):
    """logp and old_logp move together, which holds the ratio fixed: it carries no gradient."""
    batch, step = random_tokens(9, rows=3, length=4), 1e-5
    _, grad = loss_and_grad(batch, 7.0, clip, importance, kl_coef)
    for index in [(b, t) for b in range(3) for t in range(4)]:
        values = []
        for sign in (1, -1):
            moved = {**batch, "logp": batch["logp"].clone(), "old": batch["old"].clone()}
            moved["logp"][index] += sign * step
            moved["old"][index] += sign * step
            values.append(call(moved, 7.0, clip, importance, kl_coef)[0].item())
        assert grad[index].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-8)


def by_hand(advantage, **kwargs):
    """Four tokens with ratios 0.7, 0.9, 1.1 and 1.3, all at logp -2; returns loss, gradient, number clipped."""
    ratios = tensor([[0.7, 0.9, 1.1, 1.3]])
    logp = torch.full((1, 4), -2.0, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 4, dtype=torch.bool)
    old_logp = -2.0 - ratios.log()
    loss, metrics = policy_loss(logp, old_logp, torch.full_like(ratios, advantage), mask, 4, eps=EPS, **kwargs)
    loss.backward()
    return loss.item(), logp.grad[0].tolist(), metrics["clipped"].item()


@pytest.mark.parametrize(
    ("clip", "advantage", "kept"),
    [
        ("one-side", 0.5, [1, 1, 1, 0]),  # good tokens: stop once they are likely enough
        ("one-side", -0.5, [0, 1, 1, 1]),  # bad tokens: stop once they are unlikely enough
        ("one-side", 0.0, [1, 1, 1, 1]),
        ("two-side", 0.5, [0, 1, 1, 0]),
        ("two-side", -0.5, [0, 1, 1, 0]),
        ("none", 0.5, [1, 1, 1, 1]),
        ("none", -0.5, [1, 1, 1, 1]),
    ],
)
def test_keep_rule_by_hand(clip, advantage, kept):
    loss, grad, clipped = by_hand(advantage, clip=clip)
    assert loss == pytest.approx(-sum(kept) * advantage * -2 / 4)
    assert grad == pytest.approx([-keep * advantage / 4 for keep in kept])
    assert clipped == 4 - sum(kept)


def test_importance_multiplies_by_the_ratio_by_hand():
    loss, grad, _ = by_hand(-0.5, importance=True)
    assert grad == pytest.approx([0, 0.5 * 0.9 / 4, 0.5 * 1.1 / 4, 0.5 * 1.3 / 4])
    assert loss == pytest.approx(-2 * 0.5 * (0.9 + 1.1 + 1.3) / 4)


def test_one_side_clip_is_the_default_and_has_no_kl():
    batch = random_tokens(3)
    loss, metrics = policy_loss(batch["logp"], batch["old"], batch["advantages"], batch["mask"], 13.0)
    assert loss.item() == pytest.approx(plain_loss(batch, 13.0, "one-side", False, 0.0)[0])
    assert metrics["kl"].item() == 0


def test_metrics_are_sums_over_the_sampled_tokens():
    batch = random_tokens(4)
    _, metrics = call(batch, 5.0, kl_coef=0.1)
    at = [(b, t) for b, row in enumerate(batch["mask"].tolist()) for t, sampled in enumerate(row) if sampled]
    logp, old, ref, advantages = ([batch[name][i].item() for i in at] for name in ("logp", "old", "ref", "advantages"))
    logs = [new - before for new, before in zip(logp, old, strict=True)]
    kept = [plain_keep(a, math.exp(log), "one-side") for a, log in zip(advantages, logs, strict=True)]
    assert metrics["clipped"].item() == len(kept) - sum(kept) > 0
    assert metrics["log_ratio_abs"].item() == pytest.approx(sum(map(abs, logs)))
    assert metrics["log_ratio_max"].item() == pytest.approx(max(map(abs, logs)))
    assert metrics["kl"].item() == pytest.approx(sum(0.5 * (new - r) ** 2 for new, r in zip(logp, ref, strict=True)))
    assert not any(value.requires_grad for value in metrics.values())


@every_variant
def test_any_split_into_micro_batches_adds_up(clip, importance, kl_coef):
    rng = random.Random(f"{clip}/{importance}/{kl_coef}")
    for seed in range(5):
        batch = random_tokens(seed, rows=8)
        batch["mask"][3] = False  # an episode without sampled tokens, which may end up alone
        n_tokens = batch["mask"].sum().item()
        want_loss, want_grad = loss_and_grad(batch, n_tokens, clip, importance, kl_coef)
        rows = list(range(8))
        rng.shuffle(rows)
        loss, grad = 0.0, torch.zeros_like(want_grad)
        while rows:
            part, rows = rows[: (size := rng.randint(1, 4))], rows[size:]
            part_loss, grad[part] = loss_and_grad(
                {k: v[part] for k, v in batch.items()}, n_tokens, clip, importance, kl_coef
            )
            loss += part_loss
        torch.testing.assert_close(loss, want_loss, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(grad, want_grad, rtol=1e-12, atol=1e-14)


@every_variant
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_what_stands_outside_the_mask_has_no_effect(garbage, clip, importance, kl_coef):
    batch = random_tokens(6)
    want_loss, want_grad = loss_and_grad(batch, 9.0, clip, importance, kl_coef)
    names = ("logp", "old", "advantages", "ref")
    for spoilt in [*((name,) for name in names), names]:
        poisoned = {k: v.masked_fill(~batch["mask"], garbage) if k in spoilt else v for k, v in batch.items()}
        loss, grad = loss_and_grad(poisoned, 9.0, clip, importance, kl_coef)
        assert torch.equal(loss, want_loss)
        assert torch.equal(grad, want_grad)
        assert (grad[~batch["mask"]] == 0).all()


def test_a_batch_without_sampled_tokens_gives_zero():
    batch = random_tokens(7)
    batch["mask"][:] = False
    loss, grad = loss_and_grad(batch, 5.0, kl_coef=0.5)
    assert loss.item() == 0 and (grad == 0).all()
    assert all(value.item() == 0 for value in call(batch, 5.0, kl_coef=0.5)[1].values())


def test_bad_clip_raises():
    with pytest.raises(ValueError) as error:
        call(random_tokens(0), 1.0, clip="both")
    assert all(name in str(error.value) for name in ("both", *CLIPS))

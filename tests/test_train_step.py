"""The second half of a step: the update of the weights, and the settings that reach it."""

import copy
import dataclasses
import inspect
import math
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from peft import load_peft_weights
from training import (
    PLAYED,
    assert_one_line,
    assert_same_run,
    flags,
    fresh_policy,
    kill,
    plain_descent,
    run_here,
    run_until,
    saved_steps,
    shake,
    steps_of,
    trained_weights,
)

import eval as evaluation
import grpo
import train
from engine.batches import pad_batch
from engine.build import build
from engine.models import load_model
from engine.settings import Config
from rollout import Episode
from train import assign_advantages, collect, divergence, learning_rate_factor, update


def log_probability(policy, episode):
    policy.model.eval()
    with torch.no_grad():
        ids, mask, _ = pad_batch([episode], "cpu")
        return policy.logprobs(ids, mask)[0].sum().item()


def watched_loss(record):
    """policy_loss that also appends its (log-probabilities, reference, metrics), at sampled positions, to `record`."""

    def loss(logp, old_logp, advantages, mask, ref_logp, **settings):
        result = real(logp, old_logp, advantages, mask, ref_logp=ref_logp, **settings)
        ref = None if ref_logp is None else ref_logp[mask]
        record.append((logp[mask].detach(), ref, {k: v.item() for k, v in result[1].items()}))
        return result

    real = train.policy_loss
    return mock.patch.object(train, "policy_loss", loss)


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_the_gradient_does_not_depend_on_micro_batches(kl_coef, groups):
    outcomes = []
    for budget in (1, 700, 10**6):
        config = dataclasses.replace(PLAYED, tokens_per_microbatch=budget, grad_clip=1e9, kl_coef=kl_coef)
        policy = fresh_policy(config)
        shake(policy)
        before = trained_weights(policy)
        episodes = assign_advantages(groups, config)
        means = update(policy, plain_descent(policy), episodes, config, 0)
        outcomes.append((before - trained_weights(policy), means))
    for gradient, means in outcomes[1:]:
        assert torch.allclose(gradient, outcomes[0][0], atol=1e-6, rtol=0)
        assert means == pytest.approx(outcomes[0][1], abs=1e-5)
    assert outcomes[0][0].norm().item() == pytest.approx(outcomes[0][1]["grad_norm"], rel=1e-3)
    assert outcomes[0][0].abs().max() > 1e-4


def test_episodes_without_advantage_are_left_out_and_the_gradient_stays(groups):
    policy = fresh_policy()
    shake(policy)
    before = trained_weights(policy)
    episodes = assign_advantages(groups, PLAYED)
    for episode in episodes[::2]:
        episode.advantage = 0.0
    ids, mask, _ = pad_batch(episodes, "cpu")  # all of them, in one pass
    policy.model.train()
    logp, entropy = policy.logprobs(ids, mask)  # [B, T] each
    loss = -(torch.tensor([[e.advantage] for e in episodes]) * logp.where(mask, 0.0)).sum() / mask.sum()
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    expected = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)])

    config = dataclasses.replace(PLAYED, grad_clip=1e9, clip="none")
    means = update(policy, plain_descent(policy), episodes, config, 0)
    assert torch.allclose(before - trained_weights(policy), expected, atol=1e-6, rtol=0) and expected.abs().max() > 1e-4
    assert means["loss"] == pytest.approx(loss.item(), abs=1e-6)
    kept = [row for row, episode in enumerate(episodes) if episode.advantage != 0]
    assert 0 < len(kept) < len(episodes)
    assert means["tokens_trained"] == mask[kept].sum().item()
    assert means["tokens_forward"] == sum(len(episodes[row].ids) for row in kept)
    assert means["entropy"] == pytest.approx((entropy * mask)[kept].sum().item() / mask[kept].sum().item(), abs=1e-4)


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_episodes_in_which_nothing_was_sampled_are_left_out(kl_coef, groups):
    """A prompt that is longer than the model can read leaves one."""
    config = dataclasses.replace(PLAYED, grad_clip=1e9, kl_coef=kl_coef)
    outcomes = []
    for more in (0, 3):
        policy = fresh_policy(config)
        shake(policy)
        before = trained_weights(policy)
        episodes = assign_advantages(groups, PLAYED)
        episodes += [Episode("solve", 0, [], "", advantage=1.0) for _ in range(more)]
        apart = divergence(policy, episodes, config)
        means = update(policy, plain_descent(policy), episodes, config, 0)
        outcomes.append((before - trained_weights(policy), means, apart))
    assert torch.equal(outcomes[0][0], outcomes[1][0]) and outcomes[0][0].abs().max() > 1e-4
    assert outcomes[0][1:] == outcomes[1][1:]


def test_a_batch_in_which_nothing_was_sampled_changes_nothing():
    policy = fresh_policy()
    before = trained_weights(policy)
    episodes = [Episode("solve", 0, [], "") for _ in range(4)]
    means = update(policy, plain_descent(policy), episodes, PLAYED, 0)
    assert torch.equal(trained_weights(policy), before) and means["tokens_trained"] == 0
    assert divergence(policy, episodes, PLAYED) == 0


def test_without_any_advantage_all_episodes_are_measured_and_nothing_is_learnt(groups):
    policy = fresh_policy()
    before = trained_weights(policy)
    episodes = assign_advantages(groups, PLAYED)
    for episode in episodes:
        episode.advantage = 0.0
    means = update(policy, plain_descent(policy), episodes, PLAYED, 0)
    assert torch.equal(trained_weights(policy), before)
    assert means["tokens_trained"] == sum(episode.n_sampled for episode in episodes) and means["entropy"] > 0


@pytest.mark.parametrize("sign", [1, -1])
def test_a_step_moves_the_probability_of_an_episode_towards_its_advantage(sign, groups):
    episodes = [episode for group in groups for rollout in group for episode in rollout.episodes]
    chosen = max(episodes, key=lambda episode: episode.n_sampled)
    chosen.advantage = float(sign)
    policy = fresh_policy()
    before = log_probability(policy, chosen)
    optimiser = torch.optim.AdamW([p for p in policy.model.parameters() if p.requires_grad], lr=1e-3)
    update(policy, optimiser, episodes, PLAYED, 0)
    assert sign * (log_probability(policy, chosen) - before) > 1e-3


def test_the_gradient_is_clipped(groups):
    config = dataclasses.replace(PLAYED, grad_clip=1e-3)
    policy = fresh_policy(config)
    before = trained_weights(policy)
    episodes = assign_advantages(groups, config)
    norm = update(policy, plain_descent(policy), episodes, config, 0)["grad_norm"]
    assert norm > 2e-3  # as it was before
    assert (trained_weights(policy) - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_only_the_adapter_changes(groups):
    policy = fresh_policy()
    before = {name: weights.clone() for name, weights in policy.model.state_dict().items()}
    episodes = assign_advantages(groups, PLAYED)
    update(policy, plain_descent(policy), episodes, PLAYED, 0)
    changed = {name for name, weights in policy.model.state_dict().items() if not torch.equal(weights, before[name])}
    assert changed and all("lora_" in name for name in changed)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in policy.model.parameters())


def test_the_sampler_and_the_trainer_agree_until_the_first_step(groups):
    config = dataclasses.replace(PLAYED, updates_per_batch=2)
    policy = fresh_policy(config)
    optimiser = plain_descent(policy)
    record = []
    optimiser.register_step_post_hook(lambda *_: record.append("step"))
    episodes = assign_advantages(groups, config)
    with watched_loss(record):
        means = update(policy, optimiser, episodes, config, 0)
    assert record.count("step") == 2 and record[-1] == "step"
    first, second = record[: record.index("step")], record[record.index("step") + 1 : -1]
    assert max(part[2]["log_ratio_max"] for part in first) < 1e-4
    assert max(part[2]["log_ratio_max"] for part in second) > 1e-3
    assert means["log_ratio_max"] == max(part[2]["log_ratio_max"] for part in first + second)
    trained = [len(part[0]) for part in first + second]
    # each episode once, but for those that add nothing to the gradient
    assert sum(trained) == sum(episode.n_sampled for episode in episodes if episode.advantage != 0)
    alone = update(fresh_policy(), optimiser, episodes, PLAYED, 0)
    assert alone["log_ratio_abs"] < 1e-5 and alone["clipped"] == 0


def test_dropout_is_for_training_only():
    config = dataclasses.replace(PLAYED, lora_dropout=0.5, packs_per_step=1, group_size=2)
    policy = fresh_policy(config)
    shake(policy)
    groups = collect(policy, config, 0)
    for episode in groups[0][0].episodes:
        assert log_probability(policy, episode) == pytest.approx(sum(episode.logps), abs=1e-3)
    episodes = assign_advantages(groups, config)
    assert update(policy, plain_descent(policy), episodes, config, 0)["log_ratio_abs"] > 1e-3


def test_the_settings_of_the_model_and_the_optimiser_reach_them():
    config = Config(
        temperature=0.7, max_reply_tokens=9, lora_rank=4, lora_alpha=12, lora_dropout=0.25, lr=1e-3, weight_decay=0.1
    )
    policy, optimiser = build(config, Accelerator(cpu=True))
    assert (policy.settings.temperature, policy.settings.max_reply_tokens) == (0.7, 9)
    adapter = policy.model.peft_config["default"]
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (4, 12, 0.25)
    [group] = optimiser.param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-3, 0.1)
    assert len(group["params"]) == sum(parameter.requires_grad for parameter in policy.model.parameters()) > 0


def test_the_settings_of_the_loss_reach_it(groups):
    config = dataclasses.replace(PLAYED, clip="two-side", clip_eps=0.15, importance=True, kl_coef=0.25)
    policy = fresh_policy(config)
    episodes = assign_advantages(groups, config)
    with mock.patch.object(train, "policy_loss", wraps=train.policy_loss) as loss:
        update(policy, plain_descent(policy), episodes, config, 0)
    for call in loss.call_args_list:
        given = inspect.signature(grpo.policy_loss).bind(*call.args, **call.kwargs).arguments
        settings = {name: given[name] for name in ("n_tokens", "clip", "eps", "importance", "kl_coef")}
        n_tokens = sum(episode.n_sampled for episode in episodes)
        assert settings == {"n_tokens": n_tokens, "clip": "two-side", "eps": 0.15, "importance": True, "kl_coef": 0.25}


def test_the_reference_is_the_model_without_its_adapter(groups):
    config = dataclasses.replace(PLAYED, temperature=0.7, kl_coef=0.1)
    policy = fresh_policy(config)
    [episode, *_] = assign_advantages(groups, config)
    base, _ = load_model(config.model)
    ids = torch.tensor([episode.ids])  # [1, T]
    with torch.no_grad():
        all_logp = (base(input_ids=ids).logits[0, :-1].float() / config.temperature).log_softmax(dim=-1)  # [T-1, V]
    expected = all_logp.gather(1, ids[0, 1:, None])[:, 0][torch.tensor(episode.mask[1:])]  # [n]
    record = []
    with watched_loss(record):
        fresh = update(policy, plain_descent(policy), [episode], config, 0)
        shake(policy)
        shaken = update(policy, plain_descent(policy), [episode], config, 1)
    for _, reference, _ in record:
        assert torch.allclose(reference, expected, atol=1e-4)
    assert torch.allclose(record[0][0], expected, atol=1e-4)  # a fresh adapter changes nothing
    assert fresh["kl"] == pytest.approx(0, abs=1e-9)
    moved = record[1][0]
    assert shaken["kl"] == pytest.approx((0.5 * (moved - expected) ** 2).mean().item(), rel=1e-2)
    assert shaken["kl"] > 1e-4


def test_the_divergence_from_the_reference_grows_from_zero_in_training(tmp_path):
    assert run_here(flags(output=tmp_path, name="a", kl_coef=0.01, steps=3, updates_per_batch=1)) == 0
    first, *later = [line["kl"] for line in steps_of(tmp_path / "a")]
    assert first == pytest.approx(0, abs=1e-9)
    assert later[-1] > 1e-6


def test_more_updates_than_episodes_leave_some_without_any(groups):
    episodes = assign_advantages(groups, PLAYED)[:2]
    config = dataclasses.replace(PLAYED, updates_per_batch=3)
    policy = fresh_policy(config)
    record = []
    with watched_loss(record):
        means = update(policy, plain_descent(policy), episodes, config, 0)
    assert all(math.isfinite(value) for value in means.values())
    assert sum(len(part[0]) for part in record) == sum(episode.n_sampled for episode in episodes)


def test_an_update_without_a_finite_gradient_is_left_out_and_counted(groups):
    episodes = assign_advantages(groups, PLAYED)
    episodes[0].advantage = math.inf
    policy = fresh_policy()
    before = trained_weights(policy)
    assert update(policy, plain_descent(policy), episodes, PLAYED, 7)["skipped"] == 1
    assert torch.equal(trained_weights(policy), before)
    episodes[0].advantage = 1.0
    assert update(policy, plain_descent(policy), episodes, PLAYED, 7)["skipped"] == 0
    assert not torch.equal(trained_weights(policy), before)


def bad_gradients(monkeypatch, steps):
    """The advantages of these steps (from 0) are not numbers."""
    real, calls = train.assign_advantages, []

    def assign(*arguments):
        episodes = real(*arguments)
        calls.append(0)
        if len(calls) - 1 in steps:
            episodes[0].advantage = math.inf
        return episodes

    monkeypatch.setattr(train, "assign_advantages", assign)


def test_three_steps_in_a_row_without_a_finite_gradient_end_the_run(tmp_path, monkeypatch):
    bad_gradients(monkeypatch, {1, 3, 4, 5})
    message = run_here(flags(output=tmp_path, name="a", steps=8, eval_every=0))
    assert_one_line(message, "three steps in a row", f"--resume {tmp_path / 'a'}", "--lr")
    assert [line["skipped"] for line in steps_of(tmp_path / "a")] == [0, 1, 0, 1, 1, 1]
    assert steps_of(tmp_path / "a")[1]["loss"] is None
    saved = load_peft_weights(str(tmp_path / "a" / "checkpoints" / saved_steps(tmp_path / "a")[-1] / "adapter"))
    assert all(weights.isfinite().all() for weights in saved.values())
    monkeypatch.undo()
    assert run_here(["--resume", tmp_path / "a", "--lr", 1e-4]) == 0


@pytest.mark.parametrize("function, named", [
    ("collect", ["rollout", "--kv-tokens"]),
    ("update", ["train", "--tokens-per-microbatch"]),
    ("evaluate", ["evaluation", "--kv-tokens"]),
])  # fmt: skip
def test_out_of_memory_names_the_phase_and_what_to_lower(function, named, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(evaluation if function == "evaluate" else train, function, fail)
    assert_one_line(run_here(flags(output=tmp_path, name="a")), "out of memory in", *named)


@pytest.mark.parametrize("optimizer", ["adamw-8bit", "paged-adamw-8bit"])
def test_optimisers_of_bitsandbytes_train_and_resume_exactly(optimizer, tmp_path):
    argv = flags(output=tmp_path, optimizer=optimizer, eval_every=0)
    assert run_here([*argv, "--name", "whole"]) == 0
    assert run_until([*argv, "--name", "a"], "update", 3, kill) == "killed"
    assert run_here(["--resume", tmp_path / "a"]) == 0
    assert_same_run(tmp_path / "a", tmp_path / "whole")
    assert steps_of(tmp_path / "a")[-1]["kl"] > 0


def test_gradient_checkpointing_changes_memory_only(groups):
    gradients = []
    for setting in ("off", "on"):
        config = dataclasses.replace(PLAYED, gradient_checkpointing=setting, grad_clip=1e9)
        policy, _ = build(config, Accelerator(cpu=True))
        shake(policy)
        assert policy.decoder.gradient_checkpointing == (setting == "on")
        before = trained_weights(policy)
        episodes = assign_advantages(copy.deepcopy(groups), config)
        update(policy, plain_descent(policy), episodes, config, 0)
        gradients.append(before - trained_weights(policy))
    assert gradients[0].abs().max() > 1e-4
    assert torch.allclose(*gradients, atol=1e-6, rtol=0)


def test_the_divergence_is_that_from_the_model_without_its_adapter(groups):
    policy = fresh_policy()
    episodes = assign_advantages(groups, PLAYED)
    assert divergence(policy, episodes, PLAYED) == pytest.approx(0, abs=1e-9)
    for episode in episodes:
        episode.logps = [logp - 0.5 * sampled for logp, sampled in zip(episode.logps, episode.mask, strict=True)]
    assert divergence(policy, episodes, PLAYED) == pytest.approx(0.125, abs=1e-3)
    shake(policy)  # the adapter of now does not matter
    assert divergence(policy, episodes, PLAYED) == pytest.approx(0.125, abs=1e-3)


def test_layers_with_an_adapter_can_be_chosen(tmp_path):
    policy, _ = build(Config(lora_targets="q_proj,v_proj"), Accelerator(cpu=True))
    adapted = {
        name.split(".lora_")[0].rsplit(".")[-1] for name, _ in policy.model.named_parameters() if "lora_" in name
    }
    assert adapted == {"q_proj", "v_proj"}
    message = run_here(flags(output=tmp_path / "runs", lora_targets="nothing"))
    assert_one_line(message, "lora_targets='nothing'")


@pytest.mark.parametrize(
    "schedule, warmup_steps, expected",
    [
        ("constant", 0, [1, 1, 1, 1, 1]),
        ("constant", 2, [0.5, 1, 1, 1, 1]),
        ("linear", 0, [1, 0.8, 0.6, 0.4, 0.2]),
        ("linear", 3, [1 / 3, 2 / 3, 1, 1, 0.5]),
        ("cosine", 0, [(1 + math.cos(math.pi * x)) / 2 for x in (0, 0.2, 0.4, 0.6, 0.8)]),
        ("cosine", 1, [1, 1, 0.5 + math.sqrt(0.5) / 2, 0.5, 0.5 - math.sqrt(0.5) / 2]),
    ],
)
def test_learning_rate_by_hand(schedule, warmup_steps, expected):
    config = Config(steps=5, lr_schedule=schedule, warmup_steps=warmup_steps)
    assert [learning_rate_factor(step, config) for step in range(5)] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_no_step_is_wasted_on_a_learning_rate_of_zero(schedule):
    for steps in (1, 2, 7):
        for warmup_steps in range(10):
            config = Config(steps=steps, lr_schedule=schedule, warmup_steps=warmup_steps)
            assert all(0 < learning_rate_factor(step, config) <= 1 for step in range(steps))

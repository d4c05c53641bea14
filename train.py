"""CoD training: reinforcement learning over packs of related tasks, hints included, end to end.

    python train.py                                            the embedded policy on FrozenLake-Obscure, on a CPU
    python train.py --model Qwen/Qwen3-1.7B --level train ...  any Hugging Face chat model, with LoRA
    python train.py settings.yaml --lr 1e-3                    settings from a file; flags win over it
    python train.py --resume runs/NAME                         go on with an interrupted run, exactly
    python train.py --teachers ENV/LEVEL=RUN,...               distil runs on the same model into one, without rewards
    python train.py --check --model ...                        can this model be trained here? (engine/check.py)
    accelerate launch --num_processes 2 train.py ...           on two GPUs; each plays its share of the packs

Differences from the paper: LoRA instead of full fine-tuning, a decaying learning rate, and smaller batches.

A run folder holds config.json, metrics.jsonl, samples/ (rollouts), checkpoints/ (the last two), and at the end
adapter/, curves.png and report.html. Settings are in engine/settings.py, the life of a run (stop, resume, files) in
record/run.py.
"""

import engine.start  # noqa: F401, I001 (before torch is imported)

import dataclasses
import math
import random
import statistics
import time
from pathlib import Path

import torch
from tqdm import tqdm

from engine import processes
from engine.batches import Batch, training_batches
from engine.build import build
from engine.check import full_check, short_check
from engine.command_line import command_line, parse_flags
from engine.policy import Policy
from engine.settings import Config, with_teachers, with_whole_paths
from engine.teachers import add_teachers, assign_gaps
from eval import evaluate_all, evaluate_players
from grpo import episode_returns, group_advantages, policy_loss, rebalance
from record.files import TRAIN_SEEDS, resumed_settings, teacher_adapters
from record.metrics import rollout_metrics
from record.run import Run, phase
from rollout import BAR_DELAY, Episode, Rollout, no_hints, play, run


def train(config: Config, policy: Policy, optimizer, training: Run) -> None:
    """The whole of CoD."""
    for step in range(training.done, config.steps):
        if step == 0:
            training.log_evaluation(evaluate_all(policy, config, "before training"))
        elif config.eval_every and step % config.eval_every == 0:
            training.log_evaluation(evaluate_all(policy, config, "validation"))
        with training.step():
            metrics, groups = training_step(policy, optimizer, config, step)
            training.log(metrics, groups)
    training.log_evaluation(evaluate_all(policy, config, "after training"))
    if config.pack_size > 1:
        training.log_evaluation(evaluate_all(policy, config, "after, hints blanked", no_hints))
    training.log_evaluation(evaluate_players(config))


def training_step(policy: Policy, optimizer, config: Config, step: int) -> tuple[dict, list[list[Rollout]]]:
    """Play packs, give every episode its advantage, update the weights.

    Returns the step's metrics and this process's rollouts [packs][G].
    """
    usage: dict[str, float] = {}
    with phase("rollout", "lower --kv-tokens (or use --load-in-4bit)", policy.device, usage):
        groups = collect(policy, config, step)
    with phase("train", "lower --tokens-per-microbatch (or use --load-in-4bit)", policy.device, usage):
        if config.teachers:
            episodes, gaps = assign_gaps(policy, groups, config)
        else:
            episodes, gaps = assign_advantages(groups, config), {}
        metrics = rollout_metrics(groups, config) | gaps | update(policy, optimizer, episodes, config, step)
        if config.kl_coef == 0:  # else the loss has measured it
            metrics["kl"] = divergence(policy, episodes, config)
    speed = {
        "speed_rollout": metrics["tokens_sampled"] / usage["time_rollout"],
        "speed_train": metrics["tokens_forward"] / usage["time_train"],
    }
    return metrics | usage | speed, groups


def collect(policy: Policy, config: Config, step: int) -> list[list[Rollout]]:
    """This process's share of the step's packs, `group_size` rollouts of each: [packs][G]."""
    share = processes.share(config.packs_per_step)
    number = step * config.packs_per_step + share.start  # of its first pack in the whole run
    packs = [config.pack(TRAIN_SEEDS * (config.seed + 1) + number + i) for i in range(len(share))]
    games = [play(pack, config.penalties) for pack in packs for _ in range(config.group_size)]
    with policy.sampling():
        rollouts = run(
            games,
            policy,
            seed=f"train/{config.seed}",
            numbers=range(number * config.group_size, (number + len(share)) * config.group_size),
            at_once=config.rollouts_at_once,
            progress="rollouts",
        )
    return [rollouts[i : i + config.group_size] for i in range(0, len(rollouts), config.group_size)]


def assign_advantages(groups: list[list[Rollout]], config: Config) -> list[Episode]:
    """Set return and advantage of every episode; returns the episodes of all rollouts."""
    for group in groups:
        solve = torch.tensor([[episode.reward for episode in rollout.of("solve")] for rollout in group])  # [G, S]
        hints = torch.tensor([[episode.reward for episode in rollout.of("update")] for rollout in group])  # [G, S-1]
        returns = episode_returns(solve, hints, config.credit, config.window, config.gamma)  # [G, S], [G, S-1]
        for kind, values in zip(("solve", "update"), returns, strict=True):
            advantages = group_advantages(values)
            for g, rollout in enumerate(group):
                for episode in rollout.of(kind):
                    episode.ret = values[g, episode.position].item()
                    episode.advantage = advantages[g, episode.position].item()
    episodes = [episode for group in groups for rollout in group for episode in rollout.episodes]
    if config.rebalance:  # defined over the whole batch, hence over all processes
        batch = processes.of_all([[e.advantage, e.n_sampled] for e in episodes])  # [processes * N, 2]
        weighted = rebalance(batch[:, 0], batch[:, 1])  # [processes * N]
        first = processes.rank() * len(episodes)
        for episode, advantage in zip(episodes, weighted[first : first + len(episodes)].tolist(), strict=True):
            episode.advantage = advantage
    return episodes


def update(policy: Policy, optimizer, episodes: list[Episode], config: Config, step: int) -> dict:
    """`updates_per_batch` optimiser steps on the episodes; returns metrics (means over the trained tokens).

    Episodes whose advantage is zero are left out of the forward and backward passes, as they add nothing to the
    gradient (with a KL term they do, and so would any other term of yours); the loss is still a mean over all sampled
    tokens. If all are zero, all are trained on, for the metrics.
    An update whose gradient is not finite is left out, and counted in "skipped".
    """
    [adapter] = optimizer.param_groups
    adapter["lr"] = optimizer.defaults["lr"] * learning_rate_factor(step, config)  # the peak is that of `build`
    if config.updates_per_batch > 1:
        episodes = random.Random(f"minibatches/{config.seed}/{step}").sample(episodes, len(episodes))
    sums = dict.fromkeys(("loss", "clipped", "log_ratio_abs", "kl", "entropy", "tokens", "forward"), 0.0)
    largest, norms = 0.0, []
    policy.train_mode()
    for part in range(config.updates_per_batch):
        minibatch = [episode for episode in episodes[part :: config.updates_per_batch] if episode.n_sampled]
        n_tokens = max(1, processes.total([sum(episode.n_sampled for episode in minibatch)], torch.int64)[0])
        if config.kl_coef == 0 and not config.teachers:
            minibatch = [episode for episode in minibatch if episode.advantage != 0] or minibatch
        batches = training_batches(minibatch, config.tokens_per_microbatch, policy)
        for batch in tqdm(batches, desc="training", disable=None, delay=BAR_DELAY, leave=False):
            loss, found = batch_loss(policy, batch, n_tokens, config)
            loss.backward()  # micro-batches add up to the gradient of the whole minibatch
            largest = max(largest, found.pop("log_ratio_max"))
            sums = {name: total + found[name] for name, total in sums.items()}
        norms.append(optimizer_step(optimizer, adapter["params"], config))
    sums = dict(zip(sums, processes.total(list(sums.values())), strict=True))
    tokens, forward, loss = sums.pop("tokens"), sums.pop("forward"), sums.pop("loss")
    return {
        "lr": adapter["lr"],
        "loss": loss / config.updates_per_batch,
        **{name: total / max(1, tokens) for name, total in sums.items()},
        "log_ratio_max": processes.of_all([[largest]]).max().item(),
        "grad_norm": statistics.mean(norms),
        "skipped": sum(not math.isfinite(norm) for norm in norms),
        "tokens_trained": int(tokens),
        "tokens_forward": int(forward),
    }


def batch_loss(policy: Policy, batch: Batch, n_tokens: float, config: Config) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of a micro-batch as its part of the whole, and sums over its sampled tokens."""
    ref_logp = None
    if config.kl_coef > 0:
        with torch.no_grad(), policy.model.disable_adapter():
            ref_logp, _ = policy.logprobs_of(batch)  # [B, T]
    logp, entropy = policy.logprobs_of(batch)  # [B, T], [B, T]; the entropy has no gradient (engine/weights.py)
    loss, sums = policy_loss(
        logp,
        batch.logps,
        batch.advantages,
        batch.mask,
        n_tokens=n_tokens,
        clip=config.clip,
        eps=config.clip_eps,
        importance=config.importance,
        ref_logp=ref_logp,
        kl_coef=config.kl_coef,
    )
    sums |= {"loss": loss.detach(), "entropy": entropy.sum(), "tokens": batch.mask.sum()}
    return loss, {name: value.item() for name, value in sums.items()} | {"forward": batch.n_tokens}


def optimizer_step(optimizer, parameters: list[torch.nn.Parameter], config: Config) -> float:
    """Update the weights, unless the gradient is not finite; returns its norm."""
    processes.add_up_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip).item()
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad()
    return norm


def learning_rate_factor(step: int, config: Config) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then constant, linear or cosine down to 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[config.lr_schedule]


@torch.no_grad()
def divergence(policy: Policy, episodes: list[Episode], config: Config) -> float:
    """k2 divergence per sampled token of the policy that sampled from the model without its adapter, estimated on
    every eighth episode: an eighth of the cost of a reference pass."""
    policy.model.eval()
    sampled = [episode for episode in episodes if episode.n_sampled]
    total, tokens = torch.zeros((), device=policy.device), 0  # sum of 0.5 * (logp - ref_logp)^2
    with policy.model.disable_adapter():
        for batch in training_batches(sampled[::8], config.tokens_per_microbatch, policy):
            ref_logp, _ = policy.logprobs_of(batch)  # [B, T]
            total += 0.5 * (batch.logps - ref_logp)[batch.mask].square().sum()
            tokens += batch.mask.sum().item()
    divergence, tokens = processes.total([total.item(), tokens])
    return divergence / max(1, tokens)


def main() -> None:
    config = with_teachers(with_whole_paths(parse_flags(Config)))
    folder = Path(config.resume) if config.resume else None
    if folder:
        config = resumed_settings(folder)
    config.validate()
    began = time.perf_counter()
    accelerator = processes.launch(config)
    taught = teacher_adapters(config)
    policy, optimizer = build(config, accelerator)
    add_teachers(policy, taught)
    pack = dataclasses.replace(config, pack_size=min(2, config.pack_size)).pack(0)
    if config.check:
        return full_check(policy, pack)
    processes.say(short_check(policy, pack))
    with Run(config, policy, accelerator, folder) as training:
        train(config, policy, optimizer, training)
        training.finish()
    processes.say(f"{(time.perf_counter() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    command_line(main)

"""CoD training: reinforcement learning over packs of related tasks, hints included, end to end.

    python train.py                                            the embedded policy on FrozenLake-Obscure, on a CPU
    python train.py --model Qwen/Qwen3-1.7B --level train ...  any Hugging Face chat model, with LoRA
    python train.py settings.yaml --lr 1e-3                    settings from a file; flags win over it
    python train.py --resume runs/NAME                         go on with an interrupted run, exactly
    python train.py --check --model ...                        can this model be trained here? (check.py)
    accelerate launch --num_processes 2 train.py ...           on two GPUs; each plays its share of the packs

One step: play `packs_per_step` packs, each `group_size` times; returns and advantages for every episode from the
rewards of its own task and the later ones; one policy-gradient step on all sampled tokens. Differences from the paper:
LoRA instead of full fine-tuning, a decaying learning rate, and smaller batches.

A run folder holds config.json, metrics.jsonl, samples/ (rollouts as text), checkpoints/ (the last two), and at the end
adapter/ and curves.png.
"""

import dataclasses
import importlib.util
import json
import math
import os
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm import tqdm

from batches import micro_batches, pad_batch
from check import full_check, short_check
from context import update_messages
from engine.errors import BadInput
from engine.policy import Policy, policy_for
from envs import Pack, make_pack, players, whole
from eval import World, as_flags, command_line, flag, is_run, parse_envs, parse_flags, read_run
from grpo import episode_returns, group_advantages, policy_loss, rebalance
from journal import TRAIN_SEEDS, Journal, Stop, as_text, load_checkpoint, open_run, phase, save_checkpoint, write_text
from models import Lora, add_adapter, checkpoint_activations, describe_adapter, is_large, load_model
from rollout import BAR_DELAY, Episode, Penalties, Rollout, play, run

try:
    import bitsandbytes
except ImportError:  # needed for 8-bit optimisers and 4-bit weights only
    bitsandbytes = None


@dataclass(frozen=True)
class Config:
    # the model
    model: str = flag("embedded-policy", "model folder or hub name; it needs a chat template")
    dtype: Literal["auto", "float32", "bfloat16"] = flag(
        "auto", "weights of the base model; auto: as they are stored, but float16 as bfloat16"
    )
    gguf_file: str = flag("", "name of a GGUF file in the model folder, to read the weights from")
    load_in_4bit: bool = flag(False, "QLoRA: linear layers of the base model in 4 bits (NF4, bitsandbytes)")
    gradient_checkpointing: Literal["auto", "on", "off"] = flag(
        "auto", "compute activations again in the backward pass; auto: for models above 100 million weights"
    )
    compile: bool = flag(False, "train through compiled layers (torch.compile; on a CPU it needs a C++ compiler)")
    lora_rank: int = flag(16, "rank of the LoRA adapter")
    lora_alpha: int = flag(32, "scale of the adapter (alpha / rank multiplies it)")
    lora_dropout: float = flag(0.0, "dropout in the adapter")
    lora_targets: str = flag("all-linear", "layers with an adapter: all-linear, or names separated by commas")
    # the tasks
    env: str = flag("frozenlake", "environment (envs.py)")
    level: str = flag("tiny", "level of the environment")
    envs: str = flag("", "several environments instead, ENV/LEVEL=SHARE each, as in frozenlake/train=2,alchemy/train=1")
    pack_size: int = flag(4, "S, tasks in a pack; 1 is task-by-task RL without hints")
    ralph: bool = flag(False, "Ralph loop: all tasks of a pack are the same task")
    # the batch
    steps: int = flag(40, "training steps")
    packs_per_step: int = flag(16, "packs (groups) in a step, over all processes")
    group_size: int = flag(8, "G, rollouts of each pack")
    # sampling
    temperature: float = flag(1.0, "sampling temperature; log-probabilities are taken at it too")
    max_reply_tokens: int = flag(256, "cap on the length of one reply")
    rollouts_at_once: int = flag(256, "rollouts under way at the same time (memory and speed only)")
    kv_tokens: int = flag(0, "tokens that the KV cache may hold; 0: as many as fit into the free memory")
    sampler: Literal["auto", "fast", "generate"] = flag(
        "auto", "fast: a KV cache of its own; generate: transformers' generate, for any model; auto: fast where it fits"
    )
    merge_adapter: bool = flag(True, "sample from copies of the weights with the adapter merged in (never in 4 bits)")
    cuda_graphs: bool = flag(False, "on a GPU, sample by replaying captured steps")
    # rewards
    length_penalty: float = flag(0.1, "c, coefficient of the length penalty; 0 switches it off")
    length_lo: float = flag(1e6, "reply tokens from which on a reply counts as long")
    length_hi: float = flag(2e6, "reply tokens at which the penalty for long replies is full")
    hint_penalty: float = flag(0.1, "h, taken off for a hint update that cannot be read")
    # credit assignment
    credit: Literal["mean", "window", "discount", "sum"] = flag("mean", "returns: mean is the paper's; sum is coarse")
    window: int = flag(2, "terms of --credit window")
    gamma: float = flag(0.9, "discount of --credit discount")
    rebalance: bool = flag(True, "re-weight a batch whose token-weighted mean advantage is negative")
    # policy loss
    clip: Literal["one-side", "two-side", "none"] = flag("one-side", "which tokens the clip drops")
    clip_eps: float = flag(0.2, "half-width of the clip range of the probability ratio")
    importance: bool = flag(False, "multiply advantages by the probability ratio (importance sampling)")
    kl_coef: float = flag(0.0, "coefficient of the k2 divergence from the model without its adapter")
    updates_per_batch: int = flag(1, "optimiser steps per batch, each on its own part of the episodes")
    # optimiser
    optimizer: Literal["adamw", "adamw-8bit", "paged-adamw-8bit"] = flag("adamw", "the last two are of bitsandbytes")
    lr: float = flag(0.0, "peak learning rate; 0: 5e-3, but 2e-5 for models above 100 million weights")
    lr_schedule: Literal["constant", "linear", "cosine"] = flag(
        "linear", "after the warm-up; linear and cosine end at 0"
    )
    warmup_steps: int = flag(0, "steps over which the learning rate rises")
    weight_decay: float = flag(0.0, "weight decay")
    grad_clip: float = flag(1.0, "largest norm of the gradient")
    tokens_per_microbatch: int = flag(8192, "padded tokens in one forward pass (memory and speed only)")
    # evaluation, logging, saving
    eval_every: int = flag(10, "steps between evaluations on validation packs; 0: none")
    eval_packs: int = flag(128, "packs of such an evaluation")
    test_packs: int = flag(512, "packs of the evaluations before and after training")
    sample_every: int = flag(10, "steps between rollouts written as text")
    checkpoint_every: int = flag(10, "steps between checkpoints")
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = flag("none", "also log there, through accelerate")
    seed: int = flag(0, "seed of the adapter, the training packs and the sampling")
    name: str = flag("", "name of the run folder; empty: ENV-LEVEL-seedSEED, numbered where taken")
    output: str = flag("runs", "folder that holds the run folders")
    check: bool = flag(False, "check that the model can be trained here, line by line, and train nothing")
    resume: str = flag("", "a run folder to go on with, by its own settings; a few flags may change (see README)")

    def validate(self) -> None:
        """Raise BadInput for values that cannot work, naming the field, the value and what is allowed."""
        not_negative = "warmup_steps eval_every weight_decay length_penalty hint_penalty kl_coef seed kv_tokens lr"
        positive = (
            "lora_rank lora_alpha pack_size steps packs_per_step max_reply_tokens rollouts_at_once window "
            "updates_per_batch tokens_per_microbatch eval_packs test_packs sample_every checkpoint_every"
        )
        for minimum, names in ((0, not_negative), (1, positive)):
            for name in names.split():
                if not minimum <= getattr(self, name) < math.inf:
                    raise BadInput(f"{name}={getattr(self, name)}: must be at least {minimum}, and finite")
        for name in ("temperature", "grad_clip", "clip_eps", "gamma"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput(f"{name}={getattr(self, name)}: must be above 0, and finite")
        if self.group_size < 2:
            raise BadInput(f"group_size={self.group_size}: must be at least 2; one rollout has no group baseline")
        if not 0 <= self.lora_dropout < 1:
            raise BadInput(f"lora_dropout={self.lora_dropout}: must be in [0, 1)")
        if not self.length_lo < self.length_hi < math.inf:
            raise BadInput(f"length_hi={self.length_hi}: must be above length_lo={self.length_lo}, and finite")
        n_episodes = self.packs_per_step * self.group_size * (2 * self.pack_size - 1)
        if self.updates_per_batch > n_episodes:
            raise BadInput(f"updates_per_batch={self.updates_per_batch}: a batch has {n_episodes} episodes only")
        if Path(self.output).is_file():
            raise BadInput(f"output={self.output!r}: is a file; name a folder")
        for world in self.worlds:  # unknown environments and levels end here
            self.pack(0, world)
        if len(self.cycle) > self.packs_per_step:
            raise BadInput(
                f"envs={self.envs!r}: its shares add up to {len(self.cycle)}, "
                f"but a step has {self.packs_per_step} packs only (packs_per_step)"
            )

    @property
    def penalties(self) -> Penalties:
        return Penalties(self.length_penalty, self.length_lo, self.length_hi, self.hint_penalty)

    @property
    def cycle(self) -> list[World]:
        """The environments of successive packs, again and again."""
        return parse_envs(self.envs) if self.envs else [(self.env, self.level)]

    @property
    def worlds(self) -> list[World]:
        """The environments, each with its level, once."""
        return list(dict.fromkeys(self.cycle))

    def pack(self, seed: int, world: World | None = None) -> Pack:
        """The pack of that seed, in its turn of the environments or in the given one."""
        env, level = world or self.cycle[seed % len(self.cycle)]
        return make_pack(env, seed, self.pack_size, level, self.ralph)


# What may change when a run goes on; all else would make it another run.
MAY_CHANGE = (
    "steps lr grad_clip rollouts_at_once kv_tokens sampler merge_adapter cuda_graphs tokens_per_microbatch "
    "gradient_checkpointing compile eval_every eval_packs sample_every checkpoint_every"
).split()


def learning_rate_factor(step: int, config: Config) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then constant, linear or cosine down to 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[config.lr_schedule]


# ---------------------------------------------------------------------------------------------------------
# One training step


def collect(policy: Policy, config: Config, step: int, rank: int, ranks: int) -> list[list[Rollout]]:
    """This process's share of the step's packs, `group_size` rollouts of each: [packs][G]."""
    share = config.packs_per_step // ranks
    number = step * config.packs_per_step + rank * share  # of the first pack in the whole run
    packs = [config.pack(TRAIN_SEEDS * (config.seed + 1) + number + i) for i in range(share)]
    games = [play(pack.fresh(), config.penalties) for pack in packs for _ in range(config.group_size)]
    first = number * config.group_size
    with policy.sampling():
        rollouts = run(games, policy, f"train/{config.seed}", first, config.rollouts_at_once, progress="rollouts")
    return [rollouts[i : i + config.group_size] for i in range(0, len(rollouts), config.group_size)]


def assign_advantages(groups: list[list[Rollout]], config: Config, accelerator: Accelerator) -> list[Episode]:
    """Set `advantage` on every episode; returns the episodes of all rollouts."""
    for group in groups:
        solve = torch.tensor([[episode.reward for episode in rollout.of("solve")] for rollout in group])  # [G, S]
        update = torch.tensor([[episode.reward for episode in rollout.of("update")] for rollout in group])  # [G, S-1]
        returns = episode_returns(solve, update, config.credit, config.window, config.gamma)
        advantages = dict(zip(("solve", "update"), map(group_advantages, returns), strict=True))
        for g, rollout in enumerate(group):
            for episode in rollout.episodes:
                episode.advantage = advantages[episode.kind][g, episode.position].item()
    episodes = [episode for group in groups for rollout in group for episode in rollout.episodes]
    if config.rebalance:  # defined over the whole batch, hence over all processes
        own = torch.tensor([[e.advantage, e.n_sampled] for e in episodes], device=accelerator.device)  # [N, 2]
        batch = accelerator.gather(own)  # [ranks * N, 2]
        weighted = rebalance(batch[:, 0], batch[:, 1])  # [ranks * N]
        first = accelerator.process_index * len(episodes)
        for episode, advantage in zip(episodes, weighted[first : first + len(episodes)].tolist(), strict=True):
            episode.advantage = advantage
    return episodes


def optimise(
    policy: Policy, optimizer, episodes: list[Episode], config: Config, accelerator: Accelerator, step: int
) -> dict:
    """`updates_per_batch` optimiser steps on the episodes; returns metrics (means over the trained tokens).

    Episodes whose advantage is zero are left out of the forward and backward passes where they would add nothing to the
    gradient; the loss is still a mean over all sampled tokens. If all are zero, all are trained on, for the metrics.
    An update whose gradient is not finite is left out, and counted in "skipped".
    """
    if config.updates_per_batch > 1:
        episodes = random.Random(f"minibatches/{config.seed}/{step}").sample(episodes, len(episodes))
    parameters = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    totals = dict.fromkeys(("loss", "clipped", "log_ratio_abs", "kl", "entropy", "tokens", "forward"), 0.0)
    largest, norms, skipped = 0.0, [], 0
    policy.train_mode()
    for part in range(config.updates_per_batch):
        minibatch = [episode for episode in episodes[part :: config.updates_per_batch] if episode.n_sampled]
        n_tokens = torch.tensor(sum(episode.n_sampled for episode in minibatch), device=accelerator.device)
        n_tokens = max(1, accelerator.reduce(n_tokens, "sum").item())
        if config.kl_coef == 0:
            minibatch = [episode for episode in minibatch if episode.advantage != 0] or minibatch
        batches = micro_batches(minibatch, config.tokens_per_microbatch, policy.shares_up_to)
        for batch, shared in tqdm(batches, desc="training", disable=None, delay=BAR_DELAY, leave=False):
            ids, mask, old_logp = pad_batch(batch, accelerator.device)  # [B, T] each
            advantages = torch.tensor([[e.advantage] for e in batch], device=ids.device).expand(ids.shape)  # [B, T]
            ref_logp = None
            if config.kl_coef > 0:
                with torch.no_grad(), policy.model.disable_adapter():
                    ref_logp, _ = policy.logprobs(ids, mask, shared)  # [B, T]
            logp, entropy = policy.logprobs(ids, mask, shared)  # [B, T], [B, T]
            loss, metrics = policy_loss(
                logp, old_logp, advantages, mask, n_tokens,
                config.clip, config.clip_eps, config.importance, ref_logp, config.kl_coef,
            )  # fmt: skip
            accelerator.backward(loss)
            largest = max(largest, metrics.pop("log_ratio_max").item())
            metrics |= {"loss": loss.detach(), "entropy": entropy.sum(), "tokens": mask.sum()}
            for name, value in metrics.items():
                totals[name] += value.item()
            totals["forward"] += sum(len(episode.ids) for episode in batch)
        for parameter in parameters:  # micro-batches and processes add up to the gradient of the whole minibatch
            if parameter.grad is None:  # every process must bring one
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = accelerator.reduce(parameter.grad, "sum")
        norms.append(accelerator.clip_grad_norm_(parameters, config.grad_clip).item())
        if math.isfinite(norms[-1]):
            optimizer.step()
        else:
            skipped += 1
        optimizer.zero_grad()
    sums = accelerator.reduce(torch.tensor(list(totals.values()), device=accelerator.device), "sum").tolist()
    totals = dict(zip(totals, sums, strict=True))
    tokens, forward, loss = totals.pop("tokens"), totals.pop("forward"), totals.pop("loss")
    means = {"loss": loss / config.updates_per_batch}
    means |= {name: total / max(1, tokens) for name, total in totals.items()}
    counts = {"skipped": skipped, "tokens_trained": int(tokens), "tokens_forward": int(forward)}
    largest = accelerator.gather(torch.tensor([largest], device=accelerator.device)).max().item()
    norm = statistics.mean(norms)
    return means | {"log_ratio_max": largest, "grad_norm": norm} | counts


@torch.no_grad()
def divergence(policy: Policy, episodes: list[Episode], config: Config, accelerator: Accelerator) -> float:
    """k2 divergence per sampled token of the policy that sampled from the model without its adapter, estimated on
    every eighth episode: an eighth of the cost of a reference pass."""
    policy.model.eval()
    sampled = [episode for episode in episodes if episode.n_sampled]
    total = torch.zeros(2, device=accelerator.device)  # sum of 0.5 * (logp - ref_logp)^2, number of tokens
    with policy.model.disable_adapter():
        for batch, shared in micro_batches(sampled[::8], config.tokens_per_microbatch, policy.shares_up_to):
            ids, mask, logp = pad_batch(batch, accelerator.device)  # [B, T] each
            ref_logp, _ = policy.logprobs(ids, mask, shared)  # [B, T]
            total += torch.stack([0.5 * (logp - ref_logp)[mask].square().sum(), mask.sum()])
    divergence, tokens = accelerator.reduce(total, "sum").tolist()
    return divergence / max(1, tokens)


def by_position(groups: list[list[Rollout]], size: int) -> dict[str, list[list[float]]]:
    """name -> position -> what is to be averaged."""
    solved = [[[rollout.of("solve")[j] for rollout in group] for group in groups] for j in range(size)]  # [S][packs][G]
    return {
        "success": [[e.outcome for group in at for e in group] for at in solved],
        "reward": [[e.reward for group in at for e in group] for at in solved],
        "zero_variance": [[len({e.reward for e in group}) == 1 for group in at] for at in solved],
    }


def rollout_metrics(groups: list[list[Rollout]], config: Config, accelerator: Accelerator) -> dict:
    """What the step's rollouts look like, over all processes; lists are by position."""
    rollouts = [rollout for group in groups for rollout in group]
    tasks = [episode for rollout in rollouts for episode in rollout.of("solve")]
    updates = [episode for rollout in rollouts for episode in rollout.of("update")]
    episodes = tasks + updates
    listed = by_position(groups, config.pack_size)
    if len(config.worlds) > 1:
        for env in map("/".join, config.worlds):
            of_env = by_position([group for group in groups if group[0].env == env], config.pack_size)
            listed |= {f"{name}/{env}": values for name, values in of_env.items()}
    values = listed | {  # to be averaged
        "broken_format": [[e.broken_format for e in tasks]],
        "broken_hint": [[e.broken_format for e in updates]],
        "truncated": [[reply.truncated for e in episodes for reply in e.replies]],
        "turns": [[len(e.replies) for e in tasks]],
        "reply_tokens": [[reply.n_tokens for e in tasks for reply in e.replies]],
        "hint_tokens": [[e.n_sampled for e in updates]],
        "episode_tokens": [[len(e.ids) for e in episodes]],
        "tokens_sampled": [[e.n_sampled for e in episodes]],
    }
    sums = torch.tensor([[sum(at), len(at)] for lists in values.values() for at in lists], dtype=torch.float64)
    sums = iter(accelerator.reduce(sums.to(accelerator.device), "sum").tolist())
    totals = {name: [next(sums) for _ in lists] for name, lists in values.items()}
    means = {name: [total / max(1, n) for total, n in pairs] for name, pairs in totals.items()}
    tokens = int(totals["tokens_sampled"][0][0])
    return {name: mean if name in listed else mean[0] for name, mean in means.items()} | {"tokens_sampled": tokens}


# ---------------------------------------------------------------------------------------------------------
# The training loop


def resumed_config(folder: Path) -> Config:
    """The settings of a run that is to go on: those of its config.json, and the flags that may change them."""
    if not is_run(folder):
        raise BadInput(f"resume={str(folder)!r}: not a run folder (no config.json and metrics.jsonl in it)")
    saved = as_flags(Config, folder / "config.json", read_run(folder))
    try:
        old = parse_flags(Config, [], saved)
    except BadInput as error:
        raise BadInput(f"{folder / 'config.json'}: {error}") from error
    new = dataclasses.replace(parse_flags(Config, defaults=saved), resume=old.resume)
    for name, value in dataclasses.asdict(new).items():
        if value != getattr(old, name) and name not in MAY_CHANGE:
            raise BadInput(
                f"{name}={value!r}: the run in {folder} has {getattr(old, name)!r}; "
                f"with --resume only these may change: {', '.join(MAY_CHANGE)}"
            )
    return new


def step_line(step: int, config: Config, metrics: dict) -> str:
    success = " ".join(f"{x:.2f}" for x in metrics["success"])
    return (
        f"step {step:>{len(str(config.steps))}}/{config.steps} | success {success} | turns {metrics['turns']:.1f} | "
        f"bad format {metrics['broken_format']:.1%} hints {metrics['broken_hint']:.1%} | "
        f"entropy {metrics['entropy']:.2f} | grad {metrics['grad_norm']:.2f} | lr {metrics['lr']:.1e} | "
        f"kl {metrics['kl']:.3f} | {metrics['time_rollout']:.1f}+{metrics['time_train']:.1f} s"
    )


def check_window(policy: Policy, config: Config) -> None:
    """Raise BadInput if a conversation could outgrow the model when all replies and hints are as long as allowed.

    Observations are taken to be as long as the longest that the environment's random player meets in 8 packs (as the
    first one, where there is no such player).
    """
    for world in config.worlds:
        episode = next(play(config.pack(0, world)))
        first = episode.messages[-1]["content"]
        policy.chat.open_turn(episode)
        player = players(world[0]).get("random")
        rollouts = run([play(config.pack(seed, world)) for seed in range(8)], player) if player else []
        later = [m["content"] for rollout in rollouts for e in rollout.of("solve") for m in e.messages[3::2]]
        turns, fixed = episode.task.max_turns, len(episode.ids)
        fixed += turns * max(policy.chat.turn_length(text) for text in later or [first])
        replies = turns
        if config.pack_size > 1:  # an update has all of the task in it, the hint before and the one after
            update = Episode("update", 0, update_messages("", [], 0.0, ""), "")
            policy.chat.open_turn(update)
            fixed, replies = fixed + len(update.ids), replies + 2
        if fixed + replies * config.max_reply_tokens > policy.max_length:
            most = (policy.max_length - fixed) // replies
            raise BadInput(
                f"max_reply_tokens={config.max_reply_tokens}: {turns} turns of {'/'.join(world)} may take "
                f"{fixed + replies * config.max_reply_tokens} tokens, the model has {policy.max_length}; "
                + (f"at most {most} fit" if most > 0 else "its window is too short")
            )


def build(config: Config, accelerator: Accelerator):
    """(policy with a fresh adapter, optimiser)."""
    set_seed(config.seed)  # before the adapter is made
    model, tokenizer = load_model(config.model, config.dtype, accelerator.device, config.gguf_file, config.load_in_4bit)
    lr = config.lr or (2e-5 if is_large(model) else 5e-3)
    checkpoint_activations(model, config.gradient_checkpointing)
    model = add_adapter(model, Lora(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets))
    policy = policy_for(model, tokenizer, config)
    check_window(policy, config)
    if config.compile:
        policy.compile()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=config.weight_decay)
    else:
        kinds = {"adamw-8bit": bitsandbytes.optim.AdamW8bit, "paged-adamw-8bit": bitsandbytes.optim.PagedAdamW8bit}
        optimizer = kinds[config.optimizer](parameters, lr=lr, weight_decay=config.weight_decay)
    size = sum(parameter.numel() for parameter in parameters)
    accelerator.print(f"model {config.model}, {size:,} trained parameters, on {accelerator.device}, lr {lr:g}")
    accelerator.print(describe_adapter(model))
    accelerator.print(policy.why)
    return policy, accelerator.prepare(optimizer)


def training_step(
    policy: Policy, optimizer, config: Config, accelerator: Accelerator, step: int
) -> tuple[dict, list[list[Rollout]]]:
    """Play, assign credit, update; returns the step's metrics and this process's rollouts [packs][G]."""
    [adapter] = optimizer.param_groups
    adapter["lr"] = optimizer.defaults["lr"] * learning_rate_factor(step, config)  # the peak is that of `build`
    usage: dict[str, float] = {}
    with phase("rollout", "lower --kv-tokens (or use --load-in-4bit)", accelerator.device, usage):
        groups = collect(policy, config, step, accelerator.process_index, accelerator.num_processes)
    with phase("train", "lower --tokens-per-microbatch (or use --load-in-4bit)", accelerator.device, usage):
        episodes = assign_advantages(groups, config, accelerator)
        metrics = rollout_metrics(groups, config, accelerator) | {"lr": adapter["lr"]}
        metrics |= optimise(policy, optimizer, episodes, config, accelerator, step)
        if config.kl_coef == 0:  # else the loss has measured it
            metrics["kl"] = divergence(policy, episodes, config, accelerator)
    speed = {
        "speed_rollout": metrics["tokens_sampled"] / usage["time_rollout"],
        "speed_train": metrics["tokens_forward"] / usage["time_train"],
    }
    return metrics | usage | speed, groups


def launch(config: Config) -> Accelerator:
    """The engine; raises BadInput if these processes or packages cannot do what the settings ask for."""
    if config.tracker != "none" and importlib.util.find_spec(config.tracker) is None:
        raise BadInput(f"tracker={config.tracker!r}: not installed; pip install {config.tracker}")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "LOCAL_RANK" not in os.environ:
        raise BadInput(f"WORLD_SIZE={os.environ['WORLD_SIZE']}: these processes would not work together (see README)")
    tracker = None if config.tracker == "none" else config.tracker
    # without a GPU of NVIDIA's kind, the CPU: sampling takes double precision, which others (Apple's) do not have
    # precision is the model's own affair, whatever a user's defaults for accelerate are
    options = {"mixed_precision": "no", "log_with": tracker, "project_dir": config.output}
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), **options)
    ranks = accelerator.num_processes
    if config.optimizer != "adamw" and bitsandbytes is None:
        raise BadInput(f"optimizer={config.optimizer!r}: needs bitsandbytes; pip install bitsandbytes")
    if config.packs_per_step % ranks:
        raise BadInput(f"packs_per_step={config.packs_per_step}: must divide by {ranks} processes")
    return accelerator


def train(config: Config, folder: Path | None = None) -> None:
    """Train from the start, or go on with the run in `folder`."""
    accelerator = launch(config)
    began = time.perf_counter()
    policy, optimizer = build(config, accelerator)
    pack = dataclasses.replace(config, pack_size=min(2, config.pack_size)).pack(0)
    if config.check:
        return full_check(policy, pack)
    accelerator.print(short_check(policy, pack))
    done = 0
    if folder is None:
        folder = open_run(config, accelerator)
    else:
        done = load_checkpoint(folder, policy, accelerator)
        if accelerator.is_main_process:
            write_text(folder / "config.json", json.dumps(dataclasses.asdict(config), indent=1) + "\n")
    accelerator.project_configuration.logging_dir = str(folder)
    accelerator.init_trackers("connect-the-dots", dataclasses.asdict(config))
    accelerator.print(f"run {folder}, from step {done}")
    journal = Journal(folder, config, accelerator)
    stop = Stop()
    saved = done  # the step of the newest checkpoint
    bad_steps = 0  # in a row, without a finite gradient
    go_on = f"python {sys.argv[0]} --resume {folder}"
    try:
        while done < config.steps:
            if done == 0:
                journal.test("before training", 0, policy)
            elif config.eval_every and done % config.eval_every == 0:
                journal.test("validation", done, policy)
            stop.in_step = True
            metrics, groups = training_step(policy, optimizer, config, accelerator, done)
            done += 1
            journal.write(done, metrics)
            accelerator.print(step_line(done, config, metrics))
            bad_steps = bad_steps + 1 if metrics["skipped"] else 0
            if bad_steps:
                accelerator.print("its gradient is not finite: the update is left out")
            if bad_steps == 3:
                raise BadInput(f"lr={metrics['lr']}: three steps in a row had no finite gradient; {go_on} --lr LOWER")
            if metrics["broken_format"] == 1:
                accelerator.print("no task got a reply of the asked-for form, so there is nothing to learn from")
            if accelerator.is_main_process and (done == 1 or done % config.sample_every == 0):
                write_text(folder / "samples" / f"step_{done:06d}.txt", as_text(groups[0][0]))
            if done == config.steps or done % config.checkpoint_every == 0:
                save_checkpoint(folder, done, journal.lines, policy, accelerator)
                saved = done
            stop.end_step(accelerator)
        journal.test("after training", done, policy)
        journal.test("after, hints blanked", done, policy, hints=False)
        journal.test_players(done)
    except KeyboardInterrupt:
        if not stop.in_step:  # else the step was broken off
            if saved < done:
                save_checkpoint(folder, done, journal.lines, policy, accelerator)
            accelerator.print(f"stopped after step {done}; {go_on} goes on")
        raise
    if accelerator.is_main_process:
        policy.model.save_pretrained(folder / "adapter")
        journal.report()
    accelerator.print(f"{(time.perf_counter() - began) / 60:.1f} minutes")
    accelerator.end_training()


def main() -> None:
    config = parse_flags(Config)
    config = dataclasses.replace(config, env=whole(config.env))  # for those who resume or evaluate it elsewhere
    folder = Path(config.resume) if config.resume else None
    if folder:
        config = resumed_config(folder)
    config.validate()
    train(config, folder)


if __name__ == "__main__":
    command_line(main)

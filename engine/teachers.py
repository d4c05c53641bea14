"""Multi-teacher on-policy distillation: adapters of other runs score what the student has sampled.

There is one teacher for each environment, an adapter for the same base model. Every token that the student sampled
there, in tasks and in hints, gets the advantage log p_teacher - log p_student, both at the sampling temperature: what
the teacher finds likelier than the student did is reinforced. Its mean over the student's own tokens is minus an
estimate of the divergence KL(student | teacher) per token. There is no reward and no baseline.
"""

import contextlib
from pathlib import Path

import torch
from peft import LoraConfig

from engine import processes
from engine.batches import batch_of, micro_batches
from engine.errors import BadInput, first_line
from engine.models import STUDENT, LoraLayer, read_adapter
from engine.policy import Policy
from engine.settings import Config
from rollout import Episode, Rollout


def add_teachers(policy: Policy, folders: dict[str, Path]) -> None:
    """Load the adapters, "ENV/LEVEL" -> folder, beside the student's. Raises BadInput if one cannot be read, or adapts
    other layers than the student's."""
    own = adapted_by(policy.model, STUDENT)
    for env, folder in folders.items():
        try:
            config = LoraConfig.from_pretrained(folder)
            config.inference_mode = True
            policy.model.add_adapter(name_of(env), config)
        except Exception as error:  # whatever a damaged adapter_config.json makes peft raise
            raise BadInput(f"{folder}: this adapter cannot be read ({first_line(error)})") from error
        read_adapter(policy.model, folder, name_of(env))
        if adapted_by(policy.model, name_of(env)) != own:
            raise BadInput(f"{folder}: this teacher adapts other layers than the student (lora_targets)")
    for module in policy.model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
    policy.model.set_adapter(STUDENT)


def name_of(env: str) -> str:
    """The name of a teacher's adapter in peft, which allows no dots in it."""
    return "teacher-" + env.replace(".", "_")


def adapted_by(model, adapter: str) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, LoraLayer) and adapter in module.r}


@contextlib.contextmanager
def teaching(policy: Policy, env: str):
    """A block in which the model has the teacher's adapter."""
    policy.model.set_adapter(name_of(env))
    try:
        yield
    finally:
        policy.model.set_adapter(STUDENT)


@torch.no_grad()
def assign_gaps(policy: Policy, groups: list[list[Rollout]], config: Config) -> tuple[list[Episode], dict[str, float]]:
    """Give every sampled token of the rollouts [packs][G] its advantage, and every episode the mean of its own.

    Returns the episodes and, as metrics, "gap/ENV/LEVEL": the mean advantage of a token, over all processes.
    """
    policy.model.eval()
    rollouts = [rollout for group in groups for rollout in group]
    sums: list[float] = []
    for env in map("/".join, config.env_levels):
        episodes = [e for rollout in rollouts if rollout.env == env for e in rollout.episodes if e.n_sampled]
        with teaching(policy, env):
            for rows, prefix in micro_batches(episodes, config.tokens_per_microbatch, policy.prefix_limit):
                batch = batch_of(rows, prefix, policy.device)
                gaps = (policy.logprobs_of(batch)[0] - batch.logps) * batch.mask  # [B, T]
                for episode, row in zip(rows, gaps.tolist(), strict=True):
                    episode.advantages = row[: len(episode.ids)]
                    episode.advantage = sum(episode.advantages) / episode.n_sampled
        sums += [sum(sum(e.advantages) for e in episodes), sum(e.n_sampled for e in episodes)]
    totals = processes.total(sums, torch.float64)
    means = {
        f"gap/{env}/{level}": gap / max(1, tokens)
        for (env, level), gap, tokens in zip(config.env_levels, totals[::2], totals[1::2], strict=True)
    }
    return [episode for rollout in rollouts for episode in rollout.episodes], means

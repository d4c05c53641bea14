"""The policy and the optimiser of a training run, made by its settings."""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from context import update_messages
from engine import embedded, processes
from engine.errors import BadInput
from engine.models import Lora, add_adapter, checkpoint_activations, describe_adapter, is_large, load_model
from engine.policy import Policy
from engine.processes import bitsandbytes
from engine.settings import Config, Shared
from envs import players
from rollout import Episode, play, run


def build(config: Config, accelerator: Accelerator):
    """(policy with a fresh adapter, optimiser)."""
    set_seed(config.seed)  # before the adapter is made
    model, tokenizer = load_model(config.model, config.dtype, accelerator.device, config.gguf_file, config.load_in_4bit)
    lr = config.lr or (2e-5 if is_large(model) else 5e-3)
    checkpoint_activations(model, config.gradient_checkpointing)
    model = add_adapter(model, Lora(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets))
    policy = Policy(model, tokenizer, config)
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
    processes.say(f"model {config.model}, {size:,} trained parameters, on {accelerator.device}, lr {lr:g}")
    processes.say(describe_adapter(model))
    if note := embedded.warning(Path(model.get_base_model().config._name_or_path)):
        processes.say(note)
    processes.say(policy.why)
    return policy, accelerator.prepare(optimizer)


def check_window(policy: Policy, config: Shared) -> None:
    """Raise BadInput if a conversation could outgrow the model when all replies and hints are as long as allowed."""
    for env, level in config.env_levels:
        turns, fixed, replies = longest_conversation(policy, config, env, level)
        if fixed + replies * config.max_reply_tokens > policy.max_length:
            most = (policy.max_length - fixed) // replies
            raise BadInput(
                f"max_reply_tokens={config.max_reply_tokens}: {turns} turns of {env}/{level} may take "
                f"{fixed + replies * config.max_reply_tokens} tokens, the model has {policy.max_length}; "
                + (f"at most {most} fit" if most > 0 else "its window is too short")
            )


def longest_conversation(policy: Policy, config: Shared, env: str, level: str) -> tuple[int, int, int]:
    """(turns, tokens that are not sampled, replies and hints of at most max_reply_tokens beside them).

    Observations are taken to be as long as the longest that the environment's random player meets in 8 packs (as the
    first one, where there is no such player).
    """
    episode = next(play(config.pack(0, env, level)))
    first = episode.messages[-1]["content"]
    policy.chat.open_turn(episode)
    player = players(env).get("random")
    rollouts = run([play(config.pack(seed, env, level)) for seed in range(8)], player) if player else []
    later = [m["content"] for rollout in rollouts for e in rollout.of("solve") for m in e.messages[3::2]]
    turns, fixed = episode.task.max_turns, len(episode.ids)
    fixed += turns * max(policy.chat.turn_length(text) for text in later or [first])
    if config.pack_size == 1:
        return turns, fixed, turns
    update = Episode("update", 0, update_messages("", [], 0.0, ""), "")  # it has all of the task in it,
    policy.chat.open_turn(update)
    return turns, fixed + len(update.ids), turns + 2  # the hint before and the one after

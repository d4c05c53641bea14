"""Imitation of scripted players, on rollouts of the same loop: what reinforcement learning starts from.

    python imitate.py --output my-policy                     build the embedded policy from nothing (40 minutes)
    python imitate.py --model FOLDER --output warm-start     teach a model the reply format by imitation

A scripted player plays packs; its replies are written into the episodes as if the model had sampled them, and the
model is trained on their likelihood. Small models that never produce the reply format need this before CoD training.
If it is broken off, the same line goes on from the last tenth step.
"""

import engine.start  # noqa: F401, I001 (before torch is imported)

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from engine.command_line import command_line, parse_flags
from engine.embedded import fingerprint
from engine.errors import BadInput
from engine.models import Lora, add_adapter, checkpoint_activations, load_model, merged_model
from engine.policy import Policy
from engine.settings import check_bounds, flag, parse_envs
from envs import demonstrator
from imitation.embedded import build_embedded, recipe
from imitation.teaching import Lessons, Partial, imitate, rise_and_fall
from record.files import whole_folder
from record.run import phase

PLAYERS = {  # settings of the players that can be imitated
    "clean": {},
    "mediocre": {"recall": 0.35, "explore": 0.35, "write": 0.5, "wrong": 0.1},
}
PLAN = 0.8  # how often the mediocre player of FrozenLake heads for the goal


@dataclass(frozen=True)
class ImitateConfig:
    output: str = flag("", "folder for the model (must not exist yet)")
    model: str = flag("", "model folder or hub name to start from; empty: build the embedded policy from nothing")
    gguf_file: str = flag("", "name of a GGUF file in the model folder, to read the weights from (with --model)")
    player: Literal["clean", "mediocre"] = flag("clean", "whom to imitate (with --model)")
    spell_out: bool = flag(
        False, "in FrozenLake it compares rows and columns, and says what it knows of good ways (with --model)"
    )
    envs: str = flag("frozenlake/tiny", "what it plays, as train.py's --envs (with --model)")
    steps: int = flag(100, "optimiser steps (with --model)", at_least=1, below=1e7)
    packs_per_step: int = flag(24, "packs played by the player in a step", at_least=1, below=1e6)
    pack_size: int = flag(4, "tasks in a pack", at_least=1, below=1e4)
    lr: float = flag(
        5e-4, "peak learning rate; it rises over the first tenth, then falls to a tenth (with --model)", above=0
    )
    lora_rank: int = flag(
        0,
        "train a LoRA adapter of this rank, merged at the end; 0: all weights (with --model)",
        at_least=0,
        below=65_537,
    )
    tokens_per_microbatch: int = flag(
        8192, "padded tokens in one forward pass (memory and speed only; with --model)", at_least=1
    )
    dtype: Literal["auto", "float32", "bfloat16"] = flag("auto", "weights; auto: as they are stored (with --model)")
    gradient_checkpointing: Literal["auto", "on", "off"] = flag(
        "auto", "compute activations again in the backward pass; auto: for models above 100 million weights"
    )
    compile: bool = flag(False, "train through compiled layers (with --model)")
    words: Literal["shared", "own"] = flag(
        "shared", "of the embedded policy, for knowing and not knowing: the same in all domains, or own ones in each"
    )
    seed: int = flag(0, "seed of the weights, the packs and the player", at_least=0, below=2**32)


def knobs(env: str, player: str, spell_out: bool = False) -> dict:
    """Settings of the player in an environment."""
    found = dict(PLAYERS[player])
    if env == "frozenlake":
        found |= {"spell_out": spell_out, "plan": 1.0 if player == "clean" else PLAN}
    return found


def imitate_player(config: ImitateConfig, partial: Partial) -> Policy:
    """Let the model of the settings imitate the player; returns it, its adapter not yet merged."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load_model(config.model, config.dtype, device, config.gguf_file)
    checkpoint_activations(model, config.gradient_checkpointing)
    if config.lora_rank:
        model = add_adapter(model, Lora(config.lora_rank, 2 * config.lora_rank))
    policy = Policy(model, tokenizer)
    if config.compile:
        policy.compile()
    batches = Lessons(
        policy.chat,
        parse_envs(config.envs),
        10**6 * (config.seed + 1),
        config.packs_per_step,
        config.pack_size,
        {env: knobs(env, config.player, config.spell_out) for env, _ in parse_envs(config.envs)},
        seed=config.seed,
    )
    remedy = "lower --tokens-per-microbatch (or use --lora-rank); the same line goes on"
    with phase("imitation", remedy, policy.device, {}):
        imitate(
            policy,
            batches,
            config.steps,
            lr=rise_and_fall(config.lr),
            name=f"{config.player} player",
            budget=config.tokens_per_microbatch,
            partial=partial,
        )
    return policy


def main() -> None:
    config = parse_flags(ImitateConfig)
    check_bounds(config)
    if not config.output or Path(config.output).exists():
        raise BadInput(f"output={config.output!r}: name a folder that does not exist yet")
    for env, level in parse_envs(config.envs):
        demonstrator(env, level)  # levels without one end here
    settings = dataclasses.asdict(config)
    for name in ("tokens_per_microbatch", "gradient_checkpointing", "compile"):  # these may change on the way
        del settings[name]
    if not config.model:
        settings["recipe"] = recipe()
    partial = Partial(Path(f"{config.output}.partial"), settings)
    partial.read()  # other settings end here
    torch.manual_seed(config.seed)
    if config.model:
        policy = imitate_player(config, partial)
    else:
        policy = build_embedded(config.seed, config.words, partial)
    model = merged_model(policy.model) if config.model and config.lora_rank else policy.model
    with whole_folder(Path(config.output)) as folder:
        model.save_pretrained(folder)
        policy.chat.tokenizer.save_pretrained(folder)
        if not config.model:
            (folder / "fingerprint.txt").write_text(fingerprint() + "\n", encoding="utf-8")
    partial.path.unlink(missing_ok=True)
    print(f"written: {config.output}")


if __name__ == "__main__":
    command_line(main)

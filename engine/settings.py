"""The settings of training and of evaluation: a field with its default, help and bounds, in one place.

A setting is added here and used where it belongs; command line, settings files, saved runs, bounds and the list of
flags follow. What training and evaluation have in common they inherit from `Sampling` and `Shared`.
"""

import math
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from engine.errors import BadInput
from envs import Pack, make_pack, name_of, whole
from rollout import Penalties

NOT_IN_NAMES = "env level envs teachers seed name output resume check tracker test_packs".split()  # of run folders
LARGEST_SEED = 2**32 - 1  # of numpy, which is seeded, too
REPO = Path(__file__).resolve().parents[1]


def flag(
    default: Any,
    help: str,
    at_least: float | None = None,
    above: float | None = None,
    below: float = math.inf,
    may_change: bool = False,
) -> Any:
    """A field of a settings dataclass, which becomes a command-line flag: its help, what its values are bounded by, and
    whether another value may be given when a run goes on."""
    bounds = {"at_least": at_least, "above": above, "below": below}
    value = {"default_factory": list} if default == [] else {"default": default}
    return field(**value, metadata={"help": help, "bounds": bounds, "may_change": may_change})


def check_bounds(settings) -> None:
    """Raise BadInput for a number outside its bounds, naming the field, the value and what is allowed."""
    for f in fields(settings):
        value, bounds = getattr(settings, f.name), f.metadata.get("bounds", {})
        low, above, below = (bounds.get(name) for name in ("at_least", "above", "below"))
        if low is not None and not low <= value < below:
            raise BadInput(f"{f.name}={value}: must be at least {low:g}, and {limit(below)}")
        if above is not None and not above < value < below:
            raise BadInput(f"{f.name}={value}: must be above {above:g}, and {limit(below)}")


def limit(below: float) -> str:
    return "finite" if below == math.inf else f"below {below:,.0f}"


@dataclass(frozen=True)
class Sampling:
    """How replies are sampled."""

    temperature: float = flag(1.0, "sampling temperature; log-probabilities are taken at it too", above=0)
    max_reply_tokens: int = flag(256, "cap on the length of one reply", at_least=1)
    kv_tokens: int = flag(
        0, "tokens that the KV cache may hold; 0: as many as fit into the free memory", at_least=0, may_change=True
    )
    sampler: Literal["auto", "fast", "generate"] = flag(
        "auto",
        "fast: a KV cache of its own; generate: transformers' generate, for any model; auto: fast where it fits",
        may_change=True,
    )
    merge_adapter: bool = flag(
        True, "sample from copies of the weights with the adapter merged in (never in 4 bits)", may_change=True
    )
    cuda_graphs: bool = flag(True, "on a GPU, sample by replaying captured steps", may_change=True)


@dataclass(frozen=True)
class Shared(Sampling):
    """What an evaluation takes from the run that it evaluates, unless a flag says otherwise."""

    env: str = flag("frozenlake", "environment: a name of environments/, or the path of a file or folder like those")
    level: str = flag("tiny", "level of the environment")
    pack_size: int = flag(4, "S, tasks in a pack; 1 is task-by-task RL without hints", at_least=1, below=1e4)
    ralph: bool = flag(False, "Ralph loop: all tasks of a pack are the same task")
    rollouts_at_once: int = flag(
        256, "rollouts under way at the same time (memory and speed only)", at_least=1, may_change=True
    )
    length_penalty: float = flag(0.1, "c, coefficient of the length penalty; 0 switches it off", at_least=0)
    length_lo: float = flag(1e6, "reply tokens from which on a reply counts as long", at_least=0)
    length_hi: float = flag(2e6, "reply tokens at which the penalty for long replies is full", at_least=0)
    dtype: Literal["auto", "float32", "bfloat16"] = flag(
        "auto",
        "weights of the base model; auto: as stored, but float16 as bfloat16, and that as float32 on CPUs without it",
    )
    gguf_file: str = flag("", "name of a GGUF file in the model folder, to read the weights from")
    load_in_4bit: bool = flag(False, "QLoRA: linear layers of the base model in 4 bits (NF4, bitsandbytes)")

    def validate(self) -> None:
        """Raise BadInput for values that cannot work, naming the field, the value and what is allowed."""
        check_bounds(self)
        if not self.length_lo < self.length_hi:
            raise BadInput(f"length_hi={self.length_hi}: must be above length_lo={self.length_lo}")
        for env, level in self.env_levels:  # unknown environments and levels end here
            self.pack(0, env, level)

    @property
    def penalties(self) -> Penalties:
        return Penalties(self.length_penalty, self.length_lo, self.length_hi)

    @property
    def cycle(self) -> list[tuple[str, str]]:
        """(environment, level) of successive packs, again and again."""
        return [(self.env, self.level)]

    @property
    def env_levels(self) -> list[tuple[str, str]]:
        """(environment, level), each once."""
        return list(dict.fromkeys(self.cycle))

    def pack(self, seed: int, env: str = "", level: str = "") -> Pack:
        """The pack of that seed, in its turn of the environments or in the given one."""
        if not env:
            env, level = self.cycle[seed % len(self.cycle)]
        return make_pack(env, seed, self.pack_size, level, self.ralph)


@dataclass(frozen=True)
class Config(Shared):
    """The settings of a training run."""

    # the model
    model: str = flag("embedded-policy", "model folder or hub name; it needs a chat template")
    gradient_checkpointing: Literal["auto", "on", "off"] = flag(
        "auto",
        "compute activations again in the backward pass; auto: for models above 100 million weights",
        may_change=True,
    )
    compile: bool = flag(
        False, "train through compiled layers (torch.compile; on a CPU it needs a C++ compiler)", may_change=True
    )
    lora_rank: int = flag(16, "rank of the LoRA adapter", at_least=1, below=65_537)
    lora_alpha: int = flag(32, "scale of the adapter (alpha / rank multiplies it)", at_least=1)
    lora_dropout: float = flag(0.0, "dropout in the adapter", at_least=0, below=1)
    lora_targets: str = flag("all-linear", "layers with an adapter: all-linear, or names separated by commas")
    # the batch
    envs: str = flag("", "several environments instead, ENV/LEVEL=SHARE each, as in frozenlake/train=2,alchemy/train=1")
    steps: int = flag(40, "training steps", at_least=1, below=1e7, may_change=True)
    packs_per_step: int = flag(16, "packs (groups) in a step, over all processes", at_least=1)
    group_size: int = flag(
        8, "G, rollouts of each pack; 1, which has no group baseline, with --teachers only", at_least=1
    )
    # rewards
    hint_penalty: float = flag(0.1, "h, taken off for a hint update that cannot be read", at_least=0)
    # credit assignment
    credit: Literal["mean", "window", "discount", "sum"] = flag("mean", "returns: mean is the paper's; sum is coarse")
    window: int = flag(2, "terms of --credit window", at_least=1)
    gamma: float = flag(0.9, "discount of --credit discount", above=0)
    rebalance: bool = flag(True, "re-weight a batch whose token-weighted mean advantage is negative")
    teachers: str = flag(
        "", "distillation instead of rewards: runs on the same model as teachers, ENV/LEVEL=RUN,ENV/LEVEL=RUN,..."
    )
    # policy loss
    clip: Literal["one-side", "two-side", "none"] = flag("one-side", "which tokens the clip drops")
    clip_eps: float = flag(0.2, "half-width of the clip range of the probability ratio", above=0)
    importance: bool = flag(False, "multiply advantages by the probability ratio (importance sampling)")
    kl_coef: float = flag(0.0, "coefficient of the k2 divergence from the model without its adapter", at_least=0)
    updates_per_batch: int = flag(2, "optimiser steps per batch, each on its own part of the episodes", at_least=1)
    # optimiser
    optimizer: Literal["adamw", "adamw-8bit", "paged-adamw-8bit"] = flag("adamw", "the last two are of bitsandbytes")
    lr: float = flag(
        0.0, "peak learning rate; 0: 5e-3, but 2e-5 for models above 100 million weights", at_least=0, may_change=True
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = flag(
        "linear", "after the warm-up; linear and cosine end at 0"
    )
    warmup_steps: int = flag(0, "steps over which the learning rate rises", at_least=0)
    weight_decay: float = flag(0.0, "weight decay", at_least=0)
    grad_clip: float = flag(1.0, "largest norm of the gradient", above=0, may_change=True)
    tokens_per_microbatch: int = flag(
        8192, "padded tokens in one forward pass (memory and speed only)", at_least=1, may_change=True
    )
    # evaluation, logging, saving
    eval_every: int = flag(10, "steps between evaluations on validation packs; 0: none", at_least=0, may_change=True)
    eval_packs: int = flag(128, "packs of such an evaluation", at_least=1, below=1e7, may_change=True)
    test_packs: int = flag(512, "packs of the evaluations before and after training", at_least=1, below=1e7)
    sample_every: int = flag(10, "steps between rollouts kept for report.html", at_least=1, may_change=True)
    sample_packs: int = flag(1, "packs whose rollouts are kept then", at_least=0, may_change=True)
    checkpoint_every: int = flag(10, "steps between checkpoints", at_least=1, may_change=True)
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = flag("none", "also log there, through accelerate")
    seed: int = flag(0, "seed of the adapter, the training packs and the sampling", at_least=0, below=LARGEST_SEED + 1)
    name: str = flag("", "name of the run folder; empty: ENV-LEVEL-seedSEED, numbered where taken")
    output: str = flag("runs", "folder that holds the run folders")
    check: bool = flag(False, "check that the model can be trained here, line by line, and train nothing")
    resume: str = flag("", "a run folder to go on with, by its own settings; some may change")

    def validate(self) -> None:
        super().validate()
        rollouts = self.packs_per_step * self.group_size
        if self.group_size == 1 and not self.teachers:
            raise BadInput("group_size=1: must be at least 2, for one rollout alone has no group baseline")
        untaught = [f"{env}/{level}" for env, level in self.env_levels if (env, level) not in self.taught]
        if self.teachers and untaught:
            raise BadInput(f"teachers={self.teachers!r}: there is none for {untaught[0]}")
        if rollouts > 10**6:
            raise BadInput(f"group_size={self.group_size}: a step would have {rollouts:,} rollouts; at most 1,000,000")
        episodes = rollouts * (2 * self.pack_size - 1)
        if self.updates_per_batch > episodes:
            raise BadInput(f"updates_per_batch={self.updates_per_batch}: a batch has {episodes} episodes only")
        if self.name in (".", "..") or re.search(r"[/\\\x00-\x1f\x7f\x85\u2028\u2029]", self.name):
            raise BadInput(f"name={self.name!r}: must be the name of a folder, without slashes and line breaks")
        if Path(self.output).is_file():
            raise BadInput(f"output={self.output!r}: is a file; name a folder")
        if len(self.cycle) > self.packs_per_step:
            raise BadInput(
                f"envs={self.envs!r}: its shares add up to {len(self.cycle)}, "
                f"but a step has {self.packs_per_step} packs only (packs_per_step)"
            )

    @property
    def penalties(self) -> Penalties:
        return Penalties(self.length_penalty, self.length_lo, self.length_hi, self.hint_penalty)

    @property
    def taught(self) -> dict[tuple[str, str], str]:
        """(environment, level) -> the run that teaches it."""
        return parse_teachers(self.teachers) if self.teachers else {}

    @property
    def cycle(self) -> list[tuple[str, str]]:
        return parse_envs(self.envs) if self.envs else super().cycle

    @property
    def base_name(self) -> str:
        """Name of the run folder, where none is given and no other run has it: what is played, which settings that
        matter to the outcome are not the defaults, and the seed."""
        played = "distilled" if self.teachers else "mixed" if self.envs else f"{name_of(self.env)}-{self.level}"
        changed = [f for f in fields(self) if getattr(self, f.name) != f.default and f.name not in NOT_IN_NAMES]
        changed = [f for f in changed if not f.metadata["may_change"] or f.name in ("steps", "lr", "grad_clip")]
        words = [f"{f.name}={Path(str(getattr(self, f.name))).name}" for f in changed]
        name = re.sub(r"[^\w.=-]+", "_", "-".join([played, *words]))  # without spaces and the like
        return f"{name[:120]}-seed{self.seed}"


def with_whole_paths(config: Config) -> Config:
    """The same settings for somebody who starts from another folder: paths of a model and an environment are absolute,
    but for a model in this repository (it may be moved), which is also looked for there."""
    model = config.model
    if Path(model).is_dir():
        path = Path(model).resolve()
        model = path.relative_to(REPO).as_posix() if path.is_relative_to(REPO) else str(path)
    return replace(config, model=model, env=whole(config.env))


def with_teachers(config: Config) -> Config:
    """The same settings with whole paths of the teachers; what they teach is played, where `envs` does not say."""
    if not config.teachers:
        return config
    teachers = ",".join(f"{env}/{level}={Path(run).resolve()}" for (env, level), run in config.taught.items())
    return replace(config, teachers=teachers, envs=config.envs or ",".join(map("/".join, config.taught)))


def parse_teachers(text: str) -> dict[tuple[str, str], str]:
    """ENV/LEVEL=RUN,...: (environment, level) -> run folder."""
    found: dict[tuple[str, str], str] = {}
    for part in text.split(","):
        name, _, run = part.strip().partition("=")
        env, _, level = name.partition("/")
        if not env or not level or "/" in level or not run:
            raise BadInput(f"teachers={text!r}: {part.strip()!r} must have the form ENV/LEVEL=RUN")
        if (env, level) in found:
            raise BadInput(f"teachers={text!r}: {name} has two teachers")
        found[env, level] = run
    return found


def parse_envs(text: str) -> list[tuple[str, str]]:
    """ENV/LEVEL=SHARE,...: (environment, level) of successive packs, each as often as its share says.

    Without a level it is "train", without a share 1.
    """
    cycle = []
    for part in text.split(","):
        name, _, share = part.strip().partition("=")
        env, _, level = name.partition("/")
        if name_of(env) != env or "/" in level:
            raise BadInput(f"envs={text!r}: {name!r} looks like a path; environments go here by name, a path to --env")
        if not re.fullmatch("[1-9][0-9]{0,2}", share or "1"):
            raise BadInput(f"envs={text!r}: the share {share!r} must be a whole number from 1 to 999")
        cycle += [(env, level or "train")] * int(share or 1)
    return cycle

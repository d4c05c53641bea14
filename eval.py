"""CoD-Deploy: play packs without training and show the reward by position in the pack.

    python eval.py --policy runs/frozenlake-tiny-seed0                  a trained run
    python eval.py --policy runs/frozenlake-tiny-seed0 --context none   the same with its hints blanked
    python eval.py --policy learner --level train --pack-size 8         a scripted player: random, informed, learner
    python eval.py --policy Qwen/Qwen3-1.7B --level train               any chat model: a folder or a hub name
    python eval.py --policy runs/NAME --merge-to FOLDER                 no evaluation: write the merged model

Prints a table with bootstrap 95 % intervals and writes it as JSON, with a picture, into a folder named after what was
evaluated (or --output). A run is played as it was trained (environment, level, pack size, temperature, reply cap,
penalties, ...) unless a flag says otherwise.
"""

import contextlib
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import matplotlib
import torch
import transformers
import yaml
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import HfArgumentParser

from engine.errors import BadInput, first_line
from engine.policy import Policy, policy_for
from envs import Pack, make_pack, name_of, players
from models import add_adapter, load_model, merged_model
from rollout import Penalties, Rollout, play, run

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 (after the choice of backend)

# ---------------------------------------------------------------------------------------------------------
# Settings and errors, the same for every script


def flag(default: Any, help: str):
    """A field of a settings dataclass; it becomes a command-line flag with this help text."""
    return field(default=default, metadata={"help": help})


class OneLineParser(HfArgumentParser):
    def error(self, message: str):
        raise BadInput(message)


def as_flags(settings: type, source: str | Path, values: Any) -> list[str]:
    """The settings that a file holds, as flags. Hyphens may stand for underscores; what is null keeps its default."""
    names = [f.name for f in fields(settings)]
    if not isinstance(values, dict):
        raise BadInput(f"{source}: must hold settings by name; choose from {', '.join(names)}")
    values = {str(key).replace("-", "_"): value for key, value in values.items()}
    for key in values:
        if key not in names:
            raise BadInput(f"{source}: unknown setting {key!r}; choose from {', '.join(names)}")
    return [f"--{key}={value}" for key, value in values.items() if value is not None]


def parse_flags(settings: type, argv: list[str] | None = None, defaults: list[str] | None = None) -> Any:
    """An instance of a settings dataclass from [FILE.yaml or FILE.json] and flags; flags win over the file.

    `defaults` are flags that the file and the others win over.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    given = list(defaults or [])
    if argv and not argv[0].startswith("-") and Path(argv[0]).suffix in (".yaml", ".yml", ".json"):
        file = Path(argv.pop(0))
        try:
            values = yaml.safe_load(file.read_text())  # JSON is YAML
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise BadInput(f"{file}: cannot be read as YAML or JSON ({first_line(error)})") from error
        given += as_flags(settings, file, {} if values is None else values)
    parser = OneLineParser(settings, allow_abbrev=False, usage="%(prog)s [SETTINGS.yaml] [--flag value ...]")
    return settings(**vars(parser.parse_args(given + argv)))


World = tuple[str, str]  # an environment and its level


def parse_envs(text: str) -> list[World]:
    """ENV/LEVEL=SHARE,...: the environments of successive packs, each as often as its share says.

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


def command_line(main: Callable[[], None]) -> None:
    """Run a script's main; what the user can mend is printed as one line, and the exit code is then not zero."""
    sys.stdout.reconfigure(line_buffering=True)  # lines show at once in a log file too
    transformers.utils.logging.disable_progress_bar()  # those of loading and writing weights
    try:
        main()
    except (BadInput, OSError) as error:
        sys.exit(f"error: {error}")
    except torch.OutOfMemoryError as error:
        sys.exit(f"error: {first_line(error)} Lower --kv-tokens or --tokens-per-microbatch.")
    except KeyboardInterrupt:
        sys.exit(130)


# ---------------------------------------------------------------------------------------------------------
# Evaluation


def evaluate(
    policy, label: str, packs: list[Pack], penalties: Penalties, hints: bool = True, seed: int = 0, at_once: int = 256
) -> dict:
    """Play every pack once, sampling by `seed`; returns the record (see `summarise`).

    With several processes each plays its share, and all of them must call this.
    """
    state = PartialState()
    first, end = (len(packs) * rank // state.num_processes for rank in (state.process_index, state.process_index + 1))
    games = [play(pack.fresh(), penalties, hints) for pack in packs[first:end]]
    rollouts = run(games, policy, f"eval/{seed}", first, at_once, progress=f"evaluating {label}")
    if state.num_processes > 1:  # the rewards of all, without the conversations
        light = [[replace(e, messages=[], ids=[], mask=[], logps=[], task=None) for e in r.episodes] for r in rollouts]
        shares = [replace(r, episodes=episodes) for r, episodes in zip(rollouts, light, strict=True)]
        rollouts = gather_object(shares)
    return summarise(label, rollouts)


def summarise(label: str, rollouts: list[Rollout]) -> dict:
    """Means by position with bootstrap 95 % intervals, resampling packs (2,000 times, always the same way).

    "success" is the environment's reward, "reward" has the length penalty taken off; "gap" is the success at the last
    position minus that at the first. "broken_format" is the share of all episodes, tasks and hint updates, whose reply
    could not be read; "truncated" that of all replies that were cut.
    """
    solved = [rollout.of("solve") for rollout in rollouts]
    success = torch.tensor([[episode.outcome for episode in episodes] for episodes in solved])  # [N, S]
    reward = torch.tensor([[episode.reward for episode in episodes] for episodes in solved])  # [N, S]
    everything = [episode for rollout in rollouts for episode in rollout.episodes]
    replies = [reply for episode in everything for reply in episode.replies]
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(rollouts), (2000, len(rollouts)), generator=generator)  # [2000, N]
    record: dict = {"label": label, "packs": len(rollouts)}
    for name, values in (("success", success), ("reward", reward), ("gap", success[:, -1:] - success[:, :1])):
        resampled = torch.stack([values[pick].mean(dim=0) for pick in picks])  # [2000, S]
        low, high = resampled.quantile(torch.tensor([0.025, 0.975]), dim=0)  # [S], [S]
        for key, numbers in ((name, values.mean(dim=0)), (f"{name}_low", low), (f"{name}_high", high)):
            record[key] = [round(number, 4) for number in numbers.tolist()]
    record["broken_format"] = sum(episode.broken_format for episode in everything) / len(everything)
    record["truncated"] = sum(reply.truncated for reply in replies) / len(replies)
    return record


def table(records: list[dict], name: str = "success") -> str:
    """Records as text: a line each, mean [low, high] by position, and the gap from the first to the last position."""
    width = max(len(record["label"]) for record in records)

    def cells(record: dict, key: str) -> list[str]:
        numbers = zip(record[key], record[f"{key}_low"], record[f"{key}_high"], strict=True)
        return [f"{mean:5.2f} [{low:5.2f},{high:5.2f}]" for mean, low, high in numbers]

    positions = [f"{f'position {j}':^19}" for j in range(len(records[0][name]))]
    lines = ["  ".join([" " * width, *positions, f"{'gap':^19}"])]
    for record in records:
        lines.append("  ".join([record["label"].ljust(width), *cells(record, name), *cells(record, "gap")]))
    return "\n".join(line.rstrip() for line in lines)


def gap_closed(records: list[dict]) -> str:
    """A line for each record that is no reference: how much of the gap from the random player to the learner it closes,
    by position: (success - random) / (learner - random). Empty without these two."""
    at = {record["label"]: record["success"] for record in records}
    if not {"random", "learner"} <= at.keys():
        return ""
    lines = []
    for label in at.keys() - STYLES.keys():
        shares = [
            f"{(x - low) / (high - low):.0%}" if high > low else "-"
            for x, low, high in zip(at[label], at["random"], at["learner"], strict=True)
        ]
        lines.append(f"{label}: closes {' '.join(shares)} of the gap from random to learner, by position")
    return "\n".join(sorted(lines))


# label -> (colour, line); the others take the colour cycle
STYLES = {"random": ("0.7", ":"), "informed": ("0.5", "-."), "learner": ("0.3", "--")}


def draw(records: list[dict], path: Path, title: str, history: list[dict] | None = None) -> None:
    """Success by position, one line a record; with `history` (metrics of training steps) also over training, with the
    shares of replies and hints that could not be read."""
    figure, axes = plt.subplots(1, 2 if history else 1, figsize=(10 if history else 5.5, 4.4), squeeze=False)
    left = axes[0, 0]
    for record in records:
        mean, low, high = (torch.tensor(record[key]) for key in ("success", "success_low", "success_high"))
        colour, line = STYLES.get(record["label"], (None, "-"))
        bars = torch.stack([mean - low, high - mean])  # [2, S]
        left.errorbar(
            range(len(mean)), mean, bars, label=record["label"], color=colour, linestyle=line, marker="o", capsize=3
        )
    left.set(xlabel="position in the pack", ylabel="success", ylim=(-0.03, 1.03), title=title)
    left.set_xticks(range(len(records[0]["success"])))
    if history:
        right = axes[0, 1]
        for j in range(len(history[0]["success"])):
            shade = plt.cm.viridis(0.85 * (1 - j / max(1, len(history[0]["success"]) - 1)))
            steps, values = [h["step"] for h in history], [h["success"][j] for h in history]
            right.plot(steps, values, color=shade, label=f"position {j}")
        for name, line in (("broken_format", "--"), ("broken_hint", ":")):
            label = name.replace("_", " ")
            right.plot([h["step"] for h in history], [h[name] for h in history], line, color="tab:red", label=label)
        right.set(xlabel="training step", ylim=(-0.03, 1.03), title="training rollouts, success by position")
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


# ---------------------------------------------------------------------------------------------------------
# Command line


FROM_RUN = (
    "env level pack_size ralph temperature max_reply_tokens rollouts_at_once kv_tokens sampler merge_adapter "
    "cuda_graphs dtype gguf_file load_in_4bit length_penalty length_lo length_hi"
).split()


@dataclass(frozen=True)
class EvalConfig:
    policy: str = flag(
        "embedded-policy", "a run folder, a model folder or hub name, or a scripted player (random, informed, learner)"
    )
    packs: int = flag(512, "number of packs")
    context: Literal["own", "none"] = flag("own", "own: the hints that the policy writes; none: hints blanked")
    seed: int = flag(0, "seed of the packs and of the sampling")
    output: str = flag("", "folder for eval.json and eval.png (replaced if there); empty: eval/NAME")
    merge_to: str = flag("", "write a run's model with its adapter merged in to this new folder, and evaluate nothing")
    # what follows is a run's own setting unless it is given
    env: str = flag("frozenlake", "environment")
    level: str = flag("tiny", "level of the environment")
    pack_size: int = flag(4, "tasks in a pack")
    ralph: bool = flag(False, "Ralph loop: all tasks of a pack are the same task")
    temperature: float = flag(1.0, "sampling temperature")
    max_reply_tokens: int = flag(256, "cap on the length of one reply")
    rollouts_at_once: int = flag(256, "packs under way at the same time (memory and speed only)")
    kv_tokens: int = flag(0, "tokens that the KV cache may hold; 0: as many as fit into the free memory")
    sampler: Literal["auto", "fast", "generate"] = flag("auto", "fast, generate, or auto: fast where it fits the model")
    merge_adapter: bool = flag(True, "sample from copies of the weights with the adapter merged in (never in 4 bits)")
    cuda_graphs: bool = flag(False, "on a GPU, sample by replaying captured steps")
    dtype: Literal["auto", "float32", "bfloat16"] = flag("auto", "weights; auto: as they are stored")
    gguf_file: str = flag("", "name of a GGUF file in the model folder, to read the weights from")
    load_in_4bit: bool = flag(False, "linear layers in 4 bits (NF4, bitsandbytes)")
    length_penalty: float = flag(0.1, "coefficient of the length penalty (in the reward, not in the success)")
    length_lo: float = flag(1e6, "reply tokens from which on a reply counts as long")
    length_hi: float = flag(2e6, "reply tokens at which the penalty for long replies is full")

    def validate(self) -> None:
        """Raise BadInput for values that cannot work, naming the field, the value and what is allowed."""
        for name in ("packs", "rollouts_at_once", "max_reply_tokens", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput(f"{name}={getattr(self, name)}: must be above 0")
        if self.kv_tokens < 0:
            raise BadInput(f"kv_tokens={self.kv_tokens}: must be at least 0")
        if not self.length_lo < self.length_hi:
            raise BadInput(f"length_hi={self.length_hi}: must be above length_lo={self.length_lo}")
        make_pack(self.env, 0, self.pack_size, self.level)  # unknown environments and levels end here


def is_run(path: Path) -> bool:
    return (path / "config.json").exists() and (path / "metrics.jsonl").exists()


def read_run(folder: Path) -> dict:
    """The settings of a run (its config.json)."""
    try:
        settings = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise BadInput(f"{folder / 'config.json'}: cannot be read ({first_line(error)})") from error
    if not isinstance(settings, dict):
        raise BadInput(f"{folder / 'config.json'}: must hold settings by name")
    return settings


def load_policy(config: EvalConfig):
    """The policy that `--policy` names: scripted, a run folder with its adapter, or a model as it is."""
    name = config.policy
    if name in (scripted := players(config.env)):
        return scripted[name]
    device = PartialState(cpu=not torch.cuda.is_available()).device  # of this process
    adapter = None
    if is_run(Path(name)):
        adapter = Path(name) / "adapter"
        if not (adapter / "adapter_config.json").exists():
            raise BadInput(f"policy={name!r}: this run has not ended; go on with it by --resume {name}")
        name = read_run(Path(name))["model"]
    model, tokenizer = load_model(name, config.dtype, device, config.gguf_file, config.load_in_4bit)
    if adapter is not None:
        model = add_adapter(model, folder=adapter)
    policy = policy_for(model, tokenizer, config)
    if PartialState().is_main_process:
        print(policy.why)
    return policy


def merge(config: EvalConfig) -> None:
    """Write the model of a run with its adapter merged in, as a folder that transformers loads by itself."""
    if not is_run(Path(config.policy)) or Path(config.merge_to).exists():
        raise BadInput(f"merge_to={config.merge_to!r}: must not exist yet, and --policy must be a run folder")
    whole = replace(config, load_in_4bit=False)  # what was trained on 4-bit weights is merged into the original ones
    policy = load_policy(whole)
    merged_model(policy.model).save_pretrained(config.merge_to)
    policy.chat.tokenizer.save_pretrained(config.merge_to)
    print(f"written: {config.merge_to}")


def main() -> None:
    config = parse_flags(EvalConfig)
    if is_run(Path(config.policy)):
        settings = read_run(Path(config.policy))
        of_run = {name: settings[name] for name in FROM_RUN if name in settings}
        if settings.get("envs"):  # the first of several, unless a flag names another
            of_run["env"], of_run["level"] = parse_envs(settings["envs"])[0]
        config = parse_flags(EvalConfig, defaults=as_flags(EvalConfig, config.policy, of_run))
    config.validate()
    if config.merge_to:
        return merge(config)
    policy = load_policy(config)
    name = Path(config.policy).name
    blanked = config.context == "none"
    folder = f"{name}-on-{name_of(config.env)}-{config.level}-{config.pack_size}{'-hints-blanked' * blanked}"
    output = Path(config.output or Path("eval") / folder)
    output.mkdir(parents=True, exist_ok=True)
    seeds = range(config.seed * config.packs, (config.seed + 1) * config.packs)
    packs = [make_pack(config.env, seed, config.pack_size, config.level, config.ralph) for seed in seeds]
    penalties = Penalties(config.length_penalty, config.length_lo, config.length_hi)
    label = name + (", hints blanked" if blanked else "")
    with policy.sampling() if isinstance(policy, Policy) else contextlib.nullcontext():
        record = evaluate(policy, label, packs, penalties, not blanked, config.seed, config.rollouts_at_once)
    records = [record]
    for name, player in players(config.env).items():
        if name != label:
            records.append(evaluate(player, name, packs, penalties))
    if not PartialState().is_main_process:
        return
    (output / "eval.json").write_text(json.dumps({"config": asdict(config), "records": records}, indent=1) + "\n")
    draw(records, output / "eval.png", f"{name_of(config.env)}, level {config.level}, {config.packs} packs")
    print(*filter(None, [table(records), gap_closed(records)]), sep="\n")
    print(f"broken format {record['broken_format']:.2%}, truncated replies {record['truncated']:.2%}")
    print(f"written: {output / 'eval.json'}, {output / 'eval.png'}")


if __name__ == "__main__":
    command_line(main)

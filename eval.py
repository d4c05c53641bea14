"""CoD-Deploy: play packs without training and show the reward by position in the pack.

    python eval.py --policy runs/frozenlake-tiny-seed0                  a trained run
    python eval.py --policy runs/frozenlake-tiny-seed0 --context none   the same with its hints blanked
    python eval.py --policy bayes --level train --pack-size 8           a scripted player: random, bayes
    python eval.py --policy Qwen/Qwen3-1.7B --level train               any chat model: a folder or a hub name

Prints a table with bootstrap 95 % intervals and writes it as JSON, with a picture, into the folder --output.
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import matplotlib
import torch
import transformers
import yaml
from transformers import HfArgumentParser

from envs import BadInput, first_line, make_pack
from players import PLAYERS
from rollout import Penalties, Policy, Rollout, add_adapter, load_model, play, run

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


def parse_flags(settings: type, argv: list[str] | None = None) -> Any:
    """An instance of a settings dataclass from [FILE.yaml or FILE.json] and flags; flags win over the file."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and Path(argv[0]).suffix in (".yaml", ".yml", ".json"):
        file = Path(argv.pop(0))
        try:
            values = yaml.safe_load(file.read_text())  # JSON is YAML
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise BadInput(f"{file}: cannot be read as YAML or JSON ({first_line(error)})") from error
        names = [f.name for f in fields(settings)]
        unknown = sorted(map(str, set(values) - set(names))) if isinstance(values, dict) else [str(values)]
        if unknown:
            raise BadInput(f"{file}: unknown setting {unknown[0]!r}; choose from {', '.join(names)}")
        argv = [text for key, value in values.items() for text in (f"--{key}", str(value))] + argv
    return settings(**vars(OneLineParser(settings, allow_abbrev=False).parse_args(argv)))


def command_line(main: Callable[[], None]) -> None:
    """Run a script's main; what the user can mend is printed as one line, and the exit code is then not zero."""
    sys.stdout.reconfigure(line_buffering=True)  # lines show at once in a log file too
    transformers.utils.logging.disable_progress_bar()  # those of loading and writing weights
    try:
        main()
    except (BadInput, OSError) as error:
        sys.exit(f"error: {error}")


# ---------------------------------------------------------------------------------------------------------
# Evaluation


def evaluate(
    policy,
    label: str,
    env: str,
    level: str,
    pack_size: int,
    seeds: Iterable[int],
    penalties: Penalties,
    hints: bool = True,
    ralph: bool = False,
    at_once: int = 256,
) -> tuple[dict, list[Rollout]]:
    """Play one rollout of each pack; returns its record (see `summarise`) and the rollouts."""
    games = [play(make_pack(env, seed, pack_size, level, ralph), penalties, hints) for seed in seeds]
    rollouts = run(games, policy, at_once, progress=f"evaluating {label}")
    return summarise(label, rollouts), rollouts


def summarise(label: str, rollouts: list[Rollout]) -> dict:
    """Means by position with bootstrap 95 % intervals, resampling packs (2,000 times, always the same way).

    "success" is the environment's reward, "reward" has the length penalty taken off; "gap" is the success at the last
    position minus that at the first.
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


STYLES = {"random": ("0.6", ":"), "bayes": ("0.3", "--")}  # label -> (colour, line); the others take the colour cycle


def draw(records: list[dict], path: Path, title: str, history: list[dict] | None = None) -> None:
    """Success by position, one line a record; with `history` (records with a "step") also by position over training."""
    figure, axes = plt.subplots(1, 2 if history else 1, figsize=(10 if history else 5.5, 4.4), squeeze=False)
    left = axes[0, 0]
    for record in records:
        mean, low, high = (torch.tensor(record[key]) for key in ("success", "success_low", "success_high"))
        colour, line = STYLES.get(record["label"], (None, "-"))
        bars = torch.stack([mean - low, high - mean])  # [2, S]
        left.errorbar(
            range(len(mean)), mean, bars, label=record["label"], color=colour, linestyle=line, marker="o", capsize=3
        )
    left.set(xlabel="position in the pack", ylabel="success", ylim=(0, 1.03), title=title)
    left.set_xticks(range(len(records[0]["success"])))
    if history:
        right = axes[0, 1]
        for j in range(len(history[0]["success"])):
            shade = plt.cm.viridis(0.85 * (1 - j / max(1, len(history[0]["success"]) - 1)))
            steps, values = [h["step"] for h in history], [h["success"][j] for h in history]
            right.plot(steps, values, color=shade, label=f"position {j}")
        right.set(xlabel="training step", ylim=(0, 1.03), title="training rollouts, success by position")
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def reference_players(env: str, seed: int = 0) -> dict:
    """label -> scripted player, for the lines drawn beside every evaluation on this environment."""
    return {label: player(seed) for label, player in PLAYERS.items() if player.env == env}


# ---------------------------------------------------------------------------------------------------------
# Command line


@dataclass(frozen=True)
class EvalConfig:
    policy: str = flag(
        "embedded-policy", "a run folder, a model folder or hub name, or a scripted player (random, bayes)"
    )
    env: str = flag("", "environment; empty: the run's, else frozenlake")
    level: str = flag("", "level of the environment; empty: the run's, else tiny")
    pack_size: int = flag(4, "tasks in a pack")
    ralph: bool = flag(False, "Ralph loop: all tasks of a pack are the same task")
    packs: int = flag(512, "number of packs")
    context: Literal["own", "none"] = flag("own", "own: the hints that the policy writes; none: hints blanked")
    temperature: float = flag(1.0, "sampling temperature")
    max_reply_tokens: int = flag(256, "cap on the length of one reply")
    rollouts_at_once: int = flag(256, "packs under way at the same time")
    dtype: Literal["auto", "float32", "bfloat16"] = flag("auto", "weights; auto: as they are stored")
    length_penalty: float = flag(0.1, "coefficient of the length penalty (in the reward, not in the success)")
    seed: int = flag(0, "seed of the packs and of the sampling")
    output: str = flag("eval", "folder for the JSON file and the picture")


def is_run(path: Path) -> bool:
    return (path / "config.json").exists() and (path / "metrics.jsonl").exists()


def read_run(path: Path) -> dict:
    """The settings of a run (its config.json)."""
    try:
        return json.loads((path / "config.json").read_text())
    except ValueError as error:
        raise BadInput(f"{path / 'config.json'}: cannot be read ({first_line(error)})") from error


def load_policy(name: str, dtype: str, temperature: float, max_reply_tokens: int):
    """The policy that `--policy` names: scripted, a run folder with its adapter, or a model as it is."""
    if name in PLAYERS:
        return PLAYERS[name](0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    adapter = None
    if is_run(Path(name)):
        adapter = Path(name) / "adapter"
        if not (adapter / "adapter_config.json").exists():
            raise BadInput(f"policy={name!r}: this run has not ended; python train.py --resume {name} finishes it")
        name = read_run(Path(name))["model"]
    model, tokenizer = load_model(name, dtype, device)
    if adapter is not None:
        model = add_adapter(model, folder=adapter)
    return Policy(model, tokenizer, temperature, max_reply_tokens)


def main() -> None:
    config = parse_flags(EvalConfig)
    for name in ("packs", "rollouts_at_once", "max_reply_tokens", "temperature"):
        if not getattr(config, name) > 0:
            raise BadInput(f"{name}={getattr(config, name)}: must be above 0")
    run_settings = read_run(Path(config.policy)) if is_run(Path(config.policy)) else {}
    env = config.env or run_settings.get("env", "frozenlake")
    level = config.level or run_settings.get("level", "tiny")
    make_pack(env, 0, config.pack_size, level)  # unknown names end here
    policy = load_policy(config.policy, config.dtype, config.temperature, config.max_reply_tokens)
    if getattr(policy, "env", env) != env:
        raise BadInput(f"policy={config.policy!r}: plays {policy.env}, not {env}")
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    if isinstance(policy, Policy):
        policy.seed("eval", config.seed)
    label = Path(config.policy).name + (", hints blanked" if config.context == "none" else "")
    seeds = range(config.seed * config.packs, (config.seed + 1) * config.packs)
    settings = (env, level, config.pack_size, seeds, Penalties(length=config.length_penalty))
    record, _ = evaluate(policy, label, *settings, config.context == "own", config.ralph, config.rollouts_at_once)
    records = [record]
    for name, player in reference_players(env).items():
        if name != config.policy:
            records.append(evaluate(player, name, *settings, ralph=config.ralph)[0])
    (output / "eval.json").write_text(
        json.dumps({"config": vars(config) | {"env": env, "level": level}, "records": records}, indent=1) + "\n"
    )
    draw(records, output / "eval.png", f"{env}, level {level}, {config.packs} packs")
    print(table(records))
    print(f"broken format {record['broken_format']:.2%}, truncated replies {record['truncated']:.2%}")
    print(f"written: {output / 'eval.json'}, {output / 'eval.png'}")


if __name__ == "__main__":
    command_line(main)

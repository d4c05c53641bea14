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

import engine.start  # noqa: F401, I001 (before torch is imported)

import contextlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch

from engine import processes
from engine.build import check_window
from engine.command_line import as_flags, command_line, parse_flags
from engine.errors import BadInput
from engine.models import add_adapter, load_model, merged_model
from engine.policy import Policy
from engine.settings import Config, Shared, flag, parse_envs
from envs import Pack, name_of, players
from record.files import VALIDATION_SEEDS, is_run, read_settings, whole_folder, write_text
from record.pictures import draw, gap_closed, table
from record.run import phase
from rollout import Penalties, Rollout, play, run

# ---------------------------------------------------------------------------------------------------------
# Evaluation


def evaluate(
    policy, label: str, packs: list[Pack], penalties: Penalties, hints: bool = True, seed: int = 0, at_once: int = 256
) -> dict:
    """Play every pack once, sampling by `seed`; returns the record (see `summarise`).

    With several processes each plays its share, and all of them must call this.
    """
    share = processes.share(len(packs))
    games = [play(packs[i], penalties, hints) for i in share]
    progress = f"evaluating {label}"
    rollouts = run(games, policy, seed=f"eval/{seed}", first=share.start, at_once=at_once, progress=progress)
    if processes.count() > 1:  # the rewards of all, without the conversations
        light = [[replace(e, messages=[], ids=[], mask=[], logps=[], task=None) for e in r.episodes] for r in rollouts]
        rollouts = processes.objects_of_all(
            [replace(r, episodes=episodes) for r, episodes in zip(rollouts, light, strict=True)]
        )
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


def evaluate_all(policy: Policy, config: Config, label: str, hints: bool = True) -> list[dict]:
    """Records of a policy in training, one for each environment of the run; "validation" has packs of its own."""
    records = []
    for env, level in config.env_levels:
        with phase("evaluation", "lower --kv-tokens (or use --load-in-4bit)", policy.device, {}), policy.sampling():
            records.append(evaluate_run(policy, config, label, env, level, hints))
    return records


def evaluate_players(config: Config) -> list[dict]:
    """Records of the scripted players of every environment of the run, for the reference lines."""
    return [
        evaluate_run(player, config, label, env, level)
        for env, level in config.env_levels
        for label, player in players(env).items()
    ]


def evaluate_run(policy, config: Config, label: str, env: str, level: str, hints: bool = True) -> dict:
    """The record of a policy in one environment of a run."""
    seeds = range(config.test_packs)
    if label == "validation":
        seeds = range(VALIDATION_SEEDS, VALIDATION_SEEDS + config.eval_packs)
    packs = [config.pack(seed, env, level) for seed in seeds]
    record = evaluate(
        policy,
        label,
        packs,
        config.penalties,
        hints=hints,
        seed=config.seed,
        at_once=config.rollouts_at_once,
    )
    return {"env": f"{name_of(env)}/{level}", **record}


# ---------------------------------------------------------------------------------------------------------
# Command line


@dataclass(frozen=True)
class EvalConfig(Shared):
    """The settings of an evaluation. What it shares with training is a run's own setting unless it is given."""

    policy: str = flag(
        "embedded-policy", "a run folder, a model folder or hub name, or a scripted player (random, informed, learner)"
    )
    packs: int = flag(512, "number of packs", at_least=1, below=1e7)
    context: Literal["own", "none"] = flag("own", "own: the hints that the policy writes; none: hints blanked")
    seed: int = flag(0, "seed of the packs and of the sampling", at_least=0, below=2**32)
    output: str = flag("", "folder for eval.json and eval.png (replaced if there); empty: eval/NAME")
    merge_to: str = flag("", "write a run's model with its adapter merged in to this new folder, and evaluate nothing")


def load_policy(config: EvalConfig):
    """The policy that `--policy` names: scripted, a run folder with its adapter, or a model as it is."""
    name = config.policy
    if name in players(config.env):
        return players(config.env)[name]
    device = processes.device()
    adapter = None
    if is_run(Path(name)):
        adapter = Path(name) / "adapter"
        if not (adapter / "adapter_config.json").exists():
            raise BadInput(f"policy={name!r}: this run has not ended; go on with it by --resume {name}")
        name = read_settings(Path(name)).get("model")
        if not isinstance(name, str):
            raise BadInput(f"{Path(config.policy) / 'config.json'}: model={name!r}: must be a model folder or hub name")
    model, tokenizer = load_model(name, config.dtype, device, config.gguf_file, config.load_in_4bit)
    if adapter is not None:
        model = add_adapter(model, folder=adapter)
    policy = Policy(model, tokenizer, config)
    processes.say(policy.why)
    return policy


def merge(config: EvalConfig) -> None:
    """Write the model of a run with its adapter merged in, as a folder that transformers loads by itself."""
    if not is_run(Path(config.policy)) or Path(config.merge_to).exists():
        raise BadInput(f"merge_to={config.merge_to!r}: must not exist yet, and --policy must be a run folder")
    whole = replace(config, load_in_4bit=False)  # what was trained on 4-bit weights is merged into the original ones
    policy = load_policy(whole)
    model = merged_model(policy.model)
    with whole_folder(Path(config.merge_to)) as folder:
        model.save_pretrained(folder)
        policy.chat.tokenizer.save_pretrained(folder)
    print(f"written: {config.merge_to}")


def settings_of(config: EvalConfig) -> EvalConfig:
    """The same evaluation with the settings of the run that it names, where no flag says otherwise."""
    settings = read_settings(Path(config.policy))
    of_run = {f.name: settings[f.name] for f in fields(Shared) if f.name in settings}
    file = Path(config.policy) / "config.json"
    try:
        if settings.get("envs"):  # the first of several, unless a flag names another
            of_run["env"], of_run["level"] = parse_envs(str(settings["envs"]))[0]
        defaults = as_flags(EvalConfig, file, of_run)
        parse_flags(EvalConfig, [], defaults)
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from error
    return parse_flags(EvalConfig, defaults=defaults)


def main() -> None:
    config = parse_flags(EvalConfig)
    if is_run(Path(config.policy)):
        config = settings_of(config)
    config.validate()
    if config.merge_to:
        return merge(config)
    policy = load_policy(config)
    blanked = config.context == "none"
    if isinstance(policy, Policy):
        check_window(policy, replace(config, pack_size=1) if blanked else config)  # 1: no hints
    label = Path(config.policy).name + (", hints blanked" if blanked else "")
    folder = f"{Path(config.policy).name}-on-{name_of(config.env)}-{config.level}-{config.pack_size}"
    output = Path(config.output or Path("eval") / (folder + ("-hints-blanked" if blanked else "")))
    output.mkdir(parents=True, exist_ok=True)
    seeds = range(config.seed * config.packs, (config.seed + 1) * config.packs)
    packs = [config.pack(seed) for seed in seeds]
    at_once = config.rollouts_at_once
    with policy.sampling() if isinstance(policy, Policy) else contextlib.nullcontext():
        record = evaluate(policy, label, packs, config.penalties, hints=not blanked, seed=config.seed, at_once=at_once)
    records = [record]
    for name, player in players(config.env).items():
        if name != label:
            records.append(evaluate(player, name, packs, config.penalties))
    if not processes.is_main():
        return
    write_text(output / "eval.json", json.dumps({"config": asdict(config), "records": records}, indent=1) + "\n")
    title = f"{name_of(config.env)}, level {config.level}, {config.packs} packs\n{label}, seed {config.seed}"
    draw(records, output / "eval.png", title)
    print(*filter(None, [table(records), gap_closed(records)]), sep="\n")
    print(f"broken format {record['broken_format']:.2%}, truncated replies {record['truncated']:.2%}")
    print(f"written: {output / 'eval.json'}, {output / 'eval.png'}")


if __name__ == "__main__":
    command_line(main)

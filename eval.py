"""CoD-Deploy: play packs without training and show the reward by position in the pack, and what the hints do.

    python eval.py --policy runs/frozenlake-tiny-seed0                  a trained run, with its own settings
    python eval.py --policy embedded-policy --policy runs/NAME          both on the same packs, compared pair by pair
    python eval.py --policy runs/NAME --suite quick                     several settings (quick, paper, or FILE.yaml)
    python eval.py --policy runs/NAME --context own,none,transcript     other things in place of its hints
    python eval.py --policy learner --level train --pack-size 8         a scripted player: random, informed, learner
    python eval.py --policy Qwen/Qwen3-1.7B --level train               any chat model: a folder or a hub name
    python eval.py --policy endpoint --url URL --model NAME             any OpenAI-compatible chat endpoint
    python eval.py --policy human --env terminal --level train          play a pack yourself
    python eval.py --policy runs/NAME --merge-to FOLDER                 no evaluation: write the merged model

Prints tables with bootstrap 95 % intervals and writes them as JSON, markdown, pictures and a page (report.html) into a
folder named after what was evaluated (or --output). Every game is kept there as soon as it has ended, so the same line
goes on with an evaluation that was stopped. A run is played as it was trained (environment, level, pack size,
temperature, reply cap, penalties, ...) unless a flag says otherwise. What can stand in place of the hints is in
evaluation/contexts.py.
"""

import engine.start  # noqa: F401, I001 (before torch is imported)

import io
import sys
from dataclasses import asdict, replace
from pathlib import Path

from engine import processes
from engine.command_line import command_line, parse_flags
from engine.errors import BadInput
from engine.models import merged_model
from engine.policy import Policy
from engine.settings import Config
from envs import Pack, name_of, players
from evaluation.contexts import parse as parse_contexts
from evaluation.endpoint import address
from evaluation.playing import Plan, play_all
from evaluation.policies import EMBEDDED, labels, load_policy, merged_seeds, settings_of
from evaluation.report import write_report
from evaluation.results import Results
from evaluation.settings import EvalConfig
from evaluation.statistics import game, summarise
from evaluation.suites import settings_to_play
from record.files import VALIDATION_SEEDS, is_run, whole_folder
from record.page import printable
from record.run import phase
from rollout import Penalties, own_hints, play, run

# ---------------------------------------------------------------------------------------------------------
# Evaluation in training


def evaluate(
    policy, label: str, packs: list[Pack], penalties: Penalties, next_hint=own_hints, seed: int = 0, at_once: int = 256
) -> dict:
    """Play every pack once, sampling by `seed`; returns the record (see `statistics.summarise`).

    With several processes each plays its share, and all of them must call this.
    """
    share = processes.share(len(packs))
    games = [play(packs[i], penalties, next_hint) for i in share]
    rollouts = run(games, policy, seed=f"eval/{seed}", numbers=share, at_once=at_once, progress=f"evaluating {label}")
    return summarise(label, processes.objects_of_all([game(rollout) for rollout in rollouts]))


def evaluate_all(policy: Policy, config: Config, label: str, next_hint=own_hints) -> list[dict]:
    """Records of a policy in training, one for each environment of the run; "validation" has packs of its own."""
    records = []
    for env, level in config.env_levels:
        with phase("evaluation", "lower --kv-tokens (or use --load-in-4bit)", policy.device, {}), policy.sampling():
            records.append(evaluate_run(policy, config, label, env, level, next_hint))
    return records


def evaluate_players(config: Config) -> list[dict]:
    """Records of the scripted players of every environment of the run, for the reference lines."""
    return [
        evaluate_run(player, config, label, env, level)
        for env, level in config.env_levels
        for label, player in players(env).items()
    ]


def evaluate_run(policy, config: Config, label: str, env: str, level: str, next_hint=own_hints) -> dict:
    """The record of a policy in one environment of a run."""
    seeds = range(config.test_packs)
    if label == "validation":
        seeds = range(VALIDATION_SEEDS, VALIDATION_SEEDS + config.eval_packs)
    packs = [config.pack(seed, env, level) for seed in seeds]
    at_once = config.rollouts_at_once
    record = evaluate(policy, label, packs, config.penalties, next_hint, seed=config.seed, at_once=at_once)
    return {"env": f"{name_of(env)}/{level}", **record}


# ---------------------------------------------------------------------------------------------------------
# Command line


def merge(config: EvalConfig) -> None:
    """Write the model of a run with its adapter merged in, as a folder that transformers loads by itself."""
    if len(config.policy) != 1 or not is_run(Path(config.policy[0])) or Path(config.merge_to).exists():
        raise BadInput(f"merge_to={config.merge_to!r}: must not exist yet, and --policy must be a run folder")
    # what was trained on 4-bit weights is merged into the original ones
    policy = load_policy(config.policy[0], replace(config, load_in_4bit=False))
    model = merged_model(policy.model)
    with whole_folder(Path(config.merge_to)) as folder:
        model.save_pretrained(folder)
        policy.chat.tokenizer.save_pretrained(folder)
    print(f"written: {config.merge_to}")


def main() -> None:
    config = settings_of(parse_flags(EvalConfig))
    config.validate()
    if config.merge_to:
        return merge(config)
    policies = labels(config.policy or [EMBEDDED])
    plan = Plan(config, settings_to_play(config), policies, parse_contexts(config.context, policies))
    results = Results(Path(config.output) if config.output else Path("eval") / plan.name)
    try:
        play_all(plan, results)
    except KeyboardInterrupt:
        print(f"\nstopped; the same line goes on from the games in {printable(str(results.folder))}")
        raise
    if processes.is_main():
        about = asdict(config) | {"url": address(config.url)}
        write_report(results, plan.settings, merged_seeds(policies), plan.contexts, about)


class Pipe(io.FileIO):
    """Standard output whose reader may leave (`| head`): the evaluation goes on, and what is printed goes nowhere."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


if __name__ == "__main__":
    out = io.BufferedWriter(Pipe(sys.stdout.fileno(), "w", closefd=False))
    sys.stdout = io.TextIOWrapper(out, sys.stdout.encoding, sys.stdout.errors, line_buffering=True)
    command_line(main)

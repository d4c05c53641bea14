"""Playing an evaluation: settings x policies x contexts, each on the same packs, and nothing twice."""

import copy
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from engine import processes
from engine.build import check_window, longest_conversation
from engine.errors import BadInput
from engine.policy import Policy
from engine.settings import Shared
from environments.player import Player
from envs import name_of, players
from evaluation.contexts import OWN, Context, next_hints
from evaluation.endpoint import Endpoint
from evaluation.human import Watched
from evaluation.policies import HUMAN, fingerprint, is_player, merged_seeds, opened
from evaluation.results import Results
from evaluation.settings import EvalConfig
from evaluation.statistics import game
from evaluation.suites import Setting, source_of
from record.browse import episodes_of
from record.page import printable
from record.pictures import STYLES
from rollout import Rollout, play, run


@dataclass(frozen=True)
class Plan:
    """What is played: settings x policies x contexts, on the same packs."""

    config: EvalConfig
    settings: list[Setting]
    policies: dict[str, str]  # label -> name
    contexts: list[Context]

    @property
    def name(self) -> str:
        """Of the folder for the results: who plays what."""
        config = self.config
        what = f"{name_of(config.env)}-{config.level}-{config.pack_size}x{config.packs}"
        what = Path(config.suite).stem if config.suite else what
        seed = f"-seed{config.seed}" if config.seed else ""
        return re.sub(r"[^\w.=-]+", "_", f"{'-and-'.join(merged_seeds(self.policies))[:120]}-on-{what}{seed}")

    @property
    def writers(self) -> dict[str, str]:
        """Policies whose hints are read by others, label -> name; the learner plays everywhere anyway."""
        names = {context.writer for context in self.contexts} - {"", "learner"}
        return {name: self.policies.get(name, name) for name in sorted(names)}

    def config_for(self, setting: Setting) -> EvalConfig:
        return replace(self.config, env=setting.env, level=setting.level, pack_size=setting.pack_size)

    def facts(self) -> dict:
        """What games have to have in common to be counted together."""
        config = asdict(self.config)
        fixed = [f.name for f in fields(Shared) if not f.metadata["may_change"]]
        settings = {
            f"setting {setting.name!r}": asdict(setting) | {"source": source_of(setting.env)}
            for setting in self.settings
        }
        of_settings = ("env", "level", "pack_size", "ralph")
        return {name: config[name] for name in ["seed", "window", *fixed] if name not in of_settings} | settings


def everything(text: str) -> bool:
    """Fits."""
    return True


def play_all(plan: Plan, results: Results) -> None:
    """What has not been played already. First those whose hints others read. Raises BadInput for what cannot be."""
    check_contexts(plan)
    check_players(plan)
    if found := sum(map(len, results.games.values())):
        processes.say(f"{printable(str(results.folder))} holds {found} games, which are not played again")
    for label, name in plan.writers.items():
        play_policy(plan, results, label, name, [OWN])
    for label, name in plan.policies.items():
        play_policy(plan, results, label, name, plan.contexts)


def check_contexts(plan: Plan) -> None:
    """Raise BadInput for what cannot stand in place of hints in these settings."""
    envs = {setting.env for setting in plan.settings}
    for context in plan.contexts:
        writer = plan.writers.get(context.writer, context.writer)
        if writer == HUMAN:
            raise BadInput(f"context={context.name!r}: a person writes no hints for others")
        for setting in plan.settings:
            here = f"context={context.name!r}: {name_of(setting.env)}"
            if writer and is_player(writer, envs) and writer not in players(setting.env):
                raise BadInput(f"{here} has no {writer}, whose hints it would show")
            if context.kind == "frozen" and context.after >= setting.pack_size - 1:
                raise BadInput(
                    f"{here} in packs of {setting.pack_size} has {setting.pack_size - 1} hints, "
                    "so this is the same as own; give fewer tasks, or longer packs"
                )
    if all(context.writer == label for label in plan.policies for context in plan.contexts):
        names = ",".join(context.name for context in plan.contexts)
        raise BadInput(f"context={names!r}: {next(iter(plan.policies))} would read its own hints; that is called own")


def check_players(plan: Plan) -> None:
    """Say which settings a scripted player is left out of. Raises BadInput if it is left out of all."""
    envs = {setting.env for setting in plan.settings}
    for name in filter(lambda name: is_player(name, envs), plan.policies.values()):
        without = [setting for setting in plan.settings if name not in players(setting.env)]
        if len(without) == len(plan.settings):
            known = ", ".join(sorted({player for env in envs for player in players(env)})) or "none"
            where = ", ".join(sorted(map(name_of, envs)))
            raise BadInput(f"policy={name!r}: {where} has no such scripted player; it has {known}")
        for setting in without:
            processes.say(f"{setting.name}: {name_of(setting.env)} has no {name}, which is left out there")


def play_policy(plan: Plan, results: Results, label: str, name: str, contexts: list[Context]) -> None:
    env = next((setting.env for setting in plan.settings if name in players(setting.env)), plan.config.env)
    with opened(name, replace(plan.config, env=env)) as policy:
        parts = [
            (setting, context, room_for_hints(policy, plan.config_for(setting), context))  # ends here if it cannot be
            for setting in plan.settings
            for context in contexts
            if context.writer != label
        ]
        results.require(plan.facts() | {f"policy {label!r}": fingerprint(policy, plan.config)})
        for setting in plan.settings:
            for reference, player in players(setting.env).items():
                if reference in STYLES and not (plan.config.watch and reference == label and OWN in contexts):
                    play_part(plan, results, setting, reference, player, OWN)
        for setting, context, fits in sorted(parts, key=lambda part: part[1] != OWN):  # its own hints come first
            here = players(setting.env).get(name) if isinstance(policy, Player) else policy
            if here is not None:  # a scripted player knows one environment, others may have none of its name
                play_part(plan, results, setting, label, here, context, fits, watch=plan.config.watch)


def play_part(
    plan: Plan,
    results: Results,
    setting: Setting,
    label: str,
    policy,
    context: Context,
    fits: Callable[[str], bool] = everything,
    watch: bool = False,
) -> None:
    """The packs of a setting that this policy has not played yet with this in place of the hints."""
    config = plan.config_for(setting)
    part = (setting.name, label, context.name)
    packs, played = setting.make_packs(config.seed), results.of(part)
    missing = [number for number in range(len(packs)) if number not in played]
    if not missing:
        return
    if isinstance(policy, Player):  # its random numbers go on from game to game: it begins anew, and plays them all
        policy, missing = copy.deepcopy(policy), list(range(len(packs)))
    numbers = [missing[i] for i in processes.share(len(missing))]

    def hints_of(writer: str, number: int) -> list[str]:
        return results.of((setting.name, writer or label, "own"))[number]["hints"]

    hints = next_hints(context, packs, hints_of, fits)
    player = Watched(policy) if watch else policy
    at_once = 1 if watch else config.rollouts_at_once
    if isinstance(policy, Endpoint):  # packs that are finished one after the other are lost by no stop
        at_once = min(at_once, config.concurrency)

    def finished(number: int, rollout: Rollout) -> None:
        kept = {"conversations": episodes_of(rollout, policy)} if number < config.keep else {}
        results.add(part, number, game(rollout) | kept)
        if watch:
            player.finished(rollout)

    run(
        [play(packs[number], config.penalties, hints[number]) for number in numbers],
        player,
        seed=f"eval/{config.seed}",
        numbers=numbers,
        at_once=at_once,
        progress=printable(", ".join(part)),
        finished=finished,
    )
    results.share()


def room_for_hints(policy, config: EvalConfig, context: Context) -> Callable[[str], bool]:
    """Tells whether a text in place of the hints leaves room for the task. Raises BadInput if conversations could
    outgrow the policy's window."""
    if isinstance(policy, Policy):
        if context.kind not in ("own", "frozen"):
            config = replace(config, pack_size=1)  # no hints are asked for
        check_window(policy, config)
        if context.kind != "transcript":
            return everything
        _, task, replies = longest_conversation(policy, config, config.env, config.level)
        free = policy.max_length - task - replies * config.max_reply_tokens
        if free < task:
            raise BadInput(
                f"context='transcript': a task of {config.env}/{config.level} takes {task} tokens without its replies, "
                f"and the model's window of {policy.max_length} leaves {free} beside another one"
            )
        return lambda text: len(policy.chat.encode(text)) <= free
    if isinstance(policy, Endpoint):  # whose tokens are not known: at least three characters each, half for the task
        return lambda text: len(text) / 3 <= config.window / 2
    return everything

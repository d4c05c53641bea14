"""The policies that an evaluation plays, by name: scripted players, runs, models, endpoints, people."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path

from engine import processes
from engine.command_line import as_flags, parse_flags
from engine.errors import BadInput, first_line
from engine.models import add_adapter, load_model
from engine.policy import Policy
from engine.settings import Shared, parse_envs
from envs import players
from evaluation.endpoint import Endpoint, address
from evaluation.human import Human
from evaluation.settings import EvalConfig
from record.files import NOT_COMPARED, is_run, read_settings
from record.page import printable

EMBEDDED, HUMAN = "embedded-policy", "human"
PLAYERS = ("random", "informed", "learner")  # names of the players that environments may have


def labels(names: list[str]) -> dict[str, str]:
    """label -> name: the last part of a name where that tells them apart and is no scripted player's, else all of it.

    Raises BadInput for what is named twice, in other words, too: it would count as two seeds.
    """
    places = [str(Path(name).resolve()) if is_run(Path(name)) else name for name in names]
    for number, name in enumerate(names):
        if places[number] in places[:number]:
            raise BadInput(f"policy={name!r}: is named twice ({places[number]})")
    short = [Path(name).name or Path(name).resolve().name for name in names]
    clear = [short.count(last) == 1 and last not in PLAYERS for last in short]
    return {last if alone else name: name for name, last, alone in zip(names, short, clear, strict=True)}


def is_player(name: str, envs: Iterable[str]) -> bool:
    """Whether that is a scripted player: of any environment, or of these, which may have some of their own."""
    return name in PLAYERS or any(name in players(env) for env in envs)


def load_policy(name: str, config: EvalConfig):
    """The policy of that name: scripted, an endpoint, a person, a run folder with its adapter, or a model as it is."""
    if name in players(config.env):
        return players(config.env)[name]
    if name in PLAYERS:  # a folder of that name is ./learner
        known = ", ".join(players(config.env)) or "none"
        raise BadInput(f"policy={name!r}: {config.env} has no such scripted player; it has {known}")
    if name == HUMAN:
        return Human()
    if name == "endpoint":
        return endpoint(config)
    return load_model_policy(name, config)


def endpoint(config: EvalConfig) -> Endpoint:
    if not config.model:
        raise BadInput("model='': an endpoint needs the name of a model")
    try:
        extra = json.loads(config.extra_body or "{}")
        if not isinstance(extra, dict):
            raise ValueError("it is no object")
        json.dumps(extra, allow_nan=False, ensure_ascii=False).encode()  # as it is sent: no nan, no half characters
    except (ValueError, RecursionError) as error:
        raise BadInput(f"extra_body={config.extra_body!r}: must be a JSON object ({first_line(error)})") from error
    return Endpoint(
        config.url,
        config.model,
        temperature=config.temperature,
        max_new_tokens=config.max_reply_tokens,
        concurrency=config.concurrency,
        extra_body=extra,
    )


def load_model_policy(name: str, config: EvalConfig) -> Policy:
    device = processes.device()
    adapter, model_name = None, name
    if is_run(Path(name)):
        adapter = Path(name) / "adapter"
        if not (adapter / "adapter_config.json").exists():
            raise BadInput(f"policy={name!r}: this run has not ended; go on with it by --resume {name}")
        model_name = read_settings(Path(name)).get("model")
        if not isinstance(model_name, str):
            raise BadInput(f"{Path(name) / 'config.json'}: model={model_name!r}: must be a model folder or hub name")
    model, tokenizer = load_model(model_name, config.dtype, device, config.gguf_file, config.load_in_4bit)
    if adapter is not None:
        model = add_adapter(model, folder=adapter)
    policy = Policy(model, tokenizer, config)
    processes.say(policy.why)
    return policy


@contextlib.contextmanager
def opened(name: str, config: EvalConfig) -> Iterator:
    """A policy for as long as it plays; what it took is given back afterwards."""
    policy = load_policy(name, config)
    if isinstance(policy, Policy):
        with policy.sampling():
            yield policy
    elif isinstance(policy, Endpoint):
        with policy:
            yield policy
    else:
        yield policy


def fingerprint(policy, config: EvalConfig) -> str:
    """Tells a policy from another one of the same name: a hash of some of every weight, or an endpoint's address."""
    if isinstance(policy, Endpoint):
        return f"{address(config.url)} {config.model} {config.extra_body}".strip()
    if not isinstance(policy, Policy):
        return type(policy).__name__
    found = hashlib.sha256()
    for parameter in policy.model.parameters():
        found.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def settings_of(config: EvalConfig) -> EvalConfig:
    """The same evaluation with the settings of the first run that it names, where no flag says otherwise. A person
    plays one pack, and sees it."""
    folder = next((Path(name) for name in config.policy if is_run(Path(name))), None)
    defaults = of_run(folder) if folder else []
    if HUMAN in config.policy:
        return replace(parse_flags(EvalConfig, defaults=["--packs=1", *defaults]), watch=True)
    return parse_flags(EvalConfig, defaults=defaults) if folder else config


def of_run(folder: Path) -> list[str]:
    """What an evaluation takes from a run, as flags."""
    settings = read_settings(folder)
    shared = {f.name: settings[f.name] for f in fields(Shared) if f.name in settings}
    file = folder / "config.json"
    try:
        if settings.get("envs"):  # the first of several, unless a flag names another
            shared["env"], shared["level"] = parse_envs(str(settings["envs"]))[0]
        flags = as_flags(EvalConfig, file, shared)
        parse_flags(EvalConfig, [], flags)
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from error
    return flags


def merged_seeds(policies: dict[str, str]) -> dict[str, list[str]]:
    """title -> labels: runs that differ in nothing but their seeds share a title, every other policy has its own. Of
    runs with the same settings and the same seed none is merged: they are no independent ones."""
    same: dict[str, dict[str, object]] = {}  # settings -> label -> seed
    for label, name in policies.items():
        settings = read_settings(Path(name)) if is_run(Path(name)) else {"policy": label}
        compared = {key: value for key, value in settings.items() if key not in NOT_COMPARED}
        same.setdefault(json.dumps(compared, sort_keys=True), {})[label] = settings.get("seed")
    groups = []
    for seeds in same.values():
        apart = len(set(map(str, seeds.values()))) == len(seeds)
        groups += [list(seeds)] if apart else [[label] for label in seeds]
    short = [printable(shared_title(group)) for group in groups]
    titles = [
        f"{title}: {printable(', '.join(group))}" if len(group) > 1 and short.count(title) > 1 else title
        for title, group in zip(short, groups, strict=True)
    ]
    if twice := next((title for title in titles if titles.count(title) > 1), None):
        raise BadInput(f"policy: two of these would be called {twice!r}; rename one")
    return dict(zip(titles, groups, strict=True))


def shared_title(labels: list[str]) -> str:
    """The label of one; of several what the names of the runs begin with alike, and how many they are."""
    if len(labels) == 1:
        return labels[0]
    start = os.path.commonprefix(labels).removesuffix("seed").rstrip("-_ ")
    return f"{start or 'runs'}, {len(labels)} seeds"

"""The policies that an evaluation plays, by name: scripted players, runs, models, endpoints, people."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

from engine import processes
from engine.command_line import as_flags, parse_flags
from engine.errors import BadInput, first_line
from engine.models import add_adapter, load_model
from engine.policy import Policy
from engine.settings import Shared, parse_envs
from envs import players
from evaluation.endpoint import Endpoint
from evaluation.human import Human
from evaluation.settings import EvalConfig
from record.files import NOT_COMPARED, is_run, read_settings

EMBEDDED, HUMAN = "embedded-policy", "human"
PLAYERS = ("random", "informed", "learner")  # names of the players that environments may have


def labels(names: list[str]) -> dict[str, str]:
    """label -> name: the last part of a name where that tells them apart, else all of it."""
    short = [Path(name).name or Path(name).resolve().name for name in names]
    return {last if short.count(last) == 1 else name: name for name, last in zip(names, short, strict=True)}


def load_policy(name: str, config: EvalConfig):
    """The policy of that name: scripted, an endpoint, a person, a run folder with its adapter, or a model as it is."""
    if name in players(config.env):
        return players(config.env)[name]
    if name in PLAYERS and not Path(name).exists():
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
        return f"{config.url} {config.model} {config.extra_body}".strip()
    if not isinstance(policy, Policy):
        return type(policy).__name__
    found = hashlib.sha256()
    for parameter in policy.model.parameters():
        found.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def settings_of(config: EvalConfig) -> EvalConfig:
    """The same evaluation with the settings of the first run that it names, where no flag says otherwise. A person
    plays one pack, and sees it."""
    if HUMAN in config.policy:
        return replace(parse_flags(EvalConfig, defaults=["--packs=1"]), watch=True)
    folder = next((Path(name) for name in config.policy if is_run(Path(name))), None)
    if folder is None:
        return config
    settings = read_settings(folder)
    of_run = {f.name: settings[f.name] for f in fields(Shared) if f.name in settings}
    file = folder / "config.json"
    try:
        if settings.get("envs"):  # the first of several, unless a flag names another
            of_run["env"], of_run["level"] = parse_envs(str(settings["envs"]))[0]
        defaults = as_flags(EvalConfig, file, of_run)
        parse_flags(EvalConfig, [], defaults)
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from error
    return parse_flags(EvalConfig, defaults=defaults)


def merged_seeds(policies: dict[str, str]) -> dict[str, list[str]]:
    """title -> labels: runs that differ in nothing but their seeds share a title, every other policy has its own."""
    groups: dict[str, list[str]] = {}
    for label, name in policies.items():
        key = label
        if is_run(Path(name)):
            settings = {k: v for k, v in read_settings(Path(name)).items() if k not in NOT_COMPARED}
            key = json.dumps(settings, sort_keys=True)
        groups.setdefault(key, []).append(label)
    return {group[0] if len(group) == 1 else shared_title(group): group for group in groups.values()}


def shared_title(labels: list[str]) -> str:
    """What the names of runs begin with alike, and how many they are."""
    start = os.path.commonprefix(labels).removesuffix("seed").rstrip("-_ ")
    return f"{start or 'runs'}, {len(labels)} seeds"

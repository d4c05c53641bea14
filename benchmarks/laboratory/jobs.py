"""What is trained, and what is asked of it: variants, evaluations, and jobs, which are made of both and a seed."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Literal

from engine.embedded import DOMAINS, LEVELS
from engine.models import REPO
from engine.settings import Config
from evaluation.suites import Setting
from record.files import NOT_COMPARED

TINY, HARDER = LEVELS
POLICY = "embedded-policy"
LEARNER = "learner"  # among contexts: the scripted player in the place of the policy
QUIET = {"eval_every": 0, "test_packs": 1, "sample_packs": 0}  # the evaluations of train.py itself: as good as none
STEPS = {1: 1.0, 2: 1.0, 3: 3.0}  # number of domains in a run -> its steps, in those of a run on one

# Seconds with two jobs at a time on the two threads of one core: of a default run, of starting a process, of the
# evaluation of 256 packs on FrozenLake, of a build
TRAINING, LOADING, EVALUATION, BUILD = 310.0, 15.0, 4.0, 2400.0
HINT = 2.5  # the work of a hint update, in that of a task (its prompt holds the whole task)
WORK = {"frozenlake": 1.0, "alchemy": 0.75, "terminal": 0.9}  # of a domain
SCORING = 1.3  # of a training with teachers


@dataclass(frozen=True)
class Variant:
    """What is trained, whatever the seed. `flags` are those of train.py that differ from its defaults."""

    kind: Literal["trained", "untrained", "built"] = "trained"
    flags: tuple[tuple[str, object], ...] = ()
    words: Literal["shared", "own"] = "shared"  # of the build of the policy that it starts from
    teachers: tuple["Variant", ...] = ()  # one for each domain, of the same seed

    @cached_property
    def config(self) -> Config:
        return Config(**dict(self.flags))

    @property
    def name(self) -> str:
        if self.kind == "built":
            return f"build with {self.words} words"
        where = " + ".join(env for env, _ in self.config.env_levels) if self.kind == "trained" else "untrained"
        changes = [f"{name}={value}" for name, value in self.flags if name not in ("env", "level", "envs")]
        words = [] if self.words == "shared" else [f"{self.words} words"]
        return ", ".join([f"distilled {where}" if self.teachers else where, *changes, *words])

    def facts(self) -> dict:
        """All that decides what comes out, defaults included: with another default it is another training."""
        settings = {name: value for name, value in asdict(self.config).items() if name not in NOT_COMPARED}
        taught = [teacher.facts() for teacher in self.teachers]
        return {"kind": self.kind, "words": self.words, "settings": settings, "teachers": taught}


@dataclass(frozen=True)
class Evaluation:
    """Packs to be played, once with each of these in place of the hints (evaluation/contexts.py), or by the learner."""

    setting: Setting
    contexts: tuple[str, ...] = ("own",)


@dataclass(frozen=True)
class Want:
    """What an experiment needs: a variant, with these evaluations, for seeds 0, 1, ..."""

    variant: Variant
    evaluations: tuple[Evaluation, ...]
    seeds: int


@dataclass(frozen=True)
class Job:
    """A training (or none, or a build) with all its evaluations: one line of the results."""

    variant: Variant
    seed: int
    evaluations: tuple[Evaluation, ...]
    base: str  # fingerprint of the embedded policy

    @property
    def name(self) -> str:
        return f"{self.variant.name}, seed {self.seed}"

    @cached_property
    def key(self) -> str:
        """Tells it from every other job. A second build of the policy is known by the first: who changes the recipe
        makes both anew."""
        facts = [self.variant.facts(), self.seed, [asdict(each) for each in self.evaluations], self.base]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def seconds(self) -> float:
        """About how long it takes."""
        if self.variant.kind == "built":
            return BUILD
        seconds = LOADING
        for each in self.evaluations:
            games = each.setting.games * each.setting.pack_size * len({*each.contexts} - {LEARNER})
            seconds += EVALUATION * WORK[each.setting.env] * games / (256 * 4)
        if self.variant.kind == "trained":
            share = work(self.variant.config) / work(Config())
            seconds += TRAINING * share * (SCORING if self.variant.teachers else 1.0)
        return seconds

    def flags(self, model: str, teachers: str) -> dict:
        """Of its training: all that differs from the defaults of train.py."""
        given = {"model": model, "teachers": teachers, "seed": self.seed, **dict(self.variant.flags), **QUIET}
        return changed(given)


def work(config: Config) -> float:
    """Of a training, in that of a task on FrozenLake."""
    rollouts = config.steps * config.packs_per_step * config.group_size
    domains = [WORK[env] for env, _ in config.env_levels]
    return rollouts * (config.pack_size + HINT * (config.pack_size - 1)) * sum(domains) / len(domains)


def changed(flags: dict) -> dict:
    """Those that differ from the defaults of train.py."""
    defaults = {f.name: f.default for f in fields(Config)}
    return {name: value for name, value in flags.items() if value != defaults[name]}


def fingerprint(model: Path) -> str:
    """Tells the weights of a model folder from others."""
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()[:16]


def fingerprint_of_policy() -> str:
    return fingerprint(REPO / POLICY)


@dataclass(frozen=True)
class Scale:
    """How large the study is. `base` are flags of every training; `some` is what is left of a list of options."""

    seeds: int = 3
    packs: int = 256
    quick: bool = False
    base: tuple[tuple[str, object], ...] = ()

    @cached_property
    def default(self) -> Config:
        """The settings of a run on FrozenLake."""
        return Config(**dict(self.base))

    @property
    def single_seeds(self) -> int:
        """Of runs on one domain, whose transfer differs from seed to seed."""
        return self.seeds if self.quick else max(5, self.seeds)

    def some(self, options: tuple) -> tuple:
        return options[:1] if self.quick else options

    def trained(self, *domains: str, words: str = "shared", teachers: tuple = (), **flags) -> Variant:
        """A run on these domains, with further flags of train.py."""
        steps = round(self.default.steps * STEPS[len(domains)])
        where = {"env": domains[0], "level": TINY}
        if len(domains) > 1:
            where = {"envs": ",".join(f"{domain}/{TINY}" for domain in domains)}
        found = changed({**dict(self.base), "steps": steps, **where, **flags})
        return Variant("trained", tuple(sorted(found.items())), words, teachers)

    def setting(self, domain: str, level: str = TINY, pack_size: int = 0, ralph: str = "no") -> Setting:
        """Packs of a domain; of Ralph loops over each task so many packs that there are as many games."""
        size = pack_size or self.default.pack_size
        packs = max(1, self.packs // size) if ralph == "each" else self.packs
        return Setting(env=domain, level=level, pack_size=size, packs=packs, ralph=ralph, order="given")

    def everywhere(self, *contexts: str) -> tuple[Evaluation, ...]:
        """The training level of each domain."""
        return tuple(Evaluation(self.setting(domain), contexts) for domain in DOMAINS)


def untrained(words: str = "shared") -> Variant:
    return Variant("untrained", words=words)


def built(words: str) -> Variant:
    return Variant("built", words=words)

"""Settings that are evaluated one after the other: a suite by name, or from a file."""

import copy
import hashlib
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from engine.command_line import as_flags, parse_flags, read_list
from engine.errors import BadInput
from engine.settings import check_bounds, flag
from envs import ENVS, Pack, make_pack, name_of, task_class
from evaluation.settings import EvalConfig


@dataclass(frozen=True)
class Setting:
    """Packs to be played. `ralph`: first, every pack repeats its first task; each, every task of every pack becomes a
    pack of its own that repeats it (so there are S times as many). `order` is that of the tasks within a pack."""

    name: str = flag("", "title in the table")
    env: str = flag("", "environment; empty: as the other flags say")
    level: str = flag("", "level; empty: as the other flags say")
    pack_size: int = flag(0, "S; 0: as the other flags say", at_least=0, below=1e4)
    packs: int = flag(0, "number of packs; 0: as the other flags say", at_least=0, below=1e7)
    ralph: Literal["no", "first", "each"] = flag("no", "Ralph loops")
    order: Literal["", "given", "reversed", "shuffled"] = flag("", "order of the tasks; empty: as the other flags say")

    def filled(self, config: EvalConfig) -> "Setting":
        """With what the flags say where it says nothing."""
        env = self.env or config.env
        whole = replace(
            self,
            env=env,
            level=self.level or config.level,
            pack_size=self.pack_size or config.pack_size,
            packs=self.packs or config.packs,
            order=self.order or config.order,
            ralph="first" if config.ralph and self.ralph == "no" else self.ralph,
        )
        return replace(whole, name=self.name or whole.described())

    def described(self) -> str:
        words = [f"{name_of(self.env)}/{self.level}", f"packs of {self.pack_size}"]
        words += {"no": [], "first": ["first task repeated"], "each": ["each task repeated"]}[self.ralph]
        return ", ".join(words + ([f"order {self.order}"] if self.order != "given" else []))

    def make_packs(self, seed: int) -> list[Pack]:
        """The packs of an evaluation with that seed; those of other seeds are others."""
        made = [
            make_pack(self.env, number, self.pack_size, self.level)
            for number in range(seed * self.packs, (seed + 1) * self.packs)
        ]
        made = [replace(pack, tasks=self.ordered(pack)) for pack in made]
        if self.ralph == "no":
            return made
        repeated = [pack.tasks if self.ralph == "each" else pack.tasks[:1] for pack in made]
        return [
            replace(pack, ralph=True, tasks=[copy.copy(task) for _ in range(self.pack_size)])
            for pack, tasks in zip(made, repeated, strict=True)
            for task in tasks
        ]

    @property
    def games(self) -> int:
        """How many packs `make_packs` makes."""
        return self.packs * (self.pack_size if self.ralph == "each" else 1)

    def pack_seed(self, seed: int, number: int) -> int:
        """The seed of the pack that `make_packs` puts at that place."""
        return seed * self.packs + (number // self.pack_size if self.ralph == "each" else number)

    def ordered(self, pack: Pack) -> list:
        if self.order == "shuffled":
            return random.Random(f"order/{pack.seed}").sample(pack.tasks, len(pack.tasks))
        return pack.tasks[::-1] if self.order == "reversed" else pack.tasks


HARDER = {"tiny": ("tiny-hard", "train"), "tiny-hard": ("train",), "train": ("hard",)}  # the first one that there is


def harder(env: str, level: str) -> list[str]:
    """The level of an environment that comes next, if there is one."""
    return [name for name in HARDER.get(level, ()) if name in task_class(env).levels][:1]


def comparable(env: str, level: str) -> str:
    """The level of that name, or else the environment's own training level."""
    levels = task_class(env).levels
    return level if level in levels else "train" if "train" in levels else levels[0]


def quick(config: EvalConfig) -> list[Setting]:
    """As trained, twice as long, harder, and its first tasks repeated; at most 128 packs each."""
    packs, env = min(config.packs, 128), config.env
    return [
        Setting(packs=packs),
        Setting(packs=packs, pack_size=2 * config.pack_size),
        *(Setting(packs=packs, level=level) for level in harder(env, config.level)),
        Setting(packs=packs, ralph="first"),
    ]


def paper(config: EvalConfig) -> list[Setting]:
    """The paper's protocol, 500 packs of 8: in the domain, packs twice as long, the harder level, every other
    environment at its comparable level, and Ralph loops in both forms."""
    others = [env for env in ENVS if env != name_of(config.env)]
    return [
        Setting(packs=500, pack_size=8),
        Setting(packs=500, pack_size=16),
        *(Setting(packs=500, pack_size=8, level=level) for level in harder(config.env, config.level)),
        *(Setting(packs=500, pack_size=8, env=env, level=comparable(env, config.level)) for env in others),
        Setting(packs=500, pack_size=8, ralph="first"),
        Setting(packs=500, pack_size=8, ralph="each"),
    ]


SUITES: dict[str, Callable[[EvalConfig], list[Setting]]] = {"quick": quick, "paper": paper}


def settings_to_play(config: EvalConfig) -> list[Setting]:
    """Those of the suite, or the one that the flags describe. Raises BadInput for a suite that cannot be read, and for
    settings that cannot be played."""
    if not config.suite:
        found = [Setting()]
    elif config.suite in SUITES:
        found = SUITES[config.suite](config)
    elif Path(config.suite).suffix in (".yaml", ".yml", ".json"):
        found = from_file(Path(config.suite))
    else:
        raise BadInput(f"suite={config.suite!r}: unknown; choose from {', '.join(SUITES)}, or name a YAML file")
    found = [setting.filled(config) for setting in found]
    names = [setting.name for setting in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadInput(f"suite={config.suite!r}: two settings are called {twice!r}")
    if odd := next((name for name in names if not name.isprintable()), None):
        raise BadInput(f"suite={config.suite!r}: name={odd!r}: must be one line without control characters")
    for setting in found:
        make_pack(setting.env, 0, setting.pack_size, setting.level)  # unknown environments and levels end here
    return found


def source_of(env: str) -> str:
    """Tells an environment from an edited one: a hash of its file, or of all Python files of its folder."""
    module = sys.modules[task_class(env).__module__]
    file = Path(module.__file__)
    files = sorted(file.parent.glob("*.py")) if module.__name__.endswith(".task") else [file]
    found = hashlib.sha256()
    for each in files:
        found.update(f"{each.name} {each.stat().st_size}\n".encode(errors="replace"))
        found.update(each.read_bytes())
    return found.hexdigest()[:16]


def from_file(file: Path) -> list[Setting]:
    """A YAML (or JSON) file with a list of settings by name."""
    found = []
    for number, (values, lines) in enumerate(read_list(file), start=1):
        try:
            setting = parse_flags(Setting, [], as_flags(Setting, file, values, lines))
            check_bounds(setting)
        except BadInput as error:
            raise BadInput(str(error) if str(file) in str(error) else f"{file}, setting {number}: {error}") from error
        found.append(setting)
    return found

"""Finding an environment: by its name among those beside this file, or by the path of one that lies elsewhere.

An environment is imported when it is asked for, so a broken one harms no other. Whatever is wrong with the one that was
asked for ends in a BadInput of one line.
"""

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from types import ModuleType

from engine.errors import BadInput, first_line
from environments.task import Task

HERE = Path(__file__).resolve().parent
SHARED = ("task", "player", "tables", "finding")  # beside the environments, but none themselves


def is_path(env: str) -> bool:
    return "/" in env or os.sep in env or env.endswith(".py")


def place(path: str) -> Path:
    """The file or folder of the environment that a path names; `task.py` stands for its folder."""
    absolute = Path(os.path.abspath(path))
    return absolute.parent if absolute.name == "task.py" else absolute


def name_of(env: str) -> str:
    """The name of an environment that is given by name or path. Packs are drawn by it, wherever the path leads."""
    return place(env).name.removesuffix(".py") if is_path(env) else env


def whole(env: str) -> str:
    """The same environment for someone who starts from another folder: a path becomes absolute."""
    return str(place(env)) if is_path(env) else env


def names() -> list[str]:
    """The environments in this folder: NAME.py, or NAME with a task.py in it."""
    files = {path.stem for path in HERE.glob("*.py")} - {"__init__", *SHARED}
    return sorted(name for name in files | {path.parent.name for path in HERE.glob("*/task.py")} if is_name(name))


def is_name(text: str) -> bool:
    return text.isascii() and text.isidentifier()


class Environments(MutableMapping[str, type[Task]]):
    """name -> class: the environments in this folder, each imported when it is asked for, and those that were set."""

    def __init__(self):
        self.known: dict[str, type[Task]] = {}  # imported or set

    def __getitem__(self, name: str) -> type[Task]:
        if name not in self.known:
            if name not in names():
                raise KeyError(name)
            self.known[name] = only_task_class(load(module_beside(name), name), name)
        return self.known[name]

    def __setitem__(self, name: str, kind: type[Task]) -> None:
        self.known[name] = kind

    def __delitem__(self, name: str) -> None:
        del self.known[name]

    def __contains__(self, name: object) -> bool:
        return name in self.known or name in names()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self.known, *names()}))

    def __len__(self) -> int:
        return len(list(iter(self)))


ENVS = Environments()


def task_class(env: str) -> type[Task]:
    """The class of an environment, given by name or path."""
    if is_path(env) and place(env).parent.resolve() != HERE:
        return only_task_class(load(module_at(env), env), env)
    if name_of(env) not in ENVS:
        raise BadInput(f"env={env!r}: unknown environment; choose from {', '.join(ENVS)}, or give a path")
    return ENVS[name_of(env)]


def player_classes(env: str, name: str = "PLAYERS") -> dict[str, type]:
    """label -> class of the scripted players: PLAYERS in the players.py beside a task.py, else in the file itself.

    Of name "DEMONSTRATORS": level -> class of the player that imitate.py teaches there."""
    module = sys.modules[task_class(env).__module__]
    if module.__name__.endswith(".task") and importlib.util.find_spec(f"{module.__package__}.players"):
        module = load(f"{module.__package__}.players", env)
    players = getattr(module, name, {})
    if not isinstance(players, dict):
        raise BadInput(f"env={env!r}: {module.__file__}: {name} must be a dictionary of classes by name")
    return players


def module_beside(name: str) -> str:
    """The module with the task of an environment in this folder."""
    return f"environments.{name}" + (".task" if (HERE / name / "task.py").is_file() else "")


def module_at(env: str) -> str:
    """The module with the task of an environment that lies elsewhere, in a package made for its folder.

    The package lets its parts import each other (`from .words import WORDS`), and every module be imported once only.
    """
    path, name = place(env), name_of(env)
    if not path.exists():
        raise BadInput(f"env={env!r}: there is no such file or folder")
    folder = (path if path.is_dir() else path.parent).resolve()
    if path.is_dir() and not (path / "task.py").is_file():
        raise BadInput(f"env={env!r}: this folder has no task.py; an environment is such a folder, or a file NAME.py")
    if path.is_file() and path.suffix != ".py":
        raise BadInput(f"env={env!r}: must be a file NAME.py, or a folder with a task.py")
    if not is_name(name):
        raise BadInput(f"env={env!r}: {name!r} is no name for an environment; use letters, digits and underscores")
    package = ModuleType(f"environment_{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}")
    package.__path__ = [str(folder)]
    sys.modules.setdefault(package.__name__, package)
    return f"{package.__name__}.{'task' if path.is_dir() else name}"


def load(module: str, env: str) -> ModuleType:
    """Import a module of an environment, once."""
    if module in sys.modules:
        return sys.modules[module]
    importlib.invalidate_caches()  # its file may have been written just now
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise BadInput(f"env={env!r}: cannot be imported: {where_it_failed(error, module)}") from error


def where_it_failed(error: BaseException, module: str) -> str:
    """File, line and first line of an error at import: the last line of the environment's own that was reached."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    [folder] = sys.modules[module.split(".")[0]].__path__
    reached = [frame for frame in traceback.extract_tb(error.__traceback__)[1:] if frame.filename.startswith(folder)]
    line = f"{reached[-1].filename}:{reached[-1].lineno}: " if reached else ""
    return f"{line}{type(error).__name__}: {first_line(error)}"


def only_task_class(module: ModuleType, env: str) -> type[Task]:
    """The one subclass of Task that a module defines; those that it imports do not count."""
    classes = {each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Task)}
    found = [each for each in classes if each.__module__ == module.__name__]
    if len(found) != 1:
        listed = ", ".join(sorted(each.__name__ for each in found)) or "none"
        raise BadInput(f"env={env!r}: {module.__file__}: must define exactly one subclass of Task, not {listed}")
    return found[0]

"""The plan of the house: imports go one way, the method's loop knows no model, and no piece is too long to read."""

import ast
import subprocess
import sys
from pathlib import Path

from doubles import REPO

ROOMS = ("engine", "environments", "record", "evaluation", "imitation", "benchmarks")
PURE = ("rollout", "context", "envs", "environments")  # modules and rooms that know nothing of models
MODEL_LIBRARIES = {"torch", "transformers", "numpy", "peft", "accelerate", "bitsandbytes", "matplotlib"}

METHOD = ("train", "rollout", "context", "grpo", "envs", "eval", "imitate")  # the scripts at the top


def sources() -> dict[str, Path]:
    """module -> its file, without the tests."""
    files = [*REPO.glob("*.py"), *(file for room in ROOMS for file in (REPO / room).rglob("*.py"))]
    return {".".join(file.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imported(module: str, text: str) -> set[str]:
    """What a module imports, anywhere in it: inside functions and for typing only, too."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def ours(module: str, names: set[str], modules: set[str]) -> set[str]:
    """Those of the imported names that are modules of this project; scripts in benchmarks see their neighbours."""
    beside = module.rpartition(".")[0] + "." if module.startswith("benchmarks.") else ""
    found = {beside + name for name in names if beside + name in modules} | (names & modules)
    return found - {module}


def graph() -> dict[str, set[str]]:
    """module -> the modules of this project that it imports."""
    files = sources()
    return {name: ours(name, imported(name, file.read_text("utf-8")), set(files)) for name, file in files.items()}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in turn; empty if there are none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for other in sorted(edges[module]):
            if found := visit(other, [*path, module]):
                return found
        done.add(module)
        return []

    return next(filter(None, (visit(module, []) for module in sorted(edges))), [])


def within(module: str, group: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in group)


def test_the_reader_of_imports_sees_every_kind():
    text = """
import a, b.c
from d import e
from . import f
from .g import h
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from i import j
def late():
    import k
"""
    assert imported("room.sub", text) >= {"a", "b.c", "d", "d.e", "room.f", "room.g", "room.g.h", "i", "i.j", "k"}
    modules = {"benchmarks.shared", "envs", "train"}
    assert ours("benchmarks.x", {"shared", "torch", "envs"}, modules) == {"benchmarks.shared", "envs"}
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"] and circle({"a": {"b"}, "b": set()}) == []


def test_modules_do_not_import_each_other_in_circles():
    edges = graph()
    assert {"train", "rollout", "environments.frozenlake.players", "engine.errors"} <= set(edges)
    assert "envs" in edges["rollout"] and "engine.errors" in edges["envs"]
    assert circle(edges) == []


def test_nobody_imports_train():
    importing = {module for module, others in graph().items() if "train" in others}
    assert all(module.startswith("benchmarks.") for module in importing)


def test_the_loop_and_the_environments_know_no_model():
    edges, files = graph(), sources()
    for module in filter(lambda module: within(module, PURE), files):
        libraries = {name.partition(".")[0] for name in imported(module, files[module].read_text("utf-8"))}
        assert not libraries & MODEL_LIBRARIES, module
        assert all(within(other, (*PURE, "engine.errors")) for other in edges[module]), (module, edges[module])


def test_playing_with_scripted_players_loads_no_model_library():
    code = "import sys, rollout, envs; [envs.players(env) for env in envs.ENVS]; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "environments.terminal.players" in loaded and not MODEL_LIBRARIES & loaded


def test_files_classes_and_functions_can_be_read_in_one_go():
    """At most 330 lines a file, 260 a class, 60 a function."""
    too_long = set()
    for file in sources().values():
        text, name = file.read_text("utf-8"), file.relative_to(REPO).as_posix()
        if len(text.splitlines()) > 330:
            too_long.add(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                most = 260 if isinstance(node, ast.ClassDef) else 60
                if node.end_lineno - node.lineno + 1 > most:
                    too_long.add(f"{name}: {node.name}")
    assert not too_long


def test_the_method_stands_at_the_top_and_is_short():
    assert {file.stem for file in REPO.glob("*.py")} == set(METHOD)
    assert sum(len((REPO / f"{name}.py").read_text("utf-8").splitlines()) for name in METHOD) <= 1250

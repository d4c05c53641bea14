"""Writes docs/flags.md, a table of all settings of train.py, eval.py and imitate.py.

python docs/flags.py
"""

import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Literal, get_args, get_origin

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from engine.settings import Config  # noqa: E402
from evaluation.settings import EvalConfig  # noqa: E402
from imitate import ImitateConfig  # noqa: E402


def rows(settings: type) -> list[str]:
    """A row of the table for each field of a settings dataclass."""
    lines = ["| flag | default | meaning |", "|---|---|---|"]
    for f in fields(settings):
        given = "" if f.default is MISSING else f.default  # a list, and empty
        default = f"`{given:g}`" if isinstance(given, float) else f"`{given}`" if given != "" else ""
        choices = f"{' / '.join(get_args(f.type))}: " if get_origin(f.type) is Literal else ""
        resumed = " (R)" if f.metadata["may_change"] else ""
        lines.append(f"| `--{f.name.replace('_', '-')}` | {default} | {choices}{f.metadata['help']}{resumed} |")
    return lines


def page() -> str:
    parts = [
        "# Settings",
        "Written by `python docs/flags.py`. Flags may also stand in a YAML or JSON file that is named first: "
        "`python train.py settings.yaml --lr 1e-3`.",
    ]
    for script, settings, note in (
        ("train.py", Config, "Those with (R) may change when a run goes on with `--resume`."),
        ("eval.py", EvalConfig, "What a run was trained with holds, unless a flag says otherwise."),
        ("imitate.py", ImitateConfig, "Without `--model` it builds the embedded policy."),
    ):
        parts += [f"## {script}", note, "\n".join(rows(settings))]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (HERE / "flags.md").write_text(page(), encoding="utf-8")

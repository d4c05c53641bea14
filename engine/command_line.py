"""From a command line to settings, and from errors to one line: the same for every script."""

import difflib
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_origin

import torch
import transformers
import yaml
from transformers import HfArgumentParser

from engine.errors import BadInput, first_line
from engine.start import begin_main


def command_line(main: Callable[[], None]) -> None:
    """Run a script's main; what the user can mend is printed as one line, and the exit code is then not zero."""
    sys.stdout.reconfigure(line_buffering=True)  # lines show at once in a log file too
    transformers.utils.logging.disable_progress_bar()  # those of loading and writing weights
    try:
        begin_main()
        main()
    except (BadInput, OSError) as error:
        sys.exit(f"error: {error}")
    except UnicodeEncodeError as error:  # the name of a file, where the locale is not UTF-8
        sys.exit(f"error: {error.object!r}: {first_line(error)}; set PYTHONUTF8=1")
    except torch.OutOfMemoryError as error:
        sys.exit(f"error: {first_line(error)} Lower --kv-tokens or --tokens-per-microbatch.")
    except KeyboardInterrupt:
        sys.exit(130)


def plain(kind: type) -> Callable[[str], Any]:
    """Reads an int or a float that is written as usual: Python would take other scripts' digits and underscores."""

    def read(text: str):
        if not text.isascii() or "_" in text:
            raise ValueError
        return kind(text)

    read.__name__ = kind.__name__  # for argparse's message
    return read


class OneLineParser(HfArgumentParser):
    def add_argument(self, *names: str, bounds=None, may_change=None, **options):
        """Of a field's metadata, `bounds` and `may_change` (see settings.flag) are not argparse's affair."""
        if options.get("type") in (int, float):
            options["type"] = plain(options["type"])
        if options.get("nargs") == "+":  # a list may be given by one flag or by several
            options["action"] = "extend"
        return super().add_argument(*names, **options)

    def error(self, message: str):
        words = message.partition("unrecognized arguments: ")[2].split()
        known = [name for action in self._actions for name in action.option_strings]
        raise BadInput(message + nearest(words[0].partition("=")[0], known) if words else message)


def nearest(name: str, names: Iterable[str]) -> str:
    """A question that suggests what may have been meant; empty if nothing comes near."""
    close = difflib.get_close_matches(name.replace("_", "-"), {n.replace("_", "-") for n in names}, n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def as_flags(settings: type, source: str | Path, values: Any, lines: dict[str, int] | None = None) -> list[str]:
    """The settings that a file holds, as flags. Hyphens may stand for underscores; what is null keeps its default.

    `lines` are the numbers of their lines, for error messages.
    """
    names = [f.name for f in fields(settings)]
    if not isinstance(values, dict):
        raise BadInput(f"{source}: must hold settings by name; choose from {', '.join(names)}")
    values = {str(key).replace("-", "_"): value for key, value in values.items()}
    for key in values:
        if key not in names:
            where = f"{source}, line {lines[key]}" if lines else source
            raise BadInput(f"{where}: unknown setting {key!r}{nearest(key, names)}; choose from {', '.join(names)}")
    return [f"--{key}={value}" for key, value in values.items() if value is not None]


Values = tuple[dict[str, str | None], dict[str, int]]  # of settings by name, as they are written; and their lines


def read_file(file: Path) -> Values:
    """The settings in a YAML file (or JSON, which is YAML), each as it is written there, and the numbers of their
    lines. YAML itself would read the name `no` as false, and 010 as 8.

    Raises BadInput with the line for what cannot be read or stands there twice.
    """
    root = read_yaml(file)
    return read_settings(file, root) if root is not None else ({}, {})


def read_list(file: Path) -> list[Values]:
    """A list of settings in a YAML file, each as `read_file` reads them."""
    root = read_yaml(file)
    if not isinstance(root, yaml.SequenceNode) or not root.value:
        raise BadInput(f"{file}: must hold a list of settings by name, as in `- level: hard`")
    return [read_settings(file, node) for node in root.value]


def read_yaml(file: Path) -> yaml.Node | None:
    try:
        return yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}, line {mark.line + 1}" if mark else f"{file}"
        raise BadInput(f"{where}: cannot be read as YAML or JSON ({error.problem or first_line(error)})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: cannot be read as YAML or JSON ({first_line(error)})") from error
    except RecursionError as error:
        raise BadInput(f"{file}: must hold settings by name, and nothing within them") from error


def read_settings(file: Path, node: yaml.Node) -> Values:
    if not isinstance(node, yaml.MappingNode):
        raise BadInput(f"{file}, line {node.start_mark.line + 1}: must hold settings by name, as in `steps: 40`")
    values: dict[str, str | None] = {}
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        where = f"{file}, line {line}"
        if not isinstance(key, yaml.ScalarNode) or not isinstance(value, yaml.ScalarNode):
            raise BadInput(f"{where}: must hold a setting's name and its value, and nothing within them")
        name = key.value.replace("-", "_")
        if name in values:
            raise BadInput(f"{where}: {key.value!r} is given a second time")
        values[name] = None if value.tag == "tag:yaml.org,2002:null" else value.value
        lines[name] = line
    return values, lines


def is_given(name: str, argv: list[str]) -> bool:
    """Whether a flag is among the arguments."""
    return any(word.partition("=")[0].replace("_", "-") == name.replace("_", "-") for word in argv)


def parse_flags(settings: type, argv: list[str] | None = None, defaults: list[str] | None = None) -> Any:
    """An instance of a settings dataclass from [FILE.yaml or FILE.json] and flags; flags win over the file.

    `defaults` are flags that the file and the others win over.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    given = list(defaults or [])
    if argv and not argv[0].startswith("-") and Path(argv[0]).suffix in (".yaml", ".yml", ".json"):
        file = Path(argv.pop(0))
        given += as_flags(settings, file, *read_file(file))
    lists = tuple(f"--{f.name}" for f in fields(settings) if get_origin(f.type) is list)  # flags would add to them
    given = [flag for flag in given if (name := flag.partition("=")[0]) not in lists or not is_given(name, argv)]
    parser = OneLineParser(settings, allow_abbrev=False, usage="%(prog)s [SETTINGS.yaml] [--flag value ...]")
    return settings(**vars(parser.parse_args(given + argv)))

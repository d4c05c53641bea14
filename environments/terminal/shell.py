"""A small simulated terminal: the shells of a local machine and of a remote host.

Nothing is executed: commands are methods of `Shell` and of its bases in commands.py, on the files of filesystem.py. A
local machine (Linux, macOS or Windows) reaches a remote Linux host through ssh, scp and rsync. The shell knows what
moving files around takes; it has quotes, `&&` and `;`, but no pipes, redirections, wildcards or variables. On Windows,
commands and messages are those of cmd, quotes and separators as above. The sizes here and in filesystem.py bound what
any command line can cost.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from environments.terminal.commands import ArchiveCommands, FileCommands
from environments.terminal.filesystem import DENIED, MAX_SHOWN, USAGE, Failure
from environments.terminal.machines import UPLOADS

MAX_LINE = 800  # characters of a command line
MAX_OUTPUT = 1000  # characters of what a command line prints


def printable(text: str) -> str:
    """The text with line feeds, without other control characters, lone surrogates and the like."""
    return "".join(c if c == "\n" or c.isprintable() else " " if c.isspace() else "?" for c in text)


# the groups: an operator, and pieces of a word in single quotes, in double quotes, after a backslash, and plain
TOKEN = re.compile(r"""(?s)(\n|&&|\|\||[;|&<>()`])|'([^']*)'|"((?:[^"\\]|\\.)*+)"|\\(.)|([^\s;|&<>()`'"\\]+)|\s+""")


def parse(line: str, windows: bool) -> list[tuple[str, list[str]]]:
    """The commands of a line: (the `&&` or `;` before it, its words). Raises Failure for what the shell cannot read."""
    if len(line) > MAX_LINE:
        raise Failure(("Argument list too long", "The command line is too long."))
    if windows:
        line = line.replace("\\", "\\\\")  # a letter like any other there
    commands: list[tuple[str, list[str]]] = [(";", [])]
    position, in_word = 0, False
    while position < len(line):
        token = TOKEN.match(line, position)
        if token is None:
            raise Failure("unexpected EOF while looking for a matching quote")
        position = token.end()
        operator, single, double, escaped, plain = token.groups()
        if operator in ("&&", ";", "\n"):
            commands.append(("&&" if operator == "&&" else ";", []))
        elif operator:
            raise Failure(
                (f"syntax error near unexpected token '{operator}'", f"{operator} was unexpected at this time.")
            )
        elif token.lastindex:
            if double:
                double = re.sub(r'\\(["\\$`])', r"\1", double)
            if single and windows:
                single = single.replace("\\\\", "\\")
            piece = next(piece for piece in (single, double, escaped, plain) if piece is not None)
            words = commands[-1][1]
            if in_word:
                words[-1] += piece
            else:
                words.append(piece)
        in_word = bool(token.lastindex) and not operator
    for before, after in zip(commands, [*commands[1:], (";", [])], strict=True):
        if "&&" in (before[0], after[0]) and not before[1]:
            raise Failure(("syntax error near unexpected token '&&'", "&& was unexpected at this time."))
    return [command for command in commands if command[1]]


REPLACED = {"rsync": "scp", "zip": "tar"}  # quirk, named after the tool to use -> the tool that is missing
CHANGING = frozenset("cp mv rm rmdir mkdir chmod tar zip unzip trash".split())  # what the quirk "sudo" is about


class Shell(FileCommands, ArchiveCommands):
    """A session in which command lines can be run, some of whose commands reach the other machine."""

    def run(self, line: str) -> bool:
        """Run a command line; returns whether its last command worked."""
        windows = self.machine.system == "windows"
        self.listings.clear()
        try:
            commands = parse(line, windows)
        except Failure as failure:
            self.output.append(failure.text("sh", windows))
            return False
        worked = True
        for number, (joint, words) in enumerate(commands, start=1):
            if joint == "&&" and not worked:
                continue
            worked = self.execute(words)
            if self.finished():
                break
            if not worked and self.remote:
                self.output.append(f"[command {number} of {len(commands)} failed]")
        return worked

    def execute(self, words: list[str]) -> bool:
        windows = self.machine.system == "windows"
        name, *args = [words[0].lower(), *words[1:]] if windows else words
        sudo = name == "sudo" and bool(args) and not windows
        if sudo:
            name, *args = args
        command = (CMD if windows else POSIX).get(name)
        if command is None or not self.has(name):
            unknown = f"'{name[:MAX_SHOWN]}' is not recognized as an internal or external command."
            self.output.append(unknown if windows else f"sh: {name[:MAX_SHOWN]}: command not found")
            return False
        try:
            if "sudo" in self.setup.quirks and self.remote is None and name in CHANGING and not sudo:
                raise Failure("Permission denied (changes on this host need sudo)")
            return command.run(self, *command.split(args)) is not False
        except Failure as failure:
            self.output.append(failure.text(name, command.switch == "/"))
            return False

    def has(self, name: str) -> bool:
        """Whether a command that shells know is there on this machine."""
        if name == "trash":
            return "trash" in self.setup.quirks
        if name in ("ssh", "scp", "rsync") and self.remote is None:
            return False
        return not any(quirk in self.setup.quirks and name == tool for quirk, tool in REPLACED.items())

    def connect(self, target: str) -> "Shell":
        """A new session on the host; `target` is NAME or USER@NAME."""
        login, _, name = target.rpartition("@")
        login = login or self.setup.user
        if name != self.setup.name:
            raise Failure(f"Could not resolve hostname {name[:MAX_SHOWN]}: Name or service not known")
        if login != self.setup.login:
            better = f'Please log in as the user "{self.setup.login}" rather than the user "{login[:MAX_SHOWN]}".'
            raise Failure(better if "user" in self.setup.quirks else "Permission denied (publickey).")
        return Shell(self.remote, self.setup, self.finished, output=self.output)

    def ssh(self, flags: set[str], args: list[str]) -> bool:
        if args[0].startswith("-"):
            raise Failure("this ssh takes no options", args[0])
        if len(args) == 1:
            raise Failure("no terminal for a session on the host; give the command to run there")
        return self.connect(args[0]).run(" ".join(args[1:]))

    def scp(self, flags: set[str], texts: list[str]) -> None:
        (here, _), (there, text) = source, target = [self.location(text) for text in texts]
        if here is not self and there is not self:
            raise Failure("source and target cannot both be on the host")
        if there is not self and "incoming" in self.setup.quirks and not there.path(text).startswith(UPLOADS):
            raise Failure(f"{DENIED[0]} (uploads are accepted in {UPLOADS} only)", there.path(text))
        self.copy(source, target, deep=bool(flags & set("ra")))

    def location(self, text: str) -> tuple["Shell", str]:
        """The session and path of NAME:PATH, USER@NAME:PATH or a local PATH (one letter is a drive)."""
        match = re.fullmatch(r"([^/\\:]{2,}):(.*)", text, re.DOTALL)
        return (self.connect(match[1]), match[2]) if match else (self, text)


@dataclass(frozen=True)
class Command:
    run: Callable[[Shell, set[str], list[str]], bool | None]  # False: failed, and has said why
    flags: str | None  # the letters that it takes; None: it looks through its arguments itself
    least: int = 0  # arguments that are not flags
    most: int = 99
    switch: str = "-"  # what a flag begins with; "/" for commands of cmd, in which capitals do not matter

    def split(self, args: list[str]) -> tuple[set[str], list[str]]:
        """(flags, other arguments)"""
        flags, rest = set(), list(args)
        if self.flags is not None:
            options = [arg for arg in args if arg.startswith(self.switch) and len(arg) > 1]
            rest = [arg for arg in args if arg not in options]
            flags = {letter for arg in options for letter in arg[1:]}
            if self.switch == "/":
                flags = {letter.lower() for letter in flags - {"/"}}
            for letter in sorted(flags - set(self.flags)):
                raise Failure((f"invalid option -- '{letter}'", f'Invalid switch - "{letter}".'))
        if not self.least <= len(rest) <= self.most:
            raise Failure(USAGE)
        return flags, rest


TOOLS = {  # the same on all systems
    "echo": Command(Shell.echo, None),
    "trash": Command(Shell.trash, "f", 1),
    "tar": Command(Shell.tar, None, 1),
    "zip": Command(Shell.zip, "rq", 2),
    "unzip": Command(Shell.unzip, None, 1),
    "ssh": Command(Shell.ssh, None, 1),
    "scp": Command(Shell.scp, "rpqC", 2, 2),
    "rsync": Command(Shell.scp, "ravzhtP", 2, 2),
}
POSIX = TOOLS | {
    "ls": Command(Shell.ls, "alhR1"),
    "cat": Command(Shell.cat, "", 1),
    "pwd": Command(Shell.pwd, "", 0, 0),
    "cd": Command(Shell.cd, "", 0, 1),
    "cp": Command(Shell.cp, "rRafpv", 2, 2),
    "mv": Command(Shell.mv, "fv", 2, 2),
    "rm": Command(Shell.rm, "rRfv", 1),
    "rmdir": Command(Shell.rmdir, "", 1),
    "mkdir": Command(Shell.mkdir, "pv", 1),
    "chmod": Command(Shell.chmod, None, 2),
}
CMD = TOOLS | {
    "dir": Command(Shell.ls, "abs", switch="/"),
    "type": Command(Shell.cat, "", 1, switch="/"),
    "cd": Command(Shell.cd, "d", 0, 1, switch="/"),
    "copy": Command(Shell.cp, "y", 2, 2, switch="/"),
    "xcopy": Command(Shell.cp, "eiy", 2, 2, switch="/"),
    "move": Command(Shell.mv, "y", 2, 2, switch="/"),
    "ren": Command(Shell.ren, "", 2, 2, switch="/"),
    "del": Command(Shell.rm, "fq", 1, switch="/"),
    "rmdir": Command(Shell.rmdir, "sq", 1, switch="/"),
    "mkdir": Command(Shell.mkdir, "", 1, switch="/"),
}
for short, full in {"chdir": "cd", "rename": "ren", "erase": "del", "rd": "rmdir", "md": "mkdir"}.items():
    CMD[short] = CMD[full]

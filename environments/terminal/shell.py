"""A small simulated terminal: the shells of a local machine and of a remote host.

Nothing is executed: commands are methods of `Shell`, on the files of filesystem.py. A local machine (Linux, macOS or
Windows) reaches a remote Linux host through ssh, scp and rsync. The shell knows what moving files around takes; it has
quotes, `&&` and `;`, but no pipes, redirections, wildcards or variables. On Windows, commands and messages are those of
cmd, quotes and separators as above. The sizes here and in filesystem.py bound what any command line can cost.
"""

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from environments.terminal.filesystem import (
    DENIED,
    EXISTS,
    FOLDER,
    FULL,
    IS_FOLDER,
    MAX_NODES,
    MAX_SHOWN,
    MISSING,
    NO_FOLDER,
    NOT_EMPTY,
    USAGE,
    Failure,
    Machine,
    Node,
    copy_tree,
)

MAX_LINE = 800  # characters of a command line
MAX_OUTPUT = 1000  # characters of what a command line prints

# why a command failed, where that is one of the machines' peculiarities
USE_TRASH = ("disabled on this machine, use trash instead",) * 2
ASKS = ("remove? Not removed: no terminal to ask on; -f does not ask", "Delete (Y/N)? Not deleted; /Q does not ask.")


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


@dataclass(frozen=True)
class Setup:
    """How the two machines are set up. Names of peculiarities that the shell knows are in `quirks`."""

    system: str  # of the local machine: "linux", "macos" or "windows"
    user: str  # of the local machine
    host: str  # the name of the host that the user is told
    name: str  # the name that it answers to
    login: str  # the user that it lets in
    home: str  # that user's home folder on it
    quirks: frozenset[str]


UPLOADS = "/incoming"  # where uploads must go, under the quirk of that name
REPLACED = {"rsync": "scp", "zip": "tar"}  # quirk, named after the tool to use -> the tool that is missing
CHANGING = frozenset("cp mv rm rmdir mkdir chmod tar zip unzip trash".split())  # what the quirk "sudo" is about


@dataclass
class Shell:
    """A session on one machine. `output` collects what its commands print."""

    machine: Machine
    setup: Setup
    finished: Callable[[], bool]  # asked after every command; when it says yes, the rest of the line is not run
    remote: Machine | None = None  # the host; None in a session on the host itself
    output: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.cwd = self.machine.home
        if not self.machine.is_folder(self.cwd):
            self.output.append(f"Could not chdir to home directory {self.cwd}: {MISSING[0]}")
            self.cwd = "/"

    def run(self, line: str) -> bool:
        """Run a command line; returns whether its last command worked."""
        windows = self.machine.system == "windows"
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

    def path(self, text: str) -> str:
        return self.machine.resolve(text, self.cwd)

    # -----------------------------------------------------------------------------------------------------
    # Commands on one machine: each is given the set of its flags and its other arguments

    def ls(self, flags: set[str], texts: list[str]) -> None:
        slash = "\\" if self.machine.system == "windows" else "/"
        for text in texts or ["."]:
            path = self.path(text)
            names = {text: self.machine.get(path)}
            if names[text].is_folder:
                listed = sorted(self.machine.below(path)) if flags & set("Rs") else self.machine.children(path)
                names = {known[len(path) :].strip("/"): self.machine.nodes[known] for known in listed if known != path}
                names = {name: node for name, node in names.items() if "a" in flags or not name.startswith(".")}
            shown = {name.replace("/", slash) + slash * node.is_folder: node for name, node in names.items()}
            long = [f"{'d' if node.is_folder else '-'}{node.permissions} {name}" for name, node in shown.items()]
            self.output.append("\n".join(long) if "l" in flags else "  ".join(shown))

    def cat(self, flags: set[str], texts: list[str]) -> None:
        for text in texts:
            node = self.machine.get(self.path(text))
            if node.is_folder:
                raise Failure(IS_FOLDER, text)
            self.output.append("(binary data)" if node.members else node.content)

    def echo(self, flags: set[str], args: list[str]) -> None:
        self.output.append(" ".join(args))

    def pwd(self, flags: set[str], args: list[str]) -> None:
        self.output.append(self.machine.show(self.cwd))

    def cd(self, flags: set[str], texts: list[str]) -> None:
        if not texts and self.machine.system == "windows":
            return self.pwd(flags, texts)
        path = self.path(texts[0] if texts else "~")
        if not self.machine.get(path).is_folder:
            raise Failure(NO_FOLDER, texts[0])
        self.cwd = path

    def cp(self, flags: set[str], texts: list[str]) -> None:
        self.copy((self, texts[0]), (self, texts[1]), deep=bool(flags & set("rRae")))

    def copy(self, source: tuple["Shell", str], target: tuple["Shell", str], deep: bool) -> None:
        """Copy a file, or if `deep` a folder, between sessions; source and target are (session, path as typed)."""
        (here, text), (there, to_text) = source, target
        path = here.path(text)
        node = here.machine.get(path)
        if node.is_folder and not deep:
            raise Failure(("omitting directory (no -r)", IS_FOLDER[1]), text)
        copy_tree(here.machine, path, there.machine, there.destination(to_text, path))

    def destination(self, text: str, path: str) -> str:
        """Where what is at `path` ends up when it is copied or moved to `text`: in it, if that is a folder."""
        to = self.path(text)
        if self.machine.is_folder(to):
            return posixpath.join(to, posixpath.basename(path))
        if text.endswith(("/", "\\")):
            raise Failure(NO_FOLDER, text)
        return to

    def mv(self, flags: set[str], texts: list[str]) -> None:
        path = self.path(texts[0])
        self.move(path, self.destination(texts[1], path))

    def ren(self, flags: set[str], texts: list[str]) -> None:
        path = self.path(texts[0])
        to = self.machine.resolve(texts[1], posixpath.dirname(path))
        if posixpath.dirname(to) != posixpath.dirname(path):
            raise Failure(USAGE)
        if to in self.machine.nodes:
            raise Failure("A duplicate file name exists, or the file cannot be found.")
        self.move(path, to)

    def move(self, path: str, to: str) -> None:
        self.machine.get(path)
        self.machine.check_writable(path)
        if to != path and self.machine.is_folder(to):
            raise Failure(NOT_EMPTY, self.machine.show(to))
        copy_tree(self.machine, path, self.machine, to)
        self.machine.remove(path)

    def rm(self, flags: set[str], texts: list[str]) -> None:
        if "trash" in self.setup.quirks:
            raise Failure(USE_TRASH)
        for text in texts:
            path = self.path(text)
            if path not in self.machine.nodes and "f" in flags:
                continue
            if self.machine.get(path).is_folder and not flags & set("rR"):
                raise Failure(IS_FOLDER, text)
            if "force" in self.setup.quirks and not flags & set("fq"):
                raise Failure(ASKS, text)
            self.machine.remove(path)

    def trash(self, flags: set[str], texts: list[str]) -> None:
        for text in texts:
            self.machine.get(self.path(text))
            self.machine.remove(self.path(text))

    def rmdir(self, flags: set[str], texts: list[str]) -> None:
        for text in texts:
            path = self.path(text)
            if not self.machine.get(path).is_folder:
                raise Failure(NO_FOLDER, text)
            if self.machine.children(path) and "s" not in flags:
                raise Failure(NOT_EMPTY, text)
            self.machine.remove(path)

    def mkdir(self, flags: set[str], texts: list[str]) -> None:
        one_level = "levels" in self.setup.quirks
        if one_level and "p" in flags:
            raise Failure("unrecognized option: p")
        for text in texts:
            path = self.path(text)
            if path in self.machine.nodes and "p" not in flags:
                raise Failure(EXISTS, text)
            if "p" in flags or self.machine.system == "windows" and not one_level:
                self.machine.make_folders(path)
            else:
                self.machine.put(path, FOLDER)

    def chmod(self, flags: set[str], args: list[str]) -> None:
        mode, *texts = args
        if "symbolic" in self.setup.quirks and not mode[:1].isalpha():
            raise Failure("not a symbolic mode (such as u=rw,g=r,o=)", mode)
        for text in texts:
            path = self.path(text)
            node = self.machine.get(path)
            self.machine.check_writable(path)
            self.machine.nodes[path] = replace(node, mode=new_mode(mode, node.mode))

    # -----------------------------------------------------------------------------------------------------
    # Archives

    def tar(self, flags: set[str], args: list[str]) -> None:
        letters, archive, base, texts = "", None, self.cwd, []
        words = ["-" + args[0].removeprefix("-"), *args[1:]]
        while words:
            word = words.pop(0)
            if word == "-C" and words:
                base = self.path(words.pop(0))
            elif word.startswith("-"):
                letters += word[1:]
                if word.endswith("f") and words:
                    archive = words.pop(0)
            else:
                texts.append(word)
        if archive is None or not re.fullmatch("[zvpf]*[cx][zvpf]*", letters):
            raise Failure("use -czf ARCHIVE NAMES or -xzf ARCHIVE, and -C FOLDER if need be")
        if "c" in letters:
            self.machine.put(self.path(archive), Node("tar", members=self.gather(texts, base)))
        else:
            self.unpack(archive, "tar", base)

    def zip(self, flags: set[str], texts: list[str]) -> None:
        archive = texts[0] if "." in posixpath.basename(texts[0]) else texts[0] + ".zip"
        members = self.gather(texts[1:], self.cwd, deep="r" in flags)
        self.machine.put(self.path(archive), Node("zip", members=members))

    def unzip(self, flags: set[str], args: list[str]) -> None:
        base, words = self.cwd, list(args)
        if "-d" in words[:-1]:
            at = words.index("-d")
            base = self.path(words[at + 1])
            del words[at : at + 2]
        words = [word for word in words if word not in ("-o", "-q")]
        if len(words) != 1:
            raise Failure("use unzip ARCHIVE [-d FOLDER]")
        self.machine.make_folders(base)
        self.unpack(words[0], "zip", base)

    def gather(self, texts: list[str], base: str, deep: bool = True) -> tuple[tuple[str, Node], ...]:
        """The members of a new archive of these files and folders, under their names as typed."""
        members = []
        for text in texts:
            path = self.machine.resolve(text, base)
            self.machine.get(path)
            typed = text.replace("\\", "/") if self.machine.system == "windows" else text
            typed = posixpath.normpath(path if re.match("~|[A-Za-z]:", typed) else typed)
            top = re.sub(r"^(/|\.\.?(/|$))+", "", typed)
            for known in self.machine.below(path) if deep else [path]:
                name = posixpath.join(top, known[len(path) :].lstrip("/")).rstrip("/")
                members += [(name, self.machine.nodes[known])] if name else []
            if len(members) > MAX_NODES:
                raise Failure(FULL)
        if not members:
            raise Failure("nothing to put into the archive")
        return tuple(members)

    def unpack(self, archive: str, form: str, base: str) -> None:
        node = self.machine.get(self.path(archive))
        if node.content != form or not node.members:
            raise Failure(f"not a {form} archive", archive)
        for name, member in node.members:
            path = posixpath.join(base, name)
            self.machine.make_folders(posixpath.dirname(path))
            self.machine.put(path, member)

    # -----------------------------------------------------------------------------------------------------
    # From one machine to the other

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


def new_mode(text: str, mode: int) -> int:
    """The mode that chmod gives a file: octal such as 640, or symbolic such as u=rw,g+r,o-x."""
    if re.fullmatch("[0-7]{3,4}", text):
        return int(text, 8) & 0o777
    for clause in text.split(","):
        match = re.fullmatch("([ugoa]*)([=+-])([rwx]*)", clause)
        if not match:
            raise Failure("invalid mode", text)
        who = match[1].replace("a", "ugo") or "ugo"
        digit = sum({"r": 4, "w": 2, "x": 1}[letter] for letter in set(match[3]))
        bits = sum(digit << {"u": 6, "g": 3, "o": 0}[each] for each in set(who))
        everything = sum(7 << {"u": 6, "g": 3, "o": 0}[each] for each in set(who))
        mode = mode & ~bits if match[2] == "-" else (mode & ~everything if match[2] == "=" else mode) | bits
    return mode


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

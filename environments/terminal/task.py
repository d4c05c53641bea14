"""Terminal: file errands on a local machine and a remote host, whose peculiarities are hidden.

Level `paper` draws machines anew for every task, as the paper does, so that the tasks of a pack share little. In level
`train` (ours) a pack shares one local machine and one host with three or four peculiarities ("quirks") that nobody is
told: each shows as the error message of a command that would work elsewhere. A player that knows them does any errand
in one command line; one that does not runs into one after the other. The number of turns decides how much that matters:
with 3, 4 and 5 turns the scripted learner, which reads every error and never errs itself, does .11, .41 and .86 of its
first tasks (400 packs) and nearly all of its fourth ones. Level `train` has 4.
"""

import posixpath
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from environments.task import Task, parse_answer
from environments.terminal.filesystem import FOLDER, Machine, Node
from environments.terminal.shell import MAX_LINE, MAX_OUTPUT, UPLOADS, Setup, Shell, printable

SYSTEMS = {"linux": "Linux", "macos": "macOS", "windows": "Windows"}
LOCAL_HOMES = {"linux": "/home/", "macos": "/Users/", "windows": "/Users/"}  # each with the user's name behind it
USERS = "ann ben carla dev eva finn gita hugo ines jonas kim lena mia noor omar paula".split()
HOSTS = "atlas birch cedar delta ember falcon granite harbor iris juniper".split()
DOMAINS = "example.org example.net lab.example.com office.example.com".split()
LOGINS = "deploy ops service www backup".split()
HOMES = "/data/home /srv/users /mnt/people /export/home".split()

FOLDERS = (
    "archive configs data docs drafts exports letters logs music notes photos plans reports scripts shared".split()
)
STEMS = (
    "agenda backlog budget chapter contract invoice journal minutes offer payroll recipe results sales summary".split()
)
ENDINGS = "txt md csv log json html".split()
VARIANTS = ("", "-old", "-draft", "-2023", "-2024", "-final", "_copy")
NEW_NAMES = "2025 april august backups inbox incoming-mail june later march october spring team week7".split()
MODES = (0o400, 0o440, 0o444, 0o600, 0o640, 0o660, 0o664, 0o700, 0o750, 0o755)

# Quirks by family; a pack has two of the first, one of the second and at most one of the third.
QUIRKS = {
    "login": (
        "user",  # the host lets in another user than the local one
        "alias",  # the host answers to another name, which stands in ~/.ssh/config
        "home",  # the home folder on the host is not in /home, and logins start in /
    ),
    "host": (
        "rsync",  # there is no scp, but rsync
        "incoming",  # uploads must go to /incoming
        "sudo",  # commands that change files on the host need sudo
    ),
    "tool": (  # on both machines
        "zip",  # there is no tar, but zip and unzip
        "trash",  # rm (del) is disabled, but there is trash
        "force",  # rm (del) removes nothing without -f (/Q)
        "levels",  # mkdir has no -p and makes one level at a time
        "symbolic",  # chmod takes symbolic modes only
    ),
}

PLACES = {"local": "this computer", "remote": "the host"}
ONE_PLACE = {  # single errands that are done on either machine
    "rename": "On {place}, rename {src} to {dst}.",
    "move": "On {place}, move {src} to {dst}.",
    "copy": "On {place}, copy {src} to {dst}.",
    "delete": "On {place}, delete {src}.",
    "chmod": "On {place}, set the permissions of {src} to {mode}.",
    "pack": "On {place}, pack the folder {src} into the archive {dst}.tar.gz or {dst}.zip.",
    "mkdir": "On {place}, create the folder {dst}, of which the first part is there already.",
}
SINGLE = ONE_PLACE | {
    "upload": "Upload {src} of this computer to the host as {dst}.",
    "download": "Download {src} of the host to this computer as {dst}.",
}
COMPOSITE = {
    "pack+upload": "Pack the folder {src} of this computer and upload the archive to the host "
    "as {dst}.tar.gz or {dst}.zip.",
    "download+extract": "Download the archive {src} of the host and extract it into the folder {dst} of this computer.",
    "mkdir+upload": "Create the folder {dst} on the host, of which the first part is there already, "
    "and upload {src} of this computer into it.",
    "upload+chmod": "Upload {src} of this computer to the host as {dst} and set its permissions there to {mode}.",
    "upload+delete": "Upload {src} of this computer to the host as {dst}, then delete it on this computer.",
    "pack+upload+extract": "Pack the folder {src} of this computer, upload the archive to the host "
    "and extract it there, so that the folder {src} is in {dst}.",
    "download+rename": "Download {src} of the host to this computer and give it the name {dst}.",
    "backup+replace": "On the host, keep a copy of {dst} as {dst}.bak, then replace {dst} by {src} of this computer.",
}
ERRANDS = SINGLE | COMPOSITE


@dataclass(frozen=True)
class TerminalLevel:
    max_turns: int
    shared: bool  # whether the tasks of a pack share their machines, with quirks


TERMINAL_LEVELS = {"train": TerminalLevel(4, True), "paper": TerminalLevel(12, False)}


@dataclass(frozen=True)
class Errand:
    """What a task asks for. Paths are relative to the home folder of the machine that they are on, with "/"."""

    kind: str  # a key of ERRANDS
    here: str  # the machine of `src`, "local" or "remote"
    there: str  # and that of `dst`
    src: str
    dst: str
    mode: int  # permissions, where the kind is about them

    def text(self, system: str) -> str:
        """The errand in words, with paths as the machines write them."""

        def path(place: str, path: str) -> str:
            return path.replace("/", "\\") if system == "windows" and place == "local" else path

        mode = f"{self.mode:o} ({Node(mode=self.mode).permissions})"
        src, dst = path(self.here, self.src), path(self.there, self.dst)
        return ERRANDS[self.kind].format(place=PLACES[self.there], src=src, dst=dst, mode=mode)


Files = dict[str, Node]  # by path relative to the home folder


def draw_files(rng: random.Random) -> Files:
    """Four folders with three files each, whose names are easily mixed up. All contents differ."""
    files = {}
    codes = iter(rng.sample(range(10_000, 100_000), 12))
    for folder in rng.sample(FOLDERS, 4):
        stem, ending = rng.choice(STEMS), rng.choice(ENDINGS)
        for variant in rng.sample(VARIANTS, 3):
            files[f"{folder}/{stem}{variant}.{ending}"] = Node(f"{stem} {next(codes)}")
    return files


def draw_errand(rng: random.Random, kind: str, setup: Setup, files: dict[str, Files]) -> Errand:
    """An errand of a kind. An archive that it needs is put into `files`.

    Errands of ONE_PLACE are on the host two times in three, where most quirks are.
    """
    here, there = ("remote", "local") if kind.startswith("download") else ("local", "remote")
    if kind in ONE_PLACE:
        here = there = rng.choice(["local", "remote", "remote"])
        if kind == "chmod" and setup.system == "windows":
            here = there = "remote"
    src = rng.choice(sorted(files[here]))
    folder, name = posixpath.split(src)
    other = rng.choice(sorted({posixpath.dirname(path) for path in files[there]} - {folder}))
    stem, ending = posixpath.splitext(name)
    changed = f"{stem}-{rng.choice(['new', 'v2', 'b', 'checked'])}{ending}"
    same = changed if f"{other}/{name}" in files[there] else name
    new = rng.sample(NEW_NAMES, 2)
    match kind:
        case "rename":
            dst = f"{folder}/{changed}"
        case "copy" | "download+rename":
            dst = f"{other}/{changed}"
        case "pack" | "pack+upload":
            src, dst = folder, f"{other}/{folder}-{new[0]}"
        case "pack+upload+extract":
            src, dst = folder, other
        case "download+extract":
            form = "zip" if "zip" in setup.quirks else rng.choice(["tar", "zip"])
            members = tuple((f"{new[0]}/{i}{ending}", Node(f"{stem} part {i}")) for i in (1, 2))
            src, dst = f"{folder}/{new[0]}.{'tar.gz' if form == 'tar' else 'zip'}", other
            files["remote"][src] = Node(form, members=members)
        case "mkdir" | "mkdir+upload":
            src = src if kind == "mkdir+upload" else ""
            dst = f"{other}/{new[0]}/{new[1]}"
        case "delete" | "chmod":
            dst = ""
        case "backup+replace":
            dst = rng.choice(sorted(files["remote"]))
        case _:
            dst = f"{other}/{same}"
    return Errand(kind, here, there, src, dst, rng.choice(MODES) if "chmod" in kind else 0)


@dataclass(frozen=True)
class Goal:
    """The state in which an errand is done; all other files are as they were."""

    nodes: dict[tuple[str, str], Node | None]  # (machine, path): what must be there; None: nothing
    archive: tuple[str, str] | None = None  # (machine, path without its ending) of an archive that must be there
    packed: tuple[tuple[str, Node], ...] = ()  # what must be in it, (name, file), in whatever folder

    def reached(self, machines: dict[str, Machine], homes: dict[str, str]) -> bool:
        if any(machines[at].nodes.get(f"{homes[at]}/{path}") != node for (at, path), node in self.nodes.items()):
            return False
        if self.archive is None:
            return True
        at, path = self.archive
        found = [machines[at].nodes.get(f"{homes[at]}/{path}{ending}") for ending in (".tar.gz", ".zip")]
        return any(archive is not None and self.complete(archive) for archive in found)

    def complete(self, archive: Node) -> bool:
        return all(
            any(node == wanted and f"/{path}".endswith(f"/{name}") for path, node in archive.members)
            for name, wanted in self.packed
        )


def goal_of(errand: Errand, files: dict[str, Files]) -> Goal:
    """What the machines must hold in the end; `files` are what they hold at first."""
    nodes: dict[tuple[str, str], Node | None]
    nodes = {(place, path): node for place in files for path, node in files[place].items()}
    src, dst, mode = (errand.here, errand.src), (errand.there, errand.dst), errand.mode
    inside = {path: node for path, node in files[errand.here].items() if path.startswith(errand.src + "/")}
    match errand.kind:
        case "rename" | "move" | "upload+delete":
            nodes[dst], nodes[src] = nodes[src], None
        case "copy" | "upload" | "download" | "download+rename":
            nodes[dst] = nodes[src]
        case "delete":
            nodes[src] = None
        case "chmod":
            nodes[src] = replace(nodes[src], mode=mode)
        case "upload+chmod":
            nodes[dst] = replace(nodes[src], mode=mode)
        case "backup+replace":
            nodes[errand.there, errand.dst + ".bak"], nodes[dst] = nodes[dst], nodes[src]
        case "mkdir":
            nodes[dst] = FOLDER
        case "mkdir+upload":
            nodes[dst] = FOLDER
            nodes[errand.there, f"{errand.dst}/{posixpath.basename(errand.src)}"] = nodes[src]
        case "download+extract":
            nodes |= {(errand.there, f"{errand.dst}/{name}"): node for name, node in nodes[src].members}
        case "pack" | "pack+upload":
            return Goal(nodes, dst, tuple((posixpath.basename(path), node) for path, node in inside.items()))
        case "pack+upload+extract":
            nodes |= {(errand.there, f"{errand.dst}/{path}"): node for path, node in inside.items()}
    return Goal(nodes)


def draw_setup(rng: random.Random, with_quirks: bool) -> Setup:
    """Two machines; see QUIRKS."""
    quirks = []
    if with_quirks:
        tools = rng.sample(QUIRKS["tool"], rng.randint(0, 1))
        quirks = rng.sample(QUIRKS["login"], 2) + rng.sample(QUIRKS["host"], 1) + tools
    user, short = rng.choice(USERS), rng.choice(HOSTS)
    host = f"{short}.{rng.choice(DOMAINS)}"
    alias, login, homes = f"{short}-{rng.randint(2, 9)}", rng.choice(LOGINS), rng.choice(HOMES)
    return make_setup(rng.choice(sorted(SYSTEMS)), user, host, alias, login, homes, quirks)


def make_setup(
    system: str, user: str, host: str, alias: str, login: str, homes: str, quirks: Iterable[str] = ()
) -> Setup:
    """A setup in which what only a quirk would change is as usual."""
    login = login if "user" in quirks else user
    home = f"{homes if 'home' in quirks else '/home'}/{login}"
    return Setup(system, user, host, alias if "alias" in quirks else host, login, home, frozenset(quirks))


def make_machine(system: str, login_home: str, home: str, files: Files, uploads: Iterable[str] = ()) -> Machine:
    """A machine with these files in `home`; only there, in /tmp and in `uploads` can anything be changed."""
    machine = Machine(system, login_home, {"/": FOLDER}, writable=("",))  # everywhere, while it is made
    for folder in (posixpath.dirname(login_home), home, "/tmp", *uploads):
        machine.make_folders(folder)
    for path, node in files.items():
        machine.make_folders(posixpath.dirname(f"{home}/{path}"))
        machine.put(f"{home}/{path}", node)
    machine.writable = (home, "/tmp", *uploads)
    return machine


class Terminal(Task):
    """Do an errand with files in a terminal; on level `train`, how machine and host are set up is the pack's secret."""

    levels = tuple(TERMINAL_LEVELS)

    def __init__(self, setup: Setup, errand: Errand, files: dict[str, Files], level: TerminalLevel):
        self.setup, self.errand, self.files = setup, errand, files
        self.max_turns = level.max_turns
        self.goal = goal_of(errand, files)
        self.homes = {"local": LOCAL_HOMES[setup.system] + setup.user, "remote": setup.home}
        system = SYSTEMS[setup.system]
        windows = " (commands of cmd)" if setup.system == "windows" else ""
        secret = "This computer and this host have their peculiarities, the same in every task of this series. "
        self.rules = (
            f"You work in the terminal of a {system} computer{windows} as user {setup.user}. "
            f"The Linux host {setup.host} can be reached by ssh HOST COMMAND and scp, without a password. "
            "Each turn you give one command line and see what it prints. Commands can be joined by && and ;. "
            "There are no pipes, redirections, wildcards or variables. "
            "The terminal starts in your home folder, and paths in a task start in the home folder of their machine. "
            f"{secret if level.shared else ''}"
            "Do what the task says, and leave all other files as they are.\n"
            f"You have {self.max_turns} turns. Think briefly, then end each reply with your command line, "
            "like this: <answer>COMMAND LINE</answer>"
        )

    @classmethod
    def make_tasks(cls, rng: random.Random, size: int, level: str) -> list[Task]:
        settings = TERMINAL_LEVELS[level]
        tasks, setup = [], draw_setup(rng, settings.shared)
        for _ in range(size):
            setup = setup if settings.shared else draw_setup(rng, False)
            files = {"local": draw_files(rng), "remote": draw_files(rng)}
            kind = rng.choice(sorted(rng.choice([SINGLE, COMPOSITE])))
            tasks.append(cls(setup, draw_errand(rng, kind, setup, files), files, settings))
        return tasks

    def reset(self) -> str:
        setup = self.setup
        config = Node(f"Host {setup.name}\n    IdentityFile ~/.ssh/id_ed25519")
        home, uploads = self.homes["local"], [UPLOADS] if "incoming" in setup.quirks else []
        local, remote = self.files["local"] | {".ssh/config": config}, self.files["remote"]
        self.machines = {
            "local": make_machine(setup.system, home, home, local),
            "remote": make_machine("linux", f"/home/{setup.login}", setup.home, remote, uploads),
        }
        self.shell = Shell(self.machines["local"], setup, self._reached, self.machines["remote"])
        self.turn, self.done = 0, False
        self.reward, self.feedback, self.broken_format = 0.0, "", False
        return f"{self.errand.text(setup.system)}\nTurn 1 of {self.max_turns}:"

    def step(self, reply: str) -> tuple[str, bool]:
        if self.done:
            raise RuntimeError("this task is over; call reset() to play it again")
        self.turn += 1
        line = parse_answer(reply)
        if line is None:
            self.broken_format = True
            return self._end(0.0, "Your reply did not have the form <answer>COMMAND LINE</answer>.")
        self.shell.output.clear()
        self.shell.run(printable(line[: MAX_LINE + 1]))
        text = "\n".join(self.shell.output)
        text = "(no output)" if not text else text if len(text) <= MAX_OUTPUT else text[:MAX_OUTPUT] + " ... (cut)"
        text = re.sub("#(?=##)", "# ", text) + "\n"
        if self._reached():
            return self._end(1.0, "You did what the task says.", text)
        if self.turn == self.max_turns:
            return self._end(0.0, "You ran out of turns before the task was done.", text)
        return f"{text}Turn {self.turn + 1} of {self.max_turns}:", False

    def _reached(self) -> bool:
        return self.goal.reached(self.machines, self.homes)

    def _end(self, reward: float, feedback: str, text: str = "") -> tuple[str, bool]:
        self.reward, self.feedback, self.done = reward, feedback, True
        return text + feedback, True

"""Scripted players of Terminal.

The informed player and the learner do an errand by the same `Recipe`, which depends on what is known about the
machines: the informed player knows all of it, the learner what its hint and the error messages say.
"""

import functools
import posixpath
import re
from dataclasses import dataclass
from functools import partial

from environments.player import InformedPlayer, Player, update_reply
from environments.tables import ByTask
from environments.terminal.errands import ERRANDS, PLACES, Errand
from environments.terminal.machines import SYSTEMS, UPLOADS
from environments.terminal.shell import CMD, POSIX
from environments.terminal.task import Terminal
from environments.terminal.tiny import TINY_LEVELS, TinyTerminal
from environments.terminal.tiny_players import TinyDemonstrator, TinyInformed, TinyLearner, TinyRandom

Known = dict[str, str]  # quirk -> what is known about it: a name or path for "user", "alias" and "home", else ""


@dataclass(frozen=True)
class Recipe:
    """How to do an errand, given the machines as the rules tell them and what else is known."""

    system: str
    user: str
    host: str
    errand: Errand
    known: Known

    def steps(self) -> list[list[str]]:
        """One step after the other, each a list of commands. A step that failed can be done again from its start."""
        errand = self.errand
        here, there, src, dst, name = errand.here, errand.there, errand.src, errand.dst, posixpath.basename(errand.src)
        packed = ".zip" if "zip" in self.known else ".tar.gz"
        match errand.kind:
            case "rename" if self.is_cmd(here):
                return [self.on(here, f"ren {self.at(here, src)} {posixpath.basename(dst)}")]
            case "rename" | "move":
                return [self.two("move" if self.is_cmd(here) else "mv", here, src, dst)]
            case "copy":
                return [self.two("copy" if self.is_cmd(here) else "cp", here, src, dst)]
            case "delete":
                return [self.delete(here, src)]
            case "chmod":
                return [self.set_mode(here, src)]
            case "mkdir":
                return [self.make_folder(there, dst)]
            case "pack":
                return [self.pack(here, src, dst + packed)]
            case "upload":
                return [self.upload(src, dst)]
            case "download" | "download+rename":
                return [self.download(src, dst)]
            case "pack+upload":
                return [self.pack(here, src, src + packed), self.upload(src + packed, dst + packed)]
            case "download+extract":
                return [self.download(src, name), self.extract(there, name, dst)]
            case "mkdir+upload":
                return [self.make_folder(there, dst), self.upload(src, f"{dst}/{name}")]
            case "upload+chmod":
                return [self.upload(src, dst), self.set_mode(there, dst)]
            case "upload+delete":
                return [self.upload(src, dst), self.delete(here, src)]
            case "backup+replace":
                return [self.two("cp", there, dst, dst + ".bak"), self.upload(src, dst)]
        archive = f"{dst}/{src}{packed}"  # pack+upload+extract
        return [
            self.pack(here, src, src + packed),
            self.upload(src + packed, archive),
            self.extract(there, archive, dst),
        ]

    def is_cmd(self, place: str) -> bool:
        return self.system == "windows" and place == "local"

    @property
    def target(self) -> str:
        """What ssh calls the host."""
        login = f"{self.known['user']}@" if "user" in self.known else ""
        return login + self.known.get("alias", self.host)

    def at(self, place: str, path: str) -> str:
        """A path as it is written on its machine."""
        if place == "remote":
            return f"{self.known['home']}/{path}" if "home" in self.known else path
        return path.replace("/", "\\") if self.is_cmd(place) else path

    def on(self, place: str, *commands: str) -> list[str]:
        if place == "local":
            return list(commands)
        sudo = "sudo " if "sudo" in self.known else ""
        return [f'ssh {self.target} "{" && ".join(sudo + command for command in commands)}"']

    def two(self, command: str, place: str, src: str, dst: str) -> list[str]:
        return self.on(place, f"{command} {self.at(place, src)} {self.at(place, dst)}")

    def delete(self, place: str, path: str) -> list[str]:
        plain, forced = ("del", "del /Q") if self.is_cmd(place) else ("rm", "rm -f")
        command = "trash" if "trash" in self.known else forced if "force" in self.known else plain
        return self.on(place, f"{command} {self.at(place, path)}")

    def make_folder(self, place: str, path: str) -> list[str]:
        """A folder two levels below one that is there."""
        both = [f"mkdir {self.at(place, each)}" for each in (posixpath.dirname(path), path)]
        if "levels" in self.known:
            return self.on(place, *both)
        return self.on(place, both[1] if self.is_cmd(place) else both[1].replace("mkdir", "mkdir -p"))

    def set_mode(self, place: str, path: str) -> list[str]:
        mode = f"{self.errand.mode:o}"
        if "symbolic" in self.known:
            letters = ["".join(c for c, bit in zip("rwx", (4, 2, 1), strict=True) if int(d) & bit) for d in mode]
            mode = ",".join(f"{who}={what}" for who, what in zip("ugo", letters, strict=True))
        return self.on(place, f"chmod {mode} {self.at(place, path)}")

    def pack(self, place: str, folder: str, archive: str) -> list[str]:
        return self.two("zip -r" if archive.endswith(".zip") else "tar czf", place, archive, folder)

    def extract(self, place: str, archive: str, folder: str) -> list[str]:
        command = "unzip {} -d {}" if archive.endswith(".zip") else "tar xzf {} -C {}"
        return self.on(place, command.format(self.at(place, archive), self.at(place, folder)))

    def transfer(self, src: str, dst: str) -> str:
        return f"{'rsync' if 'rsync' in self.known else 'scp'} {src} {dst}"

    def upload(self, src: str, dst: str) -> list[str]:
        source, target = self.at("local", src), self.at("remote", dst)
        if "incoming" not in self.known:
            return [self.transfer(source, f"{self.target}:{target}")]
        landed = f"{UPLOADS}/{posixpath.basename(src)}"
        return [self.transfer(source, f"{self.target}:{landed}"), *self.on("remote", f"mv {landed} {target}")]

    def download(self, src: str, dst: str) -> list[str]:
        return [self.transfer(f"{self.target}:{self.at('remote', src)}", self.at("local", dst))]


def answer(steps: list[list[str]]) -> str:
    """All steps in one command line."""
    return f"<answer>{' && '.join(command for step in steps for command in step)}</answer>"


class TerminalInformed(InformedPlayer):
    """Does every errand in one command line."""

    def plan(self, task: Terminal) -> str:
        setup = task.setup
        recipe = Recipe(setup.system, setup.user, setup.host, task.errand, setup.peculiarities())
        return answer(recipe.steps())


# ---------------------------------------------------------------------------------------------------------
# Players that read the conversation

RULES = re.compile(r"terminal of a (\w+) computer.* as user (\w+)\. The Linux host (\S+) can")
GROUPS = {"place": "this computer|the host", "mode": r"[0-7]+ \([rwx-]+\)"}  # others have no spaces in them

# what can be known -> (what shows it, the line of the hint that says it)
FACTS = {
    "user": (r'Please log in as the user "(\w+)"', "The host lets me in as {value}, not as the local user."),
    "no name": ("Could not resolve hostname", "The host is not found by the name in the rules; .ssh/config may help."),
    "alias": (r"^Host (\S+)$", "The name of the host for ssh is {value}."),
    "no home": ("Could not chdir to home directory", "Logins to the host do not start in my home folder there."),
    "home": (r"(?<!\S)(\w+/\w+/LOGIN)/(?!\S)", "My home folder on the host is {value}; write it out in paths."),
    "rsync": ("scp: command not found|'scp' is not recognized", "scp is missing; use rsync."),
    "incoming": ("uploads are accepted in", f"Uploads must go to {UPLOADS} and be moved from there."),
    "sudo": ("need sudo", "Commands that change files on the host need sudo in front."),
    "zip": ("tar: command not found|'tar' is not recognized", "tar is missing; use zip -r and unzip -d."),
    "trash": ("use trash instead", "rm and del are disabled; use trash."),
    "force": ("does not ask", "rm and del delete nothing without -f and /Q."),
    "levels": ("unrecognized option: p|cannot find the path", "mkdir makes one level at a time and has no -p."),
    "symbolic": ("not a symbolic mode", "chmod takes symbolic modes only, such as u=rw,g=r,o=."),
}


@functools.cache
def pattern_of(template: str) -> re.Pattern:
    """Matches a line made from a template; the names in braces become groups."""
    seen = set()

    def group(match: re.Match) -> str:
        name = match[1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>{GROUPS.get(name, '[^ ]+?')})"

    line = re.sub(r"\\{(\w+)\\}", group, re.escape(template))
    return re.compile(f"^{line}$", re.MULTILINE)


def text_of(messages: list[dict]) -> str:
    """What the environment and the hint say."""
    return "\n".join(message["content"] for message in messages if message["role"] != "assistant")


def read_facts(text: str, user: str) -> Known:
    """All that the hint and the outputs in a conversation tell of the machines; `user` is the local user."""
    known: Known = {}
    for quirk, (evidence, sentence) in FACTS.items():
        said = re.search(pattern_of(f"- {sentence}"), text)
        shown = re.search(evidence.replace("LOGIN", known.get("user", user)), text, re.MULTILINE)
        if said or shown:
            known[quirk] = (said or shown)[1] if "{value}" in sentence else ""
            if quirk == "home" and not said:
                known[quirk] = "/" + known[quirk]
    return known


def read_recipe(text: str) -> Recipe:
    """The recipe for the task of a conversation, given what its text tells of the machines."""
    name, user, host = RULES.search(text).groups()
    system = next(system for system in SYSTEMS if SYSTEMS[system] == name)
    kind, match = next((k, m) for k, template in ERRANDS.items() if (m := pattern_of(template).search(text)))
    groups = {key: value.replace("\\", "/") for key, value in match.groupdict().items()}
    here, there = ("remote", "local") if kind.startswith("download") else ("local", "remote")
    if "place" in groups:
        here = there = next(place for place in PLACES if PLACES[place] == groups["place"])
    mode = int(groups.get("mode", "0").split()[0], 8)
    errand = Errand(kind, here, there, groups.get("src", ""), groups.get("dst", ""), mode)
    return Recipe(system, user, host, errand, read_facts(text, user))


class TerminalLearner(Player):
    """Does every errand in one command line, first as is usual elsewhere; learns from errors and goes on from there.

    Where an error does not say what to do instead, it spends a turn on looking it up.
    """

    def act(self, messages: list[dict]) -> str:
        done = 0  # steps of the recipe
        recipe = read_recipe(text_of(messages[:2]))
        for i in range(2, len(messages)):
            if messages[i]["role"] == "assistant":
                continue
            if not self.look_up(recipe):
                done += self.worked(recipe.steps()[done:], messages[i]["content"])
            recipe = read_recipe(text_of(messages[: i + 1]))
        return answer([[self.look_up(recipe)]] if self.look_up(recipe) else recipe.steps()[done:])

    def look_up(self, recipe: Recipe) -> str:
        """The command that shows what is known to be unusual, but not how; empty if there is nothing of the kind."""
        if "no name" in recipe.known and "alias" not in recipe.known:
            return r"type .ssh\config" if recipe.is_cmd("local") else "cat .ssh/config"
        if "no home" in recipe.known and "home" not in recipe.known:
            return f"ssh {recipe.target} ls -R /"
        return ""

    def worked(self, steps: list[list[str]], output: str) -> int:
        """How many steps were done by a command line with that output."""
        failed = re.search(r"^\[command ([0-9]+) of", output, re.MULTILINE)
        left = int(failed[1]) - 1 if failed else sum(map(len, steps))
        for count, step in enumerate(steps):
            left -= len(step)
            if left < 0:
                return count
        return len(steps)

    def hint(self, messages: list[dict]) -> str:
        known = read_recipe(text_of(messages)).known
        lines = [f"- {FACTS[quirk][1].format(value=value)}" for quirk, value in known.items()]
        return update_reply(lines or ["- Nothing unusual so far."])


class TerminalRandom(Player):
    """Runs a random command with one or two paths of the task, here or on the host, or copies between the two."""

    def act(self, messages: list[dict]) -> str:
        recipe = read_recipe(text_of(messages[:2]))
        paths = [path for path in (recipe.errand.src, recipe.errand.dst) if path] + ["."]
        place = self.rng.choice(sorted(PLACES))
        commands = CMD if recipe.is_cmd(place) else POSIX
        name, operands = self.rng.choice(sorted(commands)), self.rng.choices(paths, k=self.rng.randint(1, 2))
        if name in ("ssh", "scp", "rsync"):
            ends = [operands[0], f"{recipe.host}:{operands[-1]}"]
            self.rng.shuffle(ends)
            return answer([[f"{name} {' '.join(ends)}"]])
        return answer([recipe.on(place, " ".join([name, *(recipe.at(place, path) for path in operands)]))])


PLAYERS = {
    "random": partial(ByTask, {Terminal: TerminalRandom, TinyTerminal: TinyRandom}),
    "informed": partial(ByTask, {Terminal: TerminalInformed, TinyTerminal: TinyInformed}),
    "learner": partial(ByTask, {Terminal: TerminalLearner, TinyTerminal: TinyLearner}),
}
DEMONSTRATORS = dict.fromkeys(TINY_LEVELS, TinyDemonstrator)

"""What a Terminal hint says of the peculiarities of the machines, by keywords.

A hint is cut into clauses. To name the tool, flag or folder that a peculiarity makes necessary, or to say that what it
replaces is missing, is to state it ("use rsync", "scp: command not found"); to deny it is not ("sudo is not needed",
"scp works"). Of a login, host name or home folder that is unusual, a hint must give the value. Keywords are a rough
measure of wordy hints: they do not tell what needs sudo, say.
"""

import re

from environments.task import plain
from environments.terminal.machines import HOMES, HOSTS, LOGINS, USERS, Setup

CLAUSE_END = re.compile(r"\n|[;,()]|[.!?](?=\s|$)|\b(?:but|while|whereas|although|instead of|rather than)\b")
LACK = r"(?:missing|unavailable|disabled|unsupported|not|cannot|no|never|without|fails?|failed|unrecognized|lacks?)\b"
NEED = r"\b(?:use|uses|using|needs?|needed|must|requires?|required|only|always|add|with|without|unless)\b"
TOOL = r"(?<![\w./-])"  # what follows is a command of its own, no part of a path or of a longer word
FORCE = r"(?:rm -r?f|del /q|(?<!\S)(?:-f|/q))\b"
ONE_BY_ONE = r"\b(?:(?:one|each) (?:level|folder|directory)|level by level|parents? \w+ first)\b"


def lacks(what: str) -> str:
    """Matches a clause that says so."""
    return rf"{what}.{{0,30}}\b{LACK}|\b{LACK}.{{0,30}}{what}"


# peculiarity -> (what states it, what it makes necessary, what does not work then)
STATES = {
    "rsync": (rf"{TOOL}rsync\b|" + lacks(rf"{TOOL}scp\b"), "rsync", "scp"),
    "incoming": (r"(?<![\w-])/?incoming(?![\w-])", "/?incoming", ""),
    "sudo": (rf"{TOOL}sudo\b", "sudo", ""),
    "zip": (rf"{NEED}.{{0,30}}{TOOL}(?:un)?zip\b|" + lacks(rf"{TOOL}tar\b(?!\.\w)"), "(?:un)?zip", "tar"),
    "trash": (rf"{TOOL}trash\b|{TOOL}(?:rm|del)\b.{{0,20}}\b(?:disabled|forbidden|unavailable)\b", "trash", ""),
    "force": (rf"{NEED}.{{0,30}}{FORCE}|^\W*{FORCE}", "(?:-f|/q)", ""),
    "levels": (rf"{ONE_BY_ONE}|" + lacks(r"(?<!\S)-p\b"), "", "-p"),
    "symbolic": (r"\bsymbolic|\bu=[rwx]|" + lacks(r"\b(?:octal|numeric|numbers)\b"), "", "(?:octal|numeric)"),
}
NOT_NEEDED = (
    r"\b(?:no|not|never|cannot|avoid)(?: (?:need|needed|use|using|for|to|have|require|a|any|the)){{0,4}} {0}\b"
    r"|\bworks? (?:\w+ ){{0,2}}without {0}\b"
    r"|{0}(?::| is| was| are| does| did| do) (?:not|missing|unavailable|unnecessary)\b"
)
WORKS = r"{0} (?:modes? )?(?:still )?(?:works?|(?:is|are) (?:there|available|fine|ok|allowed))\b"
STATING = {quirk: re.compile(states) for quirk, (states, _, _) in STATES.items()}
DENYING = {
    quirk: re.compile("|".join([NOT_NEEDED.format(use)] * bool(use) + [WORKS.format(replaced)] * bool(replaced)))
    for quirk, (_, use, replaced) in STATES.items()
}

NOT_THIS = re.compile(
    r"\b(?:not|never|rather than|instead of|other than)(?: (?:as|the|local|user|by|in|from|with)){0,4} [\"']?[\w./-]+@?"
)
NAMES = "|".join([*LOGINS, *USERS])
LOGIN = re.compile(
    rf"\b({NAMES})@|\b(?:(?:in|log|login|logged|connect|connected|ssh|user)\b.{{0,20}}\bas|user|username|login|account)"
    rf"[ \"'=:]{{1,3}}(?:(?:is|the|user|name|as)[ \"'=:]{{1,3}}){{0,3}}({'|'.join(LOGINS)})\b"
)
ALIAS = re.compile(rf"\b(?:{'|'.join(HOSTS)})-[0-9]\b")
HOME = re.compile(rf"(?<![\w/])(?:{'|'.join(HOMES)})/\w+")


def verdicts(hint: str, setup: Setup) -> dict[str, bool]:
    """peculiarity, had or not -> whether what the hint says of it is true, for those that it says something of."""
    text = re.sub(r"[^\S\n]+", " ", plain(hint))
    found = {}
    for clause in set(CLAUSE_END.split(text)):
        for quirk in STATES:
            has = quirk in setup.quirks
            if DENYING[quirk].search(clause):
                found[quirk] = found.get(quirk, True) and not has
            elif STATING[quirk].search(clause):
                found[quirk] = found.get(quirk, True) and has
    text = NOT_THIS.sub("", text)
    said = {
        "user": ({name for names in LOGIN.findall(text) for name in names if name}, setup.login),
        "alias": (set(ALIAS.findall(text)), setup.name),
        "home": (set(HOME.findall(text)), setup.home),
    }
    return found | {quirk: values == {truth} for quirk, (values, truth) in said.items() if values}


def grade_quirks(hint: str, setup: Setup) -> dict[str, float]:
    """Shares of the peculiarities that the machines have, and the number of stated ones that they do not have."""
    found = verdicts(hint, setup)
    total = len(setup.quirks)
    right = sum(found.get(quirk) is True for quirk in setup.quirks)
    wrong = sum(found.get(quirk) is False for quirk in setup.quirks)
    invented = sum(not true for quirk, true in found.items() if quirk not in setup.quirks)
    shares = {"right": right / total, "wrong": wrong / total, "unsaid": (total - right - wrong) / total}
    return {**shares, "invented": float(invented)}

"""What a FrozenLake hint says of the four directions, in whatever words.

A hint is cut into sentences and these into parts, at commas, brackets, "and", "or" and the like. A part that names an
action and a direction, or two such parts in a row, is a statement: "- up: Direction 3", "Direction 3 = up", "to go up,
use Direction 3". None is what denies or doubts ("is not up", "maybe up", "unknown", a question) and what names several:
"up: Direction 1, Direction 2". Likely ones ("seems to go up") are statements: a reader would act on them. What is in
doubt is rather left out than guessed at.
"""

import itertools
import re
from dataclasses import dataclass, field

from environments.task import MAX_GRADED, plain

WAY = r"(?:up|down|left|right)(?:wards?)?\b"
SIGN = r"(?:[:=]|->|=>|→|is\b)"
# numbers without "Direction": behind other ones ("Directions 1 and 3"), before a direction, behind one
AND = r"(?:,|/|&|and|or)(?: and| or)?"
LIST = re.compile(rf"\bdirections? [1-4](?: ?{AND} ?[1-4]\b(?! (?:times|more|moves|steps|turns)))+")
NUMBER_FIRST = re.compile(rf"(^|[,;({{:-]|\band\b|{WAY}) ?([1-4]) ?({SIGN})(?= ?{WAY})", re.MULTILINE)
NUMBER_LAST = re.compile(rf"\b({WAY} ?{SIGN}) ?([1-4])(?= ?(?:$|[,;)}}]|\.(?: |$)|and\b))", re.MULTILINE)

IN_BRACKETS = re.compile(rf"\b(direction [1-4]) ?\( ?({WAY}) ?\)|\b({WAY}) ?\( ?(direction [1-4]) ?\)")

SENTENCE_END = re.compile(r"(?<=\?)|\n|;|[.!](?= |$)|\b(?:but|while|whereas|however|although|though)\b", re.MULTILINE)
JOINT = re.compile(r"(,|[()\[\]{}&/]| [-–—]+ |\b(?:and|or|then|so)\b)")
CONDITION = re.compile(rf"\bif (?:direction [1-4] (?:is|means|goes|moves|leads) {WAY}|{WAY} is direction)")
PLACE = re.compile(r"\b(?:goal|holes?|start|target|tiles?)\b")  # "the goal is up, use Direction 2" may mean anything
HEDGE = re.compile(  # by what it does, see `claims_of_sentence`
    r"\b(?:(?P<unsure>unknown|untested|untried|unsure|unclear|uncertain|unconfirmed|undetermined|wrong|incorrect|false"
    r"|guess\w*|not (?:\w+ )?(?:sure|certain|tested|tried|confirmed|known|verified|clear))"
    r"|(?P<maybe>maybe|perhaps|possibly)|(?P<possible>might|may|could|either)"
    r"|(?P<tentative>try|test|check|whether|assum\w+|suppose|candidates?|possible|one of"
    r"|only direction [1-4] (?:is|was) left)"
    r"|(?P<denied>no|not|never|neither|nor|cannot|except|excluding|excluded|eliminated|instead of|rather than"
    r"|other than|opposite|unlike|without|avoid|fail(?:s|ed)?|ruled out))\b"
)

ENTITY = re.compile(
    r"\b(?:(?P<way>up|down|left|right)(?:wards?)?\b(?P<no_way>"  # what follows a word that only looks like a direction
    r"-hand\b| (?:edge|wall|side|border|corner|column|boundary|half|end)s?\b| of\b|(?<=up) to (?:[0-9]|now|date)"
    r"|(?<=left) (?:me|you|us|it|unchanged)\b"
    r"|(?<=right) (?:now|away|after|before|answer|one|choice|way|direction|step)\b)?"
    r"|(?:[0-9]+|no|any|few|enough|one|two|three) (?:more )?(?:turns?|moves?|steps?|tries) (?:are |is )?left\b"
    r"|(?:on|at|from) the (?:left|right)\b|(?:end|ends|ended|ending|give|gave|set|sum|mix|mixed|follow|look|pick) up\b"
    r"|(?:write|wrote|written|note|noted|slow|break|narrow|narrowed|cut) down\b"
    r"|(?:d|dir(?:ection)?s? ?[:#=-]? ?)(?P<action>[0-9]+)"
    r"(?: ?(?:-|–|to|through|\.\.+) ?(?:direction )?(?P<last>[0-9]))?)"
)
Entity = tuple[str, str | int]  # ("way", "up") or ("action", 3)


@dataclass
class Claim:
    """Actions and directions that are said to belong together."""

    names: dict[str, set] = field(default_factory=lambda: {"way": set(), "action": set()})
    last: str = ""  # which of the two kinds was named last

    def add(self, entities: list[Entity]) -> "Claim":
        for kind, name in entities:
            self.names[kind].add(name)
            self.last = kind
        return self

    def complete(self) -> bool:
        return all(self.names.values())


def entities_of(part: str) -> list[Entity]:
    """The actions and directions that are named, in order. Numbers other than 1 to 4 name no action."""
    found: list[Entity] = []
    for match in ENTITY.finditer(part):
        numbers = [int(digits) for digits in match.group("action", "last") if digits in ("1", "2", "3", "4")]
        found += [("action", number) for number in numbers]
        if match["way"] and not match["no_way"]:
            found.append(("way", match["way"]))
    return found


def claims_of_part(entities: list[Entity]) -> list[Claim]:
    """A part with both kinds, such as "Direction 1 up Direction 2 down": what stands together in pairs."""
    whole = Claim().add(entities)
    if all(len(names) == 1 for names in whole.names.values()):
        return [whole]
    runs = [list(run) for _, run in itertools.groupby(entities, key=lambda entity: entity[0])]
    if len(runs) % 2:
        return []
    return [Claim().add(first + second) for first, second in zip(runs[::2], runs[1::2], strict=True)]


def take_back(claims: list[Claim], claim: Claim | None) -> None:
    """Remove the claim from the end of the list if it is there."""
    if claims and claims[-1] is claim:
        claims.pop()


def claims_of_sentence(sentence: str) -> list[Claim]:
    """What a sentence claims.

    `going` is the claim that a part with actions only, or with directions only, belongs to: "up: Direction 1, Direction
    2". It is None after a denial or doubt, which also holds for the rest of a list: "not up, left". A doubt in a part
    of its own, "(not sure)", is about what stands before it.
    """
    claims: list[Claim] = []
    going: Claim | None = Claim()
    joint, places = "", bool(PLACE.search(sentence))
    for piece in JOINT.split(sentence):
        if JOINT.fullmatch(piece):
            joint = "or" if piece in ("or", "/") or joint == "or" else "and"
            continue
        entities, hedges = entities_of(piece), {match.lastgroup for match in HEDGE.finditer(piece)}
        if not entities:
            if hedges & {"unsure", "maybe"}:
                take_back(claims, going)
                going = None
            continue
        kinds = {kind for kind, _ in entities}
        if len(kinds) == 2:
            if joint == "or":
                take_back(claims, going)
            if hedges or joint == "or":
                going = None
            elif going and not going.complete() and going.last == entities[0][0]:  # "Direction 1, Direction 2: up"
                claims.append(going.add(entities))
            else:
                new = claims_of_part(entities)
                claims += new
                going = new[-1] if new else None
        elif going is not None:
            same = going.last in ("", *kinds)
            listed = same and going.last and hedges <= {"maybe", "possible"}  # "up: Direction 1, maybe Direction 2"
            if hedges and not listed:
                if joint == "or":
                    take_back(claims, going)
                going = None
            elif same or joint == "or":
                going.add(entities)
            elif going.complete() or places:
                going = Claim().add(entities)
            else:
                claims.append(going.add(entities))
        joint = ""
    return claims


def said_actions(hint: str) -> dict[str, set[int]]:
    """direction -> the actions that the hint says it is; several are a contradiction."""
    text = re.sub(r"[^\S\n]+", " ", re.sub(r'[*_"]', " ", plain(hint)).replace("|", ":").replace("dir.", "dir"))
    text = re.sub(r"\?+", " unsure?", re.sub("≠|!=", " not ", text))
    text = NUMBER_FIRST.sub(r"\1, direction \2 \3", text)
    text = NUMBER_LAST.sub(r"\1 direction \2", text)
    text = LIST.sub(lambda match: re.sub(rf"({AND}) ?(?=[1-4])", r"\1 direction ", match[0]), text)
    text = IN_BRACKETS.sub(lambda match: ": ".join(filter(None, match.groups())), text)
    said: dict[str, set[int]] = {}
    for sentence in SENTENCE_END.split(text[:MAX_GRADED]):
        if not re.search("[1-4]", sentence) or CONDITION.search(sentence):
            continue
        for claim in claims_of_sentence(sentence):
            if all(len(names) == 1 for names in claim.names.values()):
                [way], [action] = claim.names.values()
                said.setdefault(way, set()).add(action)
    return said


def grade_meanings(hint: str, mapping: tuple[str, ...]) -> dict[str, float]:
    """Shares of the four directions; `mapping[k - 1]` is what Direction k does. A contradiction is wrong."""
    said = said_actions(hint)
    right = sum(said.get(way) == {k} for k, way in enumerate(mapping, start=1))
    return {"right": right / 4, "wrong": (len(said) - right) / 4, "unsaid": (4 - len(said)) / 4}

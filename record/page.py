"""A report as one HTML page that needs nothing else: no server, no network, no library.

The page is the template page.html with the data in it as JSON. What the data says is shown as text whatever it holds:
the script in the template makes text nodes of it, and spells out what a reader could not see.
"""

import json
import math
from pathlib import Path

from record.files import write_text

TEMPLATE = Path(__file__).with_name("page.html")
HOLE = "{{data}}"  # in the template, once
ESCAPES = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
)  # so that nothing in it ends the script element


def page(data: dict) -> str:
    """The whole HTML of a report, in ASCII but for what the template holds. Only "title" is required:

    title        what was trained or evaluated
    settings     {name: value}, shown folded
    training     a dict for each step: "step", "success" [S], "broken_format", "broken_hint"; drawn as curves
    evaluations  dicts of "title", "records" as eval.py makes them, and "differences": dicts of "label" and, by
                 position, "difference", "difference_low", "difference_high". Records may also hold "turns",
                 "reply_tokens", "read_tokens" [S] and "hint_tokens" [S-1]. Records called random, informed and learner
                 are drawn as reference lines.
    packs        what the episode browser offers: dicts of "title" and "rollouts", these of "title" and "episodes".
                 An episode has "kind" ("solve" or "update"), "position", "reward", "outcome", "broken_format"; or None
                 for each of "return", "baseline", "advantage" and "weighted" (the advantage after re-weighting);
                 "before", the hint that its conversation was given, and "after", the hint that an update wrote, else
                 None; and "messages": dicts of "role", "text" and "tokens", which is None or, for each sampled token,
                 [piece of text, log-probability, its change since or None].

    Numbers that are not finite are shown as missing. Raises TypeError for what JSON cannot hold.
    """
    before, after = TEMPLATE.read_text(encoding="utf-8").split(HOLE)
    return before + as_json(data).translate(ESCAPES) + after


def write_page(data: dict, path: Path) -> None:
    """Write the page of `data` (see `page`); a file that was there is replaced as a whole."""
    write_text(path, page(data))


def as_json(data: dict) -> str:
    """JSON in ASCII, lone surrogates included, and null for numbers that are not finite."""
    return json.dumps(finite(data), allow_nan=False, separators=(",", ":"))


def is_number(value) -> bool:
    """Whether it is a finite number that any reader of JSON can hold."""
    return math.isfinite(value) if type(value) is float else type(value) is int and abs(value) < 2**53


def printable(text: str) -> str:
    """Text in one line, without what a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)


def finite(value):
    """The same with None for every float that is nan or infinite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(of_key) for key, of_key in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value

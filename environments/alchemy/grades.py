"""What recipes an Alchemy hint states, as formulas or in words.

Formulas may name anything that looks like an element: "abc + def = ghi", "abc + def makes ghi", "ghi = abc + def". In
words ("combine abc and def to make ghi", "ghi is made from abc and def") only the pack's own elements count, for any
three words could stand there; so do formulas with a colon or in a table. A recipe right behind "not", "maybe" and the
like, or right in front of "is wrong" or a question mark, is not stated.
"""

import re

from environments.task import plain

Recipe = tuple[str, str, str]  # two inputs in alphabetical order, and the product

NAME = r"\b([a-z]{3,5})\b"
PAIR = rf"{NAME} ?(\+|&|and\b|with\b) ?{NAME}"
MAKES = (
    r"(=>?|==|->|→|⇒|[:|]|(?:will )?(?:make|give|yield|produce|create|form|become)s?\b|results? in\b"
    r"|(?:made|gave|yielded|produced|created|formed|became)\b|to (?:make|get|form|create|produce|obtain)\b"
    r"|,? ?(?:you |we |i )?(?:get|got)\b)"
)
MADE = (
    r"(=|<-|←|:|(?:(?:is|was|can be|comes|came) )?(?:made|produced|obtained|created|formed)? ?"
    r"(?:from|of|with|by|using|by combining|by mixing)\b|,? ?(?:combine|mix|use)\b)"
)
ARTICLE = r"(?:(?:the |an? )?(?:element |target )?)?"
FORWARD = re.compile(rf"{PAIR} ?{MAKES} ?{ARTICLE}{NAME}(?! ?[+&])")
BACKWARD = re.compile(rf"(?<!\+)(?<!\+ ){NAME} ?{MADE} ?{ARTICLE}{PAIR}(?! ?{MAKES})")
NO_PRODUCT = frozenset("none null void fail fails empty zero not any new noise what same".split())
DOUBT_BEFORE = re.compile(
    r"\b(?:not|never|no|maybe|perhaps|possibly|untested|unverified|wrong|false|guess|whether|if|unknown|avoid|try"
    r"|(?:not|try) combine) ?:? ?$"
)
DOUBT_AFTER = re.compile(
    r" ?[-–:]? ?(?:\?|(?:(?:is|was|does|did) )?(?:not|wrong|false|incorrect|fails?|failed|untested|unverified"
    r"|unconfirmed|maybe|possibly|perhaps)\b)"
)


def stated_recipes(hint: str, elements: frozenset[str]) -> set[Recipe]:
    """The recipes that a hint states; `elements` are those of the pack."""
    text = re.sub(r"[^\S\n]+", " ", re.sub(r"[*_\"()']", " ", plain(hint)))
    text = re.sub(r"\b([a-z]{3,5}) ?(\+|with) ?itself\b", r"\1 \2 \1", text)
    found = set()
    for match in FORWARD.finditer(text):
        a, joint, b, makes, product = match.groups()
        found |= recipe(text, match, elements, (a, b, product), joint == "+" and makes not in ":|")
    for match in BACKWARD.finditer(text):
        product, made, a, joint, b, _ = match.groups()
        found |= recipe(text, match, elements, (a, b, product), joint == "+" and made in ("=", "<-", "←"))
    return found


def recipe(text: str, match: re.Match, elements: frozenset[str], names: Recipe, formula: bool) -> set[Recipe]:
    """The recipe of a match, if it is stated as one."""
    known = elements.issuperset(names)
    if not known and (not formula or names[2] in NO_PRODUCT - elements):
        return set()
    if DOUBT_BEFORE.search(text, max(0, match.start() - 20), match.start()) or DOUBT_AFTER.match(text, match.end()):
        return set()
    return {(*sorted(names[:2]), names[2])}


def grade_recipes(
    hint: str, recipes: dict[tuple[str, str], str], discovered: set[tuple[str, str]], elements: frozenset[str]
) -> dict[str, float]:
    """The share "kept" of the discovered pairs, stated with their product and no other (left out if there are none),
    and the number of "invented" recipes, which are false. `recipes`: pair -> what it makes, if anything."""
    products: dict[tuple[str, str], set[str]] = {}
    for a, b, product in stated_recipes(hint, elements):
        products.setdefault((a, b), set()).add(product)
    invented = sum(len(said - {recipes.get(pair)}) for pair, said in products.items())
    kept = sum(products.get(pair) == {recipes[pair]} for pair in discovered)
    return {"invented": float(invented)} | ({"kept": kept / len(discovered)} if discovered else {})

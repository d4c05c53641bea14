"""Experiments across domains: the matrix (6), words for knowing (8), three teachers distilled into one student (10)."""

import itertools
from collections.abc import Sequence

import torch

from benchmarks.laboratory.claims import Check, Claim, Values, average, estimate, minus
from benchmarks.laboratory.jobs import Evaluation, Scale, Variant, Want, built, untrained
from benchmarks.laboratory.pictures import bars, by_position, matrices
from benchmarks.laboratory.results import Found
from benchmarks.laboratory.sections import Experiment, Section, cell, positions
from engine.embedded import DOMAINS
from evaluation.tables import markdown

# ---------------------------------------------------------------------------------------------------------
# 6. The matrix


# what is trained on: one domain, two, all
MIXTURES = [domains for n in range(1, len(DOMAINS) + 1) for domains in itertools.combinations(DOMAINS, n)]


def variant_of(scale: Scale, domains: tuple[str, ...], words: str = "shared") -> Variant:
    return scale.trained(*domains, words=words) if domains else untrained(words)


def wants_across(scale: Scale) -> list[Want]:
    found = []
    for domains in [(), *MIXTURES]:
        seeds = scale.single_seeds if len(domains) <= 1 else scale.seeds
        found.append(Want(variant_of(scale, domains), scale.everywhere("own", "none"), seeds))
    return found


def title_of(domains: tuple[str, ...]) -> str:
    return " + ".join(domains) or "nothing"


def matrix(found: Found, context: str = "own") -> str:
    """Success at the last position with the gap in brackets; a row for what was trained on."""
    rows = []
    for domains in [(), *MIXTURES]:
        variant = variant_of(found.scale, domains)
        cells = []
        for domain in DOMAINS:
            here = found.scale.setting(domain)
            last, gap = (estimate(values(variant, here, context)) for values in (found.last, found.gap))
            cells.append(f"{last.mean:.2f} ({gap.mean:+.2f})" if last else "-")
        steps = str(variant.config.steps) if domains else ""
        rows.append([title_of(domains), steps, *cells, str(len(found.lines(variant)))])
    return markdown(["trained on", "steps", *DOMAINS, "seeds"], rows)


def skill_table(found: Found) -> str:
    rows = []
    for domains in [(), *MIXTURES]:
        variant = variant_of(found.scale, domains)
        cells = [
            cell(found.skill(variant, found.scale.setting(domain), name))
            for name in ("use", "write")
            for domain in DOMAINS
        ]
        rows.append([title_of(domains), *cells])
    return markdown(["trained on", *(f"{name}, {domain}" for name in ("use", "write") for domain in DOMAINS)], rows)


def gain(found: Found, domains: tuple[str, ...], domain: str, context: str = "own", words: str = "shared") -> Values:
    """How much the gap in a domain has grown by training on these."""
    here = found.scale.setting(domain)
    after, before = variant_of(found.scale, domains, words), untrained(words)
    return minus(found.gap(after, here, context), found.gap(before, here, context))


def skill_gain(found: Found, domains: tuple[str, ...], domain: str, name: str) -> Values:
    here = found.scale.setting(domain)
    return minus(found.skill(variant_of(found.scale, domains), here, name), found.skill(untrained(), here, name))


def unseen(sources: Sequence[tuple[str, ...]]) -> list[tuple[tuple[str, ...], str]]:
    """(trained on, tested on) where the one is not among the other."""
    return [(domains, domain) for domains in sources for domain in DOMAINS if domain not in domains]


def claims_across(found: Found) -> list[Claim]:
    scale = found.scale
    singles, pairs = ([m for m in MIXTURES if len(m) == n] for n in (1, 2))
    claims = []
    for sources, words in ((singles, "one domain"), (pairs, "two domains")):
        cells = {f"{title_of(a)} to {b}": gain(found, a, b) for a, b in unseen(sources)}
        flat = [found.gap(variant_of(scale, a), scale.setting(b), "none") for a, b in unseen(sources)]
        several = "each of the others" if sources is singles else "the third"
        claims += [
            Claim(
                f"What is learnt in {words} carries over to {several}, on average (growth of the gap)",
                (
                    Check("mean of all", average(list(cells.values())), above=0),
                    Check("gap, blanked", average(flat), above=-0.1, below=0.1),
                ),
            ),
            Claim(
                f"What is learnt in {words} carries over to {several}, every time",
                tuple(Check(what, values, above=0) for what, values in cells.items()),
            ),
        ]
    gains = {name: average([skill_gain(found, a, b, name) for a, b in unseen(singles)]) for name in ("use", "write")}
    together = [
        Check(
            domain,
            minus(
                found.last(variant_of(scale, DOMAINS), scale.setting(domain)),
                found.last(variant_of(scale, (domain,)), scale.setting(domain)),
            ),
            above=-0.1,
        )
        for domain in DOMAINS
    ]
    return [
        *claims,
        Claim(
            "Using hints carries over more than writing them",
            (Check("use, minus writing", minus(gains["use"], gains["write"]), above=0),),
        ),
        Claim("A run on all domains ends at most .1 below a run on each (last position)", tuple(together)),
    ]


def gains_of(found: Found, context: str) -> torch.Tensor:
    """Growth of the gap [trained on, tested on]; nan where there is none yet."""
    found_gains = [[estimate(gain(found, m, domain, context)) for domain in DOMAINS] for m in MIXTURES]
    return torch.tensor([[each.mean if each else float("nan") for each in row] for row in found_gains])


def across(found: Found) -> Section:
    tables = [
        ("Success at the last position, in brackets the gap to the first: with hints", matrix(found)),
        ("The same with hints blanked", matrix(found, "none")),
        ("Share of known values that are used, and that are written down", skill_table(found)),
    ]

    def picture():
        given = [("with hints", gains_of(found, "own")), ("hints blanked", gains_of(found, "none"))]
        return matrices(given, [title_of(m) for m in MIXTURES], list(DOMAINS), "growth of the gap")

    return Section(tables, claims_across(found), picture)


ACROSS = Experiment(
    6,
    "across",
    "Does it generalise across domains?",
    "Trained on one domain, on two, on all; tested on each, with hints and with hints blanked. The gap is success at "
    "the last position minus that at the first. A run on two domains has as many steps as a run on one, "
    "so half as many in each; a run on three has three times as many.",
    wants_across,
    across,
)

# ---------------------------------------------------------------------------------------------------------
# 8. Words


def wants_words(scale: Scale) -> list[Want]:
    if scale.quick:  # to build a policy takes longer than all of that
        return []
    found = [Want(built("own"), (), 1)]
    for words in ("own", "shared"):
        for domains in ((), *((domain,) for domain in DOMAINS)):
            found.append(Want(variant_of(scale, domains, words), scale.everywhere("own"), scale.seeds))
    return found


def words(found: Found) -> Section:
    singles = [(domain,) for domain in DOMAINS]
    rows, checks, drawn = [], [], []
    for a, b in [*unseen(singles), *((single, single[0]) for single in singles)]:
        shared, own = (gain(found, a, b, words=each) for each in ("shared", "own"))
        title = f"{a[0]} to {b}" if a != (b,) else f"{b} to itself"
        drawn.append(
            (title.replace(" to ", "\nto\n"), [("shared words", estimate(shared)), ("own words", estimate(own))])
        )
        rows.append([title, cell(shared), cell(own)])
        if a != (b,):
            checks.append((shared, own))
    means = [average([pair[k] for pair in checks]) for k in (0, 1)]
    claims = [
        Claim(
            "Shared words make transfer larger, on average over all pairs",
            (Check("shared, minus own", minus(*means), above=0),),
        ),
        Claim(
            "With words of its own in each domain there still is transfer",
            (Check("own words, mean of all", means[1], above=0),),
        ),
    ]
    table = markdown(["growth of the gap", "shared words", "own words"], rows)
    return Section([("From one domain to another", table)], claims, lambda: bars(drawn, "growth of the gap"))


WORDS = Experiment(
    8,
    "words",
    "What makes transfer possible?",
    "The policy says that it knows, guesses or does not know in the same words in all domains. In a second build each "
    "domain has words of its own (`python imitate.py --words own`). The runs on one domain of experiment 6 on both. "
    "There is one build of each kind, so what differs between builds for other reasons counts, too.",
    wants_words,
    words,
)

# ---------------------------------------------------------------------------------------------------------
# 10. Several teachers, one student


def student(scale: Scale) -> Variant:
    """As many rollouts as a run on one domain, each of a pack of its own."""
    default = scale.default
    taught = tuple(scale.trained(domain) for domain in DOMAINS)
    packs = default.packs_per_step * default.group_size
    return scale.trained(*DOMAINS, teachers=taught, group_size=1, packs_per_step=packs, steps=default.steps)


def mixed(scale: Scale) -> dict[str, Variant]:
    """With the rollouts of the student, and with those of all three teachers."""
    return {
        "mixed run, rollouts of the student": scale.trained(*DOMAINS, steps=scale.default.steps),
        "mixed run, rollouts of the teachers": scale.trained(*DOMAINS),
    }


def wants_teachers(scale: Scale) -> list[Want]:
    teachers = [Want(scale.trained(d), (Evaluation(scale.setting(d)),), scale.seeds) for d in DOMAINS]
    runs = (student(scale), *mixed(scale).values(), untrained())
    return [*teachers, *(Want(variant, scale.everywhere("own"), scale.seeds) for variant in runs)]


def teachers(found: Found) -> Section:
    scale, tables, pictures, keeps, beats = found.scale, [], [], [], []
    first = next(iter(mixed(scale)))
    for domain in DOMAINS:
        here, own = scale.setting(domain), found.last(student(scale), scale.setting(domain))
        rows = [
            ("before", found.success(untrained(), here)),
            ("teacher", found.success(scale.trained(domain), here)),
            ("student", found.success(student(scale), here)),
            *((title, found.success(variant, here)) for title, variant in mixed(scale).items()),
        ]
        tables.append((f"{domain}/tiny", positions(rows)))
        pictures.append((domain, rows))
        keeps.append(
            Check(f"{domain}: student, minus teacher", minus(own, found.last(scale.trained(domain), here)), above=-0.1)
        )
        beats.append(
            Check(f"{domain}: student, minus {first}", minus(own, found.last(mixed(scale)[first], here)), above=0)
        )
    claims = [
        Claim("In each domain the student ends at most .1 below its teacher (last position)", tuple(keeps)),
        Claim("The student ends above the mixed run with as many rollouts (last position)", tuple(beats)),
    ]
    return Section(tables, claims, lambda: by_position(pictures))


TEACHERS = Experiment(
    10,
    "teachers",
    "Can three teachers be distilled into one student?",
    "The runs of experiment 1 as teachers, one for each domain: what the student samples in a domain gets its "
    "advantages from that teacher, without rewards. The student plays as many rollouts as one teacher has; the mixed "
    "runs train on rewards in all domains, with as many rollouts, and with as many as the three teachers had.",
    wants_teachers,
    teachers,
)

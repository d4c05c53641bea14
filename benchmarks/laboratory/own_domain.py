"""Further experiments within a domain: longer packs and harder levels (5), Ralph loops (7), how the gain comes (9)."""

import math

import torch

from benchmarks.laboratory.claims import Check, Claim, Values, minus
from benchmarks.laboratory.jobs import HARDER, LEARNER, Evaluation, Scale, Want, untrained
from benchmarks.laboratory.pictures import by_position, over_steps
from benchmarks.laboratory.results import Found
from benchmarks.laboratory.sections import Experiment, Section, cell, positions
from engine.embedded import DOMAINS
from evaluation.tables import markdown

# ---------------------------------------------------------------------------------------------------------
# 5. Longer packs, harder level


def farther(scale: Scale, domain: str) -> dict:
    """name -> setting."""
    size = scale.default.pack_size
    return {
        f"packs of {2 * size}": scale.setting(domain, pack_size=2 * size),
        f"packs of {4 * size}": scale.setting(domain, pack_size=4 * size),
        HARDER: scale.setting(domain, HARDER),
    }


def wants_longer(scale: Scale) -> list[Want]:
    found = []
    for domain in DOMAINS:
        for setting in farther(scale, domain).values():
            found.append(Want(untrained(), (Evaluation(setting, ("own", LEARNER)),), scale.single_seeds))
            found.append(Want(scale.trained(domain), (Evaluation(setting),), scale.single_seeds))
    return found


def longer(found: Found) -> Section:
    scale, tables, carried, rising = found.scale, [], [], []
    for name in farther(scale, DOMAINS[0]):
        rows = []
        for domain in DOMAINS:
            setting = farther(scale, domain)[name]
            run = scale.trained(domain)
            rows += [(f"{domain}, before", found.success(untrained(), setting))]
            rows += [(f"{domain}, after", found.success(run, setting))]
            rows += [(f"{domain}, the scripted learner", found.success(untrained(), setting, LEARNER))]
            gain = minus(found.last(run, setting), found.last(untrained(), setting))
            carried.append(Check(f"{domain}, {name}", gain, above=0))
            if setting.pack_size > scale.default.pack_size:
                trained_on = scale.default.pack_size - 1
                packs = found.success(run, setting)
                rise = {seed: each[:, -1] - each[:, trained_on] for seed, each in packs.items()}
                rising.append(Check(f"{domain}, {name}: last position, minus position {trained_on}", rise, above=-0.05))
        tables.append((name, positions(rows)))
    claims = [
        Claim(
            "What is learnt carries over to longer packs and to the harder level (gain at the last position)",
            tuple(carried),
        ),
        Claim("Beyond the length of training success holds (it falls by less than .05)", tuple(rising)),
    ]
    shown = [(domain, rows_of(found, domain)) for domain in DOMAINS]
    return Section(tables, claims, lambda: by_position(shown))


def rows_of(found: Found, domain: str) -> list:
    size = found.scale.default.pack_size
    setting, hard = (farther(found.scale, domain)[name] for name in (f"packs of {4 * size}", HARDER))
    run = found.scale.trained(domain)
    return [
        ("before", found.success(untrained(), setting)),
        ("after", found.success(run, setting)),
        (f"before, {HARDER}", found.success(untrained(), hard)),
        (f"after, {HARDER}", found.success(run, hard)),
    ]


LONGER = Experiment(
    5,
    "longer",
    "Does it generalise within the domain?",
    "The runs of experiment 1, in packs of two and four times the length they were trained on, and on the harder "
    "level, which the policy knows from imitation only.",
    wants_longer,
    longer,
)

# ---------------------------------------------------------------------------------------------------------
# 7. Ralph loops

LOOPS = {"first": "the first task repeated", "each": "each task repeated"}


def wants_ralph(scale: Scale) -> list[Want]:
    loops = {d: tuple(Evaluation(scale.setting(d, ralph=form)) for form in LOOPS) for d in DOMAINS}
    found = [Want(untrained(), (*scale.everywhere("own"), *sum(loops.values(), ())), scale.single_seeds)]
    for domain in DOMAINS:
        here = Evaluation(scale.setting(domain))
        found.append(Want(scale.trained(domain), (here, *loops[domain]), scale.single_seeds))
    for domain in scale.some(DOMAINS):
        here = Evaluation(scale.setting(domain), ("own", "none"))
        found.append(Want(scale.trained(domain, ralph=True), (here, loops[domain][0]), scale.seeds))
    return found


def ralph(found: Found) -> Section:
    scale, tables, there, back = found.scale, [], [], []
    for form, words in LOOPS.items():
        rows = []
        for domain in DOMAINS:
            loop, run = scale.setting(domain, ralph=form), scale.trained(domain)
            rows += [(f"{domain}, before", found.success(untrained(), loop))]
            rows += [(f"{domain}, trained on packs", found.success(run, loop))]
            if form == "first" and domain in scale.some(DOMAINS):
                rows += [(f"{domain}, trained in Ralph loops", found.success(scale.trained(domain, ralph=True), loop))]
            there.append(
                Check(f"{domain}, {words}", minus(found.last(run, loop), found.last(untrained(), loop)), above=0)
            )
        tables.append((f"Tested in Ralph loops, {words}", positions(rows)))
    rows = []
    for domain in scale.some(DOMAINS):
        here, run, looped = scale.setting(domain), scale.trained(domain), scale.trained(domain, ralph=True)
        rows += [(f"{domain}, before", found.success(untrained(), here))]
        rows += [(f"{domain}, trained on packs", found.success(run, here))]
        rows += [(f"{domain}, trained in Ralph loops", found.success(looped, here))]
        rows += [(f"{domain}, trained in Ralph loops, hints blanked", found.success(looped, here, "none"))]
        back.append(Check(domain, minus(found.last(looped, here), found.last(untrained(), here)), above=0))
    tables.append(("Tested on packs of different tasks", positions(rows)))
    claims = [
        Claim("CoD training carries over to Ralph loops (gain at the last position)", tuple(there)),
        Claim(
            "Training in Ralph loops carries over to packs of different tasks (gain at the last position)", tuple(back)
        ),
    ]
    return Section(tables, claims, lambda: by_position([(domain, in_loops(found, domain)) for domain in DOMAINS]))


def in_loops(found: Found, domain: str) -> list:
    """What is drawn: the first task repeated."""
    scale = found.scale
    loop, runs = scale.setting(domain, ralph="first"), {"before": untrained(), "after": scale.trained(domain)}
    if domain in scale.some(DOMAINS):
        runs["trained in Ralph loops"] = scale.trained(domain, ralph=True)
    return [(name, found.success(variant, loop)) for name, variant in runs.items()]


RALPH = Experiment(
    7,
    "ralph",
    "From CoD to Ralph loops, and back?",
    "A Ralph loop is a pack of one task again and again: either the first task of each pack, or each task of each "
    "pack. The runs of experiment 1 in both forms, and runs trained in Ralph loops on packs of different tasks.",
    wants_ralph,
    ralph,
)

# ---------------------------------------------------------------------------------------------------------
# 9. How the gain comes

SKILLS = {"use": "uses what it knows", "write": "writes what it knows", "explore": "tries what may still be"}
AT_ENDS = 5  # steps at the beginning and at the end that are compared


def wants_dynamics(scale: Scale) -> list[Want]:
    return [Want(scale.trained(domain), (), scale.single_seeds) for domain in DOMAINS]


def series(found: Found, domain: str, name: str) -> torch.Tensor:
    """[seeds, steps]; nan where there was no such decision."""
    values = found.steps(found.scale.trained(domain), name).values()
    return torch.tensor([[math.nan if x is None else x for x in each] for each in values])


def at_ends(found: Found, domain: str, name: str) -> tuple[Values, Values]:
    """Means over the first and the last steps."""
    ends = {}
    for seed, values in found.steps(found.scale.trained(domain), name).items():
        known = torch.tensor([x for x in values if x is not None])
        ends[seed] = (known[:AT_ENDS].mean()[None], known[-AT_ENDS:].mean()[None])
    return {seed: first for seed, (first, _) in ends.items()}, {seed: last for seed, (_, last) in ends.items()}


def dynamics(found: Found) -> Section:
    rows, gains, lines = [], [], []
    for domain in DOMAINS:
        for name, words in SKILLS.items():
            first, last = at_ends(found, domain, name)
            rows.append([domain, words, cell(first), cell(last)])
            gains.append(Check(f"{domain}: {words}", minus(last, first), above=0))
        shown = {**SKILLS, "first": "success, first position", "last": "success, last position"}
        lines.append((domain, [(words, series(found, domain, name)) for name, words in shown.items()]))
    header = ["domain", "share of decisions", f"first {AT_ENDS} steps", f"last {AT_ENDS} steps"]
    drawn = [(domain, [(name, values) for name, values in each if values.numel()]) for domain, each in lines]
    claim = Claim("Use of hints, writing of hints and exploration all improve in training", tuple(gains))
    return Section([("Skills in training", markdown(header, rows))], [claim], lambda: over_steps(drawn))


DYNAMICS = Experiment(
    9,
    "dynamics",
    "How does the gain come?",
    "Use, writing and exploration (evaluation/skills.py) over the steps of the runs of experiment 1, measured on the "
    "rollouts of each step, whose packs the policy has not seen before.",
    wants_dynamics,
    dynamics,
)

"""Experiment 1: does CoD training work, and is it due to the hints?"""

from benchmarks.laboratory.claims import Check, Claim, minus
from benchmarks.laboratory.jobs import LEARNER, Evaluation, Scale, Variant, Want, untrained
from benchmarks.laboratory.pictures import by_position
from benchmarks.laboratory.results import Found
from benchmarks.laboratory.sections import Experiment, Section, positions
from engine.embedded import DOMAINS
from evaluation.contexts import parse
from evaluation.report import words_for
from evaluation.tables import markdown

CONTEXTS = ("own", "none", "transcript", "shuffled", "perfect", "frozen=1")
# Sampled tokens of a default run over those of task-by-task runs with as many tasks: how many more steps of these make
# the numbers of tokens equal. The report shows what came out.
TOKENS = {"frozenlake": 1.5, "alchemy": 2.1, "terminal": 1.4}


def alone(scale: Scale, domain: str, as_many: str) -> Variant:
    """Task-by-task RL with as many tasks, or sampled tokens, as a default run."""
    packs = scale.default.packs_per_step * scale.default.pack_size
    steps = round(scale.default.steps * (TOKENS[domain] if as_many == "tokens" else 1))
    return scale.trained(domain, pack_size=1, packs_per_step=packs, steps=steps)


def budgets(scale: Scale) -> tuple[str, ...]:
    return scale.some(("tasks", "tokens"))


def wants_effect(scale: Scale) -> list[Want]:
    found = [Want(untrained(), scale.everywhere("own", "none", LEARNER), scale.single_seeds)]
    for domain in DOMAINS:
        here = scale.setting(domain)
        found.append(Want(scale.trained(domain), (Evaluation(here, CONTEXTS),), scale.single_seeds))
        for budget in budgets(scale):
            blanked = Evaluation(here, ("own", "none"))
            found.append(Want(alone(scale, domain, budget), (blanked,), scale.seeds))
    return found


def effect(found: Found) -> Section:
    scale = found.scale
    tables, pictures = [], []
    for domain in DOMAINS:
        here, run = scale.setting(domain), scale.trained(domain)
        before = [(f"before, {words_for(c)}", found.success(untrained(), here, c.name)) for c in parse("own,none")]
        after = [(f"after, {words_for(c)}", found.success(run, here, c.name)) for c in parse(",".join(CONTEXTS))]
        others = [
            (f"task by task, as many {b}, {words_for(c)}", found.success(alone(scale, domain, b), here, c.name))
            for b in budgets(scale)
            for c in parse("own,none")
        ]
        learner = ("the scripted learner", found.success(untrained(), here, LEARNER))
        tables.append((f"{domain}/tiny", positions([*before, *after, *others, learner])))
        named = {
            "learner": learner,
            "before": before[0],
            "after": after[0],
            "blanked": after[1],
            "task by task": others[0],
        }
        shown = [(name, packs) for name, (_, packs) in named.items()]
        pictures.append((domain, shown))
    tables.append(("What the runs took", cost_table(found)))
    return Section(tables, claims_effect(found), lambda: by_position(pictures))


def cost_table(found: Found) -> str:
    rows = []
    for domain in DOMAINS:
        named = {"CoD": found.scale.trained(domain)}
        named |= {f"task by task, as many {b}": alone(found.scale, domain, b) for b in budgets(found.scale)}
        for name, variant in named.items():
            lines = list(found.lines(variant).values())
            config = variant.config
            tasks = config.steps * config.packs_per_step * config.group_size * config.pack_size
            sums = [sum(line["tokens"][kind] for line in lines) / max(1, len(lines)) for kind in ("sampled", "forward")]
            minutes = sum(line["seconds"]["training"] for line in lines) / max(1, len(lines)) / 60
            shown = [f"{sums[0]:,.0f}", f"{sums[1]:,.0f}", f"{minutes:.1f}"] if lines else ["-"] * 3
            rows.append([domain, name, str(config.steps), f"{tasks:,}", *shown])
    return markdown(["domain", "run", "steps", "tasks", "tokens sampled", "tokens trained on", "minutes"], rows)


def claims_effect(found: Found) -> list[Claim]:
    scale = found.scale
    rises, hints, better = [], [], []
    for domain in DOMAINS:
        here, run = scale.setting(domain), scale.trained(domain)
        rises.append(Check(domain, minus(found.gap(run, here), found.gap(untrained(), here)), above=0))
        hints += [
            Check(
                f"{domain}: gap, minus that blanked", minus(found.gap(run, here), found.gap(run, here, "none")), above=0
            ),
            Check(f"{domain}: gap, blanked", found.gap(run, here, "none"), above=-0.1, below=0.1),
            Check(
                f"{domain}: last position, minus that with hints of another secret",
                minus(found.last(run, here), found.last(run, here, "shuffled")),
                above=0,
            ),
        ]
        for budget in budgets(scale):
            for context in parse("own,none"):
                other = found.last(alone(scale, domain, budget), here, context.name)
                what = f"{domain}: last position, minus task by task, as many {budget}, {words_for(context)}"
                better.append(Check(what, minus(found.last(run, here), other), above=0))
    return [
        Claim("After CoD training success rises more with the position in the pack than before", tuple(rises)),
        Claim("The rise is due to the hints", tuple(hints)),
        Claim("CoD training ends above task-by-task RL", tuple(better)),
    ]


EFFECT = Experiment(
    1,
    "effect",
    "Does CoD training work?",
    "In each domain: before and after training, with hints blanked and with other things in their place, against "
    "task-by-task RL (packs of one task, no hints) on as many tasks, and on as many sampled tokens. Task-by-task "
    "policies are tested in packs, too: asked for hints, and without.",
    wants_effect,
    effect,
)

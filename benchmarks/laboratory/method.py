"""Experiments on the method: credit (2), re-weighting and clipping (3), the sizes of groups and packs (4)."""

from benchmarks.laboratory.claims import Check, Claim, estimate, minus
from benchmarks.laboratory.jobs import Evaluation, Scale, Variant, Want, untrained
from benchmarks.laboratory.pictures import bars, by_position
from benchmarks.laboratory.results import Found
from benchmarks.laboratory.sections import Experiment, Section, cell, positions
from engine.embedded import DOMAINS
from engine.settings import Config
from evaluation.tables import markdown

# ---------------------------------------------------------------------------------------------------------
# 2. Credit

CREDITS = ("mean", "sum", "window", "discount")
COARSE = "sum"


def credited(scale: Scale) -> list[tuple[str, str]]:
    """(domain, credit)."""
    return [(domain, credit) for domain in scale.some(DOMAINS) for credit in (CREDITS[:2] if scale.quick else CREDITS)]


def wants_credit(scale: Scale) -> list[Want]:
    return [
        Want(scale.trained(domain, credit=credit), (Evaluation(scale.setting(domain)),), scale.seeds)
        for domain, credit in credited(scale)
    ] + [Want(untrained(), scale.everywhere("own"), scale.seeds)]


def credit(found: Found) -> Section:
    scale, tables, pictures, finer = found.scale, [], [], []
    for domain in scale.some(DOMAINS):
        here = scale.setting(domain)
        rows = [("before", found.success(untrained(), here))]
        rows += [(c, found.success(scale.trained(domain, credit=c), here)) for d, c in credited(scale) if d == domain]
        tables.append((f"{domain}/tiny", positions(rows)))
        pictures.append((domain, rows))
        coarse = found.last(scale.trained(domain, credit=COARSE), here)
        finer.append(Check(domain, minus(found.last(scale.trained(domain), here), coarse), above=0))
    first = DOMAINS[0]
    here = scale.setting(first)
    gain = minus(found.gap(scale.trained(first, credit=COARSE), here), found.gap(untrained(), here))
    claims = [
        Claim("Fine-grained credit (mean) ends above coarse credit (sum) at the last position", tuple(finer)),
        Claim(
            f"With coarse credit {first} cannot be trained (the gap grows by less than .1)",
            (Check(first, gain, below=0.1),),
        ),
    ]
    return Section(tables, claims, lambda: by_position(pictures))


CREDIT = Experiment(
    2,
    "credit",
    "Fine-grained or coarse credit?",
    "The return of an episode: the mean of the rewards from it on (the default), a window of two of them, a discounted "
    "sum, or the sum of all rewards of the pack for every episode (coarse). The paper could not train FrozenLake with "
    "coarse credit.",
    wants_credit,
    credit,
)

# ---------------------------------------------------------------------------------------------------------
# 3. Re-weighting, clipping

UNSTABLE = "alchemy"  # the domain in which the paper found training the least stable
MASKS = {  # title -> flags
    "two-sided clip": {"clip": "two-side"},
    "no clip": {"clip": "none"},
    "importance weights": {"importance": True},
}


def updates(scale: Scale) -> tuple[int, ...]:
    """Per batch: the default first."""
    default = scale.default.updates_per_batch
    return scale.some((default, *(n for n in (1, 2, 4) if n != default)))


def weighted(scale: Scale, number: int, rebalance: bool) -> Variant:
    return scale.trained(UNSTABLE, updates_per_batch=number, rebalance=rebalance)


def reweighted(scale: Scale) -> list[tuple[str, Variant]]:
    """(title, variant)."""
    found = []
    for number in sorted(updates(scale)):
        each = f"{number} update{'s' if number > 1 else ''} per batch"
        found += [(each, weighted(scale, number, True)), (f"{each}, no re-weighting", weighted(scale, number, False))]
    return found + [(title, scale.trained(UNSTABLE, **flags)) for title, flags in scale.some(tuple(MASKS.items()))]


def wants_reweighting(scale: Scale) -> list[Want]:
    here = (Evaluation(scale.setting(UNSTABLE)),)
    return [Want(variant, here, scale.seeds) for _, variant in reweighted(scale)]


def reweighting(found: Found) -> Section:
    scale = found.scale
    here, default = scale.setting(UNSTABLE), scale.trained(UNSTABLE)
    rows, outcomes = [], [(title, found.success(variant, here)) for title, variant in reweighted(scale)]
    for title, variant in reweighted(scale):
        worst = [cell(found.worst(variant, name)) for name in ("broken_format", "kl")]
        lowest = min((packs.mean().item() for packs in found.mean(variant, here).values()), default=None)
        rows.append([title, cell(found.mean(variant, here)), "-" if lowest is None else f"{lowest:.2f}", *worst])
    stability = markdown(["", "success", "worst seed", "most broken format", "largest k2"], rows)
    ends, stable, masks = [], [], []
    for number in sorted(updates(scale)):
        on, off = weighted(scale, number, True), weighted(scale, number, False)
        what = f"{number} update{'s' if number > 1 else ''} per batch"
        ends.append(Check(what, minus(found.mean(on, here), found.mean(off, here)), above=0))
        broken = minus(found.worst(off, "broken_format"), found.worst(on, "broken_format"))
        stable.append(Check(f"{what}: most broken format without it, minus that with it", broken, above=0))
    for title, flags in scale.some(tuple(MASKS.items())):
        loss = minus(found.mean(default, here), found.mean(scale.trained(UNSTABLE, **flags), here))
        masks.append(Check(f"default, minus {title}", loss, above=-0.05))
    claims = [
        Claim("With re-weighting training ends higher (mean over positions)", tuple(ends)),
        Claim("With re-weighting training is more stable", tuple(stable)),
        Claim("The one-sided clip without importance weights is at most .05 below the alternatives", tuple(masks)),
    ]
    tables = [("Success", positions(outcomes)), ("Stability", stability)]
    return Section(tables, claims, lambda: bars(bars_of(found), "mean success"))


def bars_of(found: Found) -> list:
    """With and without re-weighting for each number of updates, then the masks."""
    scale = found.scale
    here, groups = scale.setting(UNSTABLE), []
    for number in sorted(updates(scale)):
        runs = {"re-weighting": weighted(scale, number, True), "no re-weighting": weighted(scale, number, False)}
        shown = [(name, estimate(found.mean(run, here))) for name, run in runs.items()]
        groups.append((f"{number} update{'s' if number > 1 else ''}\nper batch", shown))
    for title, flags in scale.some(tuple(MASKS.items())):
        run = scale.trained(UNSTABLE, **flags)
        groups.append((title.replace(" ", "\n"), [("re-weighting", estimate(found.mean(run, here)))]))
    return groups


REWEIGHTING = Experiment(
    3,
    "reweighting",
    "What do re-weighting, clipping and importance weights do?",
    f"On {UNSTABLE}: re-weighting on and off with 1, 2 and 4 updates per batch; other masks and importance weights "
    "with the default number. Stability is the worst seed, and over all steps of a run the largest share of tasks "
    "whose reply could not be read and the largest divergence from the start (k2 per token). The paper found "
    "re-weighting the most stable on Alchemy.",
    wants_reweighting,
    reweighting,
)

# ---------------------------------------------------------------------------------------------------------
# 4. G and S

SIZED = "frozenlake"
GROUPS, PACKS = (2, 4, 16), (2, 8)  # beside the defaults


def sized(scale: Scale) -> list[tuple[str, dict]]:
    """(title, flags): other G at as many rollouts, other S at as many tasks."""
    default, found = scale.default, []
    rollouts, tasks = default.packs_per_step * default.group_size, default.packs_per_step * default.pack_size
    for g in scale.some(GROUPS):
        found.append((f"G = {g}", {"group_size": g, "packs_per_step": rollouts // g}))
    for s in scale.some(PACKS):
        found.append((f"S = {s}", {"pack_size": s, "packs_per_step": tasks // s}))
    return found


def wants_groups(scale: Scale) -> list[Want]:
    here = (Evaluation(scale.setting(SIZED)),)
    return [Want(scale.trained(SIZED, **flags), here, scale.seeds) for flags in ({}, *dict(sized(scale)).values())]


def groups(found: Found) -> Section:
    scale, losses = found.scale, []
    default, here, run = scale.default, scale.setting(SIZED), scale.trained(SIZED)
    rows = [(f"G = {default.group_size}, S = {default.pack_size}", found.success(run, here))]
    for title, flags in sized(scale):
        other = scale.trained(SIZED, **flags)
        rows.append((title, found.success(other, here)))
        loss = minus(found.last(run, here), found.last(other, here))
        losses.append(Check(f"default, minus {title}", loss, above=-0.05))
    claim = Claim(
        f"G = {default.group_size} and S = {default.pack_size} are at most .05 below any other choice (last position)",
        tuple(losses),
    )
    return Section([(f"{SIZED}/tiny", positions(rows))], [claim], lambda: by_position([(SIZED, rows)]))


GROUP_SIZES = Experiment(
    4,
    "groups",
    "How many rollouts of a pack, how many tasks in it?",
    f"On {SIZED}: G rollouts of each pack at an equal number of rollouts, S tasks in a pack at an equal number of "
    f"tasks; all are tested in packs of {Config().pack_size}. The paper has G = 8 and S = 4.",
    wants_groups,
    groups,
)

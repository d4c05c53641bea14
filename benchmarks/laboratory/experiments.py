"""The experiments, by number."""

from benchmarks.laboratory.effect import EFFECT
from benchmarks.laboratory.method import CREDIT, GROUP_SIZES, REWEIGHTING
from benchmarks.laboratory.own_domain import DYNAMICS, LONGER, RALPH
from benchmarks.laboratory.sections import Experiment
from benchmarks.laboratory.transfer import ACROSS, TEACHERS, WORDS
from engine.errors import BadInput

EXPERIMENTS: tuple[Experiment, ...] = (
    EFFECT,
    CREDIT,
    REWEIGHTING,
    GROUP_SIZES,
    LONGER,
    ACROSS,
    RALPH,
    WORDS,
    DYNAMICS,
    TEACHERS,
)


def chosen(names: list[str]) -> tuple[Experiment, ...]:
    """The experiments of these names or numbers; all, if there are none. Raises BadInput for what is unknown."""
    known = {name: each for each in EXPERIMENTS for name in (each.name, str(each.number))}
    for name in names:
        if name not in known:
            allowed = ", ".join(f"{each.number} ({each.name})" for each in EXPERIMENTS)
            raise BadInput(f"names={name!r}: unknown experiment; choose from {allowed}")
    asked = {known[name] for name in names} or set(EXPERIMENTS)
    return tuple(each for each in EXPERIMENTS if each in asked)

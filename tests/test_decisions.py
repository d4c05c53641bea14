"""benchmarks/decisions.py against players whose decisions are known."""

import pytest

from benchmarks import decisions
from environments.frozenlake.players import LakeRandom, Planner
from envs import make_pack
from rollout import play, run


def tables(player):
    """The numbers of the two tables, by the first cell of their line."""
    rollouts = run([play(make_pack("frozenlake", seed, 3, "tiny")) for seed in range(40)], player)
    result = []
    for table in decisions.report(rollouts).split("\n\n"):
        rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
        result.append({name: list(map(float, cells)) for name, *cells in rows})
    return result


def test_the_clean_player_decides_and_writes_as_it_should():
    for spell_out in (False, True):
        played, hints = tables(Planner(0, spell_out=spell_out))
        turns, goes, good, broken = played["known"]
        assert turns > 50 and (goes, good, broken) == (1, 1, 0)
        turns, goes, good, broken = played["unknown"]
        assert turns > 50 and (goes, broken) == (0, 0) and 0.3 < good < 0.7
        assert hints["known"][1:] == [1, 0, 0, 0] and hints["unknown"][1:] == [0, 0, 1, 0]
        assert hints["known"][0] + hints["unknown"][0] == 40 * 2 * 4


@pytest.mark.parametrize("recall", [0.0, 0.35])
def test_shares_are_those_of_the_player(recall):
    played, hints = tables(Planner(0, recall=recall, write=0.5))
    assert played["known"][1] == pytest.approx(recall, abs=0.12)
    assert hints["known"][1] == pytest.approx(0.5, abs=0.12) and hints["known"][3] == pytest.approx(0.5, abs=0.12)


def test_wrong_and_missing_entries_and_broken_replies_are_counted():
    _, hints = tables(Planner(0, write=0.0, wrong=1.0))  # every entry is one of four actions
    assert sum(hints["known"][1:3]) == 1 and hints["known"][2] == pytest.approx(0.75, abs=0.12)

    class Mute(LakeRandom):
        def act(self, messages):
            return "Direction 1"

    played, hints = tables(Mute(0))
    assert played["unknown"][3] == 1 and hints["unknown"][4] == 1

"""benchmarks/peer.py without a peer: what both sides are given, and what is said of the figures."""

import random
import sys

import pytest

from benchmarks import peer
from engine.errors import BadInput


@pytest.fixture(autouse=True)
def recital(monkeypatch):
    """As main registers it, for one test."""
    monkeypatch.setitem(peer.ENVS, "recital", peer.Recital)


@pytest.mark.parametrize("python", ["", "no/such/python", sys.executable])
def test_a_missing_peer_is_one_line(python):
    with pytest.raises(BadInput, match="^peer_python.*trl|^peer_python.*cannot be started") as error:
        peer.check_peer(python)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", peer.TURNS)
def test_the_peer_is_given_the_prompts_and_observations_of_this_project(case):
    settings = peer.Settings(steps=2, prompts=2)
    rows = peer.games(settings, case)
    assert len(rows) == (settings.steps + 1) * settings.prompts
    for row in rows:
        assert [message["role"] for message in row["prompt"]] == ["system", "user"]
        assert "frozen lake" in row["prompt"][0]["content"] and "Turn 1 of" in row["prompt"][1]["content"]
        assert len(row["observations"]) == peer.TURNS[case] - 1
        assert all(f"Turn {n} of" in text for n, text in enumerate(row["observations"], start=2))
    assert len({row["prompt"][1]["content"] for row in rows}) > 1


def test_a_walk_is_not_over_before_its_last_observation():
    for seed in range(50):
        _, observations = peer.walk(random.Random(seed), 4)
        assert len(observations) == 4


def side(seconds, memory, sampled=256, trained=2000):
    n = len(seconds)
    return {
        "seconds": seconds,
        "core_seconds": [2 * s for s in seconds],
        "memory": memory,
        "sampled": [sampled] * n,
        "trained": [trained] * n,
    }


def test_first_steps_do_not_count():
    ours = [side([9.0, 1.0, 2.0], [9.0, 1.0, 1.5]), side([9.0, 3.0, 2.0], [9.0, 1.5, 1.0])]
    theirs = [side([99.0, 5.0, 6.0], [9.0, 2.0, 3.0]), side([99.0, 7.0, 6.0], [9.0, 3.0, 2.0])]
    *_, verdict = peer.summary({"this project": ours, "TRL": theirs})
    assert "3.00 times as fast (3.00 by core seconds), with 0.50 of the memory" in verdict


def test_unequal_work_is_not_compared():
    peer.check_equal(side([1.0], [1.0]), side([1.0], [1.0], trained=1990))
    for other in (side([1.0], [1.0], sampled=255), side([1.0], [1.0], trained=1900)):
        with pytest.raises(BadInput, match="not comparable"):
            peer.check_equal(side([1.0], [1.0]), other)

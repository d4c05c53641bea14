"""The first half of a step: packs are played in groups, and every episode gets its advantage."""

import copy
import dataclasses
import json
import math
from collections import Counter
from unittest import mock

import pytest
import torch
from training import PLAYED, flags, fresh_policy, metrics, run_here, steps_of

import eval as evaluation
import grpo
from engine import processes
from engine.settings import Config
from envs import ENVS, make_pack, players
from record.files import TRAIN_SEEDS, VALIDATION_SEEDS
from rollout import play, run
from train import assign_advantages, collect


class Repeat:
    """A policy that gives the replies of a rollout again."""

    def __init__(self, rollout):
        self.replies = [reply for episode in rollout.episodes for reply in episode.replies]

    def reply(self, episodes):
        return [(episode, self.replies.pop(0)) for episode in episodes]


def first_observations(rollout):
    return [episode.messages[1]["content"] for episode in rollout.of("solve")]


def test_rollouts_of_a_group_meet_the_same_tasks_and_groups_different_ones(played):
    assert [len(group) for group in played] == [4] * 4
    for group in played:
        assert len({rollout.pack_seed for rollout in group}) == 1
        for rollout in group:
            assert first_observations(rollout) == first_observations(group[0])
            assert len(rollout.of("solve")) == 3 and len(rollout.of("update")) == 2
        assert len({tuple(episode.ids) for rollout in group for episode in rollout.of("solve")[:1]}) > 1
    assert len({group[0].pack_seed for group in played}) == 4
    assert len({tuple(first_observations(group[0])) for group in played}) == 4


def test_what_a_rollout_sees_depends_on_its_own_replies_only(played):
    for group in played:
        for rollout in group:
            game = play(make_pack(PLAYED.env, rollout.pack_seed, PLAYED.pack_size, PLAYED.level), PLAYED.penalties)
            [alone] = run([game], Repeat(rollout))
            for episode, again in zip(rollout.episodes, alone.episodes, strict=True):
                assert (episode.kind, episode.position, episode.messages) == (
                    again.kind,
                    again.position,
                    again.messages,
                )
                assert (episode.outcome, episode.reward) == (again.outcome, again.reward)


def test_every_step_and_seed_has_packs_of_its_own_that_no_evaluation_uses():
    config = dataclasses.replace(PLAYED, packs_per_step=2, group_size=2, pack_size=1, max_reply_tokens=1)
    policy = fresh_policy(config)
    seeds = [
        group[0].pack_seed
        for seed, step in ((0, 0), (0, 1), (1, 0))
        for group in collect(policy, dataclasses.replace(config, seed=seed), step)
    ]
    assert len(set(seeds)) == 6
    assert min(seeds) >= TRAIN_SEEDS > VALIDATION_SEEDS + 10**6


def test_every_rollout_of_every_step_and_seed_has_random_numbers_of_its_own():
    config = dataclasses.replace(PLAYED, packs_per_step=2, group_size=2, pack_size=2, max_reply_tokens=1)
    policy = fresh_policy(config)
    keys = [
        episode.rng_key
        for seed, step in ((0, 0), (0, 1), (1, 0))
        for group in collect(policy, dataclasses.replace(config, seed=seed), step)
        for rollout in group
        for episode in rollout.episodes
    ]
    assert len(keys) == len(set(keys)) == 3 * 2 * 2 * 3


def test_processes_share_a_step_and_play_what_one_would(played):
    policy, shared = fresh_policy(), []
    for rank in (0, 1):
        with mock.patch.multiple(processes, rank=lambda rank=rank: rank, count=lambda: 2):
            shared += collect(policy, PLAYED, 0)
    for group, expected in zip(shared, played, strict=True):
        for rollout, other in zip(group, expected, strict=True):
            assert rollout.pack_seed == other.pack_seed
            assert [episode.ids for episode in rollout.episodes] == [episode.ids for episode in other.episodes]


def test_ralph_packs_repeat_one_task():
    config = dataclasses.replace(PLAYED, ralph=True, packs_per_step=1, group_size=2, max_reply_tokens=8)
    for rollout in collect(fresh_policy(config), config, 0)[0]:
        assert len(set(first_observations(rollout))) == 1


def plain_return(own, later, config):
    """The return of one episode: its own reward, then those of the tasks after it."""
    terms = [own, *later]
    if config.credit == "discount":
        return sum(config.gamma**k * term for k, term in enumerate(terms))
    if config.credit == "window":
        terms = terms[: config.window]
    return sum(terms) / len(terms)


def plain_advantage(group, g, episode, config):
    """The advantage of an episode of rollout g, with lists and loops."""
    returns = []
    for rollout in group:
        rewards = [e.reward for e in rollout.of("solve")]
        own = rollout.of(episode.kind)[episode.position].reward
        later = rewards[episode.position + 1 :]
        returns.append(sum(rewards) if config.credit == "sum" else plain_return(own, later, config))
    return returns[g] - sum(returns) / len(returns)


@pytest.mark.parametrize("credit", ["mean", "window", "discount", "sum"])
def test_advantages_follow_the_formulas_and_cancel_over_a_group(credit, groups):
    config = dataclasses.replace(PLAYED, credit=credit, rebalance=False)
    groups[0][1].of("update")[1].reward = -0.1
    groups[1][2].of("solve")[2].reward = 0.5
    assign_advantages(groups, config)
    for group in groups:
        for g, rollout in enumerate(group):
            for episode in rollout.episodes:
                assert episode.advantage == pytest.approx(plain_advantage(group, g, episode, config), abs=1e-6)
        for kind, count in (("solve", 3), ("update", 2)):
            for j in range(count):
                assert sum(rollout.of(kind)[j].advantage for rollout in group) == pytest.approx(0, abs=1e-6)
    assert any(episode.advantage > 0.01 for group in groups for rollout in group for episode in rollout.episodes)


def test_the_batch_is_rebalanced_as_a_whole_over_all_processes(groups):
    unweighted = dataclasses.replace(PLAYED, rebalance=False)
    episodes = assign_advantages(groups, unweighted)
    longer = 5 * max(episode.n_sampled for episode in episodes)
    for episode in episodes:
        if episode.advantage < 0:  # so that the token-weighted sum is negative
            episode.add([0] * longer, [0.0] * longer)
    rows = torch.tensor([[episode.advantage, episode.n_sampled] for episode in episodes])  # [N, 2]
    assert (rows[:, 0] * rows[:, 1]).sum() < 0
    expected = grpo.rebalance(rows[:, 0], rows[:, 1]).tolist()

    alone = [episode.advantage for episode in assign_advantages(copy.deepcopy(groups), PLAYED)]
    assert alone == pytest.approx(expected, abs=1e-6)
    assert alone != pytest.approx(rows[:, 0].tolist(), abs=1e-6)
    together = []
    for rank, share in enumerate((groups[:2], groups[2:])):

        def of_all(own, rank=rank):
            assert torch.equal(torch.tensor(own), rows.chunk(2)[rank])
            return rows

        with mock.patch.multiple(processes, rank=lambda rank=rank: rank, of_all=of_all):
            together += assign_advantages(copy.deepcopy(share), PLAYED)
    assert [episode.advantage for episode in together] == pytest.approx(expected, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------
#  Several environments


def test_packs_take_turns_by_the_shares_of_their_environments():
    config = Config(envs="frozenlake/tiny=2, frozenlake/hard,frozenlake=1", pack_size=3)
    assert config.env_levels == [("frozenlake", "tiny"), ("frozenlake", "hard"), ("frozenlake", "train")]
    packs = [config.pack(seed) for seed in range(4 * 10**9, 4 * 10**9 + 12)]
    assert Counter(pack.level for pack in packs) == {"tiny": 6, "hard": 3, "train": 3}
    assert [pack.level for pack in packs[:4]] == [pack.level for pack in packs[4:8]]
    assert all(len(pack.tasks) == 3 and pack.seed == 4 * 10**9 + i for i, pack in enumerate(packs))
    assert config.pack(5, "frozenlake", "hard").level == "hard"


@pytest.fixture(scope="session")
def mixed(tmp_path_factory):
    output = tmp_path_factory.mktemp("mixed")
    changes = {"envs": "frozenlake/tiny=2,frozenlake/train=1", "packs_per_step": 3, "steps": 2, "output": output}
    assert run_here(flags(**changes)) == 0
    [run] = output.iterdir()
    return run


def test_a_mixed_run_reports_every_environment_by_itself(mixed):
    for line in steps_of(mixed):
        for name in ("success", "reward", "zero_variance"):
            tiny, train_level, all_packs = (line[f"{name}{of}"] for of in ("/frozenlake/tiny", "/frozenlake/train", ""))
            assert len(tiny) == len(train_level) == 2
            # two of three packs are tiny
            assert all_packs == pytest.approx([(2 * a + b) / 3 for a, b in zip(tiny, train_level, strict=True)])
    evaluations = [line["eval"] for line in metrics(mixed) if "eval" in line]
    labels = {"before training", "after training", "after, hints blanked", *players("frozenlake")}
    for env in ("frozenlake/tiny", "frozenlake/train"):
        assert {record["label"] for record in evaluations if record["env"] == env} == labels
        assert (mixed / f"curves-{env.replace('/', '-')}.png").stat().st_size > 10_000
    tiny, train_level = (
        [record["success"] for record in evaluations if (record["env"], record["label"]) == (env, "learner")]
        for env in ("frozenlake/tiny", "frozenlake/train")
    )
    assert tiny != train_level


def test_every_environment_can_be_trained_on(tmp_path):
    """All of them at once. The embedded policy cannot play them, so there may be nothing to learn from; but it runs."""
    envs = ",".join(f"{env}/{level}" for env, kind in ENVS.items() for level in kind.levels)
    sizes = {
        "steps": 1,
        "packs_per_step": len(envs.split(",")),
        "test_packs": 1,
        "eval_every": 0,
        "max_reply_tokens": 24,
    }
    assert run_here(flags(envs=envs, output=tmp_path, **sizes)) == 0
    [run] = tmp_path.iterdir()
    for line in steps_of(run):
        assert {name.removeprefix("success/") for name in line if name.startswith("success/")} == set(envs.split(","))
        assert math.isfinite(line["loss"]) and line["tokens_trained"] > 0
    assert len(list(run.glob("curves-*.png"))) == len(envs.split(","))


def test_the_advantages_of_a_mixed_batch_are_those_of_each_group_alone():
    """A group is the rollouts of one pack, so environments with other rewards do not shift its baseline."""
    config = Config(
        envs="frozenlake/tiny,frozenlake/train", packs_per_step=2, group_size=3, pack_size=2, rebalance=False
    )
    games = [config.pack(seed) for seed in (0, 1)]
    rollouts = run([play(pack.fresh()) for pack in games for _ in range(3)], players("frozenlake")["random"])
    groups = [rollouts[:3], rollouts[3:]]
    together = [e.advantage for e in assign_advantages(groups, config)]
    alone = [e.advantage for group in groups for e in assign_advantages([group], config)]
    assert together == alone and any(together)


def test_evaluation_of_a_mixed_run_takes_the_first_environment_unless_told(mixed, tmp_path):
    for options, level in (([], "tiny"), (["--level", "train"], "train")):
        argv = ["--policy", mixed, "--packs", 2, "--output", tmp_path, *options]
        assert run_here(argv, evaluation.main) == 0
        settings = json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))["config"]
        assert (settings["env"], settings["level"]) == ("frozenlake", level)

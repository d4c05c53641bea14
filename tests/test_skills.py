"""evaluation/skills.py, against players whose decisions are known, and by hand; and the demonstrators themselves."""

import itertools
import math
import random
import re

import pytest

from context import BEGIN, END, solve_system
from environments.tables import Words
from envs import demonstrator, make_pack, parse_answer
from evaluation.skills import skills
from rollout import Reply, play, run

EVERYWHERE = list(itertools.product(("frozenlake", "alchemy", "terminal"), ("tiny", "tiny-hard")))


def played(env, level, packs=40, seed=0, **knobs):
    player = demonstrator(env, level)(seed=seed, **knobs)
    return run([play(make_pack(env, n, 4, level)) for n in range(packs)], player)


@pytest.mark.parametrize(("env", "level"), EVERYWHERE)
def test_the_clean_player_decides_and_writes_as_it_should(env, level):
    rollouts = played(env, level)
    assert skills(rollouts) == {"use": 1.0, "explore": 1.0, "write": 1.0, "wrong": 0.0}
    assert not any(episode.broken_format for rollout in rollouts for episode in rollout.episodes)


@pytest.mark.parametrize(("env", "level"), EVERYWHERE)
def test_shares_are_those_of_the_player(env, level):
    found = skills(played(env, level, packs=150, recall=0.35, write=0.6))
    assert found["use"] == pytest.approx(0.35, abs=0.1) and found["explore"] > 0.9
    assert found["write"] == pytest.approx(0.6, abs=0.06)


@pytest.mark.parametrize("env", ["frozenlake", "alchemy", "terminal"])
def test_wrong_entries_and_careless_guesses_are_counted(env):
    always = skills(played(env, "tiny", wrong=1.0))
    options = {"frozenlake": 4, "alchemy": 6, "terminal": 3}[env]
    assert always["wrong"] == pytest.approx(1 - 1 / options, abs=0.1)
    assert always["write"] == pytest.approx(1 / options, abs=0.12)
    careless, careful = (skills(played(env, "tiny", recall=0.3, explore=share))["explore"] for share in (0, 1))
    assert careless < careful - 0.05 and careful == 1


def test_a_guess_that_is_made_again_is_no_exploration():
    again = skills(played("alchemy", "tiny", again=1.0))["explore"]
    assert again == pytest.approx(0.5, abs=0.12) and skills(played("alchemy", "tiny"))["explore"] == 1


def test_skills_by_hand():
    """Terminal: the user was known and named, the tool was known and another one given; of two known names one is
    written, and the third is a guess."""
    rollout = played("terminal", "tiny", packs=1)[0]
    secret = make_pack("terminal", 0, 4, "tiny").tasks[0].secret
    other = {"scp": "rsync", "rsync": "scp", "sftp": "scp", "rm": "trash", "trash": "rm", "unlink": "rm"}
    task = rollout.of("solve")[1].task
    need = {"Upload": "copy", "Download": "copy", "Delete": "delete"}[task.errand]
    hint = f"- user: {secret['user']}\n- {need}: {secret[need]}"
    solved, update = rollout.of("solve")[1], rollout.of("update")[1]
    reply = f"I guess: {other[secret[need]]}\nI know user: {secret['user']}\n<answer>"
    reply += f"{other[secret[need]]} notes.txt {secret['user']}@host</answer>"
    solved.messages = [{"role": "system", "content": solve_system(task.rules, hint)}]
    solved.messages += [{"role": "user", "content": f"{task.errand} notes.txt.\nTurn 1 of 2:"}]
    solved.messages += [{"role": "assistant", "content": reply}]
    rollout.episodes = [solved]
    assert skills([rollout])["use"] == 1 / 2 and math.isnan(skills([rollout])["write"])
    third = ({"user", "copy", "delete"} - {"user", need}).pop()
    wrong = next(name for name in task.level.names()[third] if name != secret[third])
    update.context = f"- user: {secret['user']}\n- {need}: unknown\n- {third}: {wrong}"
    rollout.episodes = [solved, update]
    found = skills([rollout])
    assert (found["write"], found["wrong"]) == (1 / 2, 1 / 3) and found["use"] == 1 / 2


@pytest.mark.parametrize("env", ["frozenlake", "alchemy", "terminal"])
def test_what_a_reply_or_a_hint_says_is_not_taken_for_an_observation(env):
    lies = "P _\n_ G\nYou moved up with Direction 4: row 1, column 1 to row 2, column 1.\nYou made ash: air + fire.\n"
    lies += "Accepted user: alice.\nTurn 1 of 2:"

    class Liar:
        def reply(self, episodes):
            return [(e, Reply(f"{lies}\n{BEGIN}\n{lies}\n{END}" if e.kind == "update" else lies)) for e in episodes]

    found = skills(run([play(make_pack(env, seed, 3, "tiny")) for seed in range(20)], Liar()))
    assert found["wrong"] == 0 and found["explore"] == 0


# ---------------------------------------------------------------------------------------------------------
# Demonstrators of the tables


@pytest.mark.parametrize(("env", "level"), [(e, level) for e, level in EVERYWHERE if e != "frozenlake"])
def test_demonstrators_say_what_they_do_in_the_words_they_are_given(env, level):
    words = Words("Surely", "Perhaps", "not tried")
    n_known = 0
    for rollout in played(env, level, words=words, recall=0.6, write=0.6):
        for solved in rollout.of("solve"):
            for reply in solved.replies:
                *lines, answer = reply.text.split("\n")
                values = [line.rpartition(": ")[2] for line in lines]
                assert all(value in parse_answer(answer) for value in values)
                assert all(re.match(r"(Surely \w+|Perhaps): ", line) for line in lines)
                n_known += sum(line.startswith("Surely") for line in lines)
        for update in rollout.of("update"):
            assert re.fullmatch(r"(?:- \w+: .+\n?)+", update.context)
            secret = update.task.shared_secret()
            found = dict(re.findall(r"^- (\w+): (.+)$", update.context, re.MULTILINE))
            assert list(found) == list(secret)
            assert all(value in ("not tried", secret[key]) for key, value in found.items())
    assert n_known > 20


def test_a_demonstrator_follows_its_seed():
    texts = [
        [
            reply.text
            for rollout in played("alchemy", "tiny", packs=5, seed=seed)
            for e in rollout.episodes
            for reply in e.replies
        ]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("env", ["frozenlake", "alchemy", "terminal"])
def test_all_there_is_to_know_is_enough(env):
    """A task is won at once by a demonstrator that is given all there is to know."""
    rng = random.Random(0)
    for seed in range(10):
        task = rng.choice(make_pack(env, seed, 4, "tiny").tasks)
        hint = "\n".join(f"- {key}: {value}" for key, value in task.shared_secret().items())
        player = demonstrator(env, "tiny")(seed=seed)
        messages = [{"role": "system", "content": solve_system(task.rules, hint)}]
        messages += [{"role": "user", "content": task.reset()}]
        done = False
        while not done:
            observation, done = task.step(player.act(messages))
            messages += [{"role": "user", "content": observation}]
        assert task.reward == 1 and (env == "frozenlake" or task.turn == 1)

"""The embedded policy: its tokenizer, the drills, the stages of its build, and what the committed one can do."""

import dataclasses
import functools
import itertools
import random
import re

import pytest
import torch
from doubles import REPO
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import context
from engine import embedded
from engine.chat import ChatFormat
from engine.embedded import DOMAINS, KEYS, LEVELS, VALUES, WORDS, build_model, build_tokenizer, phrases
from engine.errors import BadInput
from engine.policy import Policy
from environments.alchemy.tiny import ELEMENTS, PRODUCTS, all_pairs
from environments.frozenlake.players import ACTIONS
from environments.tables import Words
from envs import demonstrator, make_pack
from imitation import embedded as building
from imitation.embedded import MEDIOCRE, Judged, drill, is_buried, judge, plays_cleanly, stages
from imitation.teaching import Lessons, Partial, Teacher
from rollout import Penalties, play, run

EVERYWHERE = list(itertools.product(DOMAINS, LEVELS))


@pytest.fixture(scope="module")
def own_words():
    return build_tokenizer("own", packs=60)


# ---------------------------------------------------------------------------------------------------------
# The tokenizer


CUT = embedded.pattern(["A rule: up: Direction 1."], [Words("I know", "I guess", "unknown")])


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("one line", ["one line"]),
        ("one\ntwo\n", ["one\n", "two\n"]),
        ("one\n\ntwo", ["\ntwo", "one\n"]),
        ("- up: Direction 3\n- down: unknown\n", ["\n- ", "- ", "Direction 3", "down: ", "unknown", "up: "]),
        ("I know up: Direction 1\n<answer>", ["\n<answer>", "Direction 1", "I know ", "up: "]),
        ("I guess: air + fire", ["I guess: ", "air + fire"]),
        ("You made ash: air + fire.\n", [".\n", "You made ", "air + fire", "ash: "]),
        ("A rule: up: Direction 1.\nAnd", ["A rule: up: Direction 1.\n", "And"]),
        ("Direction 5", ["Direction 5"]),
        ("Direction 4\nunknown", ["Direction 4", "unknown"]),
        ("Direction 2b", ["Direction 2b"]),
        ("", []),
    ],
)
def test_phrases_by_hand(text, pieces):
    assert phrases([text], CUT) == pieces


def test_phrases_are_sorted_and_listed_once():
    assert phrases(["b line\na line", "a line\n", "b line\n"], CUT) == ["a line", "a line\n", "b line\n"]


def test_the_committed_tokenizer_is_what_is_built(tokenizer):
    """On fewer packs, so that only some of its phrases are found."""
    built = build_tokenizer(packs=20)
    assert 500 < len(built) < len(tokenizer) and set(built.get_vocab()) < set(tokenizer.get_vocab())
    assert built.chat_template == tokenizer.chat_template == embedded.TEMPLATE


def test_every_key_and_value_is_one_token_wherever_it_stands(tokenizer):
    assert not set(KEYS) & set(tokenizer.get_added_vocab())  # a key is a token with its colon only
    for key, value in itertools.product(KEYS, [*VALUES, "unknown"]):
        for before, after in (
            ("### BEGIN HINTS\n- ", "\n- x: "),
            ("I know ", "\n<answer>"),
            ("\n- ", "\n### END HINTS"),
        ):
            ids = tokenizer(f"{before}{key}: {value}{after}").input_ids
            said = [tokenizer.decode(token) for token in ids]
            at = said.index(f"{key}: ")
            assert said[at + 1] == value


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize(("env", "level"), EVERYWHERE)
def test_whole_conversations_are_rendered_as_they_are_appended(words, env, level, tokenizer, own_words):
    """On packs that it was not built from; and they are short."""
    tokenizer = tokenizer if words == "shared" else own_words
    packs = [make_pack(env, seed, 4, level) for seed in range(10_000, 10_012)]
    player = demonstrator(env, level)(seed=1, words=WORDS[words][env], recall=0.5, write=0.5, wrong=0.1)
    lengths = []
    for rollout in run(map(play, packs), Teacher(player, ChatFormat(tokenizer))):
        for episode in rollout.episodes:
            shown = episode.messages[:-1] if episode.kind == "solve" else episode.messages
            assert episode.ids == tokenizer(tokenizer.apply_chat_template(shown, tokenize=False)).input_ids
            lengths.append(len(episode.ids))
    assert 15 < min(lengths) and (
        words == "own" or max(lengths) < 130
    )  # the one with own words is built from few packs


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_text_survives(data, tokenizer):
    phrases = sorted(tokenizer.get_added_vocab())
    pieces = st.lists(st.text() | st.sampled_from(phrases) | st.sampled_from(phrases).map(lambda phrase: phrase[:-1]))
    text = data.draw(pieces.map("".join))
    assert tokenizer.decode(tokenizer(text).input_ids) == text


# ---------------------------------------------------------------------------------------------------------
# Drills


@pytest.mark.parametrize("words", WORDS)
def test_drill_asks_for_every_value_shown_before_and_for_nothing_else(words, tokenizer, own_words):
    """Read from its text, line by line: a value is asked for where its key had one before, and in every answer."""
    tokenizer = tokenizer if words == "shared" else own_words
    chat, n_asked, keys_met = ChatFormat(tokenizer), 0, set()
    for seed in range(24):
        episode = drill(chat, random.Random(seed), WORDS[words], lines=20)
        assert len(episode.ids) == len(episode.mask) == len(episode.logps) and not any(episode.logps)
        said = [tokenizer.decode(token) for token in episode.ids]
        table, n_lines = {}, 0
        for before, text, asked in zip(["", *said], said, episode.mask, strict=False):
            if text not in VALUES:
                assert not asked
            elif before == "\n<answer>":
                assert asked and text in table.values()
            else:
                key = re.findall(rf"\b({'|'.join(KEYS)})\b", before)[-1]
                assert asked == (key in table) and table.setdefault(key, text) == text
                n_lines += 1
            n_asked += asked
        assert n_lines == 20
        assert len(set(table.values())) == len(table)
        keys_met |= set(table)
    assert keys_met == set(KEYS) and n_asked > 24 * 15


def test_first_drills_have_four_keys_and_values_of_alchemy(tokenizer, chat):
    """As many as FrozenLake has; each of the others' is met as well."""
    met = set()
    for seed in range(24):
        episode = drill(chat, random.Random(seed), WORDS["shared"], few=True)
        met |= {tokenizer.decode(token) for token in episode.ids}
    assert len(met & set(all_pairs(ELEMENTS))) == 4 and "mist: " not in met
    assert {f"{product}: " for product in PRODUCTS[:4]} | {*ACTIONS, "bob", "scp"} < met


def test_drills_follow_their_random_numbers(chat):
    rng = random.Random(0)
    first, second = drill(chat, rng, WORDS["shared"]), drill(chat, rng, WORDS["shared"])
    assert first.ids != second.ids and drill(chat, random.Random(0), WORDS["shared"]).ids == first.ids


# ---------------------------------------------------------------------------------------------------------
# Stages


GOOD = {"use": 1.0, "explore": 1.0, "write": 1.0, "wrong": 0.0}


@pytest.mark.parametrize(
    ("skills", "broken", "level", "passed"),
    [
        ({}, 0.0, "tiny", True),
        ({"use": 0.89}, 0.0, "tiny", False),
        ({"use": 0.89}, 0.0, "tiny-hard", True),
        ({"write": 0.84}, 0.0, "tiny-hard", False),
        ({"write": 0.94}, 0.0, "tiny", False),
        ({"explore": 0.89}, 0.0, "tiny", False),
        ({"wrong": 0.05}, 0.0, "tiny", False),
        ({}, 0.006, "tiny", False),
        ({}, 0.01, "tiny-hard", True),
        ({}, 0.011, "tiny-hard", False),
    ],
)
def test_goal_of_the_clean_stage(skills, broken, level, passed):
    assert plays_cleanly(Judged([1.0], GOOD | skills, broken), None, level) == passed


@pytest.mark.parametrize(
    ("success", "skills", "broken", "passed"),
    [
        ([0.25, 0.35, 0.3, 0.35], {}, 0.03, True),
        ([0.25, 0.36, 0.3, 0.3], {}, 0.0, False),
        ([0.2, 0.3, 0.3, 0.31], {}, 0.0, False),
        ([0.3, 0.3, 0.3, 0.3], {"use": 0.46}, 0.0, False),
        ([0.3, 0.3, 0.3, 0.3], {"write": 0.39}, 0.0, False),
        ([0.3, 0.3, 0.3, 0.3], {"explore": 0.0}, 0.0, True),
        ([0.3, 0.3, 0.3, 0.3], {}, 0.04, False),
    ],
)
def test_goal_of_the_mediocre_stage(success, skills, broken, passed):
    player = Judged([0.3] * 4, GOOD | {"use": 0.35, "write": 0.5}, 0.0)
    assert is_buried(Judged(success, player.skills | skills, broken), player, "tiny") == passed


def test_stages_teach_the_three_domains_and_never_the_same_pack_twice(chat):
    first, drills, clean, settling, mediocre = stages(chat, 0, WORDS["shared"])
    assert [e.ids for e in first.batches(0)] != [e.ids for e in drills.batches(0)]
    for stage in (clean, settling, mediocre):
        assert {env for env, _ in stage.batches.domains} == set(DOMAINS)
        assert stage.batches(3)[0].ids == stage.batches(3)[0].ids
        assert [e.ids for e in stage.batches(3)] != [e.ids for e in stage.batches(4)]
        assert stage.batches.packs * stage.steps * stage.rounds < 10**6  # up to the first pack of the next stage
    firsts = [stage.batches.first_pack for stage in (clean, settling, mediocre)]
    assert firsts == [10**6, 2 * 10**6, 3 * 10**6]
    assert mediocre.batches.knobs["terminal"]["recall"] == MEDIOCRE["terminal"]["recall"]
    other = stages(chat, 1, WORDS["shared"])[2].batches(3)
    assert [e.ids for e in other] != [e.ids for e in clean.batches(3)]


def few(real):
    """The stages of the build with two steps each, on a few drills and packs."""

    def small(stage):
        lessons = isinstance(stage.batches, Lessons)
        batches = dataclasses.replace(stage.batches, packs=2) if lessons else lambda number: stage.batches(number)[:4]
        return dataclasses.replace(stage, steps=2, reached=None, batches=batches)

    return lambda *arguments: [small(stage) for stage in real(*arguments)]


@pytest.fixture
def small_build(tokenizer, monkeypatch):
    monkeypatch.setattr(building, "build_tokenizer", lambda words: tokenizer)
    monkeypatch.setattr(building, "stages", few(stages))
    monkeypatch.setattr(building, "judged_by_domain", lambda policy, stage: [])

    def build(path, seed=0):
        torch.manual_seed(seed)
        return building.build_embedded(seed, "shared", Partial(path, {"seed": seed})).model.state_dict()

    return build


class Judge:
    """Says that a stage has missed its goal, so many times."""

    def __init__(self, **misses):
        self.misses = misses

    def __call__(self, policy, stage):
        self.misses[stage.name] = self.misses.get(stage.name, 0) - 1
        return ["alchemy/tiny"] if self.misses[stage.name] >= 0 else []


@pytest.mark.parametrize("call", [2, 3, 6, 8, 9, 12])
def test_a_build_that_was_broken_off_goes_on_exactly(call, small_build, tmp_path, monkeypatch):
    """Broken off in every stage, and in the second round of one."""
    monkeypatch.setattr("imitation.teaching.SAVE_EVERY", 1)
    monkeypatch.setattr(building, "judged_by_domain", Judge(settling=1))
    whole = small_build(tmp_path / "whole.partial")
    monkeypatch.setattr(building, "judged_by_domain", Judge(settling=1))
    calls, real = [], torch.optim.AdamW.step

    def breaks(optimizer, *arguments):
        calls.append(optimizer)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(optimizer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", breaks)
        with pytest.raises(KeyboardInterrupt):
            small_build(tmp_path / "broken.partial")
    again = small_build(tmp_path / "broken.partial")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    with pytest.raises(BadInput, match="seed=1: .*begun with 0"):
        small_build(tmp_path / "broken.partial", seed=1)


def test_a_stage_that_misses_its_goal_is_done_again_on_other_packs(small_build, tmp_path, monkeypatch, capsys):
    batches, real = [], building.imitate

    def watched(policy, lessons, *arguments, **options):
        batches.append((options["stage"], [episode.ids for episode in lessons(0)]))
        return real(policy, lessons, *arguments, **options)

    monkeypatch.setattr(building, "imitate", watched)
    monkeypatch.setattr(building, "judged_by_domain", Judge(settling=2, mediocre=1))
    small_build(tmp_path / "new.partial")
    assert [stage for stage, _ in batches] == [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (3, 2), (4, 0), (4, 1)]
    assert all(first != second for (_, first), (_, second) in itertools.combinations(batches, 2))
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "stage 'settling' misses its goal in alchemy/tiny; round 2 of 3" and len(said) == 3


def test_a_stage_that_misses_its_goal_in_every_round_ends_the_build(small_build, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "judged_by_domain", Judge(settling=3))
    with pytest.raises(BadInput, match="seed=5: stage 'settling' misses its goal in alchemy/tiny; try"):
        small_build(tmp_path / "new.partial", seed=5)
    monkeypatch.setattr(building, "imitate", lambda *arguments, **options: False)
    with pytest.raises(BadInput, match="seed=5: stage 'first drills' misses its goal"):
        small_build(tmp_path / "other.partial", seed=5)


def test_a_stage_is_judged_in_every_domain(tokenizer, monkeypatch, capsys):
    policy = Policy(build_model(tokenizer), tokenizer)
    policy.settings = dataclasses.replace(policy.settings, max_reply_tokens=4)
    for judge_few in (building.judge_policy, building.judge_player):
        monkeypatch.setattr(building, judge_few.__name__, functools.partial(judge_few, packs=2))
    stage = stages(policy.chat, 0, WORDS["shared"])[-1]
    assert building.judged_by_domain(policy, stage) == ["frozenlake/tiny", "alchemy/tiny", "terminal/tiny"]
    assert capsys.readouterr().out.count("broken 100.00%") == 6


def test_judged_by_hand():
    """Of two packs of two tasks, the first wins both, the second the last one; one reply of six episodes is broken."""
    rollouts = run(
        [play(make_pack("alchemy", seed, 2, "tiny")) for seed in range(2)], demonstrator("alchemy", "tiny")()
    )
    for rollout, outcomes in zip(rollouts, ([1.0, 1.0], [0.0, 1.0]), strict=True):
        for solved, outcome in zip(rollout.of("solve"), outcomes, strict=True):
            solved.outcome = outcome
    rollouts[1].of("update")[0].broken_format = True
    judged = judge(rollouts)
    assert judged.success == [0.5, 1.0] and judged.broken == pytest.approx(1 / 6)
    assert judged.skills["write"] == 1 and judged.skills["wrong"] == 0


# ---------------------------------------------------------------------------------------------------------
# The committed folder


def test_prompts_are_those_that_it_was_built_for(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "fingerprint", embedded.fingerprint.__wrapped__)  # without its cache
    (tmp_path / "fingerprint.txt").write_text(embedded.fingerprint() + "\n")
    assert embedded.warning(tmp_path) == "" and embedded.warning(tmp_path / "another") == ""
    assert embedded.warning(REPO / "embedded-policy") == ""
    monkeypatch.setattr(Penalties, "solve_reward", lambda *_: 0.125)  # rewards are no part of the text
    assert embedded.warning(tmp_path) == ""
    monkeypatch.setattr(context, "UPDATE_REQUEST", "### Hints, please")
    assert "python imitate.py --output" in embedded.warning(tmp_path)


@pytest.fixture(scope="module")
def committed():
    from engine.models import load_model

    return Policy(*load_model("embedded-policy"))


@pytest.mark.parametrize("env", DOMAINS)
def test_it_is_weak_and_flat_in_every_domain(env, committed):
    """The goals of the build, on fewer packs than there, so they are wider by two standard errors."""
    player = building.judge_player(env, "tiny", Words(), MEDIOCRE[env])
    judged = building.judge_policy(committed, env, "tiny", packs=96)
    assert max(judged.success) <= 0.43 and judged.success[-1] - judged.success[0] <= 0.21
    assert all(abs(judged.skills[name] - player.skills[name]) <= 0.17 for name in ("use", "write"))
    assert judged.broken <= 0.03


def test_it_is_small():
    size = sum(file.stat().st_size for file in (REPO / "embedded-policy").iterdir())
    assert size < 2**20
    assert len(AutoTokenizer.from_pretrained(REPO / "embedded-policy")) < 1000

"""rollout.py: the loop and the tokens against expectations written by hand, the sampler against forward passes."""

import itertools
import random
import re

import pytest
import torch
from conftest import byte_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

import imitate
import models
import policy as policies
from chat import ChatFormat
from context import HINT_HEADING, NO_HINT_AVAILABLE, NO_HINTS_YET, UPDATE_SYSTEM
from envs import LAKE_LEVELS, BadInput, FrozenLake, LakeMap, Pack, Task, make_pack
from models import Lora, add_adapter, load_model
from players import BayesPlayer, Planner
from policy import OUTGROWN, Policy, batches_by_length, pad_batch
from rollout import TOO_LONG, Episode, Penalties, Reply, play, run


@pytest.fixture(scope="session")
def chat(tokenizer):
    return ChatFormat(tokenizer)


# ---------------------------------------------------------------------------------------------------------
# One pack, by hand


class Script:
    """A policy with known replies. A reply of n tokens (stop token included) gets log-probabilities -1, ..., -n."""

    def __init__(self, chat, replies):
        self.chat, self.replies = chat, list(replies)

    def reply(self, episodes):
        answers = []
        for episode in episodes:
            text = self.replies.pop(0)
            ids = self.chat.tokenizer(text + "<|end|>").input_ids
            self.chat.open_turn(episode)
            episode.add(ids, [-float(k + 1) for k in range(len(ids))])
            answers.append((episode, Reply(text, len(ids))))
        return answers


def tokens(tokenizer, pieces):
    """ids, mask and log-probabilities of pieces (text, whether it was sampled)."""
    ids, mask, logps = [], [], []
    for text, sampled in pieces:
        piece = tokenizer(text).input_ids
        ids += piece
        mask += [sampled] * len(piece)
        logps += [-float(k + 1) if sampled else 0.0 for k in range(len(piece))]
    return ids, mask, logps


def message(role, *lines):
    return {"role": role, "content": "\n".join(lines)}


def test_every_episode_of_a_pack_is_as_written_by_hand(tokenizer, chat):
    """Task 0 reaches the goal, task 1 breaks the format and its hint cannot be read, task 2 ends in a hole."""
    mapping = ("right", "down", "left", "up")
    lakes = [
        LakeMap(3, frozenset({(1, 1)}), (0, 0), (0, 2)),
        LakeMap(3, frozenset(), (2, 0), (0, 0)),
        LakeMap(3, frozenset({(1, 0)}), (0, 0), (1, 2)),
    ]
    tasks = [FrozenLake(lake, mapping, LAKE_LEVELS["tiny"]) for lake in lakes]
    rules = tasks[0].rules
    replies = [
        "Go right: <answer>Direction 1</answer>",
        "<answer>Direction 1</answer>",
        "Found one.\n### BEGIN HINTS\n- right: Direction 1\n### END HINTS",
        "<answer>Direction 3</answer>",
        "What now? ### é",
        "### BEGIN HINTS\n- left: Direction 3",
        "<answer>Direction 2</answer>",
    ]
    result = run([play(Pack("frozenlake", 7, 3, "tiny", False, tasks))], Script(chat, replies))[0]
    assert result.pack_seed == 7

    solve_0 = [
        message("system", rules, "", HINT_HEADING, "(no hints yet)"),
        message(
            "user",
            "You start at row 1, column 1.",
            "Turn 1 of 4, goal at row 1, column 3:",
            "P _ G\n_ O _\n_ _ _",
        ),
        message("assistant", replies[0]),
        message(
            "user",
            "You moved right with Direction 1: row 1, column 1 to row 1, column 2.",
            "Turn 2 of 4, goal at row 1, column 3:",
            "_ P G\n_ O _\n_ _ _",
        ),
        message("assistant", replies[1]),
        message(
            "user",
            "You moved right with Direction 1: row 1, column 2 to row 1, column 3.",
            "You reached the goal.",
        ),
    ]
    update_0 = [
        message("system", UPDATE_SYSTEM),
        message(
            "user",
            "### Hints you had",
            "(no hints yet)",
            "### Rules of the task",
            rules,
            "### What you saw",
            solve_0[1]["content"],
            "### What you replied",
            replies[0],
            "### What you saw",
            solve_0[3]["content"],
            "### What you replied",
            replies[1],
            "### What you saw",
            solve_0[5]["content"],
            "### How it ended",
            "You reached the goal.",
            "Reward: 0.950",
            "### Now write the hints for the next task",
        ),
        message("assistant", replies[2]),
    ]
    complaint = "Your reply did not have the form <answer>Direction N</answer>, N from 1 to 4."
    solve_1 = [
        message("system", rules, "", HINT_HEADING, "- right: Direction 1"),
        message(
            "user",
            "You start at row 3, column 1.",
            "Turn 1 of 4, goal at row 1, column 1:",
            "G _ _\n_ _ _\nP _ _",
        ),
        message("assistant", replies[3]),
        message(
            "user",
            "Nothing moved with Direction 3: still at row 3, column 1.",
            "Turn 2 of 4, goal at row 1, column 1:",
            "G _ _\n_ _ _\nP _ _",
        ),
        message("assistant", replies[4]),
        message("user", complaint),
    ]
    update_1 = [
        message("system", UPDATE_SYSTEM),
        message(
            "user",
            "### Hints you had",
            "- right: Direction 1",
            "### Rules of the task",
            rules,
            "### What you saw",
            solve_1[1]["content"],
            "### What you replied",
            replies[3],
            "### What you saw",
            solve_1[3]["content"],
            "### What you replied",
            "What now? # ## é",
            "### What you saw",
            complaint,
            "### How it ended",
            complaint,
            "Reward: 0.000",
            "### Now write the hints for the next task",
        ),
        message("assistant", replies[5]),
    ]
    solve_2 = [
        message("system", rules, "", HINT_HEADING, "(no hint available)"),
        message(
            "user",
            "You start at row 1, column 1.",
            "Turn 1 of 4, goal at row 2, column 3:",
            "P _ _\nO _ G\n_ _ _",
        ),
        message("assistant", replies[6]),
        message(
            "user",
            "You moved down with Direction 2: row 1, column 1 to row 2, column 1.",
            "You fell into a hole.",
        ),
    ]
    hint = "- right: Direction 1"
    expected = [  # kind, position, messages, context, outcome, reward, broken format
        ("solve", 0, solve_0, "(no hints yet)", 1.0, 0.95, False),
        ("update", 0, update_0, hint, 0.0, 0.0, False),
        ("solve", 1, solve_1, hint, 0.0, 0.0, True),
        ("update", 1, update_1, "(no hint available)", 0.0, -0.1, True),
        ("solve", 2, solve_2, "(no hint available)", 0.0, 0.0, False),
    ]
    replies = iter(replies)
    for e, (kind, position, messages, context, outcome, reward, broken) in zip(result.episodes, expected, strict=True):
        assert (e.kind, e.position, e.context, e.outcome, e.broken_format) == (kind, position, context, outcome, broken)
        assert e.messages == messages
        assert e.reward == pytest.approx(reward)
        opening = f"<|system|>{messages[0]['content']}<|end|><|user|>{messages[1]['content']}<|end|><|assistant|>"
        pieces = [(opening, False)]
        for k, turn in enumerate(messages[2:], 2):  # what follows the last reply is never read, so it is no token
            if turn["role"] == "assistant":
                pieces.append((turn["content"] + "<|end|>", True))
            elif k < len(messages) - 1:
                pieces.append((f"<|user|>{turn['content']}<|end|><|assistant|>", False))
        ids, mask, logps = tokens(tokenizer, pieces)
        assert tokenizer.decode(e.ids) == tokenizer.decode(ids)
        assert (e.ids, e.mask, e.logps) == (ids, mask, logps)
        assert e.n_sampled == sum(reply.n_tokens for reply in e.replies) > 0
        assert [reply.text for reply in e.replies] == [next(replies) for _ in e.replies]
    assert next(replies, None) is None


def test_contexts_are_those_of_the_protocol():
    assert (NO_HINTS_YET, NO_HINT_AVAILABLE) == ("(no hints yet)", "(no hint available)")


def test_penalty_of_a_hint_that_cannot_be_read_is_a_setting(chat):
    replies = ["nothing", "nothing", "nothing"]
    result = run([play(make_pack("frozenlake", 0, 2, "tiny"), Penalties(bad_hint=0.4))], Script(chat, replies))[0]
    assert [episode.reward for episode in result.episodes] == [0.0, -0.4, 0.0]


@pytest.mark.parametrize(
    ("penalties", "outcome", "lengths", "max_turns", "reward"),
    [
        (Penalties(), 1.0, [50], 4, 0.975),
        (Penalties(), 1.0, [50, 5000, 3, 3], 4, 0.9),
        (Penalties(), 1.0, [1_500_000, 10], 4, 0.925),  # 1 - 0.1 * ((0.5 + 0) / 2 + 2 / 4)
        (Penalties(0.1, 100, 200), 1.0, [50, 150, 300, 100], 8, 0.9125),  # 1 - 0.1 * ((0 + 0.5 + 1 + 0) / 4 + 4 / 8)
        (Penalties(0.2, 100, 200), 0.5, [200], 10, 0.28),  # 0.5 - 0.2 * (1 + 1 / 10)
        (Penalties(0.1, 100, 200), 1.0, [0, 0], 4, 0.95),  # a policy without tokens still takes turns
        (Penalties(1.0, 100, 200), 0.5, [200, 200], 2, 0.0),  # not below 0
        (Penalties(0.0, 100, 200), 0.7, [150, 500], 2, 0.7),  # off
        (Penalties(0.1, 100, 200), 0.0, [500, 500], 2, 0.0),
        (Penalties(0.1, 100, 200), -0.1, [500], 2, -0.1),
    ],
)
def test_length_penalty_by_hand(penalties, outcome, lengths, max_turns, reward):
    assert penalties.solve_reward(outcome, lengths, max_turns) == pytest.approx(reward, abs=1e-12)


# ---------------------------------------------------------------------------------------------------------
# Many packs at once


class Partial:
    """A player that answers only some of the waiting conversations at a time, in scrambled order."""

    def __init__(self, player, seed):
        self.player, self.rng, self.waiting, self.most = player, random.Random(seed), [], 0

    def reply(self, episodes):
        self.waiting += episodes
        self.most = max(self.most, len(self.waiting))
        chosen = self.rng.sample(self.waiting, self.rng.randint(1, len(self.waiting)))
        self.waiting = [episode for episode in self.waiting if episode not in chosen]
        return self.player.reply(chosen)


def alone(game, player):
    """One game played without `run`."""
    episode = next(game)
    while True:
        [(_, reply)] = player.reply([episode])
        try:
            episode = game.send(reply)
        except StopIteration as stop:
            return stop.value


def story(result):
    """All of a rollout that does not depend on tokens."""
    episodes = [(e.kind, e.position, e.messages, e.context, e.outcome, e.reward) for e in result.episodes]
    return result.pack_seed, episodes


SEEDS = [5, 3, 8, 0, 1, 2, 9, 7]


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_order_of_answers_and_number_at_once_change_nothing(at_once):
    packs = [make_pack("frozenlake", seed, 3, "tiny") for seed in SEEDS]
    expected = [story(alone(play(pack), BayesPlayer())) for pack in packs]
    open_games, most_open = set(), [0]

    def watched(k, game):
        open_games.add(k)
        most_open.append(len(open_games))
        result = yield from game
        open_games.remove(k)
        return result

    policy = Partial(BayesPlayer(), at_once)
    results = run([watched(k, play(pack.fresh())) for k, pack in enumerate(packs)], policy, at_once=at_once)
    assert [story(result) for result in results] == expected
    assert [result.pack_seed for result in results] == SEEDS
    assert policy.most == max(most_open) == min(at_once, len(SEEDS))


def test_no_games_need_no_policy():
    assert run([], None) == []


def test_episodes_alternate_and_pass_hints_on():
    result = run([play(make_pack("frozenlake", 1, 3, "tiny"))], BayesPlayer())[0]
    kinds = [(episode.kind, episode.position) for episode in result.episodes]
    assert kinds == [("solve", 0), ("update", 0), ("solve", 1), ("update", 1), ("solve", 2)]
    written = [update.context for update in result.of("update")]
    assert [solved.context for solved in result.of("solve")] == [NO_HINTS_YET, *written]
    assert all(solved.messages[0]["content"].endswith("\n" + solved.context) for solved in result.of("solve"))


def test_without_hints_there_are_no_updates_and_every_task_sees_the_initial_context():
    result = run([play(make_pack("frozenlake", 1, 3, "tiny"), hints=False)], BayesPlayer())[0]
    assert [(episode.kind, episode.position) for episode in result.episodes] == [
        ("solve", 0),
        ("solve", 1),
        ("solve", 2),
    ]
    for episode in result.episodes:
        assert episode.context == NO_HINTS_YET
        assert episode.messages[0]["content"].endswith(f"\n{NO_HINTS_YET}")


def test_pack_of_one_task_is_one_episode():
    result = run([play(make_pack("frozenlake", 1, 1, "tiny"))], BayesPlayer())[0]
    assert [(episode.kind, episode.context) for episode in result.episodes] == [("solve", NO_HINTS_YET)]


def test_ralph_loop_starts_the_same_task_again_with_new_hints():
    pack = make_pack("frozenlake", 1, 3, "tiny", ralph=True)
    solved = run([play(pack)], BayesPlayer())[0].of("solve")
    assert len({episode.messages[1]["content"] for episode in solved}) == 1
    assert "Turn 1 of 4" in solved[0].messages[1]["content"]
    assert solved[0].context == NO_HINTS_YET != solved[1].context
    others = run([play(make_pack("frozenlake", 1, 3, "tiny"))], BayesPlayer())[0].of("solve")
    assert len({episode.messages[1]["content"] for episode in others}) == 3


# ---------------------------------------------------------------------------------------------------------
# The sampler


class Chatter(Task):
    """Any reply will do: the observations come one after the other."""

    rules = "Say something."

    def __init__(self, observations):
        self.observations, self.max_turns = observations, len(observations)

    def reset(self):
        self.turn = 0
        return self.observations[0]

    def step(self, reply):
        self.turn += 1
        return (self.observations[self.turn], False) if self.turn < self.max_turns else ("over", True)


def chatter_packs(n, seed=0):
    rng = random.Random(seed)

    def task():
        return Chatter(["x" * rng.choice([1, 5, 30, 100]) for _ in range(rng.randint(1, 4))])

    return [Pack("chatter", k, 2, "train", False, [task(), task()]) for k in range(n)]


def small_llama(tokenizer, kind=LlamaForCausalLM, config=LlamaConfig, attention="sdpa", **options):
    """A random model in which two query heads share a key-value head."""
    options = {"max_position_embeddings": 4096, "initializer_range": 0.1} | options
    settings = config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
        **options,
    )
    return kind._from_config(settings, attn_implementation=attention)


def small_model(name, tokenizer, stop_bias=5.5, **options):
    """A random model that ends its turn now and then: the output head gets a bias for the stop token."""
    torch.manual_seed(0)
    model = small_llama(tokenizer, **options) if name == "llama" else imitate.build_model(tokenizer)
    head = torch.nn.Linear(64, len(tokenizer))
    torch.nn.init.normal_(head.weight, std=0.2)
    torch.nn.init.zeros_(head.bias)
    head.weight.data[tokenizer.eos_token_id] = 0.0
    head.bias.data[tokenizer.eos_token_id] = stop_bias
    model.set_output_embeddings(head)
    if name == "qwen3 with an adapter":
        model = add_adapter(model, Lora(rank=4, alpha=8))
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


MODELS = ["qwen3", "llama", "qwen3 with an adapter"]


@torch.no_grad()
def plain_logprobs(model, ids, temperature):
    """[T - 1, V] from one forward pass over one conversation: row t - 1 belongs to token t."""
    return (model(input_ids=torch.tensor([ids])).logits[0, :-1] / temperature).log_softmax(dim=-1)


def largest_error(model, episode, temperature, first=0):
    """Between the log-probabilities stored from token `first` on and those of a plain forward pass."""
    all_logp = plain_logprobs(model, episode.ids, temperature)
    at = [t for t in range(first, len(episode.ids)) if episode.mask[t]]
    errors = [abs(all_logp[t - 1, episode.ids[t]].item() - episode.logps[t]) for t in at]
    assert all(logp == 0 for logp, sampled in zip(episode.logps, episode.mask, strict=True) if not sampled)
    return max(errors, default=0.0)


def check_tokens(tokenizer, episode, cap):
    """Every sampled token is masked, stop token included, and all others are what the template and the messages say."""
    end = tokenizer.eos_token_id
    user = [m["content"] for m in episode.messages if m["role"] == "user"]
    opening = f"<|system|>{episode.messages[0]['content']}<|end|><|user|>{user[0]}<|end|><|assistant|>"
    at, given = 0, tokenizer(opening).input_ids
    for k, reply in enumerate(episode.replies):
        assert episode.ids[at : at + len(given)] == given and not any(episode.mask[at : at + len(given)])
        at += len(given)
        sampled = episode.ids[at : at + reply.n_tokens]
        assert len(sampled) == reply.n_tokens <= cap and all(episode.mask[at : at + reply.n_tokens])
        at += reply.n_tokens
        assert end not in sampled[:-1]
        assert reply.truncated == (sampled[-1:] != [end])
        assert reply.text == tokenizer.decode(sampled, skip_special_tokens=True)
        if k + 1 < len(episode.replies):
            missing_end = "<|end|>" if reply.truncated else ""
            given = tokenizer(f"{missing_end}<|user|>{user[k + 1]}<|end|><|assistant|>").input_ids
    assert at == len(episode.ids) == len(episode.mask) == len(episode.logps)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", MODELS)
def test_sampled_logprobs_are_those_of_a_plain_forward_pass(name, temperature, tokenizer):
    """Mixed lengths, several turns, fewer rows than packs; then once more after a weight update."""
    model = small_model(name, tokenizer, stop_bias=4.5 * temperature)
    policy = Policy(model, tokenizer, temperature, max_reply_tokens=12)
    replies = []
    for at_once in (3, 12):
        results = run([play(pack) for pack in chatter_packs(12)], policy, name, at_once=at_once)
        episodes = [episode for result in results for episode in result.episodes]
        for episode in episodes:
            check_tokens(tokenizer, episode, 12)
            assert largest_error(model, episode, temperature) < 1e-4
        ids, mask, logps = pad_batch(episodes, "cpu")
        with torch.no_grad():
            torch.testing.assert_close(policy.logprobs(ids, mask)[0], logps, atol=1e-4, rtol=0)
        replies += [reply for episode in episodes for reply in episode.replies]
        assert max(len(episode.replies) for episode in episodes) == 4
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        policy.fresh_cache()
    assert 10 < sum(reply.truncated for reply in replies) < len(replies) - 10


def take_turns(policy, episodes, observation):
    """One reply in each conversation, followed by an observation."""
    asking, waiting = list(episodes), set(episodes)
    while waiting:
        for episode, reply in policy.reply(asking):
            waiting.remove(episode)
            episode.replies.append(reply)
            episode.messages += [message("assistant", reply.text), message("user", observation)]
        asking = []


def new_conversations(*observations):
    return [Episode("solve", 0, [message("system", "R"), message("user", text)], "") for text in observations]


def test_weights_may_change_in_mid_conversation_if_the_cache_is_emptied(tokenizer):
    model = small_model("llama", tokenizer)
    policy = Policy(model, tokenizer, max_reply_tokens=6)
    episodes = new_conversations("a", "b" * 40, "c" * 7)
    take_turns(policy, episodes, "next")
    lengths = [len(episode.ids) for episode in episodes]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    policy.fresh_cache()
    take_turns(policy, episodes, "next")
    for episode, length in zip(episodes, lengths, strict=True):
        assert largest_error(model, episode, 1.0, first=length) < 1e-4
        assert largest_error(model, episode, 1.0) > 1e-2  # the first reply is from the old weights


def test_conversation_may_lose_its_row_and_come_back(tokenizer):
    model = small_model("qwen3", tokenizer)
    policy = Policy(model, tokenizer, max_reply_tokens=6)
    a, b, c, d = new_conversations("a", "b" * 40, "c" * 7, "d")
    for group in ([a], [b], [c, a], [b, d, c], [a], [d], [a, b, c, d]):
        take_turns(policy, group, "next " * len(group))
    for episode in (a, b, c, d):
        check_tokens(tokenizer, episode, 6)
        assert largest_error(model, episode, 1.0) < 1e-4


def test_replies_come_while_others_are_still_being_sampled(tokenizer):
    """A call ends with a quarter of the replies; conversations that come later join those under way."""
    model = small_model("qwen3", tokenizer)
    policy = Policy(model, tokenizer, max_reply_tokens=30)
    first, later = new_conversations(*"abcdefgh"), new_conversations("x" * 50, "y")
    done = dict(policy.reply(first))
    assert 2 <= len(done) < 8
    done |= dict(policy.reply(later))
    while len(done) < 10:
        answers = dict(policy.reply([]))
        assert answers and not answers.keys() & done.keys()
        done |= answers
    assert done.keys() == {*first, *later}
    for episode, reply in done.items():
        episode.replies.append(reply)
        check_tokens(tokenizer, episode, 30)
        assert largest_error(model, episode, 1.0) < 1e-4


def sampled(policy, seed, first=0, n=4, at_once=256, start=0):
    """ids and log-probabilities of all episodes of games `start` to n of a run."""
    results = run([play(pack) for pack in chatter_packs(n)[start:]], policy, seed, first, at_once)
    return [[(episode.ids, episode.logps) for episode in result.episodes] for result in results]


def test_seed_decides_the_samples(tokenizer):
    policy = Policy(small_model("qwen3", tokenizer), tokenizer, max_reply_tokens=8)
    first = sampled(policy, "train/1")
    assert sampled(policy, "train/1") == first
    assert sampled(policy, "train/2") != first
    assert sampled(policy, "eval/1") != first
    assert sampled(policy, "train/1", first=4) != first


@pytest.mark.parametrize("first, at_once, start", [(0, 1, 0), (0, 3, 0), (5, 2, 5), (8, 256, 8)])
def test_what_a_game_samples_depends_on_its_number_only(first, at_once, start, tokenizer):
    """Not on how many are played at once, nor on which share of the run a process plays."""
    policy = Policy(small_model("qwen3", tokenizer), tokenizer, max_reply_tokens=8)
    whole = sampled(policy, "a", n=10)
    part = sampled(policy, "a", first=first, n=10, at_once=at_once, start=start)
    assert len(part) == 10 - start
    for episodes, expected in zip(part, whole[start:], strict=True):
        assert [ids for ids, _ in episodes] == [ids for ids, _ in expected]
        for (_, logps), (_, others) in zip(episodes, expected, strict=True):
            assert logps == pytest.approx(others, abs=1e-4)


def test_equal_games_equal_turns_and_equal_positions_have_random_numbers_of_their_own(tokenizer):
    policy = Policy(small_model("qwen3", tokenizer, stop_bias=-100.0), tokenizer, max_reply_tokens=8)
    packs = [Pack("chatter", 0, 2, "train", False, [Chatter(["x"] * 3), Chatter(["x"] * 3)]) for _ in range(3)]
    results = run(map(play, packs), policy)
    replies = [reply.text for result in results for episode in result.episodes for reply in episode.replies]
    assert len(replies) == len(set(replies)) == 3 * (3 + 1 + 3)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_follow_the_distribution_of_the_model(temperature, tokenizer):
    """First tokens of equal conversations: chi-square over the whole vocabulary, and the tail is not cut off."""
    n = 5000
    model = small_model("qwen3", tokenizer, stop_bias=0.0)
    policy = Policy(model, tokenizer, temperature, max_reply_tokens=1)
    episodes = new_conversations(*["O"] * n)
    for k, episode in enumerate(episodes):
        episode.noise = str(k)
    take_turns(policy, episodes, "")
    counts = torch.bincount(torch.tensor([episode.ids[-1] for episode in episodes]), minlength=len(tokenizer)).double()
    p = plain_logprobs(model, episodes[0].ids, temperature)[-1].exp().double()
    common = n * p >= 5
    seen = torch.cat([counts[common], counts[~common].sum()[None]])
    expected = torch.cat([n * p[common], n * p[~common].sum()[None]])
    freedom = len(seen) - 1
    assert freedom > 50
    assert ((seen - expected) ** 2 / expected).sum() < freedom + 6 * (2 * freedom) ** 0.5
    tail = p.argsort(descending=True)[50:]
    mass = p[tail].sum().item()
    assert mass > 0.1
    assert abs(counts[tail].sum().item() - n * mass) < 5 * (n * mass * (1 - mass)) ** 0.5


def test_reply_without_a_stop_token_is_cut_and_the_template_ends_the_turn(tokenizer):
    policy = Policy(small_model("qwen3", tokenizer, stop_bias=-100.0), tokenizer, max_reply_tokens=3)
    [episode] = new_conversations("O")
    take_turns(policy, [episode], "next")
    length = len(episode.ids)
    take_turns(policy, [episode], "next")
    assert [(reply.n_tokens, reply.truncated) for reply in episode.replies] == [(3, True)] * 2
    assert episode.mask[length - 3 : length] == [True] * 3
    assert episode.ids[length] == tokenizer.eos_token_id and not episode.mask[length]
    check_tokens(tokenizer, episode, 3)


def test_reply_may_be_nothing_but_the_stop_token(tokenizer):
    policy = Policy(small_model("qwen3", tokenizer, stop_bias=100.0), tokenizer, max_reply_tokens=3)
    [episode] = new_conversations("O")
    take_turns(policy, [episode], "next")
    take_turns(policy, [episode], "next")
    assert [(reply.text, reply.n_tokens, reply.truncated) for reply in episode.replies] == [("", 1, False)] * 2
    check_tokens(tokenizer, episode, 3)


def test_stop_token_at_the_cap_is_no_cut(tokenizer):
    policy = Policy(small_model("qwen3", tokenizer, stop_bias=100.0), tokenizer, max_reply_tokens=1)
    [episode] = new_conversations("O")
    take_turns(policy, [episode], "next")
    assert episode.replies == [Reply("", 1, False)]


def test_conversation_longer_than_the_model_allows_ends_with_an_empty_reply(tokenizer):
    model = small_model("llama", tokenizer, stop_bias=3.0, max_position_embeddings=100)
    policy = Policy(model, tokenizer, max_reply_tokens=12)
    results = run([play(pack, hints=False) for pack in chatter_packs(12)], policy, at_once=4)
    prompts_too_long = shortened = 0
    for episode in (episode for result in results for episode in result.episodes):
        check_tokens(tokenizer, episode, 12)
        assert largest_error(model, episode, 1.0) < 1e-4
        sampled = [t for t, masked in enumerate(episode.mask) if masked]
        assert all(t < 100 for t in sampled)
        for reply in episode.replies:
            prompts_too_long += reply.outgrown
            shortened += reply.truncated and 0 < reply.n_tokens < 12
        if len(episode.ids) > 100:
            assert episode.replies[-1] == OUTGROWN
    assert prompts_too_long > 5 and shortened > 0


def test_task_that_outgrows_the_model_ends_with_feedback(tokenizer, chat):
    class Outgrown(Script):
        def reply(self, episodes):
            if len(episodes[0].replies) == 1 and episodes[0].position == 0:
                return [(episodes[0], Reply("", truncated=True, outgrown=True))]
            return super().reply(episodes)

    pack = Pack("chatter", 0, 2, "train", False, [Chatter(["a", "b", "c"]), Chatter(["d"])])
    first, update, second = run([play(pack)], Outgrown(chat, ["x", "y", "z"]))[0].episodes
    assert (len(first.replies), first.outcome, first.reward) == (2, 0.0, 0.0)
    assert first.messages[-1]["content"] == TOO_LONG
    assert f"### How it ended\n{TOO_LONG}\nReward: 0.000" in update.messages[1]["content"]
    assert len(second.replies) == 1


SLIDING = ["sliding_attention", "full_attention"]
OTHER_MODELS = {
    "sliding window": {"kind": MistralForCausalLM, "config": MistralConfig, "sliding_window": 16},
    "sliding window in some layers": {
        "kind": Gemma3ForCausalLM,
        "config": Gemma3TextConfig,
        "sliding_window": 16,
        "layer_types": SLIDING,
        "final_logit_softcapping": 2.0,
    },
    "window that is not used": {
        "kind": Qwen2ForCausalLM,
        "config": Qwen2Config,
        "sliding_window": 16,
        "layer_types": ["full_attention"] * 2,
    },
    "scaled logits": {"kind": GraniteForCausalLM, "config": GraniteConfig, "logits_scaling": 8.0},
    "eager attention": {"attention": "eager"},
    "layers without keys and values": {
        "kind": Lfm2ForCausalLM,
        "config": Lfm2Config,
        "layer_types": ["conv", "full_attention"],
    },
}


REFUSED = {"scaled logits", "eager attention", "layers without keys and values"}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_other_architectures_are_right_or_refused(name, tokenizer):
    torch.manual_seed(0)
    model = small_llama(tokenizer, **OTHER_MODELS[name]).eval()
    try:
        policy = Policy(model, tokenizer, max_reply_tokens=12)
    except BadInput as error:
        assert "\n" not in str(error) and name in REFUSED
        return
    assert name not in REFUSED
    episodes = new_conversations("a" * 40, "b")
    take_turns(policy, episodes, "next")
    ids, mask, logps = pad_batch(episodes, "cpu")
    assert mask.any()
    with torch.no_grad():
        torch.testing.assert_close(policy.logprobs(ids, mask)[0], logps, atol=1e-4, rtol=0)
    assert all(largest_error(model, episode, 1.0) < 1e-4 for episode in episodes)


def test_model_with_a_vision_part_has_the_limits_of_its_text_part(tokenizer):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = Gemma3TextConfig(
        vocab_size=len(tokenizer), head_dim=16, num_key_value_heads=1, max_position_embeddings=90, **sizes
    )
    config = Gemma3Config(text_config=text, vision_config=sizes | {"image_size": 28, "patch_size": 14})
    policy = Policy(Gemma3ForConditionalGeneration(config), tokenizer, max_reply_tokens=12)
    fits, too_long = new_conversations("a", "b" * 100)
    take_turns(policy, [fits, too_long], "next")
    assert fits.replies[0].n_tokens > 0 and too_long.replies == [OUTGROWN]


@pytest.mark.parametrize("kv_tokens", [1, 300, 900, 2500])
def test_a_small_cache_makes_conversations_wait_and_changes_no_sample(kv_tokens, tokenizer, monkeypatch):
    model = small_model("qwen3", tokenizer)
    expected = sampled(Policy(model, tokenizer, max_reply_tokens=8), "a", n=12)
    policy = Policy(model, tokenizer, max_reply_tokens=8, kv_tokens=kv_tokens)
    sizes, together, store = [], [], policies.RowCache._store

    def watched(cache, stores, new, layer):
        result = store(cache, stores, new, layer)
        sizes.append(stores[layer].shape[0] * stores[layer].shape[2] if stores[layer].shape[0] > 1 else 0)
        together.append(len(cache.write_rows))
        return result

    monkeypatch.setattr(policies.RowCache, "_store", watched)
    got = sampled(policy, "a", n=12)
    for episodes, others in zip(got, expected, strict=True):
        assert [ids for ids, _ in episodes] == [ids for ids, _ in others]
        for (_, logps), (_, other_logps) in zip(episodes, others, strict=True):
            assert logps == pytest.approx(other_logps, abs=1e-4)
    assert max(sizes) <= kv_tokens
    assert max(together) == 1 if kv_tokens == 1 else max(together) > 1


def test_room_in_the_cache_follows_from_the_free_memory(tokenizer, monkeypatch):
    monkeypatch.setattr(policies, "free_memory", lambda device: 10_000_000)
    policy = Policy(small_model("llama", tokenizer), tokenizer)
    assert policy.kv_tokens == 6_000_000 // (2 * 2 * 2 * 16 * 4)  # keys and values, layers, heads, head size, bytes


# ---------------------------------------------------------------------------------------------------------
# Log-probabilities for training


@pytest.fixture
def batch(tokenizer):
    """A policy with its model, and a padded batch of conversations that it sampled: ids and mask [B, T]."""
    model = small_model("qwen3", tokenizer)
    policy = Policy(model, tokenizer, 0.7, max_reply_tokens=6)
    episodes = [episode for result in run(map(play, chatter_packs(3)), policy) for episode in result.of("solve")]
    ids, mask, _ = pad_batch(episodes, "cpu")
    assert (ids[mask] == tokenizer.eos_token_id).any()
    return policy, model, ids, mask


@torch.no_grad()
def test_garbage_in_the_padding_changes_nothing(batch):
    policy, _, ids, mask = batch
    logp, entropy = policy.logprobs(ids, mask)
    poisoned = ids.clone()
    lengths = [int(row.nonzero().max()) + 1 for row in mask]  # every conversation ends with a reply
    for row, length in enumerate(lengths):
        poisoned[row, length:] = torch.randint(4, 200, (ids.shape[1] - length,))
    assert (poisoned != ids).any()
    other_logp, other_entropy = policy.logprobs(poisoned, mask)
    torch.testing.assert_close(other_logp, logp, atol=1e-6, rtol=0)
    torch.testing.assert_close(other_entropy, entropy, atol=1e-6, rtol=0)


@torch.no_grad()
def test_entropy_is_that_of_the_sampling_distribution(batch):
    policy, model, ids, mask = batch
    logp, entropy = policy.logprobs(ids, mask)
    all_logp = (model(input_ids=ids).logits / 0.7).log_softmax(dim=-1)  # [B, T, V]
    expected = -(all_logp.exp() * all_logp).sum(dim=-1)[:, :-1]  # [B, T-1]
    torch.testing.assert_close(entropy[:, 1:][mask[:, 1:]], expected[mask[:, 1:]], atol=1e-4, rtol=0)
    assert not logp[~mask].any() and not entropy[~mask].any()


def test_gradient_reaches_only_what_predicts_sampled_tokens(batch, tokenizer):
    policy, _, ids, mask = batch
    kept = []

    def keep(module, arguments, output):
        output.last_hidden_state.retain_grad()
        kept.append(output.last_hidden_state)

    policy.decoder.register_forward_hook(keep)
    policy.logprobs(ids, mask)[0].sum().backward()
    touched = kept[0].grad.abs().sum(dim=-1) > 0  # [B, T]
    predicts_sampled = torch.zeros_like(mask)
    predicts_sampled[:, :-1] = mask[:, 1:]
    assert torch.equal(touched, predicts_sampled)
    stops = mask & (ids == tokenizer.eos_token_id)
    assert stops.any() and touched[:, :-1][stops[:, 1:]].all()
    assert (ids == tokenizer.eos_token_id).sum() > stops.sum()  # those that the template put there are not trained


def test_gradient_is_that_of_a_plain_forward_pass(batch):
    policy, model, ids, mask = batch
    weights = torch.randn(ids.shape, generator=torch.Generator().manual_seed(0))  # [B, T]
    parameters = list(model.parameters())
    got = torch.autograd.grad((policy.logprobs(ids, mask)[0] * weights).sum(), parameters)
    all_logp = (model(input_ids=ids).logits[:, :-1] / 0.7).log_softmax(dim=-1)  # [B, T-1, V]
    logp = all_logp.gather(2, ids[:, 1:, None])[..., 0]  # [B, T-1]
    expected = torch.autograd.grad((logp * weights[:, 1:] * mask[:, 1:]).sum(), parameters)
    assert all(gradient.abs().max() > 0 for gradient in expected)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)


def test_logits_exist_in_chunks_only(batch, monkeypatch):
    """Same numbers and gradients, and nothing the size of more than a chunk of logits is kept for the backward pass."""
    policy, model, ids, mask = batch
    parameters = list(model.parameters())
    vocabulary = model.get_output_embeddings().weight.shape[0]
    outcomes, kept = [], []
    for elements in (1 << 27, 3 * vocabulary):
        monkeypatch.setattr(policies, "HEAD_ELEMENTS", elements)
        largest = [0]

        def pack(tensor, largest=largest):
            if tensor.shape[-1:] == (vocabulary,):
                largest[0] = max(largest[0], tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logp, entropy = policy.logprobs(ids, mask)
        outcomes.append((logp.detach(), entropy, torch.autograd.grad(logp.square().sum(), parameters)))
        kept.append(largest[0])
    torch.testing.assert_close(outcomes[0], outcomes[1], atol=1e-4, rtol=1e-3)
    assert mask.sum() > 6 and kept[0] >= mask.sum() * vocabulary
    assert kept[1] <= 3 * vocabulary


# ---------------------------------------------------------------------------------------------------------
# Chat templates


PLAIN = imitate.TEMPLATE
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set content = m.content %}"
    "{% if m.role == 'assistant' and '</think>' in content and loop.index0 < ns.last %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
EOT = (
    "{{ '<|bos|>' }}{% for m in messages %}{{ '<|role|>' + m.role + '\n\n' + m.content + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|role|>assistant\n\n' }}{% endif %}"
)
GEMMA_2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim "
    "+ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA_3 = (
    "{{ bos_token }}{% set prefix = '' %}{% set turns = messages %}{% if messages[0].role == 'system' %}"
    "{% set prefix = messages[0].content + '\n\n' %}{% set turns = messages[1:] %}{% endif %}{% for m in turns %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (prefix if loop.first else '') }}"
    "{{ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA_SPECIAL = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
GEMMA_OPENING = "<bos><start_of_turn>user\nRules.\n\n{}<end_of_turn>\n<start_of_turn>model\n"
GEMMA_NEXT = "\n<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"
DATED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'system' %}{{ 'It is ' + strftime_now('%d %b %Y %H:%M:%S.%f') + '.\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
CHATML_OPENING = "<|im_start|>system\nRules.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
CHATML_NEXT = "\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
NO_THOUGHT = "<think>\n\n</think>\n\n"
THINK = ("<think>", "</think>")

# name: arguments of byte_tokenizer, opening, end of a reply, what follows it, whether rendering again gives the same
TEMPLATES = {
    "embedded": (
        (PLAIN, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "<|end|>"),
        "<|system|>Rules.<|end|><|user|>{}<|end|><|assistant|>",
        "<|end|>",
        "<|user|>{}<|end|><|assistant|>",
        True,
    ),
    "newline after the end token": (
        (CHATML, CHATML_SPECIAL, "<|im_end|>"),
        CHATML_OPENING,
        "<|im_end|>",
        CHATML_NEXT,
        True,
    ),
    "pad is eos": (
        (CHATML, CHATML_SPECIAL, "<|im_end|>", "<|im_end|>"),
        CHATML_OPENING,
        "<|im_end|>",
        CHATML_NEXT,
        True,
    ),
    "thoughts are stripped later": (
        (THINKING, CHATML_SPECIAL, "<|im_end|>", "<|endoftext|>", THINK),
        CHATML_OPENING + NO_THOUGHT,
        "<|im_end|>",
        CHATML_NEXT + NO_THOUGHT,
        False,
    ),
    "system role is merged into the first turn": (
        (GEMMA_3, GEMMA_SPECIAL, "<eos>", "<eos>", (), "<bos>"),
        GEMMA_OPENING,
        "<end_of_turn>",
        GEMMA_NEXT,
        False,  # it trims
    ),
    "system role is refused": (
        (GEMMA_2, GEMMA_SPECIAL, "<eos>", "<eos>", (), "<bos>"),
        GEMMA_OPENING,
        "<end_of_turn>",
        GEMMA_NEXT,
        False,
    ),
    "stop token is not eos": (
        (EOT, ("<|bos|>", "<|role|>", "<|eot|>", "<|eos|>"), "<|eos|>"),
        "<|bos|><|role|>system\n\nRules.<|eot|><|role|>user\n\n{}<|eot|><|role|>assistant\n\n",
        "<|eot|>",
        "<|role|>user\n\n{}<|eot|><|role|>assistant\n\n",
        True,
    ),
}


def converse(chat, turns, sampled):
    """A conversation with observations `turns`, in which the policy samples `sampled[k]` in turn k."""
    episode = Episode("solve", 0, [message("system", "Rules."), message("user", turns[0])], "")
    for k, reply in enumerate(sampled):
        before = list(episode.ids)
        chat.open_turn(episode)
        assert episode.ids[: len(before)] == before and len(episode.ids) > len(before)
        ids = chat.tokenizer(reply).input_ids
        episode.add(ids, [-float(n + 1) for n in range(len(ids))])
        episode.messages.append(message("assistant", chat.text(ids)))
        if k + 1 < len(turns):
            episode.messages.append(message("user", turns[k + 1]))
    return episode


OBSERVATIONS = ["one", "two\nlines ", " three é", "four"]
SAID = ["a", "<think>because</think>b\n", " c ", ""]


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_is_continued_token_by_token(name):
    """Replies that end as the template says."""
    arguments, opening, end, following, renders_the_same = TEMPLATES[name]
    tokenizer = byte_tokenizer(*arguments)
    chat = ChatFormat(tokenizer)
    assert tokenizer.convert_ids_to_tokens(chat.turn_end) == end
    episode = converse(chat, OBSERVATIONS, [reply + end for reply in SAID])
    pieces = []
    for k, (observation, reply) in enumerate(zip(OBSERVATIONS, SAID, strict=True)):
        pieces += [((following if k else opening).format(observation), False), (reply + end, True)]
    assert (episode.ids, episode.mask, episode.logps) == tokens(tokenizer, pieces)
    whole = chat._render(episode.messages[:-1], add_generation_prompt=True)
    said_again = tokenizer(whole).input_ids + tokenizer(SAID[-1] + end).input_ids
    assert (episode.ids == said_again) == renders_the_same


@pytest.mark.parametrize("name", TEMPLATES)
def test_reply_cut_short_gets_the_end_of_its_turn_unmasked(name):
    arguments, opening, end, following, _ = TEMPLATES[name]
    tokenizer = byte_tokenizer(*arguments)
    episode = converse(ChatFormat(tokenizer), OBSERVATIONS[:3], ["abc", "", "d"])
    pieces = [(opening.format("one"), False), ("abc", True)]
    pieces += [(end + following.format(OBSERVATIONS[1]), False), ("", True)]
    pieces += [(end + following.format(OBSERVATIONS[2]), False), ("d", True)]
    assert (episode.ids, episode.mask, episode.logps) == tokens(tokenizer, pieces)


def test_reply_that_ends_with_eos_instead_of_the_end_of_turn():
    """Both stop a reply; after eos the template's end of turn still comes, unmasked."""
    arguments, opening, end, following, _ = TEMPLATES["stop token is not eos"]
    tokenizer = byte_tokenizer(*arguments)
    chat = ChatFormat(tokenizer)
    assert {tokenizer.convert_ids_to_tokens(stop) for stop in chat.stop_ids} == {"<|eot|>", "<|eos|>"}
    episode = converse(chat, OBSERVATIONS[:2], ["a<|eos|>", "b<|eot|>"])
    pieces = [(opening.format("one"), False), ("a<|eos|>", True)]
    pieces += [(end + following.format(OBSERVATIONS[1]), False), ("b<|eot|>", True)]
    assert (episode.ids, episode.mask, episode.logps) == tokens(tokenizer, pieces)
    assert [m["content"] for m in episode.messages if m["role"] == "assistant"] == ["a", "b"]


def test_sampler_stops_at_either_stop_token():
    tokenizer = byte_tokenizer(*TEMPLATES["stop token is not eos"][0])
    for stop in ("<|eot|>", "<|eos|>"):
        model = small_model("llama", tokenizer, stop_bias=0.0)
        model.get_output_embeddings().bias.data[tokenizer.convert_tokens_to_ids(stop)] = 100.0
        [episode] = new_conversations("O")
        take_turns(Policy(model, tokenizer, max_reply_tokens=3), [episode], "")
        assert episode.replies == [Reply("", 1, False)]
        assert tokenizer.convert_ids_to_tokens(episode.ids[-1]) == stop and episode.mask[-1]


def test_stop_tokens_of_the_generation_config_count_too(tokenizer):
    model = small_model("llama", tokenizer, stop_bias=-100.0)
    other = tokenizer.convert_tokens_to_ids("<|user|>")
    model.get_output_embeddings().bias.data[other] = 100.0
    for eos, length in (([tokenizer.eos_token_id, other], 1), (other, 1), (None, 3)):
        model.generation_config.eos_token_id = eos
        [episode] = new_conversations("O")
        take_turns(Policy(model, tokenizer, max_reply_tokens=3), [episode], "")
        assert episode.replies[0].n_tokens == length


def test_a_template_that_stamps_the_time_is_rendered_once_per_conversation():
    tokenizer = byte_tokenizer(DATED, CHATML_SPECIAL, "<|im_end|>")
    episode = converse(ChatFormat(tokenizer), OBSERVATIONS, [reply + "<|im_end|>" for reply in SAID])
    stamp = r"It is \d\d \w+ \d{4} \d\d:\d\d:\d\d\.\d{6}\.\n"
    text = tokenizer.decode(episode.ids)
    assert len(re.findall(stamp, text)) == 1
    expected = "".join(
        (CHATML_NEXT if k else CHATML_OPENING).format(observation) + reply + "<|im_end|>"
        for k, (observation, reply) in enumerate(zip(OBSERVATIONS, SAID, strict=True))
    )
    assert re.sub(stamp, "", text) == expected


def test_padding_with_the_stop_token_is_not_taken_for_a_sampled_one():
    tokenizer = byte_tokenizer(*TEMPLATES["pad is eos"][0])
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    chat = ChatFormat(tokenizer)
    episodes = [converse(chat, OBSERVATIONS[:n], ["a<|im_end|>"] * n) for n in (1, 3)]
    ids, mask, logps = pad_batch(episodes, "cpu")
    assert mask.sum(dim=1).tolist() == [2, 6]
    assert tokenizer.decode(ids[1][mask[1]]) == "a<|im_end|>" * 3
    assert logps[0][mask[0]].tolist() == [-1.0, -2.0]


LOOP = "{% for m in messages %}BODY{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
SHOW = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
UNUSABLE = {
    "none": (None, "missing"),
    "refuses the system role": ("{{ raise_exception('no system role here') }}", "no system role here"),
    "drops user turns": (LOOP.replace("BODY", "{% if m.role != 'user' %}" + SHOW + "{% endif %}"), "every message"),
    "drops replies": (LOOP.replace("BODY", "{% if m.role != 'assistant' %}" + SHOW + "{% endif %}"), "every message"),
    "drops the first turn": (LOOP.replace("BODY", "{% if loop.index != 2 %}" + SHOW + "{% endif %}"), "every message"),
    "drops earlier user turns": (
        LOOP.replace("BODY", "{% if m.role != 'user' or loop.last %}" + SHOW + "{% endif %}"),
        "every message",
    ),
    "moves the rules to the last turn": (
        LOOP.replace(
            "BODY",
            "{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
            "{% if loop.last %}{{ messages[0].content }}\n{% endif %}{{ m.content }}<|im_end|>\n{% endif %}",
        ),
        "every message",
    ),
    "shows texts twice": (LOOP.replace("BODY", "{{ m.content }}" + SHOW), "every message"),
    "shows replies twice": (
        LOOP.replace("BODY", SHOW + "{% if m.role == 'assistant' %}{{ m.content }}{% endif %}"),
        "every message",
    ),
    "ends a reply with plain text": (LOOP.replace("BODY", "{{ m.role }}: {{ m.content }}\n"), "special token"),
    "ends a reply with nothing": (LOOP.replace("BODY", "{{ m.content }}"), "special token"),
    "counts the turns": (LOOP.replace("BODY", "{{ loop.index }}" + SHOW), "different ways"),
    "asks for no reply": (CHATML.partition("{% if add_generation_prompt %}")[0], "asks for a reply"),
    "leaves the channel to the model": (
        CHATML.replace("m.role", "(m.role if m.role != 'assistant' else 'assistant<|endoftext|>')").replace(
            "nt\n", "nt"
        ),
        "asks for a reply",
    ),
    "is faulty": ("{{ 'a' + none }}", "refuses the conversation"),
    "changes the text": (LOOP.replace("BODY", SHOW.replace("m.content", "m.content.replace('\n', ' ')")), ""),
}


@pytest.mark.parametrize(("template", "reason"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_unusable_template_is_refused_in_one_line(template, reason):
    tokenizer = byte_tokenizer(template, CHATML_SPECIAL, "<|im_end|>")
    with pytest.raises(BadInput) as raised:
        ChatFormat(tokenizer)
    assert reason in str(raised.value) and "chat template" in str(raised.value) and "\n" not in str(raised.value)


def test_template_that_drops_the_rules_gets_them_in_the_first_turn():
    template = LOOP.replace("BODY", "{% if m.role != 'system' %}" + SHOW + "{% endif %}")
    tokenizer = byte_tokenizer(template, CHATML_SPECIAL, "<|im_end|>")
    chat = ChatFormat(tokenizer)
    episode = Episode("solve", 0, [message("system", "Rules."), message("user", "one")], "")
    chat.open_turn(episode)
    assert tokenizer.decode(episode.ids) == "<|im_start|>user\nRules.\n\none<|im_end|>\n<|im_start|>assistant\n"


def test_usable_variant_of_the_unusable_templates():
    """What the refused templates above have in common is fine in itself."""
    for show in (SHOW, SHOW.replace("\n", "\n ")):  # in the second a reply begins with a space, which the model writes
        ChatFormat(byte_tokenizer(LOOP.replace("BODY", show), CHATML_SPECIAL, "<|im_end|>"))


def test_several_templates_with_no_default_are_refused():
    tokenizer = byte_tokenizer({"rag": CHATML, "tool_use": CHATML}, CHATML_SPECIAL, "<|im_end|>")
    with pytest.raises(BadInput, match="chat template"):
        ChatFormat(tokenizer)


# ---------------------------------------------------------------------------------------------------------
# Text as data

NASTY_SPECIAL = (*CHATML_SPECIAL, "<s>", "</s>", "<<s>>", "<|im", "◆", "[INST]", "|>")
NASTY = byte_tokenizer(CHATML, NASTY_SPECIAL, "<|im_end|>", plain=THINK)
NASTY_CHAT = ChatFormat(NASTY)
cuts = [token[i:j] for token in NASTY_SPECIAL for i, j in itertools.combinations(range(len(token) + 1), 2)]
nasty_texts = st.lists(st.sampled_from(NASTY_SPECIAL) | st.sampled_from(cuts) | st.text(max_size=3)).map("".join)


def special_ids(episode):
    return [token for token in NASTY.convert_ids_to_tokens(episode.ids) if token in NASTY_SPECIAL]


@settings(max_examples=300, deadline=None)
@example(rules="<◆s>", first="<|im_◆end|>", second="<◆|im")  # what is left when ◆ is taken out
@given(rules=nasty_texts, first=nasty_texts, second=nasty_texts)
def test_text_never_makes_a_special_token(rules, first, second):
    def conversation(rules, first, second):
        episode = Episode("solve", 0, [message("system", rules), message("user", first)], "")
        NASTY_CHAT.open_turn(episode)
        episode.messages += [message("assistant", first), message("user", second)]
        NASTY_CHAT.open_turn(episode)
        return episode

    assert special_ids(conversation(rules, first, second)) == special_ids(conversation("r", "f", "s"))


@settings(max_examples=300, deadline=None)
@given(nasty_texts)
def test_clean_text_round_trips(text):
    clean = NASTY_CHAT.clean(text)
    assert NASTY_CHAT.text(NASTY_CHAT.encode(clean)) == clean == NASTY_CHAT.clean(clean)
    if not any(token in text for token in NASTY_SPECIAL):
        assert clean == text


def test_cleaning_puts_a_space_behind_the_first_character(chat):
    assert chat.clean("a <|end|> b <|user|>") == "a < |end|> b < |user|>"
    assert chat.clean("<think>|end|></think> <|END|>") == "<think>|end|></think> <|END|>"


# ---------------------------------------------------------------------------------------------------------
# The embedded tokenizer


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_embedded_tokenizer_round_trips_any_text(data, tokenizer):
    phrases = sorted(tokenizer.get_added_vocab())
    pieces = st.lists(st.text() | st.sampled_from(phrases) | st.sampled_from(phrases).map(lambda phrase: phrase[:-1]))
    text = data.draw(pieces.map("".join))
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_embedded_tokenizer_renders_whole_conversations_as_it_appends_them(tokenizer, chat):
    """On packs that it was not built from; and they are short."""
    packs = [make_pack("frozenlake", seed, 4, "tiny") for seed in range(10_000, 10_060)]
    player = Planner(1, **imitate.PLANNERS["mediocre"])
    results = run(map(play, packs), imitate.Teacher(player, chat))
    longest = 0
    for episode in (episode for result in results for episode in result.episodes):
        shown = episode.messages[:-1] if episode.kind == "solve" else episode.messages
        whole = tokenizer.apply_chat_template(shown, tokenize=False)
        assert episode.ids == tokenizer(whole).input_ids
        if episode.kind == "solve":
            longest = max(longest, len(episode.ids))
    assert 40 < longest < 90


# ---------------------------------------------------------------------------------------------------------
# Batches


def test_batches_by_length_by_hand():
    lengths = {"e": 1, "b": 9, "a": 10, "d": 4, "c": 5}
    assert batches_by_length(lengths, 20) == [["a", "b"], ["c", "d"], ["e"]]
    assert batches_by_length(lengths, 19) == [["a"], ["b", "c"], ["d"], ["e"]]
    assert batches_by_length(lengths, 1) == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert batches_by_length({}, 20) == []


@given(lengths=st.dictionaries(st.integers(), st.integers(1, 50)), budget=st.integers(1, 300))
def test_batches_by_length_partition_within_the_budget(lengths, budget):
    batches = batches_by_length(lengths, budget)
    assert sorted(key for batch in batches for key in batch) == sorted(lengths)
    for batch in batches:
        longest, shortest = max(lengths[key] for key in batch), min(lengths[key] for key in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert longest <= 2 * shortest
    for batch, after in itertools.pairwise(batches):  # no batch was closed too early
        longest = max(lengths[key] for key in batch)
        assert (len(batch) + 1) * longest > budget or 2 * lengths[after[0]] < longest


def test_pad_batch_by_hand():
    first, second = Episode("solve", 0, [], ""), Episode("solve", 1, [], "")
    first.add([5, 6])
    first.add([7], [-0.5])
    second.add([8])
    ids, mask, logps = pad_batch([first, second], "cpu")
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]] and ids.dtype == torch.long
    assert mask.tolist() == [[False, False, True], [False] * 3] and mask.dtype == torch.bool
    assert logps.tolist() == [[0, 0, -0.5], [0, 0, 0]] and logps.dtype == torch.float32
    assert first.n_sampled == 1 and second.n_sampled == 0


# ---------------------------------------------------------------------------------------------------------
# Merged adapters, half precision, decoding in blocks


def state(model):
    return {name: parameter.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("interrupted", [False, True])
def test_sampling_with_the_adapter_merged_changes_no_sample_and_no_weight(interrupted, tokenizer):
    """Merged, the layers compute with other weights, and give the same; afterwards all is as it was, bit by bit."""
    model = small_model("qwen3 with an adapter", tokenizer)
    expected = sampled(Policy(model, tokenizer, max_reply_tokens=8, merge=False), "a")
    policy = Policy(model, tokenizer, max_reply_tokens=8)
    before, merged = state(model), {}
    try:
        with policy.sampling():
            merged = state(model)
            got = sampled(policy, "a")
            assert policy.cache.keys
            if interrupted:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert not policy.cache.keys
    for episodes, others in zip(got, expected, strict=True):
        for (ids, logps), (other_ids, other_logps) in zip(episodes, others, strict=True):
            assert ids == other_ids and logps == pytest.approx(other_logps, abs=1e-4)
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    adapted = {name.split(".lora_A")[0] + ".base_layer.weight" for name in before if ".lora_A" in name}
    assert changed == adapted and len(adapted) > 10
    after = state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    ids, mask = torch.randint(4, 200, (2, 20)), torch.ones(2, 20, dtype=torch.bool)
    logp, _ = policy.logprobs(ids, mask)
    assert logp.requires_grad  # the adapter is in use again
    with torch.no_grad(), model.disable_adapter():
        assert (policy.logprobs(ids, mask)[0] - logp).abs().max() > 0.01


def test_what_cannot_be_merged_is_not(model_folder, tokenizer):
    """Weights in 4 bits, and a head whose weights are the embedding's too."""
    in_4_bits = add_adapter(load_model(str(model_folder), load_in_4bit=True)[0], Lora(rank=4, alpha=8))
    tied = add_adapter(load_model(str(model_folder))[0], Lora(rank=4, alpha=8, targets="q_proj,lm_head"))
    assert tied.get_input_embeddings().weight is tied.base_model.model.lm_head.weight
    for model in (in_4_bits, tied):
        policy = Policy(model, tokenizer)
        before = state(model)
        with policy.sampling():
            assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_half_precision_trains_a_single_precision_adapter(model_folder, tokenizer):
    """Its gradient points where that of the same model in single precision does."""
    gradients = []
    for dtype in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = add_adapter(load_model(str(model_folder), dtype)[0], Lora(rank=4, alpha=8))
        for name, parameter in model.named_parameters():
            if "lora" in name:
                assert parameter.dtype == torch.float32
                torch.nn.init.normal_(parameter, std=0.1)
        policy = Policy(model, tokenizer)
        generator = torch.Generator().manual_seed(0)
        ids, mask = torch.randint(4, 200, (2, 40), generator=generator), torch.ones(2, 40, dtype=torch.bool)
        policy.logprobs(ids, mask)[0].sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[1].items():
        assert gradient.dtype == torch.float32
        assert torch.cosine_similarity(gradient.flatten(), gradients[0][name].flatten(), dim=0) > 0.99, name


class Replayed:
    """What a captured step does, without a GPU: the step runs again on buffers that keep their place."""

    made: list["Replayed"] = []

    def __init__(self, step, inputs, pool):
        self.step, self.inputs = step, [value.clone() for value in inputs]
        step(*self.inputs)
        self.made.append(self)

    def __call__(self, *inputs):
        for buffer, value in zip(self.inputs, inputs, strict=True):
            buffer.copy_(value)
        return self.step(*self.inputs)


@pytest.mark.parametrize("kv_tokens", [1500, 1 << 30])
@pytest.mark.parametrize("block, graphs", [(2, False), (5, False), (1, True), (4, True)])
def test_blocks_of_tokens_and_captured_steps_change_no_sample(block, graphs, kv_tokens, tokenizer, monkeypatch):
    """Replies end anywhere in a block, at the cap and at the model's longest conversation too."""
    model = small_model("qwen3", tokenizer, stop_bias=4.0)
    expected = Policy(model, tokenizer, max_reply_tokens=12)
    policy = Policy(model, tokenizer, max_reply_tokens=12, kv_tokens=kv_tokens)
    expected.max_length = policy.max_length = 300
    monkeypatch.setattr(policies, "CapturedStep", Replayed)
    monkeypatch.setattr(Replayed, "made", [])
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    policy.block, policy.cuda_graphs = block, graphs
    for episodes, others in zip(sampled(policy, "a", n=20), sampled(expected, "a", n=20), strict=True):
        for (ids, logps), (other_ids, other_logps) in zip(episodes, others, strict=True):
            assert ids == other_ids and logps == pytest.approx(other_logps, abs=1e-4)
    assert bool(Replayed.made) == graphs
    if kv_tokens == 1500:
        assert policy.cache.n_rows * policy.cache.capacity <= kv_tokens


def test_a_step_that_cannot_be_captured_is_done_plainly(tokenizer, monkeypatch):
    class Refusing:
        def __init__(self, *arguments):
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    model = small_model("qwen3", tokenizer)
    expected = sampled(Policy(model, tokenizer, max_reply_tokens=8), "a")
    policy = Policy(model, tokenizer, max_reply_tokens=8)
    monkeypatch.setattr(policies, "CapturedStep", Refusing)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    policy.cuda_graphs = True
    with pytest.warns(UserWarning, match="without CUDA graphs: operation not permitted"):
        assert sampled(policy, "a") == expected


# ---------------------------------------------------------------------------------------------------------
# Loading


def test_model_in_4_bits_samples_and_trains_as_its_unpacked_weights_do(model_folder):
    """Sampled from first: on some CPUs that packs the weights in a way that lets no gradient through."""
    model, tokenizer = load_model(str(model_folder), load_in_4bit=True)
    assert "Linear4bit" in {type(module).__name__ for module in model.modules()}
    gradients = []
    for base in (model, load_model(str(model_folder), load_in_4bit=True)[0].dequantize()):
        model = add_adapter(base, Lora(rank=4, alpha=8))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        policy = Policy(model, tokenizer, max_reply_tokens=8)
        if not gradients:
            episodes = [e for result in run(map(play, chatter_packs(2)), policy) for e in result.episodes]
        ids, mask, logps = pad_batch(episodes, "cpu")
        model.train()
        logp, _ = policy.logprobs(ids, mask)
        assert (logp - logps).abs().mean() < 0.1
        logp.sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        assert all(p.grad is None for name, p in model.named_parameters() if "lora_" not in name)
    for name, gradient in gradients[0].items():
        assert torch.cosine_similarity(gradient.flatten(), gradients[1][name].flatten(), dim=0) > 0.98, name


def test_missing_model_is_refused_in_one_line(tmp_path):
    for name in (str(tmp_path / "nowhere"), "no-such-model", str(tmp_path)):
        with pytest.raises(BadInput) as raised:
            load_model(name)
        assert f"model={name!r}" in str(raised.value) and "\n" not in str(raised.value)


def test_broken_weights_are_refused_in_one_line(model_folder, tmp_path):
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(
            file.read_bytes()[:1000] if file.suffix == ".safetensors" else file.read_bytes()
        )
    with pytest.raises(BadInput):
        load_model(str(tmp_path))


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("first\nsecond"), KeyError("weight_map")])
def test_whatever_loading_raises_becomes_one_line(error, model_folder, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(BadInput) as raised:
        load_model(str(model_folder))
    assert str(model_folder) in str(raised.value) and "\n" not in str(raised.value)


def test_model_is_found_beside_the_scripts_from_any_folder(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "HERE", model_folder.parent)
    monkeypatch.chdir(tmp_path)
    model, tokenizer = load_model(model_folder.name)
    assert isinstance(model, Qwen3ForCausalLM) and tokenizer.chat_template == PLAIN


def test_adapter_comes_back_from_its_folder(model_folder, tmp_path):
    model, tokenizer = load_model(str(model_folder))
    ids, mask = torch.randint(4, 200, (2, 20)), torch.ones(2, 20, dtype=torch.bool)
    before = Policy(model, tokenizer).logprobs(ids, mask)[0]
    model = add_adapter(model, Lora(rank=4, alpha=8))
    torch.testing.assert_close(Policy(model, tokenizer).logprobs(ids, mask)[0], before)  # a fresh one does nothing
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora" in name)
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    trained = Policy(model, tokenizer).logprobs(ids, mask)[0]
    assert (trained - before).abs().max() > 0.01
    model.save_pretrained(tmp_path)
    again = add_adapter(load_model(str(model_folder))[0], folder=tmp_path)
    assert any(parameter.requires_grad for parameter in again.parameters())
    torch.testing.assert_close(Policy(again, tokenizer).logprobs(ids, mask)[0], trained)

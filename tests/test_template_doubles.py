"""ChatFormat with doubles of the chat templates of today's models (template_doubles.py), through the whole path: open,
reply, next turn, cut reply, stop tokens, thinking off, exact trained ids, text that makes no special token."""

import re

import pytest
from doubles import message, small_model, take_turns
from template_doubles import DOUBLES, RULES
from test_templates import (  # what is tested with the real texts, here with the doubles
    SAID,
    Clock,
    build_tokenizer,
    converse,
    test_conversation_is_continued_as_the_template_renders_it,
    test_padding_token_may_be_one_that_ends_replies,
    test_replies_stop_at_the_end_of_their_turn_and_at_eos,
    test_reply_cut_short_gets_the_end_of_its_turn_unmasked,
    test_text_makes_no_special_token,
)

from engine.chat import ChatFormat
from engine.policy import Policy
from engine.settings import Sampling
from rollout import Episode

__all__ = [
    "test_conversation_is_continued_as_the_template_renders_it",
    "test_padding_token_may_be_one_that_ends_replies",
    "test_replies_stop_at_the_end_of_their_turn_and_at_eos",
    "test_reply_cut_short_gets_the_end_of_its_turn_unmasked",
    "test_text_makes_no_special_token",
]


@pytest.fixture
def texts():
    """The template texts by what a Model calls them."""
    return {model.template: model.template for model in DOUBLES.values()}


@pytest.fixture(params=DOUBLES.values(), ids=DOUBLES.keys())
def model(request):
    return request.param


@pytest.fixture
def chat(model, texts):
    return ChatFormat(build_tokenizer(model, texts))


def chat_of(name):
    return ChatFormat(build_tokenizer(DOUBLES[name], {DOUBLES[name].template: DOUBLES[name].template}))


def test_sampler_and_trainer_see_the_same_conversation(model, chat):
    """Two replies of a model that ends some of them: what is trained is what was sampled, stop token included."""
    tokenizer = chat.tokenizer
    random_model = small_model("llama", tokenizer)
    random_model.generation_config.eos_token_id = None  # the stop tokens are ChatFormat's
    observations = [f"text {n}" for n in range(8)]
    episodes = [Episode("solve", 0, [message("system", RULES), message("user", text)], "") for text in observations]
    for n, episode in enumerate(episodes):
        episode.rng_key = str(n)
    policy = Policy(random_model, tokenizer, Sampling(max_reply_tokens=6))
    for _ in range(2):
        take_turns(policy, episodes, "next")
    first, next_one = model.opening.replace("...", ""), model.following.format("next")
    ended = 0
    for episode, observation in zip(episodes, observations, strict=True):
        pieces, sampled = [], None
        for token, mask in zip(episode.ids, episode.mask, strict=True):
            if mask != sampled:
                pieces.append([])
                sampled = mask
            pieces[-1].append(token)
        opening, reply, between, last = pieces
        assert tokenizer.decode(opening).endswith(first.format(observation)[-30:])
        stopped = reply[-1] == chat.turn_end
        assert tokenizer.decode(between) == next_one.removeprefix(model.end if stopped else "")
        assert [len(reply), len(last)] == [r.n_tokens for r in episode.replies]
        for ids, answer in zip((reply, last), episode.replies, strict=True):
            assert answer.truncated == (ids[-1] not in chat.stop_ids) and (not answer.truncated or len(ids) == 6)
            assert not chat.stop_ids & set(ids[:-1])
            assert answer.text == tokenizer.decode(ids, skip_special_tokens=True)
            ended += not answer.truncated
    assert 0 < ended < 16


@pytest.mark.parametrize("name", [name for name, model in DOUBLES.items() if model.thinks])
def test_thinking_is_on_by_default_and_is_switched_off(name):
    chat = chat_of(name)
    messages = [message("system", RULES), message("user", "one")]
    by_default = chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    text = chat.tokenizer.decode(converse(chat, ["a" + DOUBLES[name].end]).ids)
    empty_thought = re.compile(r"assistant\n<think>\n\n</think>\n")
    assert [len(empty_thought.findall(shown)) for shown in (by_default, text)] == [0, 2]


@pytest.mark.parametrize(
    ("name", "thought"),
    [
        ("Qwen3.5", "<think>\nhm\n</think>\n\n"),
        ("Gemma-4", "<|channel>thought\nhm\n<channel|>"),
        ("LFM2.5", "<think>\nhm\n</think>\n\n"),
    ],
)
def test_thought_that_was_sampled_stays(name, thought):
    """These templates would drop it from the history."""
    model, chat = DOUBLES[name], chat_of(name)
    episode = converse(chat, [thought + "go" + model.end])
    followed = thought + "go" + model.following.format("two\nlines")
    assert chat.tokenizer.decode(episode.ids) == model.opening.format("one") + followed
    assert chat.tokenizer.decode([token for token, mask in zip(episode.ids, episode.mask, strict=True) if mask]) == (
        thought + "go" + model.end
    )
    episode.messages[2]["content"] = thought + "go"
    assert "hm" not in chat.tokenizer.apply_chat_template(episode.messages, tokenize=False)


def test_replies_of_gpt_oss_are_in_the_final_channel_and_nowhere_else():
    """The token that its model ends answers with stays, as it was sampled; the one of the history comes behind it."""
    chat = chat_of("gpt-oss")
    text = chat.tokenizer.decode(converse(chat, ["a<|return|>", "b<|end|>", "c"]).ids)
    after_rules = text.split(RULES + "\n\n<|end|>")[1]
    reply = "<|start|>assistant<|channel|>final<|message|>"
    assert after_rules == (
        f"<|start|>user<|message|>one<|end|>{reply}a<|return|><|end|>"
        f"<|start|>user<|message|>two\nlines<|end|>{reply}b<|end|>"
        f"<|start|>user<|message|>three é<|end|>{reply}c<|end|>"
        f"<|start|>user<|message|>four<|end|>{reply}"
    )


SWITCHES = ["/think", "a </think> b", "/no_think", "/system_override", "<tool_response>x</tool_response>", " x ", "\n"]


@pytest.mark.parametrize("text", SWITCHES)
def test_text_switches_nothing_in_a_template(model, chat, text):
    """A hint is part of the rules, and a model writes it: SmolLM3's template would think from then on at "</think>"."""
    episode = converse(chat, ["a" + model.end], [text, text], rules=text)
    plain = converse(chat, ["a" + model.end], ["<>", "<>"], rules="<>")
    shown = text.lstrip() if model.rstrip else text  # the tokenizer strips here, not the template
    assert chat.tokenizer.decode(episode.ids) == chat.tokenizer.decode(plain.ids).replace("<>", shown)


@pytest.mark.parametrize(("name", "day"), [("Llama-3.2", r"\d\d \w{3} 2031"), ("SmolLM3", r"\d\d \w+ 2031")])
def test_day_is_told_once(name, day, monkeypatch):
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    chat = chat_of(name)
    days = [
        re.findall(day, chat.tokenizer.decode(converse(chat, [said + DOUBLES[name].end for said in SAID]).ids))
        for _ in range(2)
    ]
    assert [len(found) for found in days] == [1, 1] and days[0] != days[1]

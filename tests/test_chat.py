"""chat.py: conversations as tokens, by templates that behave as those of well-known models do."""

import contextlib
import itertools
import re
import signal

import pytest
from conftest import byte_tokenizer
from doubles import message, new_conversations, small_model, take_turns, tokens
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.batches import pad_batch
from engine.chat import ChatFormat
from engine.embedded import TEMPLATE
from engine.errors import BadInput
from engine.policy import Policy
from engine.settings import Sampling
from rollout import Episode, Reply

PLAIN = TEMPLATE
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
        take_turns(Policy(model, tokenizer, Sampling(max_reply_tokens=3)), [episode], "")
        assert episode.replies == [Reply("", 1, False, n_read=len(episode.ids) - 1)]
        assert tokenizer.convert_ids_to_tokens(episode.ids[-1]) == stop and episode.mask[-1]


def test_stop_tokens_of_the_generation_config_count_too(tokenizer):
    model = small_model("llama", tokenizer, stop_bias=-100.0)
    other = tokenizer.convert_tokens_to_ids("<|user|>")
    model.get_output_embeddings().bias.data[other] = 100.0
    for eos, length in (([tokenizer.eos_token_id, other], 1), (other, 1), (None, 3)):
        model.generation_config.eos_token_id = eos
        [episode] = new_conversations("O")
        take_turns(Policy(model, tokenizer, Sampling(max_reply_tokens=3)), [episode], "")
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
    "leaves the model a channel that it counts": (
        CHATML.replace(
            "m.role", "(m.role if m.role != 'assistant' else 'assistant<|endoftext|>' ~ loop.index)"
        ).replace("nt\n", "nt"),
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
        chat = ChatFormat(byte_tokenizer(LOOP.replace("BODY", show), CHATML_SPECIAL, "<|im_end|>"))
        assert chat.after == "<|im_end|>\n<|im_start|>assistant\n"


def test_channel_that_the_template_leaves_to_the_model_is_opened_for_it():
    template = CHATML.replace("m.role", "(m.role if m.role != 'assistant' else 'assistant<|endoftext|>to all')")
    chat = ChatFormat(byte_tokenizer(template.replace("nt\n", "nt"), CHATML_SPECIAL, "<|im_end|>"))
    episode = converse(chat, ["one", "two"], ["a<|im_end|>", "b"])
    start = "<|im_start|>assistant<|endoftext|>to all\n"
    assert chat.tokenizer.decode(episode.ids) == (
        f"<|im_start|>system\nRules.<|im_end|>\n<|im_start|>user\none<|im_end|>\n{start}a<|im_end|>\n"
        f"<|im_start|>user\ntwo<|im_end|>\n{start}b"
    )
    assert (
        chat.tokenizer.decode([t for t, mask in zip(episode.ids, episode.mask, strict=True) if mask]) == "a<|im_end|>b"
    )


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


@contextlib.contextmanager
def at_most(seconds):
    """Ends what takes longer."""

    def ring(*_):
        raise TimeoutError(f"not over after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


any_special = st.sets(st.text("<x>  \n", min_size=1, max_size=4), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@example(special={" <x>"}, pieces=["a <x>"], rstrip=False)  # a space behind the first character does not break it up
@example(special={"<x>", "< x>", "<  x>"}, pieces=["<x>"], rstrip=False)  # makes another one
@example(special={"<x>", "x< "}, pieces=["x<x>"], rstrip=False)  # makes another one, with what is before it
@example(special={"<  "}, pieces=["<  "], rstrip=False)
@example(special={"x", "  "}, pieces=["x ", " x "], rstrip=True)
@given(special=any_special, pieces=st.lists(st.text("<x>  \n", max_size=5), max_size=6), rstrip=st.booleans())
def test_cleaning_ends_with_no_special_token_whatever_they_are(special, pieces, rstrip):
    all_special = sorted({*CHATML_SPECIAL, *special})
    tokenizer = byte_tokenizer(CHATML, all_special, "<|im_end|>", rstrip=rstrip)
    chat = ChatFormat(tokenizer)
    for text in ("".join(pieces), "".join(f"{piece}{token}" for piece in [*pieces, ""] for token in sorted(special))):
        with at_most(10):
            clean = chat.clean(text)
        assert not set(tokenizer(clean).input_ids) & set(tokenizer.convert_tokens_to_ids(all_special))
        assert (clean == text) == (not any(token in text for token in special))
        assert chat.clean(clean) == clean


def test_cleaning_takes_special_tokens_in_one_order():
    """The longest first, then by the alphabet: sets have an order of their own in every process."""
    chat = ChatFormat(byte_tokenizer(CHATML, (*CHATML_SPECIAL, "ab", "bc", "cd", "abcd"), "<|im_end|>"))
    assert chat.clean("abcd abc bcd cdab") == " a b c b c d c da b"


def test_cleaning_puts_a_space_behind_the_first_character(chat):
    assert chat.clean("a <|end|> b <|user|>") == "a < |end|> b < |user|>"
    assert chat.clean("<think>|end|></think> <|END|>") == "<think>|end|></think> <|END|>"


# ---------------------------------------------------------------------------------------------------------
# Tokenizers that are larger than the embedding

# the ids of these are 256, 257, ... in this order
LATE = byte_tokenizer(CHATML, ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<image>"), "<|im_end|>")
LATE_THINK = byte_tokenizer(CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>", plain=THINK)


@pytest.mark.parametrize(
    ("tokenizer", "n_rows", "fits"),
    [
        (LATE, 1000, True),
        (LATE, 260, True),
        (LATE, 259, True),  # no image
        (LATE, 258, True),  # and no end of text
        (LATE, 257, False),  # but replies end
        (LATE, 255, False),
        (LATE_THINK, 260, True),
        (LATE_THINK, 259, False),  # any text may have "</think>" in it
    ],
)
def test_ids_beyond_the_embedding_are_refused_if_a_conversation_can_hold_them(tokenizer, n_rows, fits):
    chat = ChatFormat(tokenizer)
    if fits:
        chat.check_ids(n_rows)
    else:
        with pytest.raises(BadInput, match=f"^model=''.* 260 ids, .* {n_rows} rows$"):
            chat.check_ids(n_rows)


def test_policy_refuses_a_tokenizer_larger_than_the_embedding(tokenizer):
    model = small_model("llama", tokenizer)
    model.resize_token_embeddings(len(tokenizer) - 13)
    with pytest.raises(BadInput, match=f"{len(tokenizer)} ids.* {len(tokenizer) - 13} rows"):
        Policy(model, tokenizer)


def test_policy_takes_a_special_token_beyond_the_embedding_that_never_appears():
    """Gemma 3 1B is published so: its tokenizer has a token for images behind the last row."""
    model = small_model("llama", LATE)
    model.resize_token_embeddings(len(LATE) - 1)
    episodes = new_conversations("<image>", "an <image> and more")
    take_turns(Policy(model, LATE, Sampling(max_reply_tokens=4)), episodes, "<image>")
    take_turns(Policy(model, LATE, Sampling(max_reply_tokens=4)), episodes, "")
    assert all(max(episode.ids) < len(LATE) - 1 for episode in episodes)

"""What the embedded policy is made of: its tokenizer, which has whole phrases of the prompts as single tokens, and its
model. imitation/embedded.py builds it from these.
"""

import functools
import hashlib
import itertools
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from environments.alchemy.tiny import ELEMENTS, PRODUCTS, all_pairs
from environments.frozenlake.players import ACTIONS
from environments.frozenlake.task import MOVES
from environments.tables import Words
from environments.terminal.tiny import NAMES
from envs import demonstrator, make_pack
from rollout import Episode, play, run

DOMAINS = ("frozenlake", "alchemy", "terminal")
LEVELS = ("tiny", "tiny-hard")
KEYS = (*MOVES, *PRODUCTS, *NAMES)  # of the hidden tables
VALUES = (*ACTIONS, *all_pairs(ELEMENTS), *itertools.chain(*NAMES.values()))
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


WORDS = {  # for knowing, guessing and not knowing: the same in all domains, or own ones in each
    "shared": dict.fromkeys(DOMAINS, Words()),
    "own": {
        "frozenlake": Words("I know", "I guess", "unknown"),
        "alchemy": Words("Surely", "Perhaps", "untested"),
        "terminal": Words("Certain", "Trying", "unclear"),
    },
}


def pattern(rules: Iterable[str], words: Collection[Words]) -> re.Pattern:
    """What a text is cut by. A line of the rules is one piece. A key with its colon ("up: ") is one, the same wherever
    it stands, and a value; so a value is always the next token after its key."""

    def one_of(texts: Iterable[str]) -> str:
        return "|".join(map(re.escape, sorted(set(texts), key=lambda text: (-len(text), text))))

    key = f"(?:{one_of(KEYS)}): "
    before = one_of(["You made", "Accepted", "Able to", *(w.know for w in words)])
    values = one_of([*VALUES, *(w.unknown for w in words)])
    return re.compile(
        rf"((?:{one_of(rules)})\n?|\n?- (?={key})|\b{key}|(?:{before}) (?={key})"
        rf"|(?:{one_of(w.guess for w in words)}): |\b(?:{values})\b)"
    )


def phrases(texts: Iterable[str], cut: re.Pattern) -> list[str]:
    """The pieces of the texts: what `cut` finds, and every line between these with the line break that ends it, or
    with one that follows such a piece."""
    pieces = set()
    for text in texts:
        for k, part in enumerate(cut.split(text)):
            pieces.update([part] if k % 2 else re.findall(r"\n?[^\n]+\n?", part))
    return sorted(piece for piece in pieces if len(piece) > 1)


def played(packs: Iterable[int], knobs: dict, words: str) -> list[Episode]:
    """Episodes of packs of the tiny levels, played by their demonstrators."""
    episodes = []
    for env, level in itertools.product(DOMAINS, LEVELS):
        player = demonstrator(env, level)(seed=0, words=WORDS[words][env], **knobs)
        rollouts = run([play(make_pack(env, seed, 4, level)) for seed in packs], player)
        episodes += [episode for rollout in rollouts for episode in rollout.episodes]
    return episodes


def build_tokenizer(words: str = "shared", packs: int = 1500) -> PreTrainedTokenizerBase:
    """Bytes, plus one token for every phrase of the tiny levels: a conversation there is 20 to 125 tokens long.

    Any other text is spelled in bytes, so the policy reads every prompt that a large model reads. In so many packs of
    each level nearly all maps and moves have occurred.
    """
    careless = {"recall": 0.3, "explore": 0.3, "write": 0.5, "wrong": 0.1}  # so that all that can be said is
    texts = {m["content"] for episode in played(range(packs), careless, words) for m in episode.messages}
    rules = {make_pack(env, 0, 1, level).tasks[0].rules for env, level in itertools.product(DOMAINS, LEVELS)}
    lines = {line for text in rules for line in text.split("\n")}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    roles = [
        AddedToken(f"<|{name}|>", special=True, normalized=False) for name in ("system", "user", "assistant", "end")
    ]
    tokenizer.add_special_tokens(roles)
    pieces = phrases(texts | {"- up: ", "\n- up: "}, pattern(lines, WORDS[words].values()))
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", model_max_length=8192)
    fast.chat_template = TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        initializer_range=0.1,  # at the usual 0.02 so small a model does not learn to look values up
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    for layer in model.model.layers:  # at their usual 1 no attention logit is above 4: too even to look values up
        layer.self_attn.q_norm.weight.data.fill_(2.0)
        layer.self_attn.k_norm.weight.data.fill_(2.0)
    return model


@functools.cache
def fingerprint() -> str:
    """SHA-256 of the prompts and observations of some packs of the tiny levels, but for the rewards in them: of another
    text another number."""
    messages = [message for episode in played(range(20), {}, "shared") for message in episode.messages]
    asked = "\0".join(message["content"] for message in messages if message["role"] != "assistant")
    return hashlib.sha256(re.sub(r"-?[0-9]+\.[0-9]+", "0.000", asked).encode()).hexdigest()


def warning(folder: Path) -> str:
    """What to say about a model that was built for other prompts than those of now; empty if all is well, or if the
    folder holds no such model."""
    file = folder / "fingerprint.txt"
    if not file.exists() or file.read_text(encoding="utf-8").strip() == fingerprint():
        return ""
    return (
        f"warning: the prompts have changed since {folder} was built, whose tokenizer has their phrases as tokens: "
        "it will break the reply format. Build it again: python imitate.py --output FOLDER, then --model FOLDER"
    )

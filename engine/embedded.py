"""What the embedded policy is made of: its tokenizer, its model, the drills that it learns to look values up by.

imitate.py builds it from these. Its tokenizer has whole phrases of the prompts as single tokens.
"""

import hashlib
import random
import re
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from engine.chat import ChatFormat
from environments.frozenlake.players import ACTIONS, Planner
from environments.frozenlake.task import MOVES
from envs import make_pack
from rollout import Episode, play, run

MEDIOCRE = {"plan": 0.8, "recall": 0.35, "write": 0.5, "wrong": 0.1}  # settings of the player that it imitates last
VALUE = "Direction [1-4]|unknown"  # what is looked up, copied and learnt: always a token of its own
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def phrases(texts: set[str]) -> list[str]:
    """Every line of the texts, cut where a value stands. A line break goes with the line it ends; right behind a value
    it goes with what follows, so that a value is always the next token after its key ("- up: ", "\\n- down: ")."""
    pieces = set()
    for text in texts:
        for k, part in enumerate(re.split(f"({VALUE})", text)):
            pieces.update([part] if k % 2 else re.findall(r"\n?[^\n]+\n?", part))
    return sorted(piece for piece in pieces if len(piece) > 1)


def build_tokenizer() -> PreTrainedTokenizerBase:
    """Bytes, plus one token for every phrase of level tiny: a conversation there is 50-70 tokens long.

    Any other text is spelled in bytes, so the policy reads every prompt that a large model reads.
    """
    games = [play(make_pack("frozenlake", seed, 4, "tiny")) for seed in range(2000)]
    rollouts = run(games, Planner(0, **MEDIOCRE))
    texts = {message["content"] for rollout in rollouts for e in rollout.episodes for message in e.messages}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    roles = [
        AddedToken(f"<|{name}|>", special=True, normalized=False) for name in ("system", "user", "assistant", "end")
    ]
    tokenizer.add_special_tokens(roles)
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases(texts)])
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
    return Qwen3ForCausalLM(config)


def drill(chat: ChatFormat, rng: random.Random, lines: int = 24) -> Episode:
    """Loose hint, reply and effect lines under one mapping; to be learnt: each value that an earlier line has shown."""
    action_of = dict(zip(MOVES, rng.sample(ACTIONS, 4), strict=True))
    shown: set[str] = set()
    episode = Episode("drill", 0, [], "")
    effect = ": row 1, column 2 to row 1, column 1.\n"
    kinds = [("- {}: ", ""), ("\n- {}: ", ""), ("You moved {} with ", effect), ("Go {}: <answer>", "</answer>")]
    for _ in range(lines):
        way = rng.choice(list(MOVES))
        key, rest = rng.choice(kinds)
        episode.add(chat.encode(key.format(way)))
        episode.add(chat.encode(action_of[way]), [0.0] if way in shown else None)
        episode.add(chat.encode(rest))
        shown.add(way)
    return episode


def fingerprint() -> str:
    """SHA-256 of the prompts and observations of some packs of level tiny, but for the rewards in them: of another text
    another number."""
    rollouts = run([play(make_pack("frozenlake", seed, 4, "tiny")) for seed in range(20)], Planner(0))
    messages = [message for rollout in rollouts for e in rollout.episodes for message in e.messages]
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

"""Which sampler serves a model: each is made to sample, and the trainer has to find the same log-probabilities.

Conversations of made-up text are sampled in two turns, of every length at which the model may change its ways: where a
window, a chunk or a choice of keys begins to matter is read from its configuration.
"""

import itertools
import random
import re

import torch
from torch import Tensor

from engine.batches import ATTENTION, pad_batch
from engine.draft import Draft
from engine.errors import BadInput
from engine.fast import CHOICES, Fast, refusal
from engine.generate import Generate
from engine.weights import Weights
from rollout import Episode

LONGEST = 1 << 13  # up to this length, lengths at which behaviour changes are probed
LENGTH_NAMES = re.compile("window|chunk|block_size|block_len|topk|compress|stride")
WINDOWS = "max_position_embeddings max_seq_len n_positions".split()  # names of the longest a model reads
UNBOUNDED = 1 << 30
WAYS = (  # to generate: with padding, with what is kept of earlier tokens, and what is said of it
    (True, True, ""),
    (False, True, "; padding on the left disturbs it, so rows of one length make a batch"),
    (
        False,
        False,
        "; it predicts otherwise from what it keeps of earlier tokens, so all is read again for every token",
    ),
)
REFUSED = {  # model type -> why
    "blt": "it reads bytes in patches, not tokens",
    "prophetnet": "it predicts several tokens at once",
    "reformer": "its attention draws hashes at random",
    "rwkv": "it divides its matrices while it does not train, which an adapter does not follow",
    "xlnet": "it predicts tokens in an order of its own",
    "xlstm": "transformers fails at reading more than a chunk of it",
}


def rope_settings(config) -> list[dict]:
    """The settings of rotary embeddings: of all layers, or of each kind of layer."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in found.values() if isinstance(value, dict)]
    return nested or [found]


def changes(config) -> list[int]:
    """Lengths of conversations at which the model may change its ways, in rising order."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    named = {name: value for name, value in vars(config).items() if LENGTH_NAMES.search(name) and "layers" not in name}
    if "sliding_attention" not in kinds:
        named.pop("sliding_window", None)
    return sorted({value for value in named.values() if isinstance(value, int) and value > 8})


def conversation_limit(config) -> int:
    """Tokens of the longest conversation: what the model reads, what is probed, and up to where sampling and training
    are sure to agree. Rotary embeddings may switch with the longest row of a batch (longrope), so that a conversation
    would depend on its neighbours; and a choice among keys that are nearly as good may turn out otherwise."""
    limits = [getattr(config, name, None) for name in (*WINDOWS, *CHOICES)]
    limits = [value for value in limits if value is not None and value > 0]
    limits += [length for length in changes(config) if length > LONGEST]
    for rope in rope_settings(config):
        if rope.get("rope_type") == "longrope":
            switch = rope.get("original_max_position_embeddings")
            limits.append(switch or getattr(config, "original_max_position_embeddings", config.max_position_embeddings))
    return min(limits, default=UNBOUNDED)


def choose(weights: Weights, text: tuple[int, ...], limit: int, memory: float) -> tuple[Fast | Generate, int, str]:
    """(the sampler, up to which length common beginnings are read once in training, why).

    `text`: any token ids; `limit`: of conversations; `memory`: bytes for the sampler where the settings' `kv_tokens` is
    0.
    """
    wish, kv_tokens = weights.settings.sampler, weights.settings.kv_tokens
    kind, tolerance = weights.base.config.model_type, 0.1 if weights.half else 5e-5
    around = [(length - 2, length + 5) for length in changes(weights.text_config)]
    lengths = [n for n in (5, 8, *itertools.chain(*around)) if n + 12 <= limit]
    if not lengths:
        raise BadInput(f"{kind}: reads conversations of at most {limit} tokens, which is too short")
    if kind in REFUSED:
        raise BadInput(f"{kind}: cannot be trained here: {REFUSED[kind]}")
    weights.model.eval()
    check_decoder(weights, text)
    refused = refusal(weights)
    prefix_limit, unshared = (0, "") if refused else share_beginnings(weights, text, limit, max(lengths))
    note = f"; common beginnings are read in every row: {unshared}" if unshared else ""
    if wish != "generate":
        if not refused:
            fast = Fast(weights, UNBOUNDED**2)
            gap = largest_gap(weights, fast, text, lengths)
            size = fast.bytes_per_token()
            if gap < tolerance:
                why = f"it gives the trainer's log-probabilities (within {float(gap):.0e}, {max(lengths) + 12} tokens)"
                return (
                    Fast(weights, kv_tokens or max(1, int(memory / size)), weights.settings.cuda_graphs),
                    prefix_limit,
                    why + note,
                )
            refused = f"its log-probabilities differ from the trainer's by {float(gap):.1e}"
        if wish == "fast":
            raise BadInput(f"sampler='fast': does not fit {kind}: {refused}; try --sampler generate")
    tokens = kv_tokens or max(1, int(memory / generate_bytes(weights, text)))
    lengths += [64] if limit >= 76 else []  # what is off in a recurrent state adds up
    for padding, cache, remark in WAYS:
        gap = largest_gap(weights, Generate(weights, tokens, padding, cache), text, lengths)
        if gap < tolerance:
            why = "asked for" if wish == "generate" else refused
            return Generate(weights, tokens, padding, cache), prefix_limit, why + remark + note
    raise BadInput(f"{kind}: sampling and training differ by {float(gap):.1e} nats a token, and no sampler fits")


@torch.no_grad()
def check_decoder(weights: Weights, text: tuple[int, ...]) -> None:
    """Raise BadInput unless the text decoder and the output head give the model's own predictions; sees whether the
    head alone does."""
    ids = torch.tensor([list(itertools.islice(itertools.cycle(text), 12))], device=weights.device)  # [1, 12]
    hidden = weights.hidden_states(ids)[0]  # [12, d]
    found = weights.logits(hidden)  # [12, V]
    with weights.precision():
        want = weights.base(input_ids=ids, use_cache=False).logits[0].float()  # [12, V]
        by_head = weights.head(hidden).float()  # [12, V]
    kind = weights.base.config.model_type
    if not want.isfinite().all():
        raise BadInput(f"{kind}: its weights give predictions that are not finite")
    tolerance = 0.1 if weights.half else 1e-3
    if not (found - want).abs().mean() < tolerance * want.std():
        raise BadInput(f"{kind}: its predictions are not those of its text decoder")
    weights.plain_head = bool((by_head == found).all())


@torch.no_grad()
def share_beginnings(weights: Weights, text: tuple[int, ...], limit: int, longest: int) -> tuple[int, str]:
    """Have attention read common beginnings once in training, if that changes nothing up to `longest` tokens.

    Returns (sequences up to this length can have a common beginning, why not if 0).
    """
    attention = weights.text_config._attn_implementation
    if attention not in ("sdpa", ATTENTION):
        return 0, f"attention is {attention!r}"
    if not weights.base._supports_attention_backend:
        return 0, "its attention cannot be replaced"
    tolerance = 0.1 if weights.half else 1e-3

    def same(one: Tensor, other: Tensor) -> bool:
        return bool((one - other).abs().mean() < tolerance * one.std())

    ids = torch.tensor([list(itertools.islice(itertools.cycle(text), longest + 12))], device=weights.device)  # [1, T]
    two = torch.stack([ids[0, :12], ids[0, :12]])  # [2, 12]
    two[1, 5:] = ids[0, :7]
    plain, apart = weights.hidden_states(ids), weights.hidden_states(two)[:, 5:]  # [1, T, d], [2, 7, d]
    weights.base.set_attn_implementation(ATTENTION)
    # some layers do other things where attention has another name
    if same(plain, weights.hidden_states(ids)) and same(apart, weights.hidden_states(two, 5)):
        return min([limit, *changes(weights.text_config)]), ""
    weights.base.set_attn_implementation(attention)
    return 0, "that would change its predictions"


@torch.no_grad()
def largest_gap(weights: Weights, sampler: Fast | Generate, text: tuple[int, ...], lengths: list[int]) -> Tensor:
    """Largest mean difference, over a conversation, between log-probabilities when sampled and in training, in nats.

    In each of two turns, four tokens are sampled; the conversations begin with as many tokens as `lengths` says.
    """
    episodes = [Episode("probe", 0, [], "") for _ in lengths]
    for k, (episode, length) in enumerate(zip(episodes, lengths, strict=True)):
        episode.add(itertools.islice(itertools.cycle(text), k, k + length))
    sampler.fresh()
    for turn in range(2):
        drafts = [Draft(e, 4, set(), random.Random(f"{k}/{turn}")) for k, e in enumerate(episodes)]
        complete = sampler.sample(drafts)
        while len(complete) < len(drafts):
            complete += sampler.sample([])
        for draft in drafts:
            draft.episode.add(draft.ids, draft.logps)
            draft.episode.add(text[:3] if turn == 0 else ())
    ids, mask, logps = pad_batch(episodes, weights.device)  # [B, T] each
    differences = (weights.logprobs(ids, mask)[0] - logps).abs()  # [B, T], 0 where nothing was sampled
    return (differences.sum(dim=1) / mask.sum(dim=1)).max()


@torch.no_grad()
def generate_bytes(weights: Weights, text: tuple[int, ...]) -> float:
    """Bytes that the model keeps of a token while it generates, its states of other kinds shared out over 64 tokens."""

    def size(kept) -> int:
        if isinstance(kept, Tensor):
            return kept.nbytes
        if isinstance(kept, (list, tuple)):
            return sum(map(size, kept))
        return sum(map(size, vars(kept).values())) if hasattr(kept, "__dict__") else 0

    ids = torch.tensor([list(itertools.islice(itertools.cycle(text), 64))], device=weights.device)  # [1, 64]
    with weights.precision():
        output = weights.base(input_ids=ids, use_cache=True)
    return max(1, sum(size(value) for name, value in output.items() if name != "logits")) / 64

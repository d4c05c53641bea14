"""engine/: two samplers that give the same, and the choice between them."""

import functools

import pytest
import torch
from doubles import chatter_packs, new_conversations, small_llama, small_model, take_turns
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from engine import probe
from engine.batches import pad_batch
from engine.errors import BadInput
from engine.fast import Fast, RowCache
from engine.generate import Generate
from engine.policy import Policy
from engine.settings import Sampling
from rollout import play, run

WINDOWS = {"kind": MistralForCausalLM, "config": MistralConfig, "sliding_window": 24}
SINKS = {
    "kind": GptOssForCausalLM,
    "config": GptOssConfig,
    "attention": "eager",
    "head_dim": 16,
    "num_local_experts": 4,
    "sliding_window": 24,
}
SOFTCAP = {
    "kind": Gemma2ForCausalLM,
    "config": Gemma2Config,
    "attention": "eager",
    "head_dim": 16,
    "sliding_window": 24,
}
CONVOLUTION = {"kind": Lfm2ForCausalLM, "config": Lfm2Config, "layer_types": ["conv", "full_attention"]}
CHUNKS = {
    "kind": Llama4ForCausalLM,
    "config": Llama4TextConfig,
    "head_dim": 16,
    "attention_chunk_size": 24,
    "num_local_experts": 2,
    "intermediate_size_mlp": 96,
    "layer_types": ["chunked_attention", "full_attention"],
}
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [3.0] * 8}
LONGROPE = {
    "kind": Phi3ForCausalLM,
    "config": Phi3Config,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 150,
        **FACTORS,
    },
    "original_max_position_embeddings": 150,
}


def model_of(options, tokenizer, stop_bias=4.0):
    """A random model of that kind, whose replies end now and then."""
    return small_model("llama", tokenizer, stop_bias=stop_bias, **options)


def play_some(policy, at_once=256):
    results = run([play(pack) for pack in chatter_packs(8)], policy, "same", at_once=at_once)
    return [episode for result in results for episode in result.episodes]


@pytest.mark.parametrize(
    "options",
    [{}, WINDOWS, SINKS, SOFTCAP, {"adapter": True}],
    ids=["plain", "windows", "sinks", "softcap", "adapter"],
)
def test_both_samplers_give_the_same(options, tokenizer):
    """The same tokens, on mixed lengths, in several turns, and again after an update of the weights. In double
    precision: otherwise one token in some thousands lies within the rounding of where two tokens meet."""
    name = "qwen3 with an adapter" if "adapter" in options else "llama"
    model = small_model(name, tokenizer, stop_bias=4.5, **({} if "adapter" in options else options)).double()
    if options is SINKS:
        model.set_experts_implementation("eager")  # the usual one knows no double precision
    policies = [
        Policy(model, tokenizer, Sampling(temperature=0.9, max_reply_tokens=12, sampler=name))
        for name in ("fast", "generate")
    ]
    assert [type(policy.sampler) for policy in policies] == [Fast, Generate]
    for _ in range(2):
        played = []
        for policy in policies:
            with policy.sampling():
                played.append(play_some(policy))
        assert max(len(episode.replies) for episode in played[0]) == 4
        for fast, generated in zip(*played, strict=True):
            assert (fast.ids, fast.mask) == (generated.ids, generated.mask)
            assert fast.logps == pytest.approx(generated.logps, abs=1e-4)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)  # in both policies


def test_what_a_model_says_of_generating_changes_nothing(tokenizer):
    """Penalties, bans and shortcuts that come with a model would make sampling another distribution than training."""
    model = model_of({}, tokenizer)
    expected = play_some(Policy(model, tokenizer, Sampling(max_reply_tokens=8, sampler="generate")))
    own = model.generation_config
    own.repetition_penalty, own.top_k, own.top_p, own.temperature, own.do_sample = 1.5, 3, 0.5, 0.2, True
    own.min_new_tokens, own.suppress_tokens, own.use_cache, own.max_length = 5, [tokenizer.eos_token_id], False, 30
    got = play_some(Policy(model, tokenizer, Sampling(max_reply_tokens=8, sampler="generate")))
    assert [episode.ids for episode in got] == [episode.ids for episode in expected]
    assert model.generation_config is own


@pytest.mark.parametrize("padding", [True, False])
@pytest.mark.parametrize("tokens", [1, 300, 1 << 20])
def test_generate_keeps_to_its_tokens(tokens, padding, tokenizer, monkeypatch):
    model = model_of({}, tokenizer)
    policy = Policy(model, tokenizer, Sampling(max_reply_tokens=8, sampler="generate"))
    expected = play_some(policy)
    policy.sampler.tokens, policy.sampler.padding = tokens, padding
    sizes, generate = [], type(model).generate

    def watched(self, ids, **options):
        sizes.append((ids.shape[0], ids.shape[1] + options["generation_config"].max_new_tokens))
        assert padding or options["attention_mask"].all()
        return generate(self, ids, **options)

    monkeypatch.setattr(type(model), "generate", watched)
    got = play_some(policy)
    assert [episode.ids for episode in got] == [episode.ids for episode in expected]
    assert all(rows == 1 or rows * length <= tokens for rows, length in sizes)
    assert (max(rows for rows, _ in sizes) > 1) == (tokens > 1)


@pytest.mark.parametrize(
    ("options", "reason"),
    [(CONVOLUTION, "conv"), (CHUNKS, "chunked_attention")],
    ids=["convolution", "chunks"],
)
def test_a_model_that_the_fast_sampler_cannot_serve_is_generated_from(options, reason, tokenizer):
    model = model_of(options, tokenizer)
    policy = Policy(model, tokenizer, Sampling(max_reply_tokens=12))
    assert policy.sampler_name == "generate" and reason in policy.why
    episodes = play_some(policy)
    assert max(len(episode.ids) for episode in episodes) > 60  # beyond a chunk
    ids, mask, logps = pad_batch(episodes, "cpu")
    with torch.no_grad():
        torch.testing.assert_close(policy.logprobs(ids, mask)[0], logps, atol=1e-4, rtol=0)
    with pytest.raises(BadInput, match=f"sampler='fast'.*{reason}"):
        Policy(model, tokenizer, Sampling(sampler="fast"))


@pytest.mark.parametrize("options", [WINDOWS, SOFTCAP], ids=["all layers", "some layers"])
@pytest.mark.parametrize("wrong", [-1, 1, None])
def test_a_window_that_is_off_by_one_is_found(wrong, options, tokenizer, monkeypatch):
    """It matters beyond the window only, which the probe has to reach."""
    made = Fast.__init__

    def off(self, *arguments):
        made(self, *arguments)
        self.window = self.window + wrong if wrong else None

    monkeypatch.setattr(Fast, "__init__", off)
    policy = Policy(model_of(options, tokenizer), tokenizer)
    assert policy.sampler_name == "generate" and "differ from the trainer's" in policy.why


def test_a_mistake_in_this_code_shows_as_what_it_is(tokenizer, monkeypatch):
    """It is not taken for something that a model cannot do."""
    monkeypatch.setattr(RowCache, "view", lambda self, rows: None)
    with pytest.raises(TypeError, match="positional arguments"):
        Policy(model_of({}, tokenizer), tokenizer)


def test_where_no_sampler_agrees_with_the_trainer_there_is_no_policy(tokenizer, monkeypatch):
    monkeypatch.setattr(probe, "largest_gap", lambda *arguments: torch.tensor(0.5))
    with pytest.raises(BadInput, match="differ by 5.0e-01 nats a token, and no sampler fits"):
        Policy(model_of({}, tokenizer), tokenizer)


@pytest.mark.parametrize("sampler", ["fast", "generate"])
def test_conversations_end_before_rotary_embeddings_switch_with_the_longest_row(sampler, tokenizer):
    """Beyond 150 tokens every row of a batch is read with other factors, those of shorter conversations, too."""
    policy = Policy(model_of(LONGROPE, tokenizer), tokenizer, Sampling(max_reply_tokens=12, sampler=sampler))
    assert policy.max_length == 150
    episodes = new_conversations("a" * 110, "b")
    for _ in range(4):
        take_turns(policy, episodes, "next " * 4)
    assert any(reply.context_full for reply in episodes[0].replies)
    assert max(len(episode.ids) for episode in episodes) > 120
    ids, mask, logps = pad_batch(episodes, "cpu")
    with torch.no_grad():
        torch.testing.assert_close(policy.logprobs(ids, mask)[0], logps, atol=1e-4, rtol=0)
        beyond = torch.randint(4, 200, (2, 170))
        beyond[:, : ids.shape[1]] = ids
        longer, _ = policy.logprobs(beyond, torch.ones_like(beyond, dtype=torch.bool))
    assert (longer[:, : ids.shape[1]][mask] - logps[mask]).abs().max() > 1e-2  # what a longer row would have done


def test_limits_of_conversations():
    def limit(**settings):
        return probe.conversation_limit(MistralConfig(**settings))

    assert limit(max_position_embeddings=900, sliding_window=None) == 900
    assert limit(max_position_embeddings=100_000, sliding_window=4096) == 100_000  # the probe goes beyond the window
    assert limit(max_position_embeddings=100_000, sliding_window=32_768) == 32_768  # and not beyond this one


def test_a_common_beginning_is_not_read_once_where_layers_look_at_the_name_of_attention(tokenizer, monkeypatch):
    """Some models do other things where it is not called "sdpa", and would be trained as another model."""
    model = small_llama(tokenizer, **WINDOWS).eval()
    forward = type(model.model).forward

    @functools.wraps(forward)
    def picky(self, *arguments, **options):
        output = forward(self, *arguments, **options)
        if self.config._attn_implementation != "sdpa":
            output.last_hidden_state = output.last_hidden_state * 1.1
        return output

    monkeypatch.setattr(type(model.model), "forward", picky)
    policy = Policy(model, tokenizer, Sampling(max_reply_tokens=8))
    assert policy.prefix_limit == 0 and "read in every row" in policy.why
    assert model.config._attn_implementation == "sdpa"

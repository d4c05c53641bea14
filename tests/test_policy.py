"""policy.py and models.py: the sampler against forward passes, what is trained, loading."""

import contextlib
import copy
import functools
import math
import shutil

import pytest
import torch
from doubles import Chatter, Script, chatter_packs, new_conversations, small_llama, small_model, take_turns
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

import engine.policy as policies
from engine import embedded, fast, models
from engine import weights as weights_room
from engine.batches import pad_batch
from engine.chat import ChatFormat
from engine.errors import BadInput
from engine.fast import Fast
from engine.models import Lora, LoraLayer, add_adapter, checkpoint_activations, dithered, load_model, n_weights
from engine.policy import CONTEXT_FULL, Policy
from engine.settings import Sampling
from envs import Pack, make_pack
from rollout import TOO_LONG, Reply, no_hints, play, run

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
        if reply.context_full:  # the conversation is left as it was
            assert k + 1 == len(episode.replies)
            break
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
    model = small_model(name, tokenizer, stop_bias=5.0 * temperature)
    policy = Policy(model, tokenizer, Sampling(temperature=temperature, max_reply_tokens=12))
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
        policy.sampler.fresh()
    assert 10 < sum(reply.truncated for reply in replies) < len(replies) - 10


def test_weights_may_change_in_mid_conversation_if_the_cache_is_emptied(tokenizer):
    model = small_model("llama", tokenizer)
    policy = Policy(model, tokenizer, Sampling(max_reply_tokens=6))
    episodes = new_conversations("a", "b" * 40, "c" * 7)
    take_turns(policy, episodes, "next")
    lengths = [len(episode.ids) for episode in episodes]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    policy.sampler.fresh()
    take_turns(policy, episodes, "next")
    for episode, length in zip(episodes, lengths, strict=True):
        assert largest_error(model, episode, 1.0, first=length) < 1e-4
        assert largest_error(model, episode, 1.0) > 1e-2  # the first reply is from the old weights


def test_conversation_may_lose_its_row_and_come_back(tokenizer):
    model = small_model("qwen3", tokenizer)
    policy = Policy(model, tokenizer, Sampling(max_reply_tokens=6))
    a, b, c, d = new_conversations("a", "b" * 40, "c" * 7, "d")
    for group in ([a], [b], [c, a], [b, d, c], [a], [d], [a, b, c, d]):
        take_turns(policy, group, "next " * len(group))
    for episode in (a, b, c, d):
        check_tokens(tokenizer, episode, 6)
        assert largest_error(model, episode, 1.0) < 1e-4


def test_replies_come_while_others_are_still_being_sampled(tokenizer):
    """A call ends with a quarter of the replies; conversations that come later join those under way."""
    model = small_model("qwen3", tokenizer)
    policy = Policy(model, tokenizer, Sampling(max_reply_tokens=30))
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
    games = [play(pack) for pack in chatter_packs(n)[start:]]
    results = run(games, policy, seed, range(first, first + len(games)), at_once)
    return [[(episode.ids, episode.logps) for episode in result.episodes] for result in results]


def test_seed_decides_the_samples(tokenizer):
    policy = Policy(small_model("qwen3", tokenizer), tokenizer, Sampling(max_reply_tokens=8))
    first = sampled(policy, "train/1")
    assert sampled(policy, "train/1") == first
    assert sampled(policy, "train/2") != first
    assert sampled(policy, "eval/1") != first
    assert sampled(policy, "train/1", first=4) != first


@pytest.mark.parametrize("first, at_once, start", [(0, 1, 0), (0, 3, 0), (5, 2, 5), (8, 256, 8)])
def test_what_a_game_samples_depends_on_its_number_only(first, at_once, start, tokenizer):
    """Not on how many are played at once, nor on which share of the run a process plays."""
    policy = Policy(small_model("qwen3", tokenizer), tokenizer, Sampling(max_reply_tokens=8))
    whole = sampled(policy, "a", n=10)
    part = sampled(policy, "a", first=first, n=10, at_once=at_once, start=start)
    assert len(part) == 10 - start
    for episodes, expected in zip(part, whole[start:], strict=True):
        assert [ids for ids, _ in episodes] == [ids for ids, _ in expected]
        for (_, logps), (_, others) in zip(episodes, expected, strict=True):
            assert logps == pytest.approx(others, abs=1e-4)


def test_equal_games_equal_turns_and_equal_positions_have_random_numbers_of_their_own(tokenizer):
    policy = Policy(small_model("qwen3", tokenizer, stop_bias=-100.0), tokenizer, Sampling(max_reply_tokens=8))
    packs = [Pack("chatter", 0, 2, "train", False, [Chatter(["x"] * 3), Chatter(["x"] * 3)]) for _ in range(3)]
    results = run(map(play, packs), policy)
    replies = [reply.text for result in results for episode in result.episodes for reply in episode.replies]
    assert len(replies) == len(set(replies)) == 3 * (3 + 1 + 3)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_follow_the_distribution_of_the_model(temperature, tokenizer):
    """First tokens of equal conversations: chi-square over the whole vocabulary, and the tail is not cut off."""
    n = 5000
    model = small_model("qwen3", tokenizer, stop_bias=0.0)
    policy = Policy(model, tokenizer, Sampling(temperature=temperature, max_reply_tokens=1))
    episodes = new_conversations(*["O"] * n)
    for k, episode in enumerate(episodes):
        episode.rng_key = str(k)
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
    policy = Policy(small_model("qwen3", tokenizer, stop_bias=-100.0), tokenizer, Sampling(max_reply_tokens=3))
    [episode] = new_conversations("O")
    take_turns(policy, [episode], "next")
    length = len(episode.ids)
    take_turns(policy, [episode], "next")
    assert [(reply.n_tokens, reply.truncated) for reply in episode.replies] == [(3, True)] * 2
    assert episode.mask[length - 3 : length] == [True] * 3
    assert episode.ids[length] == tokenizer.eos_token_id and not episode.mask[length]
    check_tokens(tokenizer, episode, 3)


def test_reply_may_be_nothing_but_the_stop_token(tokenizer):
    policy = Policy(small_model("qwen3", tokenizer, stop_bias=100.0), tokenizer, Sampling(max_reply_tokens=3))
    [episode] = new_conversations("O")
    take_turns(policy, [episode], "next")
    take_turns(policy, [episode], "next")
    assert [(reply.text, reply.n_tokens, reply.truncated) for reply in episode.replies] == [("", 1, False)] * 2
    check_tokens(tokenizer, episode, 3)


def test_stop_token_at_the_cap_is_no_cut(tokenizer):
    policy = Policy(small_model("qwen3", tokenizer, stop_bias=100.0), tokenizer, Sampling(max_reply_tokens=1))
    [episode] = new_conversations("O")
    take_turns(policy, [episode], "next")
    assert episode.replies == [Reply("", 1, False, n_read=episode.mask.index(True))]


def test_conversation_longer_than_the_model_allows_ends_with_an_empty_reply(tokenizer):
    model = small_model("llama", tokenizer, stop_bias=3.0, max_position_embeddings=100)
    policy = Policy(model, tokenizer, Sampling(max_reply_tokens=12))
    results = run([play(pack, next_hint=no_hints) for pack in chatter_packs(12)], policy, at_once=4)
    prompts_too_long = shortened = 0
    for episode in (episode for result in results for episode in result.episodes):
        check_tokens(tokenizer, episode, 12)
        assert not episode.ids or largest_error(model, episode, 1.0) < 1e-4
        sampled = [t for t, masked in enumerate(episode.mask) if masked]
        assert all(t < 100 for t in sampled)
        for reply in episode.replies:
            prompts_too_long += reply.context_full
            shortened += reply.truncated and 0 < reply.n_tokens < 12
        assert len(episode.ids) <= 100
        assert not episode.ids or episode.mask[-1]  # what is trained on ends with a reply
    assert prompts_too_long > 5 and shortened > 0


def test_task_that_outgrows_the_model_ends_with_feedback(tokenizer, chat):
    class Outgrown(Script):
        def reply(self, episodes):
            if len(episodes[0].replies) == 1 and episodes[0].position == 0:
                return [(episodes[0], Reply("", truncated=True, context_full=True))]
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


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_other_architectures_are_sampled_as_they_are_trained(name, tokenizer):
    torch.manual_seed(0)
    model = small_llama(tokenizer, **OTHER_MODELS[name]).eval()
    policy = Policy(model, tokenizer, Sampling(max_reply_tokens=12))
    assert policy.sampler_name == ("generate" if name == "layers without keys and values" else "fast")
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
    policy = Policy(Gemma3ForConditionalGeneration(config), tokenizer, Sampling(max_reply_tokens=12))
    fits, too_long = new_conversations("a", "b" * 100)
    take_turns(policy, [fits, too_long], "next")
    assert fits.replies[0].n_tokens > 0 and too_long.replies == [CONTEXT_FULL]


@pytest.mark.parametrize("kv_tokens", [1, 300, 900, 2500])
def test_a_small_cache_makes_conversations_wait_and_changes_no_sample(kv_tokens, tokenizer, monkeypatch):
    model = small_model("qwen3", tokenizer)
    expected = sampled(Policy(model, tokenizer, Sampling(max_reply_tokens=8)), "a", n=12)
    policy = Policy(model, tokenizer, Sampling(max_reply_tokens=8, kv_tokens=kv_tokens))
    sizes, together, store = [], [], fast.RowCache._store

    def watched(cache, stores, new, layer):
        result = store(cache, stores, new, layer)
        sizes.append(stores[layer].shape[0] * stores[layer].shape[2] if stores[layer].shape[0] > 1 else 0)
        together.append(len(cache.write_rows))
        return result

    monkeypatch.setattr(fast.RowCache, "_store", watched)
    got = sampled(policy, "a", n=12)
    for episodes, others in zip(got, expected, strict=True):
        assert [ids for ids, _ in episodes] == [ids for ids, _ in others]
        for (_, logps), (_, other_logps) in zip(episodes, others, strict=True):
            assert logps == pytest.approx(other_logps, abs=1e-4)
    assert max(sizes) <= kv_tokens
    assert max(together) == 1 if kv_tokens == 1 else max(together) > 1


@pytest.mark.parametrize("kv_tokens", [0, 900])
def test_prompts_that_begin_alike_are_read_once_and_change_no_sample(kv_tokens, tokenizer, monkeypatch):
    model = small_model("qwen3", tokenizer)
    read = []
    forward = Fast._forward
    monkeypatch.setattr(Fast, "_forward", lambda self, *a: read.append(sum(a[2])) or forward(self, *a))
    outcomes, tokens = [], []
    for cost in (1 << 30, 0):  # of a forward pass more
        policy = Policy(model, tokenizer, Sampling(max_reply_tokens=8, kv_tokens=kv_tokens))
        policy.sampler.pass_cost = cost
        read.clear()
        outcomes.append(sampled(policy, "a", n=12))
        tokens.append(sum(read))
    for episodes, others in zip(*outcomes, strict=True):
        for (ids, logps), (other_ids, other_logps) in zip(episodes, others, strict=True):
            assert ids == other_ids and logps == pytest.approx(other_logps, abs=1e-4)
    assert tokens[1] < 0.9 * tokens[0]


def test_room_in_the_cache_follows_from_the_free_memory(tokenizer, monkeypatch):
    monkeypatch.setattr(policies, "free_memory", lambda device: 10_000_000)
    policy = Policy(small_model("llama", tokenizer), tokenizer)
    assert policy.sampler.kv_tokens == 6_000_000 // (
        2 * 2 * 2 * 16 * 4
    )  # keys and values, layers, heads, head size, bytes


# ---------------------------------------------------------------------------------------------------------
# Log-probabilities for training


@pytest.fixture
def batch(tokenizer):
    """A policy with its model, and a padded batch of conversations that it sampled: ids and mask [B, T]."""
    model = small_model("qwen3", tokenizer)
    policy = Policy(model, tokenizer, Sampling(temperature=0.7, max_reply_tokens=6))
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
        monkeypatch.setattr(weights_room, "HEAD_ELEMENTS", elements)
        largest = [0]

        def pack(tensor, largest=largest):
            if tensor.shape[-1:] == (vocabulary,):
                largest[0] = max(largest[0], tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logp, entropy = policy.logprobs(ids, mask)
        outcomes.append((logp.detach(), entropy, torch.autograd.grad(logp.square().sum(), parameters)))
        kept.append(largest[0])
    (*got, gradients), (*expected, wanted) = outcomes
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert all((one - other).norm() < 1e-5 * other.norm() for one, other in zip(gradients, wanted, strict=True))
    assert mask.sum() > 6 and kept[0] >= mask.sum() * vocabulary
    assert kept[1] <= 3 * vocabulary


# ---------------------------------------------------------------------------------------------------------
# Merged adapters, half precision, decoding in blocks


def state(model):
    return {name: parameter.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("interrupted", [False, True])
def test_sampling_with_the_adapter_merged_changes_no_sample_and_no_weight(interrupted, tokenizer):
    """Merged, the layers compute with other weights, and give the same; afterwards all is as it was, bit by bit."""
    model = small_model("qwen3 with an adapter", tokenizer)
    expected = sampled(Policy(model, tokenizer, Sampling(max_reply_tokens=8, merge_adapter=False)), "a")
    policy = Policy(model, tokenizer, Sampling(max_reply_tokens=8))
    before, merged = state(model), {}
    try:
        with policy.sampling():
            merged = state(model)
            got = sampled(policy, "a")
            assert policy.sampler.cache.keys
            if interrupted:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert not policy.sampler.cache.keys
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


def test_adapter_that_is_not_finite_is_refused_in_one_line(tokenizer):
    model = small_model("qwen3 with an adapter", tokenizer)
    policy = Policy(model, tokenizer)
    next(p for name, p in model.named_parameters() if "lora_B" in name).data[0] = math.nan
    before = state(model)
    with pytest.raises(BadInput, match="cannot be merged"), policy.sampling():
        pass
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters() if "base_layer" in n)


def test_a_small_adapter_survives_merging_into_bfloat16(model_folder, tokenizer):
    """What is added to the weights is what the adapter says in the mean; rounded to the nearest, most would be lost."""
    model = add_adapter(load_model(str(model_folder), "bfloat16")[0], Lora(rank=4, alpha=8))
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    policy = Policy(model, tokenizer)
    frozen = [layer.weight.detach().clone() for layer in layers]
    with policy.sampling():  # a fresh adapter changes nothing
        assert all(torch.equal(before, layer.weight) for before, layer in zip(frozen, layers, strict=True))
    for layer in layers:
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=1e-4)
    deltas = [layer.get_delta_weight("default").detach() for layer in layers]

    def kept(weights):
        moved = [(w.float() - before.float()) for w, before in zip(weights, frozen, strict=True)]
        return sum((m * d).sum() for m, d in zip(moved, deltas, strict=True)) / sum(d.square().sum() for d in deltas)

    with policy.sampling():
        merged = [layer.weight.detach().clone() for layer in layers]
    with policy.sampling():
        assert all(torch.equal(one, layer.weight) for one, layer in zip(merged, layers, strict=True))
    assert kept([(before + delta).bfloat16() for before, delta in zip(frozen, deltas, strict=True)]) < 0.5
    assert kept(merged) == pytest.approx(1, abs=0.1)


def test_dithered_numbers_are_neighbours_and_right_in_the_mean():
    values = torch.tensor([1.0, -1.0, 0.0, 1 + 2**-9, -1 - 2**-9, 3e-5, -1e30])
    seen = torch.stack([dithered(values, torch.bfloat16, seed).double() for seed in range(4000)])  # [4000, 7]
    assert torch.equal(seen[:, :3], values[:3].double().expand(4000, 3))  # bfloat16 holds these
    assert set(seen[:, 3].tolist()) == {1.0, 1 + 2**-7} and set(seen[:, 4].tolist()) == {-1.0, -1 - 2**-7}
    assert ((seen.mean(dim=0) - values) / values.abs().clamp(min=1e-30)).abs().max() < 5e-4
    assert torch.equal(dithered(values, torch.float32, 0), values)


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
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("block, graphs", [(2, False), (5, False), (1, True), (4, True)])
def test_blocks_of_tokens_and_captured_steps_change_no_sample(block, graphs, window, kv_tokens, tokenizer, monkeypatch):
    """Replies end anywhere in a block, at the cap and at the model's longest conversation too."""
    mistral = {"kind": MistralForCausalLM, "config": MistralConfig, "sliding_window": window}
    model = small_model("llama", tokenizer, stop_bias=4.0, **mistral)
    expected = Policy(model, tokenizer, Sampling(max_reply_tokens=12))
    policy = Policy(model, tokenizer, Sampling(max_reply_tokens=12, kv_tokens=kv_tokens))
    expected.max_length = policy.max_length = 300
    monkeypatch.setattr(fast, "CapturedStep", Replayed)
    monkeypatch.setattr(Replayed, "made", [])
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    policy.sampler.block, policy.sampler.cuda_graphs = block, graphs
    for episodes, others in zip(sampled(policy, "a", n=20), sampled(expected, "a", n=20), strict=True):
        assert all(math.isfinite(logp) for _, logps in episodes for logp in logps)
        for (ids, logps), (other_ids, other_logps) in zip(episodes, others, strict=True):
            assert ids == other_ids and logps == pytest.approx(other_logps, abs=1e-4)
    assert bool(Replayed.made) == graphs
    if kv_tokens == 1500:
        assert policy.sampler.cache.n_rows * policy.sampler.cache.capacity <= kv_tokens


@pytest.fixture
def streams(monkeypatch):
    """All CUDA streams that are made, the current one first; what is captured just runs."""
    made = []

    class Stream:
        def __init__(self, device=None):
            made.append(self)

        def wait_stream(self, other):
            pass

    current = Stream()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, pool: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(fast, "side_stream", functools.cache(fast.side_stream.__wrapped__))
    return made


def test_captures_share_a_stream(streams):
    """As every further stream would keep memory."""
    steps = [fast.CapturedStep(lambda x: (x + 1,), (torch.zeros(1),), None) for _ in range(3)]
    assert [step.outputs for step in steps] == 3 * [(torch.ones(1),)]
    assert len(streams) == 2


@pytest.mark.parametrize("fails", [False, True])
def test_a_step_is_captured_with_the_attention_of_cudnn_which_is_off_elsewhere(fails, streams):
    """As it makes a plan for every new shape."""
    enabled = torch.backends.cuda.cudnn_sdp_enabled
    seen = []

    def step(x):
        seen.append(enabled())
        if fails and len(seen) == 2:
            raise RuntimeError("this cannot be captured")
        return (x,)

    torch.backends.cuda.enable_cudnn_sdp(False)
    with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
        fast.CapturedStep(step, (torch.zeros(1),), None)
    assert seen == [True, True] and not enabled()


def test_a_step_that_cannot_be_captured_is_done_plainly(tokenizer, monkeypatch):
    class Refusing:
        def __init__(self, *arguments):
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    model = small_model("qwen3", tokenizer)
    expected = sampled(Policy(model, tokenizer, Sampling(max_reply_tokens=8)), "a")
    policy = Policy(model, tokenizer, Sampling(max_reply_tokens=8))
    monkeypatch.setattr(fast, "CapturedStep", Refusing)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    policy.sampler.cuda_graphs = True
    with pytest.warns(UserWarning, match="without CUDA graphs: operation not permitted"):
        assert sampled(policy, "a") == expected


# ---------------------------------------------------------------------------------------------------------
# Loading


def test_model_in_4_bits_samples_and_trains_as_its_unpacked_weights_do(model_folder):
    """Sampled from first: on some CPUs that packs the weights in a way that lets no gradient through."""
    model, tokenizer = load_model(str(model_folder), load_in_4bit=True)
    assert "Linear4bit" in {type(module).__name__ for module in model.modules()}
    whole, _ = load_model(str(model_folder))
    assert sum(map(n_weights, model.parameters())) == sum(parameter.numel() for parameter in whole.parameters())
    gradients = []
    for base in (model, load_model(str(model_folder), load_in_4bit=True)[0].dequantize()):
        model = add_adapter(base, Lora(rank=4, alpha=8))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        policy = Policy(model, tokenizer, Sampling(max_reply_tokens=8))
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


def test_weights_in_float16_become_bfloat16(model_folder, tmp_path, monkeypatch):
    """As gradients divided by all sampled tokens of a step are too small for float16."""
    model, tokenizer = load_model(str(model_folder))
    model.half().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(models, "slow_bfloat16", lambda device: False)
    loaded, _ = load_model(str(tmp_path))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in loaded.buffers()} == {torch.float32}  # the frequencies of positions
    assert load_model(str(tmp_path), "float32")[0].dtype == torch.float32


def test_a_gguf_file_says_what_ends_a_reply(tokenizer, monkeypatch):
    """Whatever the tokenizer that transformers makes of it takes for that."""
    confused = copy.deepcopy(tokenizer)
    confused.eos_token = "<|user|>"
    model = embedded.build_model(tokenizer)
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", lambda *_, **__: confused)
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: (model, {"missing_keys": []}))
    _, loaded = load_model("folder", gguf_file="weights.gguf")
    assert loaded.eos_token == tokenizer.eos_token == "<|end|>"
    assert ChatFormat(loaded).stop_ids == {tokenizer.eos_token_id}


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
    monkeypatch.setattr(models, "REPO", model_folder.parent)
    monkeypatch.chdir(tmp_path)
    model, tokenizer = load_model(model_folder.name)
    assert isinstance(model, Qwen3ForCausalLM) and tokenizer.chat_template == embedded.TEMPLATE


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


def test_compiling_without_a_compiler_ends_in_one_line(tokenizer, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadInput, match="compile=True.*C\\+\\+ compiler"):
        Policy(embedded.build_model(tokenizer), tokenizer).compile()


@pytest.mark.skipif(shutil.which("c++") is None, reason="PyTorch compiles for the CPU with a C++ compiler")
def test_compiled_layers_give_the_same_gradient_and_leave_sampling_alone(tokenizer):
    """Also with activations computed again."""
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = embedded.build_model(tokenizer)
        if compiled:
            checkpoint_activations(model, "on")
        policy = Policy(model, tokenizer, Sampling(max_reply_tokens=8))
        if compiled:
            policy.compile()
        with policy.sampling():
            rollouts = run([play(make_pack("frozenlake", 0, 2, "tiny"))], policy)
        assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]
        ids, mask, logps = pad_batch([e for rollout in rollouts for e in rollout.episodes], "cpu")
        policy.model.train()
        logp, _ = policy.logprobs(ids, mask)
        assert (logp - logps).abs().max() < 1e-4
        logp.sum().backward()
        results.append((ids, torch.cat([p.grad.flatten() for p in policy.model.parameters()])))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    (plain_ids, plain), (ids, gradient) = results
    assert torch.equal(plain_ids, ids)
    assert (gradient - plain).norm() < 1e-5 * plain.norm()


def test_no_kind_of_training_pass_is_left_uncompiled(tokenizer, monkeypatch):
    """Beyond a limit on the number of versions, PyTorch would run what is new without compiling it."""
    compile_layer = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(compile_layer, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = add_adapter(embedded.build_model(tokenizer))
    policy = Policy(model, tokenizer)
    policy.compile()
    ids = torch.randint(256, (3, 40))  # [B, T]
    ids[:, :20] = ids[0, :20]
    mask = torch.ones_like(ids, dtype=torch.bool)  # [B, T]
    mask[:, :24] = False
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for rows, length, shared in ((1, 30, 0), (1, 40, 0), (2, 30, 0), (3, 40, 0), (2, 30, 15), (3, 40, 20)):
            model.train()
            policy.logprobs(ids[:rows, :length], mask[:rows, :length], shared)[0].sum().backward()
            for training in (True, False):  # the reference of the loss, and that of the metric
                model.train(training)
                with torch.no_grad(), model.disable_adapter():
                    policy.logprobs(ids[:rows, :length], mask[:rows, :length], shared)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0

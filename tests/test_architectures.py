"""Models of many architectures, tiny and random, go the whole way of a training (benchmarks/architectures.py)."""

import math

import pytest
import torch

from benchmarks.models import examine, page, tiny

# type -> its sampler, and what it stands for
TRAINS = {
    "Llama-3.2-1B": "fast",  # plain, tied, scaled rotary embedding
    "gpt2": "fast",  # learnt positions, matrices the other way round, dropout of its own
    "bloom": "generate",  # ALiBi, no position_ids
    "Gemma-2-2b": "fast",  # windows, caps, tied
    "Gemma-3-4b": "fast",  # windows, a vision part
    "gpt-oss-20b": "fast",  # windows, sinks, fused experts with biases
    "Qwen3-30B-A3B": "fast",  # fused experts
    "Llama-4-Scout": "generate",  # chunks, a router that returns a tuple, a vision part
    "DeepSeek-V2-Lite": "fast",  # keys and values from a narrow layer
    "granite": "fast",  # scaled logits
    "Phi-4-mini": "fast",  # other rotary factors beyond a length
    "Qwen3.5-0.8B": "generate",  # linear attention, a vision part
    "LFM2.5-1.2B": "generate",  # convolutions
    "Granite-4.0-H-Tiny": "generate",  # Mamba and fused experts
    "Nemotron-Nano-9B-v2": "generate",  # layers of one part each
    "mamba": "generate",  # no attention at all
    "recurrent_gemma": "generate",  # gated recurrences; only one row at a time is right
    "Gemma-3n-E2B text": "fast",  # layers that use the keys of others
    "minimax": "generate",  # a cache of its own
    "hunyuan_v1_moe": "fast",  # a single fused expert
}


@pytest.fixture(autouse=True)
def shorter(monkeypatch):
    monkeypatch.setattr(examine, "CHECK_REPLY", 6)
    monkeypatch.setattr(examine, "REPLY", 5)
    monkeypatch.setattr(examine, "CONVERSATIONS", [(90, [12]), (20, [3]), (2, [])])


@pytest.mark.parametrize("name", TRAINS)
def test_trains_as_it_samples(name):
    found = examine.outcome(name)
    assert found["outcome"] == "trains", page.summary(found)
    assert found["largest"] < examine.TOLERANCE and found["reload"] < examine.TOLERANCE


def test_a_model_that_sees_later_tokens_is_refused():
    found = examine.outcome("BERT encoder")
    assert found["outcome"] == "refused", page.summary(found)


def test_windows_of_tiny_models_are_outgrown_and_every_kind_of_layer_is_there():
    config = tiny.tiny_config("gpt_oss", 473)
    assert config.sliding_window == 16 and config.layer_types == ["sliding_attention", "full_attention"]
    assert tiny.tiny_config("Qwen3-Next-80B-A3B", 473).layer_types[2:] == ["linear_attention", "full_attention"]


def test_predictions_of_a_tiny_model_are_far_from_uniform():
    torch.manual_seed(0)
    logp = tiny.build("qwen2", 473)(input_ids=torch.randint(473, (1, 50))).logits.log_softmax(dim=-1)
    assert 0.6 < -(logp.exp() * logp).sum(dim=-1).mean() / math.log(473) < 0.9


def test_the_report_counts_what_trains_and_says_why_others_do_not():
    trains = {
        "type": "llama",
        "outcome": "trains",
        "sampler": "generate",
        "why": "sampler generate: so",
        "adapted": "q_proj (9%)",
    }
    numbers = {"largest": 2e-6, "mean": 1e-7, "reload": 0.0, "merged": "tied", "seconds": 1.0}
    refused = {"type": "BERT encoder", "outcome": "refused", "reason": "it sees later tokens"}
    text = page.report({"llama": trains | numbers, "BERT encoder": refused})
    assert "| trains | 1 | 0 |" in text and "| refused, with the reason | 0 | 1 |" in text
    assert "| llama | generate: so | q_proj (9%) | 2e-06 | 1e-07 | 0e+00 | tied |" in text
    assert "| BERT encoder (bert) | it sees later tokens |" in text

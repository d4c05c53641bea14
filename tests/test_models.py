"""models.py: what gets an adapter, reading one, merging it for good, what is random in training."""

import math
import re

import pytest
import torch
from doubles import chatter_packs
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    Llama4ForCausalLM,
    Llama4TextConfig,
    Mamba2Config,
    Mamba2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from engine.batches import pad_batch
from engine.errors import BadInput
from engine.models import (
    Lora,
    LoraLayer,
    adapted_weights,
    add_adapter,
    checkpoint_activations,
    describe_adapter,
    load_model,
    merged_model,
    read_adapter,
    target_modules,
)
from engine.policy import Policy
from engine.settings import Sampling
from evaluation.policies import load_policy
from evaluation.settings import EvalConfig
from rollout import play, run

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "initializer_range": 0.15,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def small(kind, config, tokenizer, **settings):
    torch.manual_seed(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": None}
    return kind(config(vocab_size=len(tokenizer), **{**ids, **settings})).eval()


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def shaken(model, std=0.1):
    """The model, its adapter with random weights."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=std)
    return model


def adapted_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]


@torch.no_grad()
def logits(model):
    return model(input_ids=torch.arange(20, 60)[None]).logits  # [1, 40, V]


# ---------------------------------------------------------------------------------------------------------
# What gets an adapter


def test_experts_that_are_fused_are_adapted_merged_and_put_back(tokenizer):
    model = small(Qwen3MoeForCausalLM, Qwen3MoeConfig, tokenizer, **SIZES, **EXPERTS)
    model = shaken(add_adapter(model, Lora(rank=4)))
    assert re.search(r"adapter on .*gate_up_proj x2 down_proj x2.*; frozen: nothing", describe_adapter(model))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    episodes = []
    for merge in (True, False):
        policy = Policy(model, tokenizer, Sampling(max_reply_tokens=8, merge_adapter=merge))
        with policy.sampling():
            changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
            assert any("experts" in name for name in changed) == merge
            episodes += [e for result in run(map(play, chatter_packs(3)), policy, "a") for e in result.episodes]
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    ids, mask, logps = pad_batch(episodes, "cpu")
    with torch.no_grad():
        torch.testing.assert_close(policy.logprobs(ids, mask)[0], logps, atol=1e-4, rtol=0)


def test_no_adapter_where_none_could_take_part(tokenizer):
    """On a router that returns several things, and on a matrix that kernels take as it is."""
    experts = {"intermediate_size_mlp": 64, "num_local_experts": 2}
    llama4 = add_adapter(small(Llama4ForCausalLM, Llama4TextConfig, tokenizer, **SIZES, **experts))
    assert "router" in describe_adapter(llama4).partition("frozen")[2]
    assert {name.rpartition(".")[2] for name in adapted_names(llama4)} >= {"q_proj", "o_proj", "down_proj"}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2}
    mamba = add_adapter(small(Mamba2ForCausalLM, Mamba2Config, tokenizer, **sizes))
    assert {name.rpartition(".")[2] for name in adapted_names(mamba)} == {"in_proj"}


@pytest.mark.parametrize("targets", ["all-linear", "q_proj,v_proj"])
def test_a_vision_tower_gets_no_adapter(targets, tokenizer):
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"text_config": {"vocab_size": len(tokenizer), **SIZES}, "vision_config": vision}
    torch.manual_seed(0)
    config = Gemma3Config(**config | {"mm_tokens_per_image": 4})
    config.vision_config.image_size, config.vision_config.patch_size = 28, 14
    model = add_adapter(Gemma3ForConditionalGeneration(config).eval(), Lora(targets=targets))
    names = adapted_names(model)
    assert names and all("language_model" in name for name in names)
    assert {name.rpartition(".")[2] for name in names} >= {"q_proj", "v_proj"}


def test_names_of_layers(model_folder):
    model, _ = load_model(str(model_folder))
    assert target_modules(model, "all-linear") == "all-linear"
    assert target_modules(model, " q_proj, v_proj ,") == ["q_proj", "v_proj"]
    assert target_modules(model, "layers.1.mlp.up_proj") == ["layers.1.mlp.up_proj"]
    for targets, named in (("q_proj,v_prj", "'v_prj'"), ("proj", "'proj'"), (" , ", "names no layer")):
        with pytest.raises(BadInput, match=named) as error:
            target_modules(model, targets)
        assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------
# Reading an adapter


EVERY = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"


@pytest.mark.parametrize(
    ("lora", "problem"),
    [
        (Lora(rank=8), "42 have other shapes"),  # 3 layers, 7 matrices, A and B
        (Lora(rank=4, targets="q_proj"), "36 of its weights are missing"),
        (Lora(rank=4, targets=f"{EVERY},lm_head"), "2 belong nowhere"),
    ],
    ids=["rank", "fewer layers", "more layers"],
)
def test_an_adapter_that_does_not_fit_is_refused_in_one_line(lora, problem, model_folder, tmp_path):
    add_adapter(load_model(str(model_folder))[0], lora).save_pretrained(tmp_path / "adapter")
    model = add_adapter(load_model(str(model_folder))[0], Lora(rank=4))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(BadInput, match=problem) as error:
        read_adapter(model, tmp_path / "adapter")
    assert "\n" not in str(error.value)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_an_adapter_of_another_model_is_refused_in_one_line(model_folder, tokenizer, tmp_path):
    other = small(Qwen3MoeForCausalLM, Qwen3MoeConfig, tokenizer, **SIZES, **EXPERTS)
    add_adapter(other, Lora(targets="q_proj")).save_pretrained(tmp_path / "adapter")
    with pytest.raises(BadInput, match="does not fit the model"):
        add_adapter(load_model(str(model_folder))[0], folder=tmp_path / "adapter")


def test_evaluation_refuses_a_run_whose_adapter_lacks_weights(model_folder, tmp_path):
    adapter = tmp_path / "adapter"
    add_adapter(load_model(str(model_folder))[0]).save_pretrained(adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, adapter / "adapter_model.safetensors")
    (tmp_path / "config.json").write_text(f'{{"model": "{model_folder}"}}', encoding="utf-8")
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(BadInput, match="1 of its weights are missing"):
        load_policy(str(tmp_path), EvalConfig())


def test_a_folder_without_all_weights_is_refused_in_one_line(model_folder, tmp_path):
    model, tokenizer = load_model(str(model_folder))
    folder = saved(model, tokenizer, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"1 of its weights are not in its files \(model.layers.1.mlp.up_proj.weight"):
        load_model(folder)


@pytest.mark.parametrize(
    ("slow", "dtype", "want"),
    [(True, "auto", torch.float32), (False, "auto", torch.bfloat16), (True, "bfloat16", torch.bfloat16)],
)
def test_a_cpu_without_bfloat16_computes_in_single_precision(
    slow, dtype, want, model_folder, tmp_path, monkeypatch, capsys
):
    for stored in (torch.bfloat16, torch.float16):
        model, tokenizer = load_model(str(model_folder))
        folder = saved(model.to(stored), tokenizer, tmp_path / str(stored))
        monkeypatch.setattr("engine.models.slow_bfloat16", lambda device: slow)
        assert load_model(folder, dtype)[0].dtype == want
        assert ("float32" in capsys.readouterr().out) == (want == torch.float32)


# ---------------------------------------------------------------------------------------------------------
# Merging for good


@pytest.mark.parametrize("targets", ["lm_head", "q_proj,lm_head", "embed_tokens"])
def test_a_matrix_that_is_embedding_and_head_is_untied_when_one_of_them_is_adapted(targets, model_folder, tmp_path):
    model, tokenizer = load_model(str(model_folder))
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    model = shaken(add_adapter(model, Lora(rank=4, targets=targets)))
    want = logits(model)
    folder = saved(merged_model(model), tokenizer, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert (want - want.mean()).std() > 0.1
    torch.testing.assert_close(logits(merged), want, atol=1e-4, rtol=0)


def test_layers_that_share_a_matrix_are_not_merged_for_good(model_folder):
    model, _ = load_model(str(model_folder))
    first, second, *_ = model.model.layers
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    model = shaken(add_adapter(model, Lora(rank=4)))
    with pytest.raises(BadInput, match="share a matrix"):
        merged_model(model)


def test_a_small_adapter_is_not_lost_when_it_is_merged_for_good(model_folder):
    model = add_adapter(load_model(str(model_folder), "bfloat16")[0], Lora(rank=4, alpha=8))
    for layer, _, _ in adapted_weights(model):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=1e-4)
    modules = [(module, module.weight.detach().clone()) for _, module, _ in adapted_weights(model)]
    deltas = [layer.get_delta_weight("default").detach() for layer, _, _ in adapted_weights(model)]
    merged = merged_model(model)
    assert not isinstance(merged, PeftModel) and merged.dtype == torch.bfloat16
    moved = [module.weight.float() - before.float() for module, before in modules]
    along = sum((m * d).sum() for m, d in zip(moved, deltas, strict=True)) / sum(d.square().sum() for d in deltas)
    assert along == pytest.approx(1, abs=0.1)


# ---------------------------------------------------------------------------------------------------------
# Training


def test_nothing_but_the_dropout_of_the_adapter_is_random_in_training(tokenizer, tmp_path):
    """GPT-2 comes with dropout of its own, in modules and in attention."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    folder = saved(small(GPT2LMHeadModel, GPT2Config, tokenizer, **sizes), tokenizer, tmp_path / "gpt2")
    ids, mask = torch.randint(4, 200, (2, 40)), torch.ones(2, 40, dtype=torch.bool)
    for dropout in (0.0, 0.5):
        policy = Policy(shaken(add_adapter(load_model(folder)[0], Lora(dropout=dropout))), tokenizer)
        with torch.no_grad():
            policy.model.eval()
            want = policy.logprobs(ids, mask)[0]
            policy.train_mode()
            assert torch.equal(policy.logprobs(ids, mask)[0], want) == (dropout == 0.0)
            policy.model.train()  # as a trainer that knows nothing of this would have it
            assert torch.equal(policy.logprobs(ids, mask)[0], want) == (dropout == 0.0)


def test_what_a_module_does_otherwise_in_training_is_left_out(model_folder, tokenizer):
    """A router may draw at random there; but activations can be computed again."""
    model, _ = load_model(str(model_folder))
    checkpoint_activations(model, "on")
    policy = Policy(add_adapter(model, Lora(dropout=0.1)), tokenizer)
    policy.train_mode()
    training = {name for name, module in policy.model.named_modules() if module.training}
    layers = {f"base_model.model.model.layers.{k}" for k in range(len(policy.decoder.layers))}
    adapter = {name for name in training if "lora_dropout" in name}
    assert training - adapter == layers | {"base_model.model.model"} and adapter
    runs = []
    policy.decoder.layers[0].self_attn.register_forward_hook(lambda *_: runs.append(1))
    ids, mask = torch.randint(4, 200, (1, 20)), torch.ones(1, 20, dtype=torch.bool)
    policy.logprobs(ids, mask)[0].sum().backward()
    assert len(runs) == 2  # and again in the backward pass


def test_a_model_that_cannot_compute_activations_again_trains_without(model_folder, monkeypatch, capsys):
    model, _ = load_model(str(model_folder))
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    checkpoint_activations(model, "on")
    assert "cannot compute activations again" in capsys.readouterr().out
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert math.isfinite(logits(model).sum())

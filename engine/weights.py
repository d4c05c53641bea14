"""The weights of a language model: its adapter merged for sampling, drawing a token, log-probabilities for training."""

import contextlib
import os
import shutil
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPast

from engine.batches import Batch
from engine.errors import BadInput
from engine.models import LoraLayer, PeftModel, adapted_weights, merge_adapter, text_decoder, tied_weights
from engine.settings import Sampling

HEAD_ELEMENTS = 1 << 26  # at most this many logits exist at a time in training (0.25 GiB in single precision)


class Decoded(BaseModelOutputWithPast):
    """What a decoder returns, whatever else it might: None stands for all but the hidden states."""

    def __getattr__(self, name: str) -> None:
        return None


class Weights:
    """A Hugging Face causal language model, with an adapter or without.

    `settings.temperature` applies to the log-probabilities too. With `settings.merge_adapter`, an adapter is merged
    into copies of the weights while a phase of sampling lasts: an adapter beside the weights costs a third of a
    decoding step and more. Weights in 4 bits are never merged, nor those that another layer uses, too.
    """

    def __init__(self, model, settings: Sampling = Sampling()):
        self.model, self.settings = model, settings
        self.device, self.dtype = next(model.parameters()).device, model.dtype
        self.half = self.dtype in (torch.bfloat16, torch.float16)
        if self.device.type == "cuda":
            # cuDNN's attention makes a plan for every new shape, and here hardly two batches have the same: on an H200
            # that was more than a third of the time that SmolLM2's rollouts took
            torch.backends.cuda.enable_cudnn_sdp(False)
        self.base = model.get_base_model() if isinstance(model, PeftModel) else model
        self.text_config = model.config.get_text_config()
        self.decoder, self.head = text_decoder(self.base), self.base.get_output_embeddings()
        if self.head is None or self.decoder is self.base:
            raise BadInput(f"{type(self.base).__name__}: has no text decoder with an output head on it")
        # the modules from the model down to its decoder, the model itself left out
        modules = [module for module in self.base.modules() if module is not self.base]
        self.trunk = [module for module in modules if any(self.decoder is part for part in module.modules())]
        self.plain_head = False  # whether logits are what the output head gives; `probe.check_decoder` finds out
        self.compiled = False
        self.merged, self.not_merged = self._mergeable() if settings.merge_adapter else ([], "")

    def _mergeable(self) -> tuple[list[tuple[LoraLayer, nn.Module, str]], str]:
        """What is merged for sampling (as `models.adapted_weights` lists it), and why not, where it is nothing."""
        adapted = adapted_weights(self.model)
        weights = [getattr(module, name) for _, module, name in adapted]
        if any(weight.dtype not in (torch.float32, torch.bfloat16) for weight in weights):
            return [], "its weights are in 4 bits"
        if tied_weights(self.base) & set(map(id, weights)):
            return [], "another layer uses an adapted matrix, too"
        return adapted, ""

    @contextlib.contextmanager
    def merged_adapter(self):
        """A block in which the adapter is merged, from the frozen weights into copies, so that nothing drifts."""
        frozen = [getattr(module, name).data for _, module, name in self.merged]
        plain = torch.compiler.set_stance("force_eager") if self.compiled else contextlib.nullcontext()
        try:
            merge_adapter(self.merged)
            with plain:
                yield
        finally:
            for (layer, module, name), weight in zip(self.merged, frozen, strict=True):
                getattr(module, name).data = weight
                layer.merged_adapters.clear()

    def train_mode(self) -> None:
        """Like eval mode, so that nothing but the adapter's dropout is other than in sampling (some routers, for one,
        choose at random in training); layers may have their activations computed again."""
        self.model.eval()
        for module in self.model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.training = True  # of this module alone
            if isinstance(module, LoraLayer):
                module.lora_dropout.train()

    def compile(self) -> None:
        """From now on run each layer as compiled code when training (torch.compile, for any shape; the first pass takes
        a minute). Sampling stays as it is: its steps are too short and too varied."""
        if not hasattr(self.decoder, "layers"):
            raise BadInput(f"compile=True: {type(self.decoder).__name__} has no list of layers to compile")
        if self.device.type == "cpu" and shutil.which(os.environ.get("CXX", "c++")) is None:
            raise BadInput("compile=True: on a CPU it needs a C++ compiler, and none is installed")
        # all layers share their code, in a version for each kind of pass (the first layer, whose input has no gradient,
        # and the others; one row, several, with a common beginning; the reference): PyTorch would stop after 8
        torch._dynamo.config.recompile_limit = 16
        for layer in self.decoder.layers:
            layer.compile(dynamic=True)
        self.compiled = True

    def precision(self) -> torch.autocast:
        """Half-precision models compute in their precision throughout, the adapter (whose weights are float32) too.

        Every forward pass of a model with an adapter has to be made in this context.
        """
        return torch.autocast(self.device.type, self.dtype, enabled=self.half, cache_enabled=False)

    def draw(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """logits [b, V], uniform [b, 1] in [0, 1), double -> the next tokens and their log-probabilities [b, 1].

        The inverse of the cumulative distribution at the sampling temperature: no top-k, no top-p. It is summed in
        double precision: in single precision the tail of a large vocabulary would vanish from it.
        """
        all_logp = (logits / self.settings.temperature).log_softmax(dim=-1)  # [b, V]
        cumulative = all_logp.double().exp().cumsum(dim=-1)  # [b, V]
        drawn = uniform * cumulative[:, -1:]  # [b, 1]
        token = torch.searchsorted(cumulative, drawn, right=True).clamp(max=all_logp.shape[1] - 1)  # [b, 1]
        return token, all_logp.gather(1, token)

    def logprobs(self, ids: Tensor, mask: Tensor, prefix: int = 0) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, T] of the tokens of ids [B, T] where mask [B, T] is true (0 elsewhere), at the sampling
        temperature and with the weights of now, and the entropy [B, T] of the same distributions (no gradient).

        The first `prefix` tokens, the same in all rows, with none sampled among them and the one after them, go through
        the model once (where T is at most `prefix_limit`). Logits are computed at sampled tokens only, at most
        HEAD_ELEMENTS of them at a time; where that takes several chunks, the backward pass computes each again. Padding
        on the right needs no mask: attention is causal.
        """
        hidden = self.hidden_states(ids, prefix)  # [B, T - prefix, d]
        behind = slice(prefix + 1, None)  # token t is predicted by the hidden state at t - 1
        sampled = mask[:, behind]  # [B, T - prefix - 1]
        hidden, targets = hidden[:, :-1][sampled], ids[:, behind][sampled]  # [n, d], [n]
        chunk = max(1, HEAD_ELEMENTS // self.head.weight.shape[0])
        if len(targets) <= chunk:
            parts = [self.head_logprobs(hidden, targets)]
        else:
            chunks = zip(hidden.split(chunk), targets.split(chunk), strict=True)  # [<= chunk, d], [<= chunk]
            parts = [checkpoint(self.head_logprobs, *part, use_reentrant=False) for part in chunks]
        logp, entropy = torch.zeros(ids.shape, device=ids.device), torch.zeros(ids.shape, device=ids.device)  # [B, T]
        logp[:, behind][sampled] = torch.cat([part[0] for part in parts])  # [n]
        entropy[:, behind][sampled] = torch.cat([part[1] for part in parts])  # [n]
        return logp, entropy

    def logprobs_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, T] of a batch's sampled tokens, and the entropy [B, T], as `logprobs` gives them."""
        return self.logprobs(batch.ids, batch.mask, batch.prefix)

    def hidden_states(self, ids: Tensor, prefix: int = 0) -> Tensor:
        """ids [B, T], of which the first `prefix` are the same in all rows -> hidden states of the others
        [B, T - prefix, d]."""
        inputs = {"input_ids": ids}
        if prefix:
            rows, length = ids.shape
            at = torch.arange(length, device=ids.device)  # [T]
            inputs = {
                "input_ids": torch.cat([ids[0, :prefix], ids[:, prefix:].flatten()])[None],  # [1, P + B * (T - P)]
                "position_ids": torch.cat([at[:prefix], at[prefix:].repeat(rows)])[None],  # the same
                "attention_mask": (at <= at[prefix:, None])[None, None],  # [1, 1, T - P, T]
            }
        with self.precision():
            hidden = self.decoder(**inputs, use_cache=False).last_hidden_state  # [B, T, d] or [1, P + B * (T - P), d]
        return hidden[0, prefix:].view(len(ids), -1, hidden.shape[2]) if prefix else hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [n, d] -> [n, V] in single precision, as the model's own forward pass makes them: it is called with
        its decoder left out. So what a model does beside the output head (scaling, soft caps) needs no list here. Where
        it does nothing (`plain_head`), the head alone is a quarter of a millisecond faster."""
        if self.plain_head:
            with self.precision():
                return self.head(hidden).float()

        def decoded(*args, **kwargs) -> Decoded:
            return Decoded(last_hidden_state=hidden[:, None])  # [n, 1, d]: as many sequences of one token

        ids = torch.zeros(len(hidden), 1, dtype=torch.long, device=hidden.device)  # [n, 1]
        with contextlib.ExitStack() as stack, self.precision():
            for module in self.trunk:
                stack.enter_context(mock.patch.object(module, "forward", decoded))
            return self.base(input_ids=ids, use_cache=False).logits[:, 0].float()

    def head_logprobs(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [n, d], targets [n] -> log-probabilities of the targets [n], entropies [n] (no gradient)."""
        all_logp = (self.logits(hidden) / self.settings.temperature).log_softmax(dim=-1)  # [n, V]
        logp = all_logp.gather(1, targets[:, None])[:, 0]  # [n]
        with torch.no_grad():
            entropy = -(all_logp.exp() * all_logp).sum(dim=-1)  # [n]
        return logp, entropy

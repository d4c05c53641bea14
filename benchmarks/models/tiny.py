"""A tiny random model of any causal-LM type of the installed transformers.

The weights are random, but the predictions are far from uniform and depend on what came before, so that a sampler that
computes otherwise than the trainer shows.
"""

import math
import re

import torch
import transformers
from transformers.models.auto import modeling_auto

from benchmarks.models.shapes import SHAPES
from benchmarks.models.sizes import tiny_config

CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
# the class that a published folder of such a type names, if that has further towers
WHOLE = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
# weights that keep their own distributions, which matter
KEEP = re.compile(r"A_log|A|D|dt_bias|time_\w+|dt\w*|lambda\w*|freqs\w*|inv_\w+")


def build(name: str, vocab: int, seed: int = 0):
    """A tiny random model of this type or shape with `vocab` tokens."""
    torch.manual_seed(seed)
    config = tiny_config(name, vocab)
    kind = SHAPES.get(name, (name,))[0]
    cls = getattr(transformers, WHOLE.get(kind) or CAUSAL[kind])
    if not isinstance(config, cls.config_class):
        config = config.get_text_config(decoder=True)
    # memory that is never written to holds nan in this mode, and so is found below
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        model = cls._from_config(config)
    finally:
        torch.use_deterministic_algorithms(False)
    model = model.to(torch.float32).eval()
    randomise(model)
    spread(model, vocab)
    return model


@torch.no_grad()
def randomise(model) -> None:
    """Matrices that keep the scale of what goes through them, and noise on everything else that is trained."""
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        last = name.split(".")[-1]
        if not weight.is_floating_point():
            continue
        if not weight.isfinite().all() and (isinstance(weight, torch.nn.Parameter) or last.endswith("bias")):
            weight.normal_(std=0.1)
        if not isinstance(weight, torch.nn.Parameter) or not weight.requires_grad:
            continue
        if weight.ndim < 2 or KEEP.fullmatch(last):
            weight.add_(0.1 * torch.randn_like(weight))
        elif isinstance(model.get_submodule(name.rpartition(".")[0]), torch.nn.Embedding):
            weight.normal_(std=1 / getattr(model.config.get_text_config(decoder=True), "embedding_multiplier", 1.0))
        else:
            fan = weight.shape[-1] if weight.ndim < 3 else (weight.shape[-1] * weight.shape[-2]) ** 0.5
            weight.normal_(std=fan**-0.5)


@torch.no_grad()
def spread(model, vocab: int) -> None:
    """Scale the logits until the entropy of the predictions is around three quarters of that of a uniform distribution.
    Raises ValueError if that cannot be, or if they do not depend on what came before."""
    ids = torch.randint(vocab, (2, 24), generator=torch.Generator().manual_seed(1))
    head = model.get_output_embeddings()
    for _ in range(20 if head is not None else 1):
        logits = model(input_ids=ids, use_cache=False).logits  # [2, 24, V]
        logp = logits.log_softmax(dim=-1)
        share = -(logp.exp() * logp).sum(dim=-1).mean().item() / math.log(vocab)
        if not 0.85 >= share >= 0.65 and head is not None:
            scaled_by(model, head).mul_(1.25 if share > 0.75 else 0.8)
    if not 0.97 > share > 0.5:
        raise ValueError(f"the entropy of its predictions is {share:.2g} of that of a uniform distribution")
    other = ids.clone()
    other[:, 2] = (other[:, 2] + 1) % vocab
    change = (model(input_ids=other, use_cache=False).logits - logits).abs().amax((0, 2))  # [24]
    if not change[3:].max() > 0.02 * logits.std():
        raise ValueError(f"predictions hardly depend on what came before ({change[3:].max() / logits.std():.1g})")


def scaled_by(model, head) -> torch.Tensor:
    """What to multiply so that the logits grow: the head, or where that is the embedding, too, and multiplied by a
    factor of its own (so that it would drown what the layers add), the last norm."""
    factor = getattr(model.config.get_text_config(decoder=True), "embedding_multiplier", 1.0)
    tied = head.weight is model.get_input_embeddings().weight
    return model.get_decoder().norm.weight if tied and factor > 1 else head.weight

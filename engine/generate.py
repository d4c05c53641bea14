"""The sampler to read: transformers' own `generate`, on the exact ids of the conversations.

Every reply begins with reading its whole conversation again, and a batch waits for its longest. In return it works for
whatever transformers can generate with: recurrent states, convolutions, windows, chunks.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessor

from engine.batches import batches_by_length
from engine.draft import Draft
from engine.weights import Weights


class Draw(LogitsProcessor):
    """Draws the next token of every draft and leaves `generate` no other choice. It must be the only processor: any
    other would change the distribution that the log-probabilities are kept of."""

    def __init__(self, weights: Weights, drafts: list[Draft]):
        self.weights, self.drafts = weights, drafts

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores [B, V] -> scores that are -inf but for the token that was drawn."""
        uniform = [[draft.rng.random()] for draft in self.drafts]  # [B][1]
        tokens, logps = self.weights.draw(scores, torch.tensor(uniform, dtype=torch.float64).to(scores.device))
        for draft, [token], [logp] in zip(self.drafts, tokens.tolist(), logps.tolist(), strict=True):
            draft.add(token, logp)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0.0)

    def complete(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Which replies have ended, [B]."""
        return torch.tensor([draft.complete for draft in self.drafts], device=input_ids.device)


class Generate:
    """`sample` completes all drafts that it is given, in batches of at most `tokens` tokens, padding included.

    For models that are disturbed by padding on the left, or by what they keep of earlier tokens: with `padding` False
    only conversations of one length share a batch, with `cache` False all is read again for every token.
    """

    def __init__(self, weights: Weights, tokens: int, padding: bool = True, cache: bool = True):
        self.weights, self.tokens, self.padding, self.cache = weights, tokens, padding, cache

    def fresh(self) -> None:
        """Nothing is kept from call to call."""

    def sample(self, drafts: list[Draft]) -> list[Draft]:
        for batch in self._batches(drafts):
            self._generate(batch)
        return drafts

    def _batches(self, drafts: list[Draft]) -> Iterator[list[Draft]]:
        groups: dict[int, list[Draft]] = {}
        for draft in drafts:
            groups.setdefault(0 if self.padding else len(draft.episode.ids), []).append(draft)
        for group in groups.values():
            yield from batches_by_length({draft: draft.most for draft in group}, self.tokens)

    def _generate(self, drafts: list[Draft]) -> None:
        rows = [torch.tensor(draft.episode.ids) for draft in drafts]
        ids = pad_sequence(rows, batch_first=True, padding_side="left")  # [B, T]
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")  # [B, T]
        draw = Draw(self.weights, drafts)
        longest = max(draft.max_new_tokens for draft in drafts)
        config = GenerationConfig(do_sample=False, max_new_tokens=longest, use_cache=self.cache, pad_token_id=0)
        model, device = self.weights.base, self.weights.device
        own, model.generation_config = model.generation_config, config  # else it fills in what is not set here
        try:
            with self.weights.precision():
                model.generate(
                    ids.to(device), attention_mask=mask.to(device), generation_config=config,
                    logits_processor=[draw], stopping_criteria=[draw.complete],
                )  # fmt: skip
        finally:
            model.generation_config = own

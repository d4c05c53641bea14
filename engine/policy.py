"""The language-model policy: it answers conversations by sampling, and gives log-probabilities for training."""

import contextlib
import random

import psutil
import torch

from engine.chat import ChatFormat
from engine.draft import Draft
from engine.probe import choose, conversation_limit
from engine.settings import Sampling
from engine.weights import Weights
from rollout import Episode, Reply

CONTEXT_FULL = Reply("", truncated=True, context_full=True)


class Policy(Weights):
    """A Hugging Face causal language model that answers conversations by sampling.

    Temperature applies to the log-probabilities too; no top-k, no top-p. The weights must not change while it samples:
    a phase of sampling is a `with policy.sampling():` block. What is sampled follows from the weights, the conversation
    and its `rng_key`, whatever other conversations are in the batch (but for rounding).

    `settings.sampler` is "fast", "generate" or "auto", which takes the fast one where it serves; `why` says which it is
    and why. The sampler works on at most `settings.kv_tokens` tokens at a time (rows times the longest of them, 0: as
    many as fit into 60 % of the memory that is free now), unless one conversation alone is longer.
    """

    def __init__(self, model, tokenizer, settings: Sampling = Sampling()):
        super().__init__(model, settings)
        self.chat = ChatFormat(tokenizer)
        self.chat.check_ids(self.base.get_input_embeddings().weight.shape[0])
        eos = self.base.generation_config.eos_token_id  # some models have further stop tokens there
        self.chat.stop_ids |= set(eos if isinstance(eos, list) else [eos]) - {None}
        self.max_length = conversation_limit(self.text_config)
        copies = sum(getattr(module, name).nbytes for _, module, name in self.merged)
        memory = 0.6 * (free_memory(self.device) - copies)
        text = self.chat.encode(self.chat.TEXT)
        self.sampler, self.prefix_limit, why = choose(self, text, self.max_length, memory)
        beside = f"; the adapter is not merged: {self.not_merged}" if self.not_merged else ""
        self.why = f"sampler {self.sampler_name}: {why}{beside}"

    @property
    def sampler_name(self) -> str:
        return type(self.sampler).__name__.lower()

    @contextlib.contextmanager
    def sampling(self):
        """A phase of sampling with the weights of now, the adapter merged: nothing kept by the sampler from before, no
        memory taken by it afterwards."""
        self.model.eval()
        self.sampler.fresh()
        try:
            with self.merged_adapter():
                yield
        finally:
            self.sampler.fresh()

    @torch.no_grad()
    def reply(self, episodes: list[Episode]) -> list[tuple[Episode, Reply]]:
        """Go on sampling, these conversations included; those whose replies are complete, one at least.

        Complete replies are appended to their episodes (ids, mask, log-probabilities). A conversation that has no room
        for a reply in the model's window stays as it is.
        """
        drafts, full = [], []
        for episode in episodes:
            length = len(episode.ids)
            self.chat.open_turn(episode)
            limit = self.max_new_tokens(episode)
            if limit > 0:
                rng = random.Random(f"{episode.rng_key}/{len(episode.ids)}")
                drafts.append(Draft(episode, limit, self.chat.stop_ids, rng))
            else:
                episode.cut(length)
                full.append(episode)
        complete = self.sampler.sample(drafts)
        return [(draft.episode, self._close(draft)) for draft in complete] + [(e, CONTEXT_FULL) for e in full]

    def max_new_tokens(self, episode: Episode) -> int:
        """Tokens that its next reply may have at most."""
        return min(self.settings.max_reply_tokens, self.max_length - len(episode.ids))

    def _close(self, draft: Draft) -> Reply:
        read = len(draft.episode.ids)
        draft.episode.add(draft.ids, draft.logps)
        truncated = draft.ids[-1] not in draft.stops
        return Reply(self.chat.text(draft.ids), len(draft.ids), truncated=truncated, n_read=read)


def free_memory(device: torch.device) -> int:
    """Bytes of memory that are free on the device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available

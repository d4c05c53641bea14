"""The rollout loop and the policy that plays it.

`play` is the Connect-the-Dots loop over one pack: solve a task, write a hint, solve the next task with it, ... It is a
plain generator that yields the conversation waiting for a reply, so anything that turns conversations into text can
drive it: the language-model `Policy` below, a scripted player (players.py), a test. `run` drives many at once.

Token in, token out: an `Episode` holds the exact ids of its conversation. The first prompt is rendered once with the
chat template, sampled ids are appended as they are (stop token included), and each later observation is appended as
the template's suffix for one more user turn. History is never rendered or tokenised again, so what is trained is
what was sampled, and one episode is one training sequence however many turns it has.
"""

import functools
import random
import warnings
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jinja2 import TemplateError
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, Cache, PreTrainedTokenizerBase

from context import NO_HINTS_YET, parse_update, quote, solve_system, update_messages
from envs import BadInput, Pack, first_line

BAR_DELAY = 3  # progress bars show after this many seconds
HERE = Path(__file__).parent

# ---------------------------------------------------------------------------------------------------------
# The loop


@dataclass
class Reply:
    """What a policy answered to a conversation. `truncated`: cut by the length cap before a stop token came."""

    text: str
    n_tokens: int = 0
    truncated: bool = False


@dataclass(eq=False)  # an episode is an object with an identity: the sampler keeps its KV cache by it
class Episode:
    """One conversation, the unit of credit and of training: a solved task, or the hint update after it.

    `ids`, `mask` and `logps` have an entry for every token of the conversation up to the last reply: its id, whether
    the policy sampled it, and its log-probability when it did (0 elsewhere). The observation that ends a task is in
    `messages` only: no reply follows it. A policy without tokens leaves all three empty.
    """

    kind: str  # "solve" or "update"
    position: int  # index of its task in the pack
    messages: list[dict]  # the same conversation as text
    context: str  # solve: the hint it was given; update: the hint it wrote
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    noise: str = ""  # names the stream of random numbers that its replies are sampled with; set by `run`
    outcome: float = 0.0  # solve: the environment's reward
    reward: float = 0.0  # what is trained on: outcome with the length penalty, or the update's format reward
    advantage: float = 0.0  # set by the trainer
    broken_format: bool = False  # a reply that could not be read ended the task, or the hint could not be read
    replies: list[Reply] = field(default_factory=list)

    def add(self, ids: Iterable[int], logps: Iterable[float] | None = None) -> None:
        """Append tokens: sampled ones with their log-probabilities, others without."""
        ids = list(ids)
        self.ids += ids
        self.mask += [logps is not None] * len(ids)
        self.logps += [0.0] * len(ids) if logps is None else logps

    @property
    def n_sampled(self) -> int:
        """Number of tokens that the policy sampled."""
        return sum(self.mask)


@dataclass
class Rollout:
    """One playthrough of a pack: solve 0, update 0, solve 1, ..., solve S-1."""

    pack_seed: int
    episodes: list[Episode]

    def of(self, kind: str) -> list[Episode]:
        return [episode for episode in self.episodes if episode.kind == kind]


@dataclass(frozen=True)
class Penalties:
    """Length penalty of solved tasks (coefficient, range of reply tokens) and format penalty of hint updates."""

    length: float = 0.1
    tokens_lo: float = 1e6
    tokens_hi: float = 2e6
    bad_hint: float = 0.1

    def solve_reward(self, outcome: float, reply_tokens: list[int], max_turns: int) -> float:
        """The reward r of a task whose outcome is above 0 (others keep theirs):

        max(0, outcome - length * (mean over turns of clip((tokens - tokens_lo) / (tokens_hi - tokens_lo), 0, 1)
                                   + turns / max_turns))
        """
        if outcome <= 0 or not reply_tokens:
            return outcome
        spans = [(n - self.tokens_lo) / (self.tokens_hi - self.tokens_lo) for n in reply_tokens]
        verbosity = sum(min(max(span, 0.0), 1.0) for span in spans) / len(spans)
        return max(0.0, outcome - self.length * (verbosity + len(reply_tokens) / max_turns))


def play(pack: Pack, penalties: Penalties = Penalties(), hints: bool = True) -> Generator[Episode, Reply, Rollout]:
    """Play one pack: yields the episode whose conversation waits for a reply, is sent the reply, returns a Rollout.

    With `hints=False` no hints are asked for and every task sees the initial context: the ablation "hints blanked".
    Task-by-task RL is a pack of one task, a Ralph loop one made with ralph=True.
    """
    episodes = []
    context = NO_HINTS_YET
    for position, task in enumerate(pack.tasks):
        observation, done = task.reset(), False
        system = {"role": "system", "content": solve_system(task.rules, context)}
        episode = Episode("solve", position, [system, {"role": "user", "content": quote(observation)}], context)
        while not done:
            reply = yield episode
            episode.replies.append(reply)
            observation, done = task.step(reply.text)
            episode.messages.append({"role": "assistant", "content": reply.text})
            episode.messages.append({"role": "user", "content": quote(observation)})
        episode.outcome, episode.broken_format = task.reward, task.broken_format
        lengths = [reply.n_tokens for reply in episode.replies]
        episode.reward = penalties.solve_reward(task.reward, lengths, task.max_turns)
        episodes.append(episode)
        if hints and position + 1 < len(pack.tasks):
            transcript = [{"role": "system", "content": task.rules}, *episode.messages[1:]]
            messages = update_messages(context, transcript, episode.reward, task.feedback)
            update = Episode("update", position, messages, context)
            reply = yield update
            update.replies.append(reply)
            update.messages.append({"role": "assistant", "content": reply.text})
            context, readable = parse_update(reply.text)
            update.context, update.broken_format = context, not readable
            update.reward = 0.0 if readable else -penalties.bad_hint
            episodes.append(update)
    return Rollout(pack.seed, episodes)


def run(
    games: Iterable[Generator],
    policy,
    seed: str = "",
    first: int = 0,
    at_once: int = 256,
    progress: str | None = None,
) -> list[Rollout]:
    """Drive many `play` generators with one policy; their rollouts, in order.

    `policy.reply(list[Episode]) -> list[tuple[Episode, Reply]]` is given the conversations that newly wait for a reply
    and returns those it has finished, one at least, of all it was ever given; a game goes on as soon as its reply is
    there. At most `at_once` games are under way; the next one starts when one ends. `progress` names a progress bar.

    A game's random numbers follow from `seed` and the game's number (`first`, first + 1, ...) alone, not from what else
    is under way: a run shared out over processes or played fewer at a time samples the same. Every run that is to be
    independent of others needs a seed of its own.
    """
    games = list(games)
    rollouts: list[Rollout | None] = [None] * len(games)
    unstarted = list(range(len(games)))[::-1]
    under_way: dict[Episode, int] = {}  # the conversation that waits for a reply -> index of its game
    asking: list[Episode] = []
    hidden = True if progress is None else None  # None: shown on a terminal only
    with tqdm(total=len(games), desc=progress, unit="pack", disable=hidden, delay=BAR_DELAY, leave=False) as bar:

        def ask(i: int, episode: Episode) -> None:
            episode.noise = f"{seed}/{first + i}/{episode.kind}/{episode.position}"
            under_way[episode] = i
            asking.append(episode)

        while True:
            while unstarted and len(under_way) < at_once:
                i = unstarted.pop()
                ask(i, next(games[i]))
            if not under_way:
                return rollouts
            answers = policy.reply(asking)
            asking.clear()
            for episode, reply in answers:
                i = under_way.pop(episode)
                try:
                    ask(i, games[i].send(reply))
                except StopIteration as stop:
                    rollouts[i] = stop.value
                    bar.update()


# ---------------------------------------------------------------------------------------------------------
# Conversations as tokens


class ChatFormat:
    """Turns messages into token ids with the tokenizer's chat template, piece by piece.

    All message text is data: special tokens spelled out in it are broken up before it is tokenised, so only the
    template itself can produce them. Raises BadInput if the template cannot be used this way.
    """

    TEXT = "The next observation 82."  # a stand-in, found again in rendered text

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        if tokenizer.chat_template is None:
            raise self._unusable("is missing; an instruction-tuned model is needed")
        self.special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.encode = functools.lru_cache(maxsize=20_000)(self._encode)  # observations recur, first prompts do not
        # what stands between a reply and the text of the next user message, and after that text
        self.before, self.after = self._after_reply(1, self.TEXT).split(self.TEXT)
        for turns, text in ((1, "Another one,\n\n4: 7"), (3, self.TEXT)):
            if self._after_reply(turns, text) != self.before + text + self.after:
                raise self._unusable("renders the same kind of turn in different ways")
        self.turn_end = self._encode(self.before + " ")[0]  # (an empty `before` has no first token)
        if tokenizer.convert_ids_to_tokens(self.turn_end) not in self.special:
            raise self._unusable(f"ends a reply with {self.before[:20]!r}, which is no special token to stop at")
        self.stop_ids = {self.turn_end, tokenizer.eos_token_id}

    def _after_reply(self, turns: int, text: str) -> str:
        """What the template puts after the last of `turns` replies when a user message with this text follows."""
        messages = [{"role": "system", "content": "The rules 53."}]
        for n in range(turns):
            messages.append({"role": "user", "content": f"Observation {n}."})
            messages.append({"role": "assistant", "content": f"Reply {n}."})
        messages.append({"role": "user", "content": text})
        rendered = self._render(messages, add_generation_prompt=True)
        places = [rendered.find(message["content"]) for message in messages]
        if places != sorted(places) or any(rendered.count(message["content"]) != 1 for message in messages):
            raise self._unusable("does not show every message once and in order")
        return rendered.split(messages[-2]["content"])[1]

    def _unusable(self, why: str) -> BadInput:
        return BadInput(f"model={self.tokenizer.name_or_path!r}: its chat template {why}")

    def open_turn(self, episode: Episode) -> None:
        """Append everything up to where the assistant's next reply begins.

        At first that is the whole rendered conversation; later the end of the assistant's turn (unless the reply ended
        it itself), a user turn with the last message, and the opening of the assistant's turn.
        """
        if not episode.ids:
            messages = [{**message, "content": self.clean(message["content"])} for message in episode.messages]
            episode.add(self._encode(self._render(messages, add_generation_prompt=True)))
        else:
            ids = self.encode(self.before + self.clean(episode.messages[-1]["content"]) + self.after)
            episode.add(ids[1:] if episode.ids[-1] == ids[0] else ids)

    def text(self, ids: list[int]) -> str:
        """A sampled reply as text, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def clean(self, text: str) -> str:
        """Text without anything that would be tokenised as a special token: a space goes after its first character, and
        special tokens of one or two characters are taken out."""
        while found := [token for token in self.special if token in text]:
            for token in found:
                text = text.replace(token, f"{token[0]} {token[1:]}" if len(token) > 2 else "")
        return text

    def _render(self, messages: list[dict], **options) -> str:
        try:  # models with a thinking mode read enable_thinking; other templates ignore it
            return self.tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False, **options)
        except TemplateError as error:
            raise self._unusable(f"refuses the conversation: {first_line(error)}") from error

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)


# ---------------------------------------------------------------------------------------------------------
# The language-model policy


PREFILL_TOKENS = 1 << 14  # at most this many prompt tokens go through the model in one forward pass


class RowCache(Cache):
    """A KV cache whose rows have lengths of their own: each row is one conversation, which grows by any number of
    tokens at a time and can be replaced by a new one. Keys and values are [rows, heads, capacity, head_dim] per layer.

    Before a forward pass `view` says which rows take part, where in each its new tokens go, and how much to read.
    """

    def __init__(self):
        super().__init__(layers=[])
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def view(self, rows: Tensor, positions: Tensor, length: int, n_rows: int) -> None:
        """rows [b]; positions [b, t], where the new tokens go; length: of the part to attend to."""
        self.rows, self.positions, self.length, self.n_rows = rows, positions, length, n_rows

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return self._store(self.keys, keys, layer_idx), self._store(self.values, values, layer_idx)

    def _store(self, stores: list[Tensor], new: Tensor, layer: int) -> Tensor:
        """new [b, heads, t, head_dim] -> everything of these rows up to `length`, [b, heads, length, head_dim]."""
        if layer == len(stores):
            stores.append(new.new_zeros(0, new.shape[1], 0, new.shape[3]))
        rows, _, capacity, _ = stores[layer].shape
        if rows < self.n_rows or capacity < self.length:
            room = capacity if self.length <= capacity else max(2 * capacity, self.length)
            grown = new.new_zeros(max(rows, self.n_rows), new.shape[1], room, new.shape[3])
            grown[:rows, :, :capacity] = stores[layer]
            stores[layer] = grown
        store = stores[layer]
        store[self.rows[:, None], :, self.positions] = new.transpose(1, 2)  # indexed this way it is [b, t, heads, dim]
        if len(self.rows) == len(store):  # every row, in order
            return store[:, :, : self.length]
        return store[self.rows, :, : self.length]


@dataclass(eq=False)
class Draft:
    """A reply that is being sampled: at most `room` tokens for the conversation in a row of the cache."""

    episode: Episode
    row: int
    room: int
    rng: random.Random
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)


class Policy:
    """A Hugging Face causal language model that answers conversations by sampling.

    Temperature applies to the log-probabilities too; no top-k, no top-p. `fresh_cache()` must be called whenever the
    weights have changed. What is sampled follows from the weights, the conversation and its `noise`, whatever other
    conversations are in the batch (but for rounding).
    """

    def __init__(self, model, tokenizer, temperature: float = 1.0, max_reply_tokens: int = 256):
        self.model = model
        self.chat = ChatFormat(tokenizer)
        self.temperature = temperature
        self.max_reply_tokens = max_reply_tokens
        self.device = next(model.parameters()).device
        # attention is full here, so a conversation may not outgrow a sliding window
        text_config = model.config.get_text_config()
        limits = [getattr(text_config, name, None) for name in ("max_position_embeddings", "sliding_window")]
        self.max_length = min([limit for limit in limits if limit] or [1 << 30])
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        self.decoder, self.head = base.get_decoder(), base.get_output_embeddings()
        self._check()
        self.fresh_cache()

    @torch.no_grad()
    def _check(self) -> None:
        """Raise BadInput unless reading two rows piece by piece through the cache gives the model's own predictions.

        It does not for architectures that scale their logits, keep other things than keys and values, or cannot take a
        mask for every row.
        """
        self.model.eval()
        self.fresh_cache()
        self.conversations, self.cached = [None, None], [0, 0]
        ids = torch.arange(24, device=self.device).view(2, 12) % self.head.weight.shape[0]  # [2, 12]
        try:
            want = self.model(input_ids=ids, use_cache=False).logits.float()  # [2, 12, V]
            self._forward(ids[:, :8], [0, 1])  # of the second row 5 tokens count, the rest is padding
            self.cached = [8, 5]
            hidden = self._forward(torch.stack([ids[0, 8:], ids[1, 5:9]]), [0, 1])  # [2, 4, d]
            error = self.head(hidden).float() - torch.stack([want[0, 8:], want[1, 5:9]])  # [2, 4, V]
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as failure:
            raise BadInput(
                f"{type(self.model).__name__}: cannot be sampled from here ({first_line(failure)})"
            ) from failure
        tolerance = 1e-3 if hidden.dtype == torch.float32 else 0.1
        if not want.isfinite().all():
            raise BadInput(f"{type(self.model).__name__}: its weights give predictions that are not finite")
        if not error.abs().mean() < tolerance * want.std():
            raise BadInput(f"{type(self.decoder).__name__}: this architecture or attention implementation does not fit")

    def fresh_cache(self) -> None:
        self.cache = RowCache()
        self.conversations: list[Episode] = []  # which conversation each row of the cache belongs to
        self.cached: list[int] = []  # how many of its tokens are in there
        self.drafts: list[Draft] = []  # the replies being sampled, by ascending row
        # hidden state after the last token of each draft, [drafts, d]
        self.hidden = torch.empty(0, self.head.weight.shape[1], dtype=self.model.dtype, device=self.device)

    @torch.no_grad()
    def reply(self, episodes: list[Episode]) -> list[tuple[Episode, Reply]]:
        """Go on sampling, these conversations included, until a quarter of the open replies is complete.

        Complete replies are appended to their episodes (ids, mask, log-probabilities) and returned; the others go on in
        the next call. So a long reply holds up nobody, and the prompts of those that go on are read in batches.
        """
        self.model.eval()
        complete = self._open(episodes)
        enough = max(1, len(self.drafts) // 4)
        rows = [draft.row for draft in self.drafts]
        going = list(range(len(self.drafts)))
        while going and len(complete) < enough:
            token, logp = self._sample()  # [b, 1], [b]
            drawn, logp = token[:, 0].tolist(), logp.tolist()
            ended = set()
            for k in going:
                draft = self.drafts[k]
                draft.ids.append(drawn[k])
                draft.logps.append(logp[k])
                if drawn[k] in self.chat.stop_ids or len(draft.ids) == draft.room:
                    complete.append(draft)
                    ended.add(k)
            going = [k for k in going if k not in ended]
            if going:  # the others stay in the batch until this call ends; what they write is written over later
                self.hidden = self._forward(token, rows)[:, 0]  # [b, d]
                for k in going:
                    self.cached[rows[k]] += 1
        self.drafts = [self.drafts[k] for k in going]
        self.hidden = self.hidden[going]  # [drafts, d]
        return [(draft.episode, self._close(draft)) for draft in complete]

    def _sample(self) -> tuple[Tensor, Tensor]:
        """The next token of every draft [b, 1] and its log-probability [b], from one uniform number each.

        The cumulative distribution is summed in double precision: in single precision the tail of a large vocabulary
        would vanish from it.
        """
        uniform = torch.tensor([[draft.rng.random()] for draft in self.drafts], dtype=torch.float64)  # [b, 1]
        all_logp = (self.head(self.hidden).float() / self.temperature).log_softmax(dim=-1)  # [b, V]
        cumulative = all_logp.double().exp().cumsum(dim=-1)  # [b, V]
        drawn = uniform.to(self.device) * cumulative[:, -1:]  # [b, 1]
        token = torch.searchsorted(cumulative, drawn, right=True).clamp(max=all_logp.shape[1] - 1)  # [b, 1]
        return token, all_logp.gather(1, token)[:, 0]

    def _open(self, episodes: list[Episode]) -> list[Draft]:
        """Bring the conversations to where a reply begins, read them into the cache, and add a draft for each.

        Returns the drafts of those that have outgrown the model and get no reply.
        """
        new = []
        for episode in episodes:
            self.chat.open_turn(episode)
            room = min(self.max_reply_tokens, self.max_length - len(episode.ids))
            new.append(Draft(episode, -1, room, random.Random(f"{episode.noise}/{len(episode.ids)}")))
        outgrown = [draft for draft in new if draft.room <= 0]
        new = [draft for draft in new if draft.room > 0]
        for draft, row in zip(new, self._rows([draft.episode for draft in new]), strict=True):
            draft.row = row
        hidden = torch.cat([self.hidden, *self._ingest(new)])  # [drafts, d]
        self.drafts += new
        order = sorted(range(len(self.drafts)), key=lambda k: self.drafts[k].row)
        self.drafts, self.hidden = [self.drafts[k] for k in order], hidden[order]
        return outgrown

    def _close(self, draft: Draft) -> Reply:
        draft.episode.add(draft.ids, draft.logps)
        truncated = not draft.ids or draft.ids[-1] not in self.chat.stop_ids
        return Reply(self.chat.text(draft.ids), len(draft.ids), truncated)

    def _rows(self, episodes: list[Episode]) -> list[int]:
        """The cache row of each conversation; new ones take the rows of conversations that are over."""
        known = {episode: row for row, episode in enumerate(self.conversations)}
        taken = {known[episode] for episode in episodes if episode in known} | {draft.row for draft in self.drafts}
        free = [row for row in range(len(self.conversations)) if row not in taken][::-1]
        rows = []
        for episode in episodes:
            if episode not in known:
                if not free:
                    free.append(len(self.conversations))
                    self.conversations.append(episode)
                    self.cached.append(0)
                row = known[episode] = free.pop()
                self.conversations[row], self.cached[row] = episode, 0
            rows.append(known[episode])
        return rows

    def _ingest(self, drafts: list[Draft]) -> list[Tensor]:
        """Feed what the cache does not hold yet of each conversation; hidden states [1, d] after their last tokens."""
        pending = {draft: draft.episode.ids[self.cached[draft.row] :] for draft in drafts}
        hidden: dict[Draft, Tensor] = {}
        for batch in batches_by_length({draft: len(ids) for draft, ids in pending.items()}, PREFILL_TOKENS):
            batch = sorted(batch, key=lambda draft: draft.row)
            ids = [torch.tensor(pending[draft]) for draft in batch]
            padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(self.device)  # [b, t]
            states = self._forward(padded, [draft.row for draft in batch])  # [b, t, d]
            for k, draft in enumerate(batch):
                hidden[draft] = states[k, len(pending[draft]) - 1][None]
                self.cached[draft.row] += len(pending[draft])
        return [hidden[draft] for draft in drafts]

    def _forward(self, tokens: Tensor, rows: list[int]) -> Tensor:
        """tokens [b, t] (right-padded) go behind what the cache holds of `rows` (ascending); hidden states [b, t, d].

        Padding is written behind its row's last token, where the next real token overwrites it before anything sees it.
        """
        at = torch.tensor([self.cached[row] for row in rows], device=self.device)  # [b]
        positions = at[:, None] + torch.arange(tokens.shape[1], device=self.device)  # [b, t]
        length = max(self.cached[row] for row in rows) + tokens.shape[1]
        visible = torch.arange(length, device=self.device) <= positions[:, None, :, None]  # [b, 1, t, length]
        self.cache.view(torch.tensor(rows, device=self.device), positions, length, len(self.conversations))
        return self.decoder(
            input_ids=tokens, attention_mask=visible, position_ids=positions, past_key_values=self.cache, use_cache=True
        ).last_hidden_state

    def logprobs(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, T] of the tokens of ids [B, T] where mask [B, T] is true (0 elsewhere), at the sampling
        temperature and with the weights of now, and the entropy [B, T] of the same distributions (no gradient).

        Logits are computed at those positions only. Padding on the right needs no attention mask: attention is causal.
        """
        hidden = self.decoder(input_ids=ids, use_cache=False).last_hidden_state  # [B, T, d]
        sampled = mask[:, 1:]  # [B, T-1]; token t is predicted by the hidden state at t - 1
        logits = self.head(hidden[:, :-1][sampled]).float() / self.temperature  # [n, V]
        all_logp = logits.log_softmax(dim=-1)  # [n, V]
        logp = torch.zeros(ids.shape, device=ids.device)  # [B, T]
        logp[:, 1:][sampled] = all_logp.gather(1, ids[:, 1:][sampled][:, None])[:, 0]
        entropy = torch.zeros(ids.shape, device=ids.device)  # [B, T]
        with torch.no_grad():
            entropy[:, 1:][sampled] = -(all_logp.exp() * all_logp).sum(dim=-1)
        return logp, entropy


def batches_by_length(lengths: dict, budget: int) -> list[list]:
    """Keys of `lengths` (key -> number of tokens) in batches of similar length, longest first: a padded batch holds at
    most `budget` tokens (but at least one key), and nothing in it is padded to more than twice its length."""
    batches: list[list] = []
    longest = 0
    for key in sorted(lengths, key=lambda key: -lengths[key]):
        if not batches or (len(batches[-1]) + 1) * longest > budget or 2 * lengths[key] < longest:
            batches.append([])
            longest = lengths[key]
        batches[-1].append(key)
    return batches


def pad_batch(episodes: list[Episode], device) -> tuple[Tensor, Tensor, Tensor]:
    """ids [B, T], mask [B, T] (true where sampled), logps [B, T] (when sampled), padded on the right."""

    def pad(rows: list[list], dtype) -> Tensor:
        tensors = [torch.tensor(row, dtype=dtype) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True).to(device)

    return (
        pad([episode.ids for episode in episodes], torch.long),
        pad([episode.mask for episode in episodes], torch.bool),
        pad([episode.logps for episode in episodes], torch.float32),
    )


# ---------------------------------------------------------------------------------------------------------
# Loading


@dataclass(frozen=True)
class Lora:
    """A fresh LoRA adapter on all linear layers (the output head excepted)."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0


def load_model(model: str, dtype: str = "auto", device: str | torch.device = "cpu"):
    """(model, tokenizer) from a folder or a hub name. Raises BadInput in one line if that is not possible."""
    if not Path(model).exists() and (HERE / model).exists():  # the embedded policy, from any working directory
        model = str(HERE / model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        return AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(device), tokenizer
    except Exception as error:  # readers of weights and tokenizers raise errors of many kinds
        raise BadInput(f"model={model!r}: cannot be loaded ({first_line(error)})") from error


def add_adapter(model, lora: Lora = Lora(), folder: Path | None = None) -> PeftModel:
    """The model with a trainable adapter: a fresh one from the global random state, or the one saved in `folder`."""
    options = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    with warnings.catch_warnings():  # about a property that peft reads and transformers renames
        warnings.simplefilter("ignore", FutureWarning)
        if folder is not None:
            return PeftModel.from_pretrained(model, folder, is_trainable=True)
        return get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **options))

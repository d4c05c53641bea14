"""Conversations as token ids.

Token in, token out: an `Episode` holds the exact ids of its conversation. The first prompt is rendered once with the
chat template, sampled ids are appended as they are (stop token included), and each later observation is appended as
the template's suffix for one more user turn. History is never rendered or tokenised again, so what is trained is
what was sampled, and one episode is one training sequence however many turns it has.
"""

import functools
import re

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from engine.errors import BadInput, first_line
from rollout import Episode


class ChatFormat:
    """Turns messages into token ids with the tokenizer's chat template, piece by piece.

    All message text is data: special tokens spelled out in it are broken up before it is tokenised, so only the
    template itself can produce them; and the template never sees it, so it switches nothing there. Raises BadInput if
    the template cannot be used this way.
    """

    TEXT = "The next observation 82."  # a stand-in, found again in rendered text

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        if tokenizer.chat_template is None:
            raise self._unusable("is missing; an instruction-tuned model is needed")
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special} - {""}
        self.special = sorted(special, key=lambda token: (-len(token), token))  # an order that every process shares
        self.merges_system = False
        try:
            self._around_reply(1, self.TEXT)
        except BadInput:  # some templates know no system role: then the rules open the first user message
            self.merges_system = True
        self.encode = functools.lru_cache(maxsize=20_000)(self._encode)  # observations recur, first prompts do not
        opening, following = self._around_reply(1, self.TEXT)
        # what stands between a reply and the text of the next user message, and after that text
        self.before, self.after = following.split(self.TEXT)
        for turns, text in ((1, "Another one,\n\n4: 7"), (3, self.TEXT)):
            if self._around_reply(turns, text)[1] != self.before + text + self.after:
                raise self._unusable("renders the same kind of turn in different ways")
        # what stands before a reply in the history but not in the prompt for one: in harmony the model is to choose the
        # channel itself. What it wrote in another one (its thoughts) would be taken for the reply, as that channel ends
        # with the same token; so replies are opened in the channel in which the history shows them
        self.channel = opening.removeprefix(self.after) if opening.startswith(self.after) else ""
        if not any(token in self.channel for token in self.special):
            self.channel = ""  # the model writes a mere space or line break itself
        elif opening != self._around_reply(3, self.TEXT)[0] or following == self._around_reply(1, self.TEXT, False)[1]:
            raise self._unusable(f"asks for a reply with {self.after!r} only, but shows replies after {opening!r}")
        self.after += self.channel
        self.turn_end = self._encode(self.before + " ")[0]  # (an empty `before` has no first token)
        if tokenizer.convert_ids_to_tokens(self.turn_end) not in self.special:
            raise self._unusable(f"ends a reply with {self.before[:20]!r}, which is no special token to stop at")
        self.stop_ids = {self.turn_end, tokenizer.eos_token_id} - {None}

    def _around_reply(self, turns: int, text: str, prompt: bool = True) -> tuple[str, str]:
        """What the template puts around the last of `turns` replies when a user message with this text follows: first
        what is between the reply and the user message that it answers, then all that comes after it (with the prompt
        for the next reply)."""
        messages = [{"role": "system", "content": "The rules 53."}]
        for n in range(turns):
            messages.append({"role": "user", "content": f"Observation {n}."})
            messages.append({"role": "assistant", "content": f"Reply {n}."})
        messages.append({"role": "user", "content": text})
        rendered = self._render(messages, add_generation_prompt=prompt)
        places = [rendered.find(message["content"]) for message in messages]
        if places != sorted(places) or any(rendered.count(message["content"]) != 1 for message in messages):
            raise self._unusable("does not show every message once and in order")
        upto_reply, following = rendered.split(messages[-2]["content"])
        return upto_reply.split(messages[-3]["content"])[1], following

    def _unusable(self, why: str) -> BadInput:
        return BadInput(f"model={self.tokenizer.name_or_path!r}: its chat template {why}")

    def open_turn(self, episode: Episode) -> None:
        """Append everything up to where the assistant's next reply begins.

        At first that is the whole rendered conversation; later the end of the assistant's turn (unless the reply ended
        it itself), a user turn with the last message, and the opening of the assistant's turn.
        """
        if not episode.ids:
            episode.add(self._encode(self._first_prompt(episode.messages)))
        else:
            ids = self.encode(self.before + self.clean(episode.messages[-1]["content"]) + self.after)
            episode.add(ids[1:] if episode.ids[-1] == ids[0] else ids)

    def _first_prompt(self, messages: list[dict]) -> str:
        """The conversation up to where its first reply begins. The template renders stand-ins, whose places the texts
        take then: templates look for switches in a text (/think), trim it, or take it for what a tool answers."""
        texts = {f"The text {n} of all": self.clean(message["content"]) for n, message in enumerate(messages)}
        stand_ins = [{**message, "content": name} for message, name in zip(messages, texts, strict=True)]
        rendered = self._render(stand_ins, add_generation_prompt=True) + self.channel
        return re.sub("|".join(texts), lambda found: texts[found[0]], rendered)

    def check_ids(self, n_rows: int) -> None:
        """Raise BadInput if a conversation could hold an id for which an embedding of so many rows has none.

        Special tokens beyond it, as for images, do no harm: text never makes them. Those of the template do count.
        """
        vocabulary = self.tokenizer.get_vocab()
        messages = [{"role": "system", "content": self.TEXT}, {"role": "user", "content": self.TEXT}]
        rendered = self._first_prompt(messages) + self.before + self.after
        ids = set(vocabulary.values()) - {vocabulary.get(token) for token in self.special} | {*self._encode(rendered)}
        if max(ids) >= n_rows:
            name, n_ids = self.tokenizer.name_or_path, max(vocabulary.values()) + 1
            raise BadInput(f"model={name!r}: its tokenizer has {n_ids} ids, but its embedding only {n_rows} rows")

    def turn_length(self, text: str) -> int:
        """Tokens that a later user turn with this text takes, up to where the reply begins."""
        return len(self._encode(self.before + self.clean(text) + self.after))

    def text(self, ids: list[int]) -> str:
        """A sampled reply as text, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def clean(self, text: str) -> str:
        """Text without anything that would be tokenised as a special token: a space goes after its first character, or
        it is taken out where that would leave or make one (it is a single character, or begins with a space).

        It ends: each space widens the gap behind a character, and no set of tokens has all gaps.
        """
        while found := [token for token in self.special if token in text]:
            for token in found:
                apart = f"{token[0]} {token[1:]}"
                text = text.replace(token, "" if any(other in apart for other in self.special) else apart)
        return text

    def _render(self, messages: list[dict], **options) -> str:
        if self.merges_system and messages[0]["role"] == "system":
            system, user, *rest = messages
            messages = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
        try:  # models with a thinking mode read enable_thinking; other templates ignore it
            return self.tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False, **options)
        except (TemplateError, TypeError, ValueError) as error:  # it raises, is faulty, or is several with no default
            raise self._unusable(f"refuses the conversation: {first_line(error)}") from error

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

"""An environment of which all is known: each pack has a secret word, each task asks for it and then tells it.

Whoever reads it in a hint has it right, whoever does not has it wrong.
"""

import re

from environments.player import Player, update_reply
from environments.task import Task


class Words(Task):
    levels = ("tiny",)
    max_turns = 1

    def __init__(self, word, number):
        self.word, self.number = word, number
        self.rules = "Say the word."

    @classmethod
    def make_tasks(cls, rng, size, level):
        word = "".join(rng.choices("abcdefgh", k=8))
        return [cls(word, number) for number in range(size)]

    def shared_secret(self):
        return self.word

    @classmethod
    def grade_hint(cls, hint, played):
        return {"right": float(played[-1].word in hint)}

    def reset(self):
        self.reward = 0.0
        return f"Task {self.number}. What is it?"

    def step(self, reply):
        self.reward = float(reply == self.word)
        self.feedback = f"The word is {self.word}."
        return self.feedback, True


class Learner(Player):
    """Says the last word that it has read, and writes it down."""

    def act(self, messages):
        text = "\n".join(message["content"] for message in messages)
        return ["?", *re.findall(r"word is (\w+)", text)][-1]

    def hint(self, messages):
        return update_reply([f"the word is {self.act(messages)}"])


class Silent(Learner):
    """Reads like the learner, but writes nothing."""

    def hint(self, messages):
        return update_reply(["nothing"])


class Guesser(Player):
    def act(self, messages):
        return self.rng.choice("abcdefgh")


PLAYERS = {"random": Guesser, "learner": Learner, "silent": Silent}

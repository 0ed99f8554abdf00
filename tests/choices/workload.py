"""Conversations of several turns that share system prompts, a few of them much more often than the rest."""

import random
from dataclasses import dataclass
from typing import Any

from tests.engine_simulator.text import VOCABULARY

Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How much of what; lengths in bytes, each drawn evenly between two ends."""

    conversations: int = 400
    users: int = 32
    """Conversations that go on at a time."""
    system_prompts: int = 12
    """The n-th is used 1/n times as often as the first."""
    system_bytes: tuple[int, int] = (1_000, 8_000)
    turns: tuple[int, int] = (2, 8)
    question_bytes: tuple[int, int] = (30, 400)
    answer_bytes: tuple[int, int] = (100, 800)
    seed: int = 1
    greeting: str = ""
    """What every system prompt begins with."""


class Conversation:
    """What one user will say; `ask` gives the messages of the next turn."""

    def __init__(self, system: str, questions: list[str]) -> None:
        self._questions = questions
        self._messages: list[Message] = [{"role": "system", "content": system}]

    def is_over(self) -> bool:
        """Whether nothing is left to be asked."""
        return not self._questions

    def ask(self) -> list[Message]:
        """All messages so far and the next question."""
        self._messages.append({"role": "user", "content": self._questions.pop(0)})
        return self._messages

    def hear(self, answer: str) -> None:
        """Take in the answer to the last question."""
        self._messages.append({"role": "assistant", "content": answer})


def text(source: random.Random, length: int) -> str:
    """So many bytes of words."""
    return " ".join(source.choices(VOCABULARY, k=1 + length // 4))[:length]


def conversations(shape: Shape) -> list[Conversation]:
    """The conversations of a workload, in the order in which they begin; the same for the same shape."""
    source = random.Random(shape.seed)  # noqa: S311 - repeatable, not secret
    systems = [shape.greeting + text(source, source.randint(*shape.system_bytes)) for _ in range(shape.system_prompts)]
    weights = [1 / (rank + 1) for rank in range(len(systems))]
    return [
        Conversation(
            source.choices(systems, weights)[0],
            [text(source, source.randint(*shape.question_bytes)) for _ in range(source.randint(*shape.turns))],
        )
        for _ in range(shape.conversations)
    ]


@dataclass(frozen=True)
class Outcome:
    """What came of a workload."""

    hit_rate: float
    """Tokens of the prompts that were cached, of all."""
    requests: tuple[int, ...]
    """By worker."""

    def most_over_mean(self) -> float:
        """Requests of the busiest worker, over the mean."""
        return max(self.requests) * len(self.requests) / sum(self.requests)

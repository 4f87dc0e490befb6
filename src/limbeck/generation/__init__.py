"""What teachers write: answers to prompts, kept as knowledge (sequence-level distillation)."""

from limbeck.generation.answered import answered, answered_splits, make_answers
from limbeck.generation.answers import Answer, Answerer, Answers, Ask, generate
from limbeck.generation.local import LocalTeacher
from limbeck.generation.server import ServerTeacher

__all__ = [
    "Answer",
    "Answerer",
    "Answers",
    "Ask",
    "LocalTeacher",
    "ServerTeacher",
    "answered",
    "answered_splits",
    "generate",
    "make_answers",
]

"""What differs between problems: labels, tensors, predictions, metrics."""

from limbeck.tasks.task import Task
from limbeck.tasks.text import collate, encode

__all__ = ["Task", "collate", "encode"]

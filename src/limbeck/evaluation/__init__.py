"""What was kept: quality, fidelity, calibration, speed, size; every model through the same code."""

from limbeck.evaluation.evaluate import describe_task, evaluate_models, text_lengths
from limbeck.evaluation.language import evaluate_language
from limbeck.evaluation.trees import describe_tree

__all__ = ["describe_task", "describe_tree", "evaluate_language", "evaluate_models", "text_lengths"]

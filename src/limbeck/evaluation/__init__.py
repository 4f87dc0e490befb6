"""What was kept: quality, fidelity, calibration, speed, size; every model through the same code."""

from limbeck.evaluation.evaluate import describe_task, evaluate_models
from limbeck.evaluation.language import evaluate_language

__all__ = ["describe_task", "evaluate_language", "evaluate_models"]

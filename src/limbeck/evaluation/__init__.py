"""What was kept: quality, fidelity, calibration, speed, size; every model through the same code."""

from limbeck.evaluation.evaluate import describe_task, evaluate_models

__all__ = ["describe_task", "evaluate_models"]

"""What was kept: quality, fidelity, calibration, speed, size; every model through the same code."""

from limbeck.evaluation.evaluate import evaluate_models

__all__ = ["evaluate_models"]

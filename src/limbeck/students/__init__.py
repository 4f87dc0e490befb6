"""Building the small model."""

from limbeck.students.building import build_student, cut_model
from limbeck.students.conversion import as_distilbert
from limbeck.students.layers import PATTERNS, chosen_layers, keep_layers, layers_of_pattern, layers_table

__all__ = [
    "PATTERNS",
    "as_distilbert",
    "build_student",
    "chosen_layers",
    "cut_model",
    "keep_layers",
    "layers_of_pattern",
    "layers_table",
]

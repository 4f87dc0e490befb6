"""Building the small model."""

from limbeck.students.building import build_student
from limbeck.students.layers import PATTERNS, keep_layers, layers_of_pattern, layers_table

__all__ = ["PATTERNS", "build_student", "keep_layers", "layers_of_pattern", "layers_table"]

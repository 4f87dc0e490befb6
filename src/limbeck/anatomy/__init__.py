"""Where an architecture keeps its parts, and reading them while it runs."""

from limbeck.anatomy.capture import Capture, WordsAt
from limbeck.anatomy.layers import layer_list
from limbeck.anatomy.parts import PARTS, language_head, language_head_path, parts_of
from limbeck.anatomy.shape import Shape, outside_embeddings, shape_of
from limbeck.anatomy.vocabulary import StatesAt, VocabularyHead, check_head

__all__ = [
    "PARTS",
    "Capture",
    "Shape",
    "StatesAt",
    "VocabularyHead",
    "WordsAt",
    "check_head",
    "language_head",
    "language_head_path",
    "layer_list",
    "outside_embeddings",
    "parts_of",
    "shape_of",
]

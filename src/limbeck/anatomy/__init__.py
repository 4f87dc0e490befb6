"""Where an architecture keeps its parts."""

from limbeck.anatomy.layers import layer_list

__all__ = ["layer_list"]

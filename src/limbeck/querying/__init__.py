"""Choosing what to ask a teacher about, where each query costs."""

from limbeck.querying.choosing import most_uncertain, spread_out
from limbeck.querying.rounds import ask_in_rounds, check_queries

__all__ = ["ask_in_rounds", "check_queries", "most_uncertain", "spread_out"]

"""Rules over inputs and outputs: projecting a teacher onto them, holding a model to them, counting what breaks them."""

from limbeck.rules.file import Rule, RuleBook, When, load_rules
from limbeck.rules.labels import LabelRules, apply

__all__ = ["LabelRules", "Rule", "RuleBook", "When", "apply", "load_rules"]

"""Rules over inputs and outputs: projecting a teacher onto them, holding a model to them, counting what breaks them."""

from limbeck.rules.file import Rule, RuleBook, When, load_rules
from limbeck.rules.labels import LabelRules, apply
from limbeck.rules.text import TextRules, rerank, violations

__all__ = ["LabelRules", "Rule", "RuleBook", "TextRules", "When", "apply", "load_rules", "rerank", "violations"]

"""Rules for generated text: what breaks them, how often, and choosing among candidates."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import InputError
from limbeck.extras import require
from limbeck.rules.conditions import Flags, applies, parts, whole_words
from limbeck.rules.file import Rule, RuleBook, load_rules
from limbeck.tasks.task import Array


class TextRules:
    """Rules about generated text.

    Outputs are judged as whole texts; white space around them breaks no rule.

    Args:
        book: the rules.

    Raises:
        InputError: rules about labels, a JSON Schema or a grammar that is none, or no package to read them with.
    """

    def __init__(self, book: RuleBook) -> None:
        if not book.about_text:
            raise InputError(
                f"rule '{book.rules[0].name}' has {book.rules[0].demand}, which is about labels, and this is about "
                "generated text; use regex, json_schema, grammar, answers, avoid or max_words"
            )
        self.book, self.rules = book, book.rules
        for rule in self.rules:
            if parts(rule.when):
                raise InputError(f"rule '{rule.name}' asks for a part of a pair, and a prompt is a single text")
        self._keeps = [_judge(rule) for rule in self.rules]

    def applies(self, prompts: Sequence[str]) -> Flags:
        """Which rules are about which prompts, bool [N, R]."""
        return applies(self.rules, {"text": prompts})

    def broken(self, prompts: Sequence[str], outputs: Sequence[str]) -> Flags:
        """Which rules are broken by the outputs to N prompts, bool [N, R]."""
        found = self.applies(prompts)
        for row, output in enumerate(outputs):
            for number in np.flatnonzero(found[row]):
                keeps = self._keeps[number]
                found[row, number] = not (keeps(output) or keeps(output.strip()))
        return found

    def cost(self, prompts: Sequence[str], outputs: Sequence[str]) -> Array:
        """The weights of the rules that each output breaks, summed; infinite for a hard one. float64 [N]."""
        weights = np.array([np.inf if rule.weight == "hard" else rule.weight for rule in self.rules])
        return np.asarray(np.where(self.broken(prompts, outputs), weights, 0.0).sum(1))


def violations(
    rules: str | Path | RuleBook | TextRules, prompts: Sequence[str], outputs: Sequence[str]
) -> dict[str, Any]:
    """How often outputs break rules.

    Args:
        rules: a rules file, its content, or that made ready.
        prompts: N inputs, which conditions look at.
        outputs: what was generated for them.

    Returns:
        `hard` and `soft`, the share of outputs that break some rule of the kind (None where there is none), and
        `by_rule`, by name `weight`, the number of prompts that it `applies` to, and the share of all outputs that is
        `broken`.

    Raises:
        InputError: as `load_rules` and `TextRules`; other numbers of prompts and outputs.
    """
    if len(prompts) != len(outputs) or not len(outputs):
        raise InputError(f"{len(prompts)} prompts and {len(outputs)} outputs; give an output for each prompt")
    ready = _ready(rules)
    return rates(ready.rules, ready.applies(prompts), ready.broken(prompts, outputs))


def rates(rules: Sequence[Rule], about: Flags, broken: Flags) -> dict[str, Any]:
    """What `violations` returns, from which rules are about N examples and broken there, bool [N, R] each."""
    hard = np.array([rule.hard for rule in rules])
    return {
        "hard": float(broken[:, hard].any(axis=1).mean()) if hard.any() else None,
        "soft": float(broken[:, ~hard].any(axis=1).mean()) if not hard.all() else None,
        "by_rule": {
            rule.name: {
                "weight": rule.weight,
                "applies": int(about[:, number].sum()),
                "broken": float(broken[:, number].mean()),
            }
            for number, rule in enumerate(rules)
        },
    }


def rerank(
    rules: str | Path | RuleBook | TextRules,
    prompts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    log_probabilities: Sequence[Sequence[float]],
) -> list[int]:
    """Choose among several outputs for each prompt: the likeliest by log p(y|x) - sum_r w_r [y breaks r].

    That is the likeliest of them under the model's distribution projected onto the rules (posterior regularisation,
    Ganchev et al. 2010). Where every candidate breaks a hard rule, the one that breaks the fewest is chosen; the other
    terms decide among equals.

    Args:
        rules: a rules file, its content, or that made ready.
        prompts: N inputs.
        candidates: the outputs for each.
        log_probabilities: of each candidate, summed over its tokens.

    Returns:
        The number of the chosen candidate for each prompt.

    Raises:
        InputError: as `violations`.
    """
    ready = _ready(rules)
    hard = np.array([rule.hard for rule in ready.rules])
    weights = np.array([0.0 if rule.weight == "hard" else rule.weight for rule in ready.rules])
    chosen = []
    for prompt, outputs, likelihoods in zip(prompts, candidates, log_probabilities, strict=True):
        if len(outputs) != len(likelihoods) or not len(outputs):
            raise InputError(f"{len(outputs)} candidates and {len(likelihoods)} log-probabilities; give one for each")
        broken = ready.broken([prompt] * len(outputs), outputs)
        worth = np.asarray(likelihoods, dtype=np.float64) - broken @ weights
        chosen.append(int(np.lexsort((-worth, broken[:, hard].sum(1)))[0]))
    return chosen


@cache
def byte_tokenizer() -> Any:  # noqa: ANN401
    """A tokenizer of single bytes, to read texts by grammars with."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def grammar_problem(grammar: str) -> str:
    """What is wrong with a grammar of llguidance, in one line; empty where nothing is."""
    from llguidance import LLMatcher

    return " ".join(LLMatcher.validate_grammar(grammar, byte_tokenizer()).split())[:300]


def _ready(rules: str | Path | RuleBook | TextRules) -> TextRules:
    if isinstance(rules, TextRules):
        return rules
    return TextRules(rules if isinstance(rules, RuleBook) else load_rules(rules))


def _judge(rule: Rule) -> Callable[[str], bool]:
    """A function that says whether an output keeps the rule."""
    if rule.regex is not None:
        pattern = re.compile(rule.regex)
        return lambda output: pattern.fullmatch(output) is not None
    if rule.answers is not None:
        known = {answer.strip() for answer in rule.answers}
        return lambda output: output in known
    if rule.avoid is not None:
        banned = whole_words(rule.avoid)
        return lambda output: banned.search(output) is None
    if rule.json_schema is not None:
        return _fits_schema(rule.name, rule.json_schema)
    if rule.grammar is not None:
        return _fits_grammar(rule.name, rule.grammar)
    most = rule.max_words or 0
    return lambda output: len(output.split()) <= most


def _fits_schema(name: str, schema: dict[str, Any]) -> Callable[[str], bool]:
    require("rules", "a rule with json_schema")
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise InputError(f"rule '{name}': json_schema is no JSON Schema: {error.message}") from None
    validator = kind(schema, registry=Registry())  # the default one would fetch references from the network

    def fits(output: str) -> bool:
        try:
            return bool(validator.is_valid(json.loads(output, parse_constant=_refuse_constant)))
        except Unresolvable as error:
            raise InputError(f"rule '{name}': json_schema refers to {error.ref}, which is not in it") from None
        except (ValueError, RecursionError):
            return False

    return fits


def _refuse_constant(constant: str) -> None:
    """NaN and Infinity are Python's, not JSON's."""
    raise ValueError(constant)


def _fits_grammar(name: str, grammar: str) -> Callable[[str], bool]:
    require("rules", "a rule with grammar")
    from llguidance import LLMatcher

    made = LLMatcher.grammar_from_lark(grammar)
    problem = grammar_problem(made)
    if problem:
        raise InputError(f"rule '{name}': grammar is no Lark grammar: {problem}")
    start = LLMatcher(byte_tokenizer(), made, log_level=0)

    def fits(output: str) -> bool:
        reader = start.deep_copy()
        tokens = list(output.encode())
        return bool(reader.try_consume_tokens(tokens) == len(tokens) and reader.is_accepting())

    return fits

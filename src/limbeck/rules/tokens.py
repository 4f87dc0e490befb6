"""Rules for generated text, token by token: projecting next-token distributions, and constrained decoding.

Each rule becomes a grammar of llguidance, which says for every history which tokens can still lead to a text that
keeps the rule. Rules that are regular (`regex`, `answers`, `avoid`, `max_words`) and hard are one grammar, their
intersection, so that no token is allowed from which only some of them could be kept. A `json_schema` or `grammar` is
followed beside it, and a token must be allowed by each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from limbeck.errors import InputError
from limbeck.extras import require
from limbeck.rules.conditions import Flags, spelled
from limbeck.rules.file import Rule, RuleBook
from limbeck.rules.labels import CERTAIN
from limbeck.rules.text import TextRules, grammar_problem

JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON is written as Python's `json.dumps` writes it: free white space lets small models write nothing else."""


class TokenRules:
    """Rules about generated text, ready for one tokenizer.

    Args:
        book: the rules.
        tokenizer: a fast tokenizer.
        vocabulary: the model's number of logits, where it has more than the tokenizer has tokens.
        eos: the tokens that end a text; the tokenizer's own when not given.

    Attributes:
        text: the same rules over whole texts.
        weights: float64 [G]: infinite for the hard rules together, then the weight of each soft rule.

    Raises:
        InputError: the `rules` extra is missing, rules about labels, a slow tokenizer, a tokenizer without an end, an
            expression or a schema that cannot be followed, or hard rules that no text keeps.
    """

    def __init__(
        self,
        book: RuleBook,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: int | None = None,
        eos: int | list[int] | None = None,
    ) -> None:
        require("rules", "holding generated text to rules")
        from llguidance.hf import from_tokenizer

        self.text = TextRules(book)
        if not tokenizer.is_fast:
            raise InputError(f"rules need a fast tokenizer, and {type(tokenizer).__name__} is a slow one")
        ends = tokenizer.eos_token_id if eos is None else eos
        if ends is None:
            raise InputError(f"the tokenizer of {type(tokenizer).__name__} has no end token; set tokenizer.eos_token")
        self.eos: list[int] = ends if isinstance(ends, list) else [ends]
        size = max(vocabulary or 0, len(tokenizer))
        self._tokens = from_tokenizer(tokenizer, n_vocab=size, eos_token=ends)
        self.words = -(-self._tokens.vocab_size // 32)
        soft = [rule for rule in book.rules if not rule.hard]
        self.weights = torch.tensor([np.inf, *(float(rule.weight) for rule in soft)], dtype=torch.float64)
        self._grammars = [_grammar(rule) for rule in book.rules]
        self._started: dict[bytes, list[list[Any]]] = {}
        always = np.array([rule.when is None for rule in book.rules])
        for number in range(len(book.rules)):
            self._matchers(always | (np.arange(len(always)) == number))

    def start(self, prompt: str) -> Follower:
        """Follows one completion of a prompt from its first token on."""
        return Follower([[each.deep_copy() for each in group] for group in self._matchers(self._active(prompt))], self)

    def masks(self, prompt: str, completion: Sequence[int]) -> torch.Tensor:
        """Which tokens the rules allow at each place of a completion, given what stands before it.

        Args:
            prompt: what the rules' conditions look at.
            completion: L token ids, with the end token if it was generated.

        Returns:
            int32 [L, G, W], a bit for each of the 32 * W tokens, for `project`. A group of which the completion has
            already broken a rule allows everything from there on: nothing is projected where nothing can be kept.
            Where the rules leave one text only, its usual tokens alone are allowed, not every way of cutting it.
        """
        follower = self.start(prompt)
        found = torch.empty((len(completion), len(self.weights), self.words), dtype=torch.int32)
        for place, token in enumerate(completion):
            found[place] = follower.masks()
            follower.consume(token)
        return found

    def follows(self, prompt: str, completion: Sequence[int]) -> bool:
        """Whether a completion keeps the hard rules in each of its tokens, up to one that ends it; as of `masks`."""
        end = next((place for place, token in enumerate(completion) if token in self.eos), len(completion))
        matchers = [each.deep_copy() for each in self._matchers(self._active(prompt))[0]]
        goes = all(each.try_consume_tokens([*completion[:end]]) == end for each in matchers)
        return goes and (end == len(completion) or all(each.is_accepting() for each in matchers))

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse rules that contradict each other on some prompt, before anything costly.

        Raises:
            InputError: hard rules that leave no text to begin with, or a soft one that no such text keeps; names the
                rules and the prompt.
        """
        about = self.text.applies(prompts)
        for active, first in zip(*np.unique(about, axis=0, return_index=True), strict=True):
            try:
                self._check_soft(active, self.start(prompts[first]).masks())
            except InputError as error:
                raise InputError(f"{error} (on the prompt '{prompts[first][:80]}')") from None

    def project(self, logits: torch.Tensor, masks: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Next-token distributions projected onto the rules.

        p'(v) is proportional to p(v) exp(-sum_r w_r [v breaks r]), where a token breaks a rule that was kept so far if
        no text that begins so keeps it. For hard rules that is exact about the next token, and idempotent. It is the
        local form of posterior regularisation: exact over whole texts only where all continuations are as likely to
        break the rules later on.

        Args:
            logits: float [N, V] of a model, of any device.
            masks: int32 [N, G, W], as of `masks`.
            rows: int64 [N]; where equal masks are there once, which of them is each row's.

        Returns:
            Logits [N, V] of the same type; tokens that a hard rule forbids are 1e4 below the others together. A row of
            which the hard rules allow nothing stays as it is but for the soft ones.
        """
        moved, possible = self._penalised(logits, masks, rows)
        rest = moved.masked_fill(~possible, -torch.inf).logsumexp(-1, keepdim=True) - CERTAIN
        return torch.where(possible, moved, rest)

    def _penalised(
        self, logits: torch.Tensor, masks: torch.Tensor, rows: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [N, V] with the soft penalties, and the tokens that the hard rules allow."""
        bits = _unpack(masks.to(logits.device), logits.shape[-1])
        if rows is not None:
            bits = bits[rows.to(logits.device)]
        possible = bits[:, 0] | ~bits[:, 0].any(-1, keepdim=True)
        for group, weight in enumerate(self.weights[1:].tolist(), 1):
            logits = torch.where(bits[:, group], logits, logits - weight)
        return logits, possible

    def _active(self, prompt: str) -> Flags:
        return np.asarray(self.text.applies([prompt])[0])

    def _matchers(self, active: Flags) -> list[list[Any]]:
        """Matchers at their start for the rules in play, by group."""
        from llguidance import LLMatcher

        key = active.tobytes()
        if key not in self._started:
            each = list(zip(self.text.rules, self._grammars, active, strict=True))
            groups = [_together([grammar for rule, grammar, on in each if on and rule.hard])]
            groups += [_together([grammar] if on else []) for rule, grammar, on in each if not rule.hard]
            made = [[LLMatcher(self._tokens, each, log_level=0) for each in group] for group in groups]
            self._check(made[0], [rule for rule, _, on in each if on and rule.hard])
            self._started[key] = made
        return self._started[key]

    def _check(self, matchers: list[Any], hard: list[Rule]) -> None:
        """Refuse hard rules that leave nothing to begin with."""
        masks = [_bits(each, self.words) for each in matchers]  # which is also when a matcher finds that it is empty
        broken = next((" ".join(each.get_error().split())[:300] for each in matchers if each.is_error()), None)
        if broken is None and masks and not np.bitwise_and.reduce(masks).any():
            broken = "no token is left to begin with"
        if broken is not None:
            names = " and ".join(f"'{rule.name}'" for rule in hard)
            raise InputError(
                f"no text keeps the hard rules {names} ({broken}); give one of them a number as weight, or narrow one "
                "with when"
            )

    def _check_soft(self, active: Flags, masks: torch.Tensor) -> None:
        """Refuse soft rules that every text breaks which keeps the hard ones, by the tokens it may begin with."""
        hard = [f"'{rule.name}'" for rule, on in zip(self.text.rules, active, strict=True) if on and rule.hard]
        soft = [(rule, on) for rule, on in zip(self.text.rules, active, strict=True) if not rule.hard]
        for (rule, on), mask in zip(soft, masks[1:], strict=True):
            if on and not (masks[0] & mask).any():
                raise InputError(
                    f"no text that keeps the hard rule{'s' if len(hard) > 1 else ''} {' and '.join(hard)} keeps the "
                    f"rule '{rule.name}', so that it would change nothing; drop it, or narrow one with when"
                )


class Follower:
    """Which tokens may come next in one completion.

    Args:
        matchers: llguidance's matchers by group: the hard rules together, then each soft rule.
        rules: whose they are.
    """

    def __init__(self, matchers: list[list[Any]], rules: TokenRules) -> None:
        self._matchers, self._rules = matchers, rules

    def masks(self) -> torch.Tensor:
        """int32 [G, W]; a group that was broken before, or that has no rule, allows everything."""
        found = np.full((len(self._matchers), self._rules.words), -1, dtype=np.int32)
        for group, matchers in enumerate(self._matchers):
            for matcher in matchers:
                found[group] &= _bits(matcher, self._rules.words)
        return torch.from_numpy(found)

    def consume(self, token: int) -> None:
        """Go on by a token. A group that it breaks is over, and with a token that ends the text all are."""
        if token in self._rules.eos:
            self._matchers = [[] for _ in self._matchers]
        for group, matchers in enumerate(self._matchers):
            if not all(matcher.consume_token(token) for matcher in matchers):
                self._matchers[group] = []

    def copy(self) -> Follower:
        """The same place again, to go on from it by another token."""
        return Follower([[each.deep_copy() for each in group] for group in self._matchers], self._rules)


class RulesProcessor(LogitsProcessor):
    """Holds `model.generate` to rules: `generate(..., logits_processor=[RulesProcessor(rules, prompts)])`.

    For one call of `generate`, greedy, sampled or with beams. A hard rule is kept by every text that ends by itself: a
    text that is cut off at the most new tokens may break it, so that grammars should bound their lengths. Where
    several hard rules leave no token at all, which only a `json_schema` or `grammar` beside others can do, the text
    ends, and breaks one. Soft rules take their weight off the logits of the tokens that break them.

    Args:
        rules: for the model's tokenizer.
        prompts: the texts that the rules' conditions look at, one for each prompt of the batch.
    """

    def __init__(self, rules: TokenRules, prompts: Sequence[str]) -> None:
        self.rules, self.prompts = rules, prompts
        self._length: int | None = None
        self._followed: dict[tuple[int, tuple[int, ...]], Follower] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] for the next token of the rows of input_ids [B, n]; -inf for what hard rules forbid."""
        if self._length is None:
            self._length = input_ids.shape[1]
        each = len(input_ids) // len(self.prompts)
        followed: dict[tuple[int, tuple[int, ...]], Follower] = {}
        masks = torch.empty((len(input_ids), len(self.rules.weights), self.rules.words), dtype=torch.int32)
        for row, history in enumerate(input_ids[:, self._length :].tolist()):
            place = (row // each, tuple(history))
            if place not in followed:
                followed[place] = self._at(*place)
            masks[row] = followed[place].masks()
        self._followed = followed
        moved, possible = self.rules._penalised(scores, masks)
        stuck = ~_unpack(masks[:, 0].to(scores.device), scores.shape[-1]).any(-1)
        if stuck.any():
            possible[stuck] = False
            possible[stuck.nonzero(), self.rules.eos] = True
        return moved.masked_fill(~possible, -torch.inf)

    def _at(self, prompt: int, history: tuple[int, ...]) -> Follower:
        """Where a completion stands: one token on from the last call's."""
        if not history:
            return self.rules.start(self.prompts[prompt])
        follower = self._followed[prompt, history[:-1]].copy()
        follower.consume(history[-1])
        return follower


def _bits(matcher: Any, words: int) -> Any:  # noqa: ANN401
    return np.frombuffer(matcher.compute_bitmask(), dtype=np.int32)[:words]  # of 32 n tokens it gives n + 1 words


def _unpack(masks: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Bits [..., W] as bool [..., vocabulary]; what lies beyond them is False."""
    shifts = torch.arange(32, dtype=torch.int32, device=masks.device)
    bits = ((masks[..., None] >> shifts) & 1).bool().flatten(-2)
    missing = vocabulary - bits.shape[-1]
    return torch.nn.functional.pad(bits, (0, missing)) if missing > 0 else bits[..., :vocabulary]


class _Grammar(NamedTuple):
    """A terminal of llguidance's Lark dialect, or where it is not regular a whole grammar of llguidance."""

    regular: bool
    content: str


def _grammar(rule: Rule) -> _Grammar:
    from llguidance import LLMatcher

    if rule.json_schema is not None:
        schema = json.dumps(rule.json_schema)
        made = _Grammar(False, LLMatcher.grammar_from_json_schema(schema, overrides=JSON_STYLE))
    elif rule.grammar is not None:
        made = _Grammar(False, LLMatcher.grammar_from_lark(rule.grammar))
    else:
        made = _Grammar(True, _terminal(rule))
    problem = grammar_problem(_together([made])[0])
    if problem:
        raise InputError(f"rule '{rule.name}': {rule.demand} cannot be followed in generation: {problem}")
    return made


def _terminal(rule: Rule) -> str:
    """The texts that keep a regular rule; see `limbeck.rules.text` for the same in Python."""
    if rule.regex is not None:
        return _pattern(rule.regex)
    if rule.answers is not None:
        return _pattern("|".join(re.escape(answer.strip()) for answer in rule.answers))
    if rule.avoid is not None:
        rest = {True: "(?s:.*)", False: r"(?s:\W.*)?"}
        each = [f"(?i:{letters}){rest[begins]}" for letters, begins in map(spelled, rule.avoid)]
        # Of all texts: the complement alone has bytes in it that are no text, so that it never comes to an end.
        return "/(?s:.*)/ & ~" + _pattern(r"(?s:.*\W)?(" + "|".join(each) + ")")
    assert rule.max_words is not None
    return _pattern(r"\s*(\S+(\s+\S+){0," + str(rule.max_words - 1) + r"}\s*)?")


def _pattern(expression: str) -> str:
    from llguidance import regex_to_lark

    return f"/{regex_to_lark(expression, use_ascii='')}/"


def _together(grammars: Sequence[_Grammar]) -> list[str]:
    """Grammars that together say what all of these say: one of the regular ones, and each of the others."""
    from llguidance import LLMatcher

    terminals = [each.content for each in grammars if each.regular]
    others = [each.content for each in grammars if not each.regular]
    return [*others, *([LLMatcher.grammar_from_lark(f"start: T\nT: {' & '.join(terminals)}\n")] if terminals else [])]

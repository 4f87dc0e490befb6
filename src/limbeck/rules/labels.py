"""Rules for classifiers: the exact projection of their outputs, and what breaks a rule.

Posterior regularisation (Ganchev et al. 2010, section 2; with the penalty form of the constraints): of all
distributions q over outputs y, the one with the least KL(q || p) + sum_r w_r P_q(y breaks rule r) is

    q(y) = p(y) exp(-sum_r w_r [y breaks r]) / Z,

and a hard rule is one of infinite weight. Only the rules that are about the input take part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.special import logsumexp

from limbeck.errors import InputError
from limbeck.recipe.sections import nearest
from limbeck.rules.conditions import Flags, Texts, applies, parts
from limbeck.rules.file import Rule, RuleBook, load_rules
from limbeck.tasks import Task
from limbeck.tasks.task import Array, Kind

CERTAIN = 1e4
"""A logit so far below the others that its probability is zero at any temperature in use; -inf would make NaN of
losses and of differences."""
MOST_STATES = 4096
"""Joint settings of the labels that multi-label rules tie together."""
_CHUNK = 2**22  # numbers of a block of rows and joint settings

Broken = tuple[tuple[int, bool], ...]
"""One way of breaking a multi-label rule: labels (one or two) and how they are set."""


class LabelRules:
    """Rules about the labels of a task.

    Args:
        book: the rules.
        task: classification or multi-label; its labels are the ones that rules name.

    Raises:
        InputError: rules about generated text, another kind of task, an unknown label, a demand or a condition that
            this task does not have, hard rules that leave no label, or labels tied together in too many ways.
    """

    def __init__(self, book: RuleBook, task: Task) -> None:
        if task.kind not in ("classification", "multi-label"):
            raise InputError(f"rules are for classification and multi-label tasks, and the task is {task.kind}")
        if book.about_text:
            raise InputError(
                f"rule '{book.rules[0].name}' has {book.rules[0].demand}, which is about generated text, and the task "
                f"is {task.kind}; use allow or forbid"
            )
        self.book, self.rules, self.task = book, book.rules, task
        for rule in self.rules:
            self._check(rule)
        if task.kind == "classification":
            self._allowed = np.array([self._allowed_labels(rule) for rule in self.rules])
        else:
            self._broken = [list(self._ways(rule)) for rule in self.rules]
        always = np.array([rule.when is None for rule in self.rules])
        for number in range(len(self.rules)):
            self._of_group(np.zeros((1, task.outputs)), always | (np.arange(len(always)) == number))

    def applies(self, texts: Texts) -> Flags:
        """Which rules are about which texts, bool [N, R]."""
        return applies(self.rules, texts)

    def check(self, texts: Texts) -> None:
        """Refuse texts on which hard rules leave no label, before anything costly.

        Raises:
            InputError: names the rules and the text.
        """
        self.project(np.zeros((len(texts["text"]), self.task.outputs)), texts)

    def project(self, logits: Array, texts: Texts) -> Array:
        """The outputs nearest to a model's, in KL, among those that the rules allow.

        classification: exact, and idempotent for hard rules. multi-label: exact over the joint distribution of the
        labels that rules tie together (those of one relation, and all that share a label); the result is its marginals.
        Labels that no rule in play names stay as they are. A threshold of one half on the marginals breaks no hard
        rule, as each is a conjunction of clauses about one or two labels: where a implies b, P(a) is at most P(b), and
        of two that exclude each other P(a) + P(b) is at most one. Marginals have lost what the joint knew, so that
        projecting them as if they were a model's moves them again.

        Args:
            logits: [N, C].
            texts: their N inputs.

        Returns:
            Logits float64 [N, C]. What is impossible is 1e4 below the others; multi-label: at -1e4, and what is sure
            at 1e4.

        Raises:
            InputError: hard rules leave no label on some text, or tie too many labels together.
        """
        out = np.array(logits, dtype=np.float64)
        active = self.applies(texts)
        groups, index = np.unique(active, axis=0, return_inverse=True)
        for number, group in enumerate(groups):
            rows = np.flatnonzero(index.ravel() == number)
            if group.any():
                try:
                    out[rows] = self._of_group(out[rows], group)
                except InputError as error:
                    raise InputError(f"{error} (on the text '{texts['text'][int(rows[0])][:80]}')") from None
        return out

    def broken(self, predicted: Array, texts: Texts) -> Flags:
        """Which rules predictions break.

        Args:
            predicted: class numbers [N] or 0/1 rows [N, C].
            texts: their inputs.

        Returns:
            bool [N, R].
        """
        if self.task.kind == "classification":
            found = ~self._allowed[:, np.asarray(predicted, dtype=int)].T
        else:
            found = np.stack([_breaks(np.asarray(predicted) > 0, ways) for ways in self._broken], axis=1)
        return found & self.applies(texts)

    def _check(self, rule: Rule) -> None:
        several = self.task.kind == "multi-label"
        if rule.demand in ("require", "implies", "excludes") and not several:
            raise InputError(
                f"rule '{rule.name}' has {rule.demand}, which is about several labels at once, and the task is "
                f"{self.task.kind}; use allow or forbid"
            )
        for label in _named(rule):
            if label not in self.task.labels:
                raise InputError(f"rule '{rule.name}' names the label '{label}'; {nearest(label, [*self.task.labels])}")
        if not self.task.pair and parts(rule.when):
            raise InputError(f"rule '{rule.name}' asks for a part of a pair, and the examples are single texts")

    def _allowed_labels(self, rule: Rule) -> list[bool]:
        allow, forbid = rule.allow or self.task.labels, rule.forbid or ()
        return [label in allow and label not in forbid for label in self.task.labels]

    def _ways(self, rule: Rule) -> Iterator[Broken]:
        """Every way of breaking a multi-label rule."""
        place = self.task.labels.index
        if rule.allow is not None:
            yield from (((number, True),) for number, name in enumerate(self.task.labels) if name not in rule.allow)
        for label in rule.forbid or ():
            yield ((place(label), True),)
        for label in rule.require or ():
            yield ((place(label), False),)
        for label, others in (rule.implies or {}).items():
            yield from (((place(label), True), (place(other), False)) for other in others)
        for one, other in combinations(rule.excludes or (), 2):
            yield ((place(one), True), (place(other), True))

    def _of_group(self, logits: Array, active: Flags) -> Array:
        """The projection of rows [n, C] that the same rules are about."""
        if self.task.kind == "multi-label":
            return self._marginals(logits, active)
        hard = np.array([rule.hard for rule in self.rules])
        possible = self._allowed[active & hard].all(0)
        if not possible.any():
            raise InputError(self._contradiction([rule for rule, on in zip(self.rules, active, strict=True) if on]))
        weights = np.array([0.0 if rule.weight == "hard" else rule.weight for rule in self.rules])
        moved = logits - (weights * active) @ ~self._allowed
        rest = logsumexp(moved[:, possible], axis=1, keepdims=True)
        return np.asarray(np.where(possible, moved, rest - CERTAIN))

    def _marginals(self, logits: Array, active: Flags) -> Array:
        out = logits.copy()
        for labels, rules in self._tied(active):
            states, penalty = self._states(labels, rules)
            step = max(1, _CHUNK // len(states))
            for start in range(0, len(out), step):
                rows = slice(start, start + step)
                joint = logits[rows][:, labels] @ states.T - penalty
                for column, label in enumerate(labels):
                    on = states[:, column]
                    with np.errstate(divide="ignore"):
                        odds = _total(joint[:, on]) - _total(joint[:, ~on])
                    out[rows, label] = np.clip(odds, -CERTAIN, CERTAIN)
        return out

    def _tied(self, active: Flags) -> Iterator[tuple[list[int], list[int]]]:
        """Labels that the rules in play tie together, with the numbers of those rules.

        A hard rule is the same as one for each way of breaking it; a soft one is broken once, in however many ways, and
        so ties all of its labels.
        """
        links: list[tuple[set[int], int]] = []
        for number in np.flatnonzero(active).tolist():
            ways = [{label for label, _ in way} for way in self._broken[number]]
            together = ways if self.rules[number].hard else [set().union(*ways)]
            links += [(labels, number) for labels in together if labels]
        while links:
            labels, number = links.pop()
            rules, before = {number}, -1
            while before != len(labels):
                before = len(labels)
                near = [link for link in links if link[0] & labels]
                links = [link for link in links if not link[0] & labels]
                labels = labels.union(*(each for each, _ in near))
                rules |= {rule for _, rule in near}
            yield sorted(labels), sorted(rules)

    def _states(self, labels: list[int], rules: list[int]) -> tuple[Flags, Array]:
        """The joint settings [S, k] of k labels that hard rules allow, and the soft rules' penalty [S] of each."""
        place = {label: column for column, label in enumerate(labels)}
        ways = {
            number: [
                tuple((place[label], on) for label, on in way)
                for way in self._broken[number]
                if all(label in place for label, _ in way)
            ]
            for number in rules
        }
        hard = [way for number in rules if self.rules[number].hard for way in ways[number]]
        states = np.zeros((1, 0), dtype=bool)
        for column in range(len(labels)):
            states = np.concatenate([np.insert(states, column, False, axis=1), np.insert(states, column, True, axis=1)])
            seen = [way for way in hard if max(c for c, _ in way) == column]
            states = states[~_breaks(states, seen)]
            if len(states) > MOST_STATES:
                names = ", ".join(f"'{self.rules[number].name}'" for number in rules)
                raise InputError(
                    f"the rules {names} tie {len(labels)} labels together, which leaves more than {MOST_STATES:,} "
                    "joint settings; name fewer labels in a rule, or make it hard"
                )
        if len(states) == 0:
            raise InputError(self._contradiction([self.rules[number] for number in rules]))
        penalty = np.zeros(len(states))
        for number in rules:
            weight = self.rules[number].weight
            if weight != "hard":
                penalty += weight * _breaks(states, ways[number])
        return states, penalty

    def _contradiction(self, rules: Sequence[Rule]) -> str:
        names = [f"'{rule.name}'" for rule in rules if rule.hard]
        alone = len(names) == 1
        return (
            f"the hard rule{'' if alone else 's'} {' and '.join(names)} leave{'s' if alone else ''} no label; give "
            f"{'it' if alone else 'one of them'} a number as weight, or narrow {'it' if alone else 'one'} with when"
        )


def apply(
    rules: str | Path | RuleBook,
    logits: Array,
    texts: Sequence[str],
    labels: Sequence[str],
    kind: Kind = "classification",
    pairs: Sequence[str] | None = None,
) -> Array:
    """Hold a classifier's outputs to rules, in use: `LabelRules.project` in one call.

    Args:
        rules: a rules file or its content.
        logits: [N, C].
        texts: their inputs.
        labels: the C label names in the order of the outputs, such as `model.config.id2label.values()`.
        kind: `classification` or `multi-label`.
        pairs: the second texts of pairs.

    Returns:
        Logits float64 [N, C].

    Raises:
        InputError: as `load_rules` and `LabelRules`.
    """
    book = rules if isinstance(rules, RuleBook) else load_rules(rules)
    made = LabelRules(book, Task(kind, tuple(labels), pair=pairs is not None))
    return made.project(np.asarray(logits), {"text": texts} | ({} if pairs is None else {"text_pair": pairs}))


def _named(rule: Rule) -> list[str]:
    implied = [name for label, others in (rule.implies or {}).items() for name in (label, *others)]
    return [*(rule.allow or []), *(rule.forbid or []), *(rule.require or []), *implied, *(rule.excludes or [])]


def _breaks(states: Flags, ways: Sequence[Broken]) -> Flags:
    """Which settings [S, k] break a rule in one of these ways, bool [S]."""
    found = np.zeros(len(states), dtype=bool)
    for way in ways:
        found |= np.all([states[:, column] == on for column, on in way], axis=0)
    return found


def _total(joint: Array) -> Array:
    """The log of the summed probabilities of each row; -inf of none."""
    return logsumexp(joint, axis=1) if joint.shape[1] else np.full(len(joint), -np.inf)

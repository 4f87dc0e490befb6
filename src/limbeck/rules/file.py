"""The rules file: what may be written, and reading it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from limbeck.errors import InputError
from limbeck.recipe.loading import explain, read_yaml
from limbeck.recipe.sections import Count, Positive, Section


def _several(value: Any) -> Any:  # noqa: ANN401
    """One value is a list of one."""
    return value if isinstance(value, (list, dict)) or value is None else [value]


def _as_written(value: Any) -> Any:  # noqa: ANN401
    """Labels and words that YAML reads as whole numbers are meant as they are written."""
    if isinstance(value, bool):
        raise ValueError(f"YAML reads this as {str(value).lower()}; put it in quotes")
    return str(value) if isinstance(value, int) else value


Label = Annotated[str, BeforeValidator(_as_written)]
Labels = Annotated[list[Label], BeforeValidator(_several), Field(min_length=1)]
Answer = Annotated[str, BeforeValidator(_as_written), Field(pattern=r"\S")]
Phrase = Annotated[str, BeforeValidator(_as_written), Field(pattern=r"[^\s*]")]
Phrases = Annotated[list[Phrase], BeforeValidator(_several), Field(min_length=1)]


def _regular(pattern: str | None) -> str | None:
    if pattern is not None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"'{pattern}' is no regular expression: {error}") from None
    return pattern


class When(Section):
    """A condition on the input. All of what is given must hold."""

    shorthand: ClassVar[str | None] = "words"
    words: Phrases | None = None
    """One of these words or phrases stands in the text, as whole words in upper or lower case; `film*` also as the
    beginning of a longer word."""
    matches: str | None = None
    """This regular expression matches somewhere in the text."""
    min_words: Count | None = None
    """The text has so many words at least."""
    max_words: Count | None = None
    """The text has so many words at most."""
    any: Annotated[list[When], Field(min_length=1)] | None = None
    """One of these conditions holds."""
    unless: When | None = None
    """This condition does not hold."""
    part: Literal["text", "text_pair"] | None = None
    """Look at the first or the second text of a pair alone; at both when not given."""

    _matches = field_validator("matches")(_regular)

    @model_validator(mode="after")
    def _says_something(self) -> When:
        if not self.model_fields_set - {"part"}:
            raise ValueError("an empty condition; give words, matches, min_words, max_words, any or unless")
        return self


ABOUT_LABELS = ("allow", "forbid", "require", "implies", "excludes")
ABOUT_TEXT = ("regex", "json_schema", "grammar", "answers", "avoid", "max_words")


class Rule(Section):
    """What must hold of the output, in one way, where the condition holds."""

    name: Annotated[str, Field(pattern=r"\S")]
    """What the report calls it."""
    when: When | None = None
    """The inputs that it is about; all when not given."""
    weight: Literal["hard"] | Positive = "hard"
    """`hard`: never broken. A number w: what breaks it is taken e^-w times as likely as the model says."""

    allow: Labels | None = None
    """Labels: no other one."""
    forbid: Labels | None = None
    """Labels: none of these."""
    require: Labels | None = None
    """multi-label: all of these."""
    implies: Annotated[dict[Label, Labels], Field(min_length=1)] | None = None
    """multi-label: where the first label is set, so are these."""
    excludes: Annotated[list[Label], Field(min_length=2)] | None = None
    """multi-label: at most one of these."""

    regex: str | None = None
    """Generated text: all of it matches this regular expression."""
    json_schema: dict[str, Any] | None = None
    """Generated text: JSON that fits this schema, given here or as a file's path."""
    grammar: str | None = None
    """Generated text: a sentence of this Lark grammar, given here or as the path of a .lark file."""
    answers: Annotated[list[Answer], BeforeValidator(_several), Field(min_length=1)] | None = None
    """Generated text: exactly one of these."""
    avoid: Phrases | None = None
    """Generated text: none of these words or phrases, as of `when.words`. While text is generated a whole word is
    noticed when it ends, too late to write another; `film*` is noticed as soon as it is written."""
    max_words: Count | None = None
    """Generated text: so many words at most."""

    _regex = field_validator("regex")(_regular)

    @model_validator(mode="after")
    def _one_demand(self) -> Rule:
        given = [name for name in (*ABOUT_LABELS, *ABOUT_TEXT) if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"demands {', '.join(given)}; make a rule of each"
                if given
                else f"demands nothing; give one of {', '.join((*ABOUT_LABELS, *ABOUT_TEXT))}"
            )
        return self

    @property
    def demand(self) -> str:
        """Which of the demands it makes."""
        return next(name for name in (*ABOUT_LABELS, *ABOUT_TEXT) if getattr(self, name) is not None)

    @property
    def hard(self) -> bool:
        """Whether it may never be broken."""
        return self.weight == "hard"


@dataclass(frozen=True)
class RuleBook:
    """The rules of one file: all about labels, or all about generated text."""

    rules: tuple[Rule, ...]

    @property
    def about_text(self) -> bool:
        """Whether they are about generated text."""
        return self.rules[0].demand in ABOUT_TEXT

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what they say; comments and the order of keys do not count."""
        content = [rule.model_dump(mode="json", exclude_none=True) for rule in self.rules]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_rules(source: str | Path | Sequence[Mapping[str, Any]]) -> RuleBook:
    """Read and check rules.

    Args:
        source: a YAML file's path, or the list of mappings that such a file holds.

    Raises:
        InputError: no such file, not YAML, or a rule that is not one; one sentence that names the rule.
    """
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        return _checked(_read(path), str(path), path.parent)
    return _checked(source, "the rules", Path())


def standalone(source: str | Path) -> bytes:
    """A rules file as it is; where it points at other files, with their content in their place.

    Raises:
        InputError: as `load_rules`.
    """
    path = Path(source).expanduser()
    book, entries = load_rules(path), _read(path)
    whole = [_with_files(entry, path.parent) for entry in entries]
    if whole == [dict(entry) for entry in entries] or not book.about_text:
        return path.read_bytes()
    return yaml.safe_dump(whole, sort_keys=False, allow_unicode=True).encode()


def _read(path: Path) -> Any:  # noqa: ANN401
    if not path.is_file():
        raise InputError(f"no rules file '{path}'; check the path")
    try:
        return read_yaml(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def _checked(raw: Any, where: str, folder: Path) -> RuleBook:  # noqa: ANN401
    if not isinstance(raw, Sequence) or isinstance(raw, str) or not raw:
        raise InputError(f"{where}: no list of rules; write '- name: ...' for each, as in docs/rules.md")
    rules: list[Rule] = []
    for number, entry in enumerate(raw, 1):
        if not isinstance(entry, Mapping):
            raise InputError(f"{where}: rule {number} is {entry!r}; write '- name: ...', as in docs/rules.md")
        known = entry.get("name") or number
        try:
            rules.append(Rule.model_validate(_with_files(entry, folder)))
        except ValidationError as error:
            raise InputError(f"{where}: rule '{known}': {explain(error)}") from None
        except InputError as error:
            raise InputError(f"{where}: rule '{known}': {error}") from None
    names = [rule.name for rule in rules]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{where}: two rules are named '{twice}'; rename one")
    labels = next((rule.name for rule in rules if rule.demand in ABOUT_LABELS), None)
    text = next((rule.name for rule in rules if rule.demand in ABOUT_TEXT), None)
    if labels is not None and text is not None:
        raise InputError(f"{where}: '{labels}' is about labels and '{text}' about generated text; make two files")
    return RuleBook(tuple(rules))


def _with_files(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The rule with the content of the files that it points at, so that the content is what is compared."""
    rule = dict(entry)
    for key, suffix in (("json_schema", ".json"), ("grammar", ".lark")):
        value = rule.get(key)
        if isinstance(value, str) and "\n" not in value and value.endswith(suffix):
            path = folder / value
            if not path.is_file():
                raise InputError(f"{key} names the file '{path}', which is not there; check the path")
            content = path.read_text("utf-8")
            try:
                rule[key] = json.loads(content) if suffix == ".json" else content
            except json.JSONDecodeError as error:
                raise InputError(f"{path} is no JSON: {error}") from None
    return rule

"""How a server is asked for the label of a text, and what its answers mean."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from limbeck.errors import InputError
from limbeck.recipe.served import Chat, Http
from limbeck.remote import Client, Completions, RefusedError
from limbeck.remote.chat import Completion
from limbeck.tasks import Task
from limbeck.teachers.book import Entry
from limbeck.teachers.said import at, find_label, find_labels, label_logs, log_odds, plain, score_logs

Example = Mapping[str, str]
"""The columns `text` and, of pairs, `text_pair`."""
SHOWN = 200
"""Characters kept of an answer that is none of the labels."""
LISTED = (20, 5, 0)
"""Log-probabilities asked for of each token: OpenAI's most, what some others allow, none."""


class Questions(Protocol):
    """One way of asking."""

    @property
    def path(self) -> str:
        """After the server's address, to see whether something listens."""

    @property
    def tries(self) -> int:
        """How often an example is asked about."""

    @property
    def spec(self) -> dict[str, Any]:
        """What answers depend on besides the text, as JSON values."""

    async def ask(self, name: str, example: Example, wrong: Sequence[str], hard: bool | None) -> Entry:
        """One answer about an example.

        Args:
            name: the example's in the book.
            example: what is asked about.
            wrong: what was said about it before that is none of the labels.
            hard: whether the server's answers are labels alone; none where that is not known yet.

        Raises:
            LimbeckError: as `Client.post`.
            RefusedError: the server will never answer this.
        """


class ChatQuestions:
    """Chat completions, asked with a prompt.

    Where log-probabilities are learnt from, these are of the labels as `label_logs` reads them; the answer itself must
    be a label all the same. An answer that is none is told so and asked for again.

    Args:
        client: the server.
        model: its name there.
        chat: the recipe's section.
        task: classification or multi-label; of the latter the answer is a list, and labels alone are learnt from.

    Raises:
        InputError: label names that tell the server nothing, or that cannot be told apart in an answer.
    """

    path = "/models"

    def __init__(self, client: Client, model: str, chat: Chat, task: Task) -> None:
        self.completions, self.chat, self.task = Completions(client, model), chat, task
        self.tries = chat.tries
        _check_labels(task, chat)
        if task.kind == "multi-label" and chat.probabilities:
            raise InputError(
                "teacher.chat.probabilities are of one label among several, and the task is multi-label; leave it out"
            )
        self._listed = 0 if chat.probabilities is False or task.kind == "multi-label" else LISTED[0]

    @property
    def spec(self) -> dict[str, Any]:
        """The model's name, prompts and settings."""
        return {
            "model": self.completions.model,
            "system": self._filled(self.chat.system) if self.chat.system else None,
            "prompt": self._template,
            "probabilities": self.chat.probabilities,
            "body": self.chat.body,
        }

    async def ask(self, name: str, example: Example, wrong: Sequence[str], hard: bool | None) -> Entry:
        """As `Questions`."""
        messages = self._messages(example, wrong)
        what = f"'{example['text'][:60]}'"
        while True:
            listed = 0 if hard else self._listed
            body: dict[str, Any] = {"temperature": 0.0}
            if listed:
                body |= {"logprobs": True, "top_logprobs": listed}
            try:
                said = await self.completions.complete(
                    messages, self._longest, body | self.chat.body, what, f"{name} {len(wrong)}", self._check
                )
            except RefusedError as error:
                if not listed or "logprob" not in error.message:
                    raise
                self._listed = min(self._listed, max(fewer for fewer in LISTED if fewer < listed))
                continue
            return self._entry(name, said, hard)

    def _entry(self, name: str, said: Completion, hard: bool | None) -> Entry:
        counts = (said.prompt_tokens, said.tokens)
        labels = self.task.labels
        if self.task.kind == "multi-label":
            numbers = find_labels(said.text, labels)
            if numbers is None:
                return Entry(name, "wrong", said.text[:SHOWN], *counts)
            return Entry(name, "label", numbers, *counts)
        number = find_label(said.text, labels)
        if number is None:
            return Entry(name, "wrong", said.text[:SHOWN], *counts)
        if hard or self.chat.probabilities is False:
            return Entry(name, "label", number, *counts)
        if said.logprobs:
            return Entry(name, "scores", label_logs(said.logprobs, labels), *counts)
        if self.chat.probabilities:
            raise InputError(
                f"{self.completions.client.address} gives no log-probabilities; give teacher.chat.probabilities=false "
                "to learn from its labels alone"
            )
        if hard is None:
            return Entry(name, "label", number, *counts)
        return Entry(name, "wrong", f"{said.text[:SHOWN]} (without log-probabilities)", *counts)

    def _check(self, said: Completion) -> None:
        """Refuse log-probabilities of another form than OpenAI's; the request is then tried again."""
        if said.logprobs and self.task.kind == "classification" and self.chat.probabilities is not False:
            label_logs(said.logprobs, self.task.labels)

    def _messages(self, example: Example, wrong: Sequence[str]) -> list[dict[str, str]]:
        messages = [{"role": "system", "content": self._filled(self.chat.system)}] if self.chat.system else []
        messages.append({"role": "user", "content": self._filled(self._template, example)})
        again = "Answer with those that fit" if self.task.kind == "multi-label" else "Answer with exactly one"
        for text in wrong:
            messages.append({"role": "assistant", "content": text})
            told = f"That is none of the labels. {again} of these and nothing else: {', '.join(self.task.labels)}."
            messages.append({"role": "user", "content": told})
        return messages

    @property
    def _template(self) -> str:
        if self.chat.prompt is not None:
            return self.chat.prompt
        texts = "Text 1: {text}\n\nText 2: {text_pair}" if self.task.pair else "Text: {text}"
        if self.task.kind == "multi-label":
            return (
                "Which of these labels fit the text? {labels}\nAnswer with those that fit, with commas between, or "
                f"with none, and with nothing else.\n\n{texts}"
            )
        what = "the two texts" if self.task.pair else "the text"
        return f"Which label fits {what}? Answer with exactly one of these and nothing else: {{labels}}\n\n{texts}"

    def _filled(self, template: str, example: Example | None = None) -> str:
        return fill(template, {"labels": ", ".join(self.task.labels), **(example or {})})

    @property
    def _longest(self) -> int:
        """Tokens that any answer fits into: none is of less than a byte."""
        sizes = [len(label.encode()) + 2 for label in self.task.labels]
        return 4 + (sum(sizes) if self.task.kind == "multi-label" else max(sizes))


class HttpQuestions:
    """Any other classifier, by a mapping.

    Args:
        client: the server.
        name: the classifier's.
        http: the recipe's section.
        task: classification or multi-label.

    Raises:
        InputError: the mapping names labels that the task does not have.
    """

    path = ""

    def __init__(self, client: Client, name: str, http: Http, task: Task) -> None:
        self.client, self.name, self.http, self.task = client, name, http, task
        self.tries = http.tries
        self._numbers = {name: number for number, name in enumerate(task.labels)}
        for its, ours in http.labels.items():
            if ours not in task.labels:
                raise InputError(
                    f"teacher.http.labels says that {its} is '{ours}', and the labels are {', '.join(task.labels)}; "
                    "name one of these"
                )
        self._numbers |= {str(its): self._numbers[ours] for its, ours in http.labels.items()}

    @property
    def spec(self) -> dict[str, Any]:
        """The mapping and the model's name."""
        own = self.http.model_dump(mode="json", exclude={"tries", "key_as"})
        return {"model": self.name, **own}

    async def ask(self, name: str, example: Example, wrong: Sequence[str], hard: bool | None) -> Entry:
        """As `Questions`."""
        body, what = fill_json(self.http.body, example), f"'{example['text'][:60]}'"
        path = self.http.label or self.http.scores
        form = f"JSON with something at '{path}'"
        kind, value = await self.client.post("", body, self._read, what, form, f"{name} {len(wrong)}")
        return Entry(name, kind, value)

    def _read(self, found: Any) -> tuple[Any, Any]:  # noqa: ANN401
        """The kind and value of an entry."""
        if self.http.label is not None:
            return self._label(at(found, self.http.label))
        assert self.http.scores is not None
        scores = at(found, self.http.scores)
        if isinstance(scores, dict):
            names, values = list(scores), list(scores.values())
        else:
            values = list(scores)
            names = list(at(found, self.http.names)) if self.http.names else list(self.task.labels)
        if len(values) != len(names) or not values:
            raise ValueError(f"{len(values)} scores of {len(names)} labels")
        unknown = next((name for name in names if str(name) not in self._numbers), None)
        if unknown is not None:
            return "wrong", str(unknown)[:SHOWN]
        given = {self._numbers[str(name)]: float(value) for name, value in zip(names, values, strict=True)}
        return "scores", self._logits(given)

    def _label(self, said: Any) -> tuple[str, Any]:  # noqa: ANN401
        if self.task.kind == "classification":
            if isinstance(said, (dict, list)):
                raise TypeError("several labels")
            number = self._numbers.get(str(said))
            return ("wrong", str(said)[:SHOWN]) if number is None else ("label", number)
        if not isinstance(said, list):
            raise TypeError("no list of labels")
        unknown = next((name for name in said if str(name) not in self._numbers), None)
        if unknown is not None:
            return "wrong", str(unknown)[:SHOWN]
        return "label", sorted({self._numbers[str(name)] for name in said})

    def _logits(self, given: dict[int, float]) -> list[float]:
        count = self.task.outputs
        every = [given[number] for number in range(count)] if len(given) == count else None
        if self.http.scale == "logits" or self.task.kind == "multi-label":
            if every is None:
                raise ValueError(f"{len(given)} scores of {count} labels")
            if self.http.scale == "logits":
                return every
        odd = next((value for value in given.values() if not -1e-6 <= value <= 1 + 1e-6), None)
        if odd is not None:
            raise InputError(f"{self.client.address} gives a score of {odd:g}; give teacher.http.scale=logits")
        return log_odds(every) if every and self.task.kind == "multi-label" else score_logs(given, count)


def fill(template: str, values: Mapping[str, str]) -> str:
    """A text with `{name}` replaced once by the value of that name; other braces stay as they are."""
    return re.sub("{(text|text_pair|labels)}", lambda found: values.get(found[1], found[0]), template)


def fill_json(value: Any, values: Mapping[str, str]) -> Any:  # noqa: ANN401
    """A JSON value with the texts in it filled."""
    if isinstance(value, str):
        return fill(value, values)
    if isinstance(value, list):
        return [fill_json(each, values) for each in value]
    return {key: fill_json(each, values) for key, each in value.items()} if isinstance(value, dict) else value


def _check_labels(task: Task, chat: Chat) -> None:
    names = [plain(label) for label in task.labels]
    listed = ", ".join(task.labels)
    if chat.prompt is None and all(name.isdigit() for name in names):
        raise InputError(
            f"the labels are {listed}, which tells a server nothing; name them with task.labels=[...], or say in "
            "teacher.chat.prompt what they mean"
        )
    if len(set(names)) < len(names) or "" in names:
        raise InputError(f"the labels {listed} differ in case or punctuation alone; give others with task.labels=[...]")
    odd = next((label for label in task.labels if "," in label or "\n" in label or plain(label) == "none"), None)
    if task.kind == "multi-label" and odd is not None:
        raise InputError(f"the label '{odd}' cannot stand in a list of labels; give others with task.labels=[...]")

"""The recipe's sections about whoever teaches."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from limbeck.recipe.sections import Count, Positive, Section
from limbeck.recipe.served import Chat, Http, Limit, Price, Queries, Rate


class TeacherModel(Section):
    """One model that teaches."""

    shorthand: ClassVar[str | None] = "model"
    model: str
    """A folder saved by `save_pretrained`, or a model's name on the hub, safetensors only; or a scikit-learn
    estimator's .skops file. Its name there where it is behind a server."""
    server: str | None = None
    """The address of an OpenAI-compatible server that the model is behind, such as `http://localhost:8000/v1`; with
    `http` that of any other classifier. It answers prompts (`data.generation`) or labels text, and shows no layers."""
    key: str | None = None
    """The environment variable that holds the server's key, such as `OPENAI_API_KEY`; never the key itself."""
    timeout: Positive = 300.0
    """Seconds that a server's answer may take before it is asked for again."""
    chat: Chat | None = None
    """How a server is asked for labels; as `Chat` has it when not given."""
    http: Http | None = None
    """How a classifier is asked that speaks no chat completions; `model` is then its name for the report."""
    rate: Rate | None = None
    """How fast a server is asked."""
    price: Price | None = None
    """What a server charges."""
    limit: Limit | None = None
    """What one run of the command may spend on a server."""
    weight: Positive = 1.0
    """Its share among several teachers."""
    others: str | None = None
    """Of a specialist beside other teachers: the label by which it says that an example is of none of its own classes.
    `limbeck train` with `task.others` makes one."""
    revision: str | None = None
    """The hub model's commit, tag or branch."""
    trust_remote_code: bool = False
    """Run the Python code that a hub model brings along. Off unless you ask for it here."""

    @property
    def network(self) -> bool:
        """Whether it is opened here and has weights: neither behind a server nor an estimator's file."""
        return self.server is None and not self.model.endswith(".skops")

    @model_validator(mode="after")
    def _server_entries(self) -> TeacherModel:
        # Nothing that could be a key is repeated here.
        if self.key is not None and (self.server is None or not re.fullmatch("[A-Z_][A-Z0-9_]*", self.key)):
            raise ValueError(
                "key names the environment variable that holds a server's key, such as OPENAI_API_KEY, and goes with "
                "server=ADDRESS; the key itself never stands in a recipe"
            )
        served = ("chat", "http", "rate", "price", "limit")
        given = [name for name in served if getattr(self, name) is not None]
        if self.server is None:
            if given:
                raise ValueError(f"{given[0]} is about a model behind a server; drop it, or give server=ADDRESS")
            return self
        if self.chat is not None and self.http is not None:
            raise ValueError("chat and http are two ways to ask; keep one")
        if self.http is not None:
            self._without_tokens()
        if self.limit is not None and self.limit.money is not None and self.price is None:
            raise ValueError(f"limit.money is {self.limit.money:g}, and no price is given; add price.call=PRICE")
        address = urlsplit(self.server)
        if address.scheme not in ("http", "https") or not address.hostname or "@" in address.netloc or address.query:
            raise ValueError(
                "server must be an address such as http://localhost:8000/v1, without a password or a query; name the "
                "environment variable of its key as key=NAME"
            )
        if self.revision is not None or self.trust_remote_code:
            raise ValueError("revision and trust_remote_code are about a model opened here; leave them out with server")
        return self

    def _without_tokens(self) -> None:
        """Refuse what is about tokens, which an HTTP classifier does not count."""
        price, rate, limit = self.price or Price(), self.rate or Rate(), self.limit or Limit()
        for name, value in (
            ("rate.tokens_per_minute", rate.tokens_per_minute),
            ("price.prompt", price.prompt),
            ("price.answer", price.answer),
            ("limit.tokens", limit.tokens),
        ):
            if value:
                raise ValueError(f"{name} is {value:g}, and a classifier asked by http counts no tokens; drop it")


class Words(Section):
    """What is kept of a causal language model's words; see `limbeck.knowledge.formats`."""

    shorthand: ClassVar[str | None] = "keep"
    keep: Literal["head_and_tail", "top_k", "sampled", "dense", "nothing"] = "head_and_tail"
    """The likeliest tokens and some drawn from the rest; the likeliest alone; drawn ones alone; all; or nothing: the
    teacher runs along with the student."""
    head: Count | None = None
    """The likeliest tokens kept. 10 of `head_and_tail` and 15 of `top_k` when not given."""
    sampled: Count | None = None
    """Tokens drawn. 11 of `head_and_tail` and 31 of `sampled` when not given."""
    bits: Literal[8, 16] = 16
    """Of each kept log-probability."""

    @model_validator(mode="after")
    def _fitting(self) -> Words:
        for name, formats in (("head", ("head_and_tail", "top_k")), ("sampled", ("head_and_tail", "sampled"))):
            if getattr(self, name) is not None and self.keep not in formats:
                raise ValueError(
                    f"words.{name} is about {' and '.join(formats)}, but words.keep is {self.keep}; drop it"
                )
        return self

    @property
    def counts(self) -> tuple[int, int]:
        """The tokens kept for certain, and those drawn."""
        head, sampled = {"head_and_tail": (10, 11), "top_k": (15, 0), "sampled": (0, 31)}.get(self.keep, (0, 0))
        return self.head or head, self.sampled or sampled


class Teacher(Section):
    """Whatever knows: one model or several."""

    shorthand: ClassVar[str | None] = "models"
    models: Annotated[list[TeacherModel], Field(min_length=1)]
    """The models."""
    combine: Literal["probabilities", "logits"] = "probabilities"
    """How several are averaged: their probabilities, or their logits (a geometric mean of probabilities)."""
    weigh: Literal["given", "validation", "confidence"] = "given"
    """How much each of several counts: its `weight`; that times its score on the validation examples; or that times how
    sure it is of the very example: one minus its entropy over the greatest possible one."""
    general: TeacherModel | None = None
    """The language model that the teacher was fine-tuned from; it teaches the stages of `task: masked-lm`. The
    teacher's own body when not given."""
    features: list[int] = []
    """More layers whose [CLS] state is kept as knowledge, counted from 1; -1 is the last."""
    words: Words | None = None
    """causal-lm: what is kept of its words. When not given: `head_and_tail`, or nothing where a stage learns from the
    student's own answers."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Examples per forward pass."""
    sharded: bool = False
    """Split a teacher that runs along with the student over the processes, layer by layer, for one that does not fit
    beside it. Every process has all of it otherwise."""
    queries: Queries | None = None
    """Ask about some examples alone, chosen by the student. About the whole transfer set when not given."""

    @model_validator(mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:  # noqa: ANN401
        """`teacher: DIR`, `teacher: [A, B]`, `teacher: {model: DIR}` and the full form mean what they look like."""
        if isinstance(value, str):
            return {"models": [value]}
        if isinstance(value, dict) and "model" in value and "models" not in value:
            own = {k: value[k] for k in value if k not in cls.model_fields}
            return {"models": [own], **{k: v for k, v in value.items() if k not in own}}
        return value

    @model_validator(mode="after")
    def _several(self) -> Teacher:
        if self.models[0].others is not None:
            raise ValueError(
                "teacher.others makes a specialist of the first teacher; give a model of all classes before it"
            )
        if self.weigh != "given" and len(self.models) == 1:
            raise ValueError(f"teacher.weigh is {self.weigh}, and there is one teacher; give several, or drop it")
        if self.weigh == "validation" and any(model.server for model in self.models):
            raise ValueError(
                "teacher.weigh is validation, and asking a server about the validation examples costs; give its weight"
            )
        return self

    @classmethod
    def expand(cls, value: Any) -> Any:  # noqa: ANN401
        """As the validator above, for `teacher=DIR teacher.combine=logits` on the command line."""
        return super().expand([value] if isinstance(value, str) else value)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Every form that the validator above takes, so that editors complete them."""
        full, several = super().__get_pydantic_json_schema__(core, handler)["anyOf"]
        section = handler.resolve_ref_schema(full["properties"]["models"]["items"])
        model = handler.resolve_ref_schema(section["anyOf"][0])
        properties = model["properties"] | {k: v for k, v in full["properties"].items() if k != "models"}
        one = {**full, "properties": properties, "required": model["required"], "title": "OneTeacher"}
        return {"anyOf": [full, one, several, {"type": "string"}]}

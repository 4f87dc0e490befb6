"""The base of every recipe section: unknown keys refused with the nearest name, and one-value shorthands."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


def nearest(name: str, known: list[str]) -> str:
    """`did you mean ...` for a misspelt name, or the list of known names when none is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(sorted(known))}"


class Section(BaseModel):
    """A part of the recipe.

    A subclass may name one field as its `shorthand`: a bare value given in place of the section sets that field,
    so `data: reviews.csv` means `data: {train: reviews.csv}`.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True, use_attribute_docstrings=True)
    shorthand: ClassVar[str | None] = None

    @classmethod
    def expand(cls, value: Any) -> Any:  # noqa: ANN401
        """A mapping as it is; any other value as `{shorthand: value}`."""
        if cls.shorthand is None or value is None or isinstance(value, (Mapping, BaseModel)):
            return value
        return {cls.shorthand: value}

    @model_validator(mode="before")
    @classmethod
    def _expand_and_check_names(cls, value: Any) -> Any:  # noqa: ANN401
        value = cls.expand(value)
        if isinstance(value, Mapping):
            for key in value:
                if key not in cls.model_fields:
                    hint = nearest(str(key), list(cls.model_fields))
                    raise PydanticCustomError("unknown_key", "unknown key '{key}'; {hint}", {"key": key, "hint": hint})
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The object form, or the shorthand field's own form, so that editors complete both."""
        schema = handler(core)
        if cls.shorthand is None:
            return schema
        full = handler.resolve_ref_schema(schema)
        short = full["properties"][cls.shorthand]
        return {"anyOf": [schema, {k: v for k, v in short.items() if k not in ("default", "title", "description")}]}

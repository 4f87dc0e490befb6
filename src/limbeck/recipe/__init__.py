"""The recipe: a whole run as one checked YAML file."""

from limbeck.recipe.loading import dump, json_schema, load, packaged, parse_overrides
from limbeck.recipe.schema import Recipe

__all__ = ["Recipe", "dump", "json_schema", "load", "packaged", "parse_overrides"]

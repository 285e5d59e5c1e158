"""Types of option values, and what they allow in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field

__all__ = [
    "Box",
    "Count",
    "Few",
    "LayerWeights",
    "NonNegative",
    "Pixel",
    "Positive",
    "Seed",
    "Share",
    "Side",
    "Text",
    "Unique",
    "Whole",
    "allowed_values",
    "in_words",
]

_LIMIT = 2**31  # of sizes and counts, which libraries store in 32 bits

Whole = Annotated[int, Field(ge=0, lt=_LIMIT)]
Count = Annotated[int, Field(ge=1, lt=_LIMIT)]
Side = Annotated[int, Field(ge=16, lt=_LIMIT)]
"""In pixels."""

Few = Annotated[int, Field(ge=0, le=1000)]
"""A number of things that are in memory together."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
"""A name, or a path of a file or folder: characters that Hydra's grammar reserves need no quotes in it."""

Pixel = Annotated[Sequence[float], Field(min_length=2, max_length=2)]
"""x and y."""


def in_words(words: str) -> Any:
    """Metadata of an annotated type: what it allows, in words."""
    return Field(json_schema_extra={"allowed": words})


def _unique(values: Sequence[Any]) -> Sequence[Any]:
    if any(value in values[:index] for index, value in enumerate(values)):
        raise ValueError
    return values


def _with_area(box: Sequence[float]) -> Sequence[float]:
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError
    return box


def _not_all_zero(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    if not any(any(value) if isinstance(value, Sequence) else value for value in weights.values()):
        raise ValueError
    return weights


Unique = AfterValidator(_unique)
Box = Annotated[Sequence[float], Field(min_length=4, max_length=4), AfterValidator(_with_area)]
LayerWeights = Annotated[
    Mapping[str, NonNegative | Sequence[NonNegative]],
    AfterValidator(_not_all_zero),
    in_words("{LAYER: WEIGHT} or {LAYER: [WEIGHT OF EACH HEAD]}; none below 0, not all 0"),
]


def allowed_values(schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words.

    Example:
        >>> from pydantic import TypeAdapter
        >>> allowed_values(TypeAdapter(Count | None).json_schema())
        'a whole number, 1 or more, below 2^31, or null'
    """
    if "allowed" in schema:
        return str(schema["allowed"])
    if "anyOf" in schema:
        return ", or ".join(allowed_values(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    match schema.get("type"):
        case "integer" | "number" as kind:
            return ("a whole number" if kind == "integer" else "a number") + _range(schema)
        case "array":
            return "a list of " + allowed_values(schema["items"])
        case kind:
            return {"boolean": "true or false", "string": "a text", "null": "null"}.get(str(kind), "a value")


def _range(schema: Mapping[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if above is not None:
        return f" above {above:g}"
    if low is None:
        return ""
    if below == _LIMIT:
        return f", {low:g} or more, below 2^31"
    if high is None and below is None:
        return f", {low:g} or more"
    return f" from {low:g} to {high if below is None else below - 1}".removesuffix(".0")

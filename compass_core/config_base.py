"""What all sections of the configuration have in common."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.fields import ComputedFieldInfo, FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

_SPELT: Final = {"n": "number of", "lora": "LoRA", "ewc": "EWC", "dsir": "DSIR"}
"""Words of field names that a label spells in another way."""

_VARIANTS: Final = {"null": "None", "array": "Several", "string": "One"}
"""What a choice between kinds of values calls each of them, by JSON type."""


def _label(name: str, _field: FieldInfo | ComputedFieldInfo) -> str:
    """Return a field's name as a form shows it.

    Examples:
        >>> _label("max_usage_outside", None)
        'Max usage outside'
        >>> _label("n_clusters", None)
        'Number of clusters'
    """
    words = " ".join(_SPELT.get(word, word) for word in name.split("_"))
    return words[:1].upper() + words[1:]


def _model_label(model: type) -> str:
    """Return a section's name as a form shows it: `UsageLogConfig` is a usage log."""
    words = re.findall("[A-Z][a-z]+", model.__name__.removesuffix("Config"))
    return " ".join(words).capitalize()


class Config(BaseModel):
    """Base of all configuration: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # what was given may be a password
        field_title_generator=_label,
        model_title_generator=_model_label,
    )

    not_in_key: ClassVar[frozenset[str]] = frozenset()
    """Fields that cannot change a result (a device, a batch size) or enter by content instead."""

    form_order: ClassVar[tuple[str, ...]] = ()
    """Fields that a form shows first, in this order; the others follow as they are declared."""

    def key_values(self) -> dict[str, Any]:
        """Return the fields that identify a stage's output, as plain JSON values."""
        values = self.model_dump(mode="json", exclude=set(self.not_in_key))
        for name in values:
            value = getattr(self, name)
            if isinstance(value, Config):
                values[name] = value.key_values()
        return values

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Shape the schema for the form that a Prefect deployment makes of it."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        properties = schema["properties"]
        first = [name for name in cls.form_order if name in properties]
        schema["properties"] = {name: properties[name] for name in (*first, *properties)}
        for position, value in enumerate(schema["properties"].values()):
            # PostgreSQL keeps no order of keys; the form sorts by this one.
            value["position"] = position
            _shape(value)
        return schema


def _shape(value: dict[str, Any]) -> None:
    """Make a union a choice with readable names, and a constant a choice of one."""
    value.pop("discriminator", None)
    if "oneOf" in value:
        value["anyOf"] = value.pop("oneOf")
    if "const" in value:
        value["enum"] = [value["const"]]
    for variant in value.get("anyOf", ()):
        if variant.get("type") in _VARIANTS:
            variant["title"] = _VARIANTS[variant["type"]]

"""What all sections of the configuration have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of all configuration: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # what was given may be a password
    )

    not_in_key: ClassVar[frozenset[str]] = frozenset()
    """Fields that cannot change a result (a device, a batch size) or enter by content instead."""

    def key_values(self) -> dict[str, Any]:
        """Return the fields that identify a stage's output, as plain JSON values."""
        values = self.model_dump(mode="json", exclude=set(self.not_in_key))
        for name in values:
            value = getattr(self, name)
            if isinstance(value, Config):
                values[name] = value.key_values()
        return values

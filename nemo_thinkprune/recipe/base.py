"""What all sections of a recipe share: strict keys, strict types, frozen values."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

_OMIT_NONE = "omit_none"

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


def absent() -> Any:
    """Return the field of a key that NeMo-RL does not allow to be null: left out of the output when None."""
    return Field(default=None, json_schema_extra={_OMIT_NONE: True})


class Section(BaseModel):
    """Base of every section: an unknown key, a string for a number or an assignment is an error."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
        validate_by_alias=True,
        validate_by_name=False,
        serialize_by_alias=True,
        protected_namespaces=(),
    )

    @model_serializer(mode="wrap")
    def _leave_out_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Drop the keys made with `absent()` that have no value."""
        values: dict[str, Any] = handler(self)
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            key = field.alias or name
            if isinstance(extra, dict) and extra.get(_OMIT_NONE) and values.get(key, 0) is None:
                del values[key]
        return values

"""Immutable values that are made by the million."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar, dataclass_transform

T = TypeVar("T")

if TYPE_CHECKING:

    @dataclass_transform(frozen_default=True, field_specifiers=(field,))
    def value(cls: type[T]) -> type[T]: ...

else:
    # A frozen dataclass pays a call for each of its fields when it is made, a tenth of all that the engine does.
    # So the type checker alone sees to it that nobody changes one.
    value = dataclass(slots=True, unsafe_hash=True)

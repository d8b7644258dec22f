"""What a caller got wrong, found before any server was asked."""

from __future__ import annotations


class UsageError(ValueError):
    """A value that cannot be meant. The message names the field, the value and what is allowed.

    Attributes:
        field: the parameter, option or environment variable.
        value: what was given.
        allowed: what may be given, in words.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(f"{field}: {_shown(value)} will not do: {allowed}")

    def __reduce__(self) -> tuple[type[UsageError], tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.allowed)


def _shown(value: object) -> str:
    """The value as it may be shown on a terminal: escaped, and not a megabyte of it."""
    text = repr(value)
    length = len(value) if isinstance(value, str) else len(text)
    return text if len(text) <= 80 else f"{text[:60]}… ({length} characters)"

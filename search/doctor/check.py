"""One thing that was looked at."""

from dataclasses import dataclass
from typing import Literal, Self

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """What was found. mend: what to do if it is not well. A search works in spite of a warning."""

    name: str
    status: Status
    found: str
    mend: str | None = None

    @classmethod
    def ok(cls, name: str, found: str) -> Self:
        return cls(name, "ok", found)

    @classmethod
    def warning(cls, name: str, text: str) -> Self:
        """From one line: what was found; what to do."""
        found, _, mend = _in_one_line(text).partition("; ")
        return cls(name, "warning", found, mend or None)

    @classmethod
    def failed(cls, name: str, trouble: str | Exception) -> Self:
        """From one line, as the errors that a user can mend have it: what was found; what to do."""
        found, _, mend = _in_one_line(str(trouble)).partition("; ")
        return cls(name, "failed", found, mend or None)


def _in_one_line(text: str) -> str:
    return " ".join(text.split())

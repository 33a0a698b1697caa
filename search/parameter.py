"""The values that a searched hyperparameter may take."""

import math
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

LARGEST = 1_000_000  # of what a hyperparameter can be, whichever it is


class Strict(BaseModel):
    """A frozen record that takes no unknown key and no other type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Parameter(Strict):
    """The values that one hyperparameter may take: a range from low to high, or choices."""

    low: int | float | None = Field(None, description="smallest value")
    high: int | float | None = Field(None, description="largest value")
    log: bool = Field(False, description="sample evenly in the logarithm")
    step: int | float | None = Field(None, gt=0, description="distance between values")
    choices: list[int | float | str] | None = Field(None, min_length=1, description="the values, in place of a range")

    @model_validator(mode="after")
    def _is_a_range_or_choices(self) -> Self:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.step is not None or self.log:
                raise ValueError("has choices and a range; keep one of them")
            if len(set(self.choices)) < len(self.choices):
                raise ValueError("names a choice twice; remove one")
            return self
        if self.low is None or self.high is None:
            raise ValueError("needs low and high, or choices")
        if max(abs(self.low), abs(self.high), self.step or 0) > LARGEST:
            raise ValueError(f"goes beyond {LARGEST:,}; take smaller numbers")
        if self.low >= self.high:
            raise ValueError(f"is empty, as low {self.low} is not below high {self.high}; exchange or change them")
        if self.log and self.low <= 0:
            raise ValueError(f"is logarithmic, so low must be above 0, not {self.low}")
        if self.log and self.step is not None:
            raise ValueError("has both log and step; keep one of them")
        if self.step is not None and not _is_whole((self.high - self.low) / self.step):
            raise ValueError(f"does not reach high {self.high} from low {self.low} in steps of {self.step}; change one")
        return self

    def ends(self) -> list[int | float | str]:
        """The values whose validity shows that of all."""
        return self.choices if self.choices is not None else [self.low, self.high]  # type: ignore[list-item]

    def has(self, value: object) -> bool:
        """Whether it is one of the values."""
        if self.choices is not None:
            return value in self.choices
        assert self.low is not None  # validated above
        assert self.high is not None
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        return self.step is None or _is_whole((value - self.low) / self.step)

    def count(self) -> int:
        """How many values a grid has of it, in steps of 1 where none is given."""
        if self.choices is not None:
            return len(self.choices)
        assert self.low is not None  # validated above
        assert self.high is not None
        return math.floor((self.high - self.low) / (self.step or 1)) + 1

    @property
    def continuous(self) -> bool:
        return self.choices is None and self.step is None


def _is_whole(steps: float) -> bool:
    return math.isfinite(steps) and abs(steps - round(steps)) < 1e-9

"""A study's definition: read from TOML, validated, compared, and kept in the database.

Every mistake in a file ends in one line that names the file, the key and the mend.
"""

import math
import reprlib
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fmnist.errors import UsageError
from fmnist.files import expand
from fmnist.hyperparameters import Hyperparameters, ScoreOn, check_batch_size
from search.choices import TOP, PrunerName, SamplerName
from search.formatting import did_you_mean

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


# What a study may be given anew: how far it goes, not what one of its trials is.
MAY_CHANGE = {"description", "minutes", "trials", "seeds", "finalists", "reference", "grid"}

LARGEST_GRID = 100_000  # trainings
TRIALS_OF_A_SEARCH = 50  # where nobody says how many


class DefinitionError(UsageError):
    """A study definition is missing or invalid; the message is one line: file, key, remedy."""


Values = Annotated[list[int | float | str], Field(min_length=1)]


class StudyDefinition(Strict):
    """What a study searches, and how."""

    description: str = Field("", description="one line on the question that the study answers")
    minutes: int | None = Field(None, ge=1, description="expected time on two cores, for the list of studies")
    trials: int | None = Field(None, ge=1, description="finished trials to reach; 50, or all of a grid, if not given")
    sampler: SamplerName = Field(
        "tpe",
        description="how parameters are chosen: tpe and gp learn from earlier trials, random and qmc (Sobol) do not, "
        "grid takes all combinations",
    )
    pruner: PrunerName = Field(
        "slack",
        description="which trials end early: with slack those too far behind the best one at the same epoch, "
        "with none no trial; the others are Optuna's",
    )
    audit: float = Field(0.0, ge=0, le=1, description="share of pruned trials that are trained to the end all the same")
    score_on: ScoreOn = Field("test", description="images that score a trial; validation: a sixth of the training set")
    seed: int = Field(0, ge=0, description="decides every random choice of the study")
    seeds: int = Field(1, ge=1, description="trainings of each configuration of a grid, each with its own seed")
    finalists: int = Field(
        TOP, ge=0, le=100, description="best configurations that `run` trains again with fresh seeds"
    )
    reference: Literal["write-up"] | None = Field(None, description="published results that the report compares with")
    defaults: Hyperparameters = Field(
        default_factory=lambda: Hyperparameters(),
        description="trial 0, and the value of what is not searched: hyperparameters by name",
    )
    space: dict[str, Parameter] = Field(
        default_factory=dict, description="what is searched: hyperparameters by name, each with a range or choices"
    )
    grid: list[dict[str, Values]] = Field(
        default_factory=list,
        description="parts of a grid, a `[[grid]]` each: values to combine, others as in defaults; "
        "without parts it has all of space",
    )

    @model_validator(mode="before")
    @classmethod
    def _space_of_grid(cls, given: Any) -> Any:
        """A grid that is given in parts needs no space beside it: it is their values, and the default's."""
        parts = given.get("grid") if isinstance(given, dict) and "space" not in given else None
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            return given
        defaults = given.get("defaults", {})
        choices: dict[str, list[Any]] = {}
        for name, values in (item for part in parts for item in part.items()):
            field = Hyperparameters.model_fields.get(name)
            default = [defaults.get(name, field.default)] if field and isinstance(defaults, dict) else []
            known = choices.setdefault(name, default)
            known += [value for value in values if value not in known] if isinstance(values, list) else []
        return {**given, "space": {name: {"choices": values} for name, values in choices.items()}}

    @model_validator(mode="after")
    def _space_fits(self) -> Self:
        if not self.space:
            raise ValueError("space: is missing; name at least one hyperparameter")
        if self.sampler != "grid" and (self.grid or self.seeds > 1):
            raise ValueError(f'{"grid" if self.grid else "seeds"}: needs sampler = "grid"; change either')
        if self.audit and self.pruner == "none":
            raise ValueError("audit: needs a pruner to look at; change either")
        for name, parameter in self.space.items():
            self._parameter_fits(name, parameter)
        for name, value in (item for part in self.grid for item in part.items()):
            wrong = [one for one in value if name not in self.space or not self.space[name].has(one)]
            if wrong:
                raise ValueError(f"grid.{name}: {wrong[0]!r} is not in space.{name}; change either")
        if self.sampler == "grid" and (trainings := self._size_of_grid()) > LARGEST_GRID:
            raise ValueError(f"grid: has {trainings:,} trainings, more than {LARGEST_GRID:,}; name fewer values")
        return self

    def _size_of_grid(self) -> int:
        """How many trainings a grid has at most: two of its parts may have one in common."""
        parts = [[len(values) for values in part.values()] for part in self.grid]
        parts = parts or [[parameter.count() for parameter in self.space.values()]]
        return self.seeds * sum(map(math.prod, parts))

    def _parameter_fits(self, name: str, parameter: Parameter) -> None:
        field, where = Hyperparameters.model_fields.get(name), "grid" if self.grid else "space"
        if field is None:
            raise ValueError(
                f"{where}.{name}: is no hyperparameter; {did_you_mean(name, Hyperparameters.model_fields)}"
            )
        for value in parameter.ends():
            try:
                Hyperparameters.model_validate({name: value})
            except ValidationError as error:
                raise ValueError(f"{where}.{name}: {value!r} cannot be, {_sentence(error.errors()[0])}") from None
        if field.annotation is int and isinstance(parameter.step, float):
            raise ValueError(f"space.{name}.step: must be a whole number, not {parameter.step}")
        if self.sampler == "grid" and not self.grid and parameter.continuous and field.annotation is not int:
            raise ValueError(f"space.{name}: a grid needs step or choices here, or choose another sampler")
        default = getattr(self.defaults, name)
        if not parameter.has(default):
            raise ValueError(
                f"defaults.{name}: {default!r}, the value of trial 0, is not one of space.{name}; change either"
            )

    def longest_epochs(self) -> int:
        """The most epochs that a trial can have."""
        searched = self.space.get("epochs")
        return int(max(map(float, searched.ends()))) if searched else self.defaults.epochs

    def identity(self) -> dict[str, Any]:
        """What must stay the same for as long as the study lives, as plain values."""
        return self.model_dump(mode="json", exclude=MAY_CHANGE)


def differences(stored: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Each difference of two identities as `key: stored -> given`."""
    before, after = _flatten(stored), _flatten(given)
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before | after)
        if before.get(key) != after.get(key)
    ]


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


def bundled() -> list[Path]:
    """The definitions that come with the package, by name."""
    installed = Path(str(files("search"))) / "studies"
    folder = installed if installed.is_dir() else Path(str(files("search"))).parent / "studies"
    return sorted(folder.glob("*.toml"))


def known() -> dict[str, Path]:
    """The definitions that have a name: those in ./studies, and of the package's those that are not there too."""
    return {path.stem: path for path in [*bundled(), *sorted(Path("studies").glob("*.toml"))]}


def locate(study: str) -> Path:
    """The file of a study given as a path, or as a name in ./studies or in the package.

    Raises:
        DefinitionError: there is none.
    """
    if study.endswith(".toml") or "/" in study:
        return expand(study)
    named = known()
    if study not in named:
        raise DefinitionError(f"no study named {study!r}; {did_you_mean(study, named)}, or name a .toml file")
    return named[study]


def read(study: Path | str, **overrides: Any) -> StudyDefinition:
    """Read and validate a definition; overrides that are not None replace its own values.

    Args:
        study: its file, or what `locate` finds.

    Raises:
        DefinitionError: the file is absent, no TOML, or wrong somewhere.
    """
    path = locate(study) if isinstance(study, str) else study
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DefinitionError(f"{path}: {error.strerror}; name a study or a .toml file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DefinitionError(f"{path}: not TOML: {error}") from error
    try:
        found = StudyDefinition.model_validate(content | {k: v for k, v in overrides.items() if v is not None})
    except ValidationError as error:
        raise DefinitionError(f"{path}: {' '.join(explain(error).split())}") from error
    sizes = found.space.get("batch_size")
    least = found.defaults.batch_size if sizes is None else min(sizes.choices or [sizes.low or 0])
    try:
        check_batch_size(int(least))
    except UsageError as error:
        raise DefinitionError(f"{path}: {error}") from error
    return found


def explain(error: ValidationError) -> str:
    """The first mistake as `key: what to do`."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    if location[-1:] == ["int"]:  # pydantic's name for the first member of the union int | float
        location.pop()
        first["msg"] = "Input should be a number"
    if first["type"] == "extra_forbidden":
        model: type[BaseModel] = StudyDefinition
        if location[0] == "space":
            model = Parameter
        elif location[0] == "defaults":
            model = Hyperparameters
        return f"{'.'.join(location)}: is an unknown key; {did_you_mean(location[-1], model.model_fields)}"
    if first["type"] == "missing":
        return f"{'.'.join(location)}: is missing; add it"
    return ": ".join(filter(None, [".".join(location), _sentence(first)]))


def _sentence(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return message if error["type"] == "value_error" else f"{message}, not {reprlib.repr(error['input'])}"

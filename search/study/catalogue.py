"""The list of studies that can be run by name."""

from dataclasses import dataclass

from search.study import definition, space
from search.study.definition import StudyDefinition


@dataclass(frozen=True)
class Entry:
    """A study file. trials: default number. minutes: expected time on two cores, None if the file does not give it."""

    name: str
    description: str
    sampler: str
    trials: int
    minutes: int | None


def entries() -> list[Entry]:
    """The studies in ./studies and in the package; a local one hides the package's of the same name, as in `run`.

    Raises:
        DefinitionError: a file is invalid.
    """
    return [_entry(name, definition.describe(path)) for name, path in sorted(definition.known().items())]


def trials_of(defined: StudyDefinition) -> int:
    """Number of trials that a study runs by default."""
    if defined.sampler != "grid":
        return defined.trials or definition.TRIALS_OF_A_SEARCH
    size = len(space.grid(defined)) * defined.seeds
    return min(defined.trials or size, size)


def _entry(name: str, defined: StudyDefinition) -> Entry:
    return Entry(name, defined.description, defined.sampler, trials_of(defined), defined.minutes)

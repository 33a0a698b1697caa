"""The studies that can be run by name, with what a list of them says."""

from dataclasses import dataclass

from search.study import definition, space
from search.study.definition import StudyDefinition


@dataclass(frozen=True)
class Entry:
    """A study file. trials: that it comes to by itself. minutes: expected on two cores, if its author says."""

    name: str
    description: str
    sampler: str
    trials: int
    minutes: int | None


def entries() -> list[Entry]:
    """The studies in ./studies and in the package; of two of one name the local one, which is what `run` takes.

    Raises:
        DefinitionError: a file is wrong.
    """
    return [_entry(name, definition.describe(path)) for name, path in sorted(definition.known().items())]


def trials_of(defined: StudyDefinition) -> int:
    """The trials of a study that nobody gives another number."""
    if defined.sampler != "grid":
        return defined.trials or definition.TRIALS_OF_A_SEARCH
    whole = len(space.grid(defined)) * defined.seeds
    return min(defined.trials or whole, whole)


def _entry(name: str, defined: StudyDefinition) -> Entry:
    return Entry(name, defined.description, defined.sampler, trials_of(defined), defined.minutes)

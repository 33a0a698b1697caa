"""A study in the database: created or resumed, with its user attributes and the commands that ran it."""

import os
import platform
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fmnist.choices import Tta, in_file
from search.choices import FINALISTS
from search.database.optuna_schema import storage_of
from search.database.url import DatabaseGone, StorageError, command, displayed
from search.study.definition import DefinitionError, StudyDefinition, differences
from search.study.places import KEY, Place, StudyError, check_free, claim
from search.study.record import saved_of

if TYPE_CHECKING:
    from fmnist.data import DataSet
    from fmnist.own_network import OwnNetwork, Source

# User attributes of a study, in addition to those in `places`.
DEFINITION, DATA, VERSIONS, PRECISION, STOP = "definition", "data", "versions", "precision", "stop"
ELIMINATED = "eliminated"  # of a finalists' study: configurations that get no more seeds
GOAL = "goal"  # number of trials to finish, and the number of failed ones when that goal was set
NO_GOAL = {"trials": 0, "failed": 0}
FORMER_TTA: Tta = "none"  # of studies from before test-time augmentation, whose definitions lack the key
FORMER_PRUNER = "slack"  # the default before trials could be paused
NETWORK = "network"  # a user's own network: SHA-256 and text of its file, to compare and display, never to run


def open_study(
    storage: RDBStorage,
    name: str,
    definition: StudyDefinition,
    data: "DataSet",
    place: Place,
    *,
    allow_mixed: bool = False,
) -> optuna.Study:
    """Create the study, or resume the one of that name if its definition, network, data and versions are the same.

    Requires the database's lock.

    Raises:
        StudyError: the existing study differs or has its checkpoints elsewhere, or `place` belongs to another study.
        NetworkError: the user's own network cannot be loaded.
        ArtifactError: the artifact store cannot be used.
        OSError: `place` is not writable.
    """
    definition = definition.loaded()
    if name not in optuna.get_all_study_names(storage):
        check_free(name, place)
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    maximizes = study.directions == [StudyDirection.MAXIMIZE]
    new = DEFINITION not in study.user_attrs and maximizes and not study.get_trials(deepcopy=False)
    if new:  # or incomplete, from a process that died below: the definition is written last, and marks it complete
        if KEY not in study.user_attrs:  # its locations may contain the key already
            study.set_user_attr(KEY, uuid4().hex)
        study.set_user_attr(DATA, {"name": data.name, "fingerprint": data.fingerprint})
        study.set_user_attr(VERSIONS, versions())
        if definition.own and definition.own.source:
            study.set_user_attr(NETWORK, asdict(definition.own.source))
        claim(study, place)
        study.set_user_attr(DEFINITION, definition.model_dump(mode="json"))
    study = load_study(storage, name)
    _check_network(study, definition)
    stored = definition_of(study)
    definition = _resumed(stored, definition)
    if changed := differences(stored.identity(), definition.identity()):
        raise StudyError(
            f"study {name!r} exists with another definition ({'; '.join(changed)}). "
            "Give the new study another name with --name, or restore the definition that it was started with."
        )
    check_alike(study, data, allow_mixed=allow_mixed)
    if not new:
        claim(study, place)
    study.set_user_attr(DEFINITION, definition.model_dump(mode="json"))  # the keys in MAY_CHANGE may be new
    return study


def _resumed(stored: StudyDefinition, given: StudyDefinition) -> StudyDefinition:
    # Keys that the file does not give may have had another default when the study was started: keep that.
    former = {"tta": FORMER_TTA, "pruner": FORMER_PRUNER}
    kept = {
        name: value
        for name, value in former.items()
        if name not in given.model_fields_set and getattr(stored, name) == value
    }
    return given.model_copy(update=kept)


def _check_network(study: optuna.Study, definition: StudyDefinition) -> None:
    recorded, given = source_of(study), definition.own and definition.own.source
    if not recorded or not given or recorded == given:
        return
    from fmnist.own_network import difference

    file = definition.defaults.architecture.partition(":")[0]
    raise StudyError(
        f"study {study.study_name!r} was started with another version of {file}: restore that, or give the new study "
        f"another name with --name\n{difference(recorded, given, file)}"
    )


def source_of(study: optuna.Study) -> "Source | None":
    """The recorded source file of the user's own network; None if it is not in a file.

    Raises:
        StudyError: the study was deleted after it was opened.
    """
    recorded = attributes(study).get(NETWORK)
    if recorded is None:
        return None
    from fmnist.own_network import Source

    return Source(**recorded)


def own_network_of(study: optuna.Study) -> "OwnNetwork | None":
    """Load a study's own network; None if the study searches one of ours.

    Raises:
        NetworkError: it cannot be loaded, or its file differs from the recorded one.
        StudyError: the study's definition does not fit its constructor.
    """
    definition = definition_of(study)
    if not definition.is_own:
        return None
    from fmnist.own_network import of_record

    own = of_record(definition.defaults.architecture, source_of(study))
    try:
        definition.of_network(own)
    except DefinitionError as error:  # the definition was changed, or a network in a module, which is not recorded
        lines = (f"study {study.study_name!r} does not fit its network: {line}" for line in str(error).splitlines())
        raise StudyError("\n".join(lines)) from error
    return own


def check_alike(study: optuna.Study, data: "DataSet", *, allow_mixed: bool) -> None:
    """Check that this process trains on the study's data with the study's versions.

    Raises:
        StudyError: the data set, or the version of fmnist-search or torch differs, unless `allow_mixed`.
    """
    if allow_mixed:
        return
    name = study.study_name
    if study.user_attrs[DATA]["fingerprint"] != data.fingerprint:
        raise StudyError(
            f"study {name!r} was started on {study.user_attrs[DATA]['name']}, but {data.name} in {data.folder} has "
            "other checksums. Name the study's data with --data-dir, start a study with another --name, "
            "or mix them with --allow-mixed."
        )
    if changed := differences(study.user_attrs[VERSIONS], versions()):
        raise StudyError(
            f"study {name!r} was started with other versions ({'; '.join(changed)}), so results would differ "
            "slightly. Install the study's versions, or mix them with --allow-mixed."
        )


def check_precision(study: optuna.Study, precision: str, *, allow_mixed: bool) -> None:
    """Check that this process trains in the study's precision, which its first worker sets.

    Requires the database's lock.

    Raises:
        StudyError: the precision differs, unless `allow_mixed`.
    """
    trained = attributes(study).get(PRECISION)
    if trained is None:  # a new study, or one of 0.2.0, which recorded the precision only with its trials
        saved = map(saved_of, study.get_trials(deepcopy=False))
        trained = next((each.precision for each in saved if each and each.precision), precision)
        study.set_user_attr(PRECISION, trained)
    if trained != precision and not allow_mixed:
        raise StudyError(
            f"study {study.study_name!r} is trained in {trained}, but this machine trains in {precision}, so results "
            "would differ slightly. Use machines of one kind, or mix them with --allow-mixed."
        )


def versions() -> dict[str, str]:
    """The versions on which a training run's result depends."""
    return {"fmnist_search": version("fmnist-search"), "torch": version("torch")}


def load_study(storage: RDBStorage | BaseStorage, name: str) -> optuna.Study:
    """Open an existing study.

    Raises:
        StudyError: no study has that name, fmnist-search did not create it, another program changed its attributes,
            or its name leads out of the output folder.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise StudyError(f"study {name!r}: its files would be outside the output folder; choose another name")
    names = optuna.get_all_study_names(storage)
    if name not in names:
        known = f"there are {', '.join(sorted(names))}" if names else "there are none yet"
        raise StudyError(f"no study named {name!r} in this database; {known}")
    study = optuna.load_study(storage=storage, study_name=name)
    if not {DEFINITION, KEY} <= study.user_attrs.keys():
        raise StudyError(f"study {name!r} was not created by this version of fmnist-search; choose another name")
    try:
        recorded = _Attributes.model_validate(study.user_attrs)
    except ValidationError as error:
        raise _altered(study, _place(error)) from error
    if recorded.has_file != bool(recorded.network):
        raise _altered(study, NETWORK)
    return study


class _Attributes(BaseModel):
    """User attributes of a complete study; validated, as anyone with write access to the database can change them."""

    model_config = ConfigDict(strict=True)

    definition: dict[str, Any]
    key: str
    folder: str
    artifacts: str | None
    keep: int
    data: dict[Literal["name", "fingerprint"], str] = Field(min_length=2)
    versions: dict[str, str]
    precision: str | None = None
    goal: dict[Literal["trials", "failed"], int] = Field({"trials": 0, "failed": 0}, min_length=2)
    network: dict[Literal["sha256", "text"], str] | None = Field(None, min_length=2)
    runs: list[dict[Literal["at", "command", "machine", "git_commit"], str | None]] = []

    @property
    def has_file(self) -> bool:
        """Whether the network is the user's own and in a file."""
        defaults = self.definition.get("defaults")
        return isinstance(defaults, dict) and in_file(str(defaults.get("architecture")))


def _place(error: ValidationError) -> str:
    return ".".join(map(str, error.errors()[0]["loc"])) or DEFINITION


def _altered(study: optuna.Study, where: str) -> StudyError:
    return StudyError(
        f"study {study.study_name!r}: its user attributes ({where}) were changed by another program or version of "
        "fmnist-search; use that version, restore the database, or choose another name"
    )


def definition_of(study: optuna.Study, known: Mapping[str, Any] | None = None) -> StudyDefinition:
    """A study's definition.

    Args:
        known: the study's user attributes, if already read.

    Raises:
        StudyError: the study was deleted after it was opened, or its definition is invalid in this version.
    """
    try:
        return StudyDefinition.model_validate({"tta": FORMER_TTA} | (known or attributes(study))[DEFINITION])
    except ValidationError as error:
        raise _altered(study, _place(error)) from error


def attributes(study: optuna.Study) -> dict[str, Any]:
    """The study's current user attributes.

    Raises:
        StudyError: the study was deleted after it was opened.
    """
    try:
        return study.user_attrs
    except KeyError:
        raise StudyError(f"study {study.study_name!r} was deleted") from None


def goal(study: optuna.Study) -> dict[str, int]:
    """The study's goal: number of `trials` to finish, and of `failed` ones when that goal was set."""
    return attributes(study).get(GOAL, NO_GOAL)  # type: ignore[no-any-return]


@contextmanager
def raise_if_deleted(study: optuna.Study, checkpoints: str) -> Iterator[None]:
    """Raise a clear error if the study or its database is deleted inside this context; Optuna raises a bare KeyError.

    Args:
        checkpoints: location of the study's checkpoints, which the user may want to keep.

    Raises:
        StudyError: the study was deleted.
        DatabaseGone: the database was deleted.
    """
    try:
        yield
    except DatabaseGone as error:
        raise DatabaseGone(f"{error}; the checkpoints are in {checkpoints}") from error
    except KeyError:
        attributes(study)
        raise


def finalists_name(name: str) -> str:
    """The name of the study in which a study's finalists are trained again."""
    return f"{name}{FINALISTS}"


def finalists_of(study: optuna.Study) -> optuna.Study | None:
    """The study in which the finalists are trained again; None until they are chosen."""
    name = finalists_name(study.study_name)
    if name not in optuna.get_all_study_names(storage_of(study)):
        return None
    finalists = optuna.load_study(storage=storage_of(study), study_name=name)
    return finalists if DEFINITION in finalists.user_attrs else None


def request_stop(study: optuna.Study) -> None:
    """Ask all current processes of the study and its finalists to stop; processes that start later ignore this."""
    for each in (study, finalists_of(study)):
        if each:
            each.set_user_attr(STOP, uuid4().hex)


def stop_requests(study: optuna.Study) -> str | None:
    """A token that changes with each request to stop, and when the study is deleted."""
    try:
        request: str | None = attributes(study).get(STOP)
    except StudyError:
        return "deleted"
    return request


RUNS = "runs"  # user attribute of a study: a list of `Run`, without consecutive repetitions


@dataclass(frozen=True)
class Run:
    """A `run` command. at: when it first started (ISO 8601, UTC)."""

    at: str
    command: str
    machine: str
    git_commit: str | None


def note(study: optuna.Study, call: str) -> None:
    """Record a run, unless it repeats the last one; requires the database's lock."""
    from fmnist.checkpoint import git_commit

    run = Run(datetime.now(UTC).isoformat(timespec="seconds"), call, machine(), git_commit())
    recorded = runs(study)
    if not recorded or asdict(recorded[-1]) | {"at": ""} != asdict(run) | {"at": ""}:
        study.set_user_attr(RUNS, [asdict(each) for each in [*recorded, run]])


def runs(study: optuna.Study) -> list[Run]:
    """The recorded runs, oldest first."""
    return [Run(**each) for each in study.user_attrs.get(RUNS, [])]


def command_line(arguments: Sequence[str]) -> str:
    """A command of fmnist-search, quoted for a shell, without passwords in database URLs."""
    return command(*map(_without_password, arguments))


def _without_password(argument: str) -> str:
    option, separator, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    if "://" not in value:
        return argument
    try:
        return f"{option}{separator}{displayed(value)}"
    except StorageError:  # not a database URL
        return argument


def machine() -> str:
    """A description of this machine: host, processor, cores, system."""
    return f"{socket.gethostname()}: {processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def processor() -> str:
    """The processor's model, from Linux or else from Python."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown processor"

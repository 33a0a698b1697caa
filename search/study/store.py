"""A study in the database: made or resumed, what is stored with it, and the commands that it was run by."""

import os
import platform
import shlex
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
from search.database.url import DatabaseGone, StorageError, masked
from search.study.definition import DefinitionError, StudyDefinition, differences
from search.study.places import KEY, Place, StudyError, check_free, settle
from search.study.record import saved_of

if TYPE_CHECKING:
    from fmnist.data import DataSet
    from fmnist.own_network import OwnNetwork, Source

# User attributes of a study, beside those of `places`.
DEFINITION, DATA, VERSIONS, PRECISION, STOP = "definition", "data", "versions", "precision", "stop"
GOAL = "goal"  # trials to reach, and how many had failed when that was asked for
NO_GOAL = {"trials": 0, "failed": 0}
FORMER_TTA: Tta = "none"  # of studies that were started before there was another, and have none on record
FORMER_PRUNER = "slack"  # of studies that named none, until trials could be paused
NETWORK = "network"  # of a user's own network: its file's SHA-256 and text, to be compared and read, never run


def open_study(
    storage: RDBStorage,
    name: str,
    definition: StudyDefinition,
    data: "DataSet",
    place: Place,
    *,
    allow_mixed: bool = False,
) -> optuna.Study:
    """Make the study, or resume the one of that name if it has the same definition, network, data and versions.

    Call it under the storage's lock.

    Raises:
        StudyError: a study of that name is another one, has its checkpoints elsewhere, or the place is another study's.
        NetworkError: the user's own network cannot be loaded.
        ArtifactError: the artifact store cannot be used.
        OSError: nothing can be written there.
    """
    definition = definition.loaded()
    if name not in optuna.get_all_study_names(storage):
        check_free(name, place)
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    maximizes = study.directions == [StudyDirection.MAXIMIZE]
    new = DEFINITION not in study.user_attrs and maximizes and not study.get_trials(deepcopy=False)
    if new:  # or left behind by a process that died here: the definition comes last, as the mark of a whole study
        if KEY not in study.user_attrs:  # its places may bear the key already
            study.set_user_attr(KEY, uuid4().hex)
        study.set_user_attr(DATA, {"name": data.name, "fingerprint": data.fingerprint})
        study.set_user_attr(VERSIONS, versions())
        if definition.own and definition.own.source:
            study.set_user_attr(NETWORK, asdict(definition.own.source))
        settle(study, place)
        study.set_user_attr(DEFINITION, definition.model_dump(mode="json"))
    study = load_study(storage, name)
    _check_network(study, definition)
    stored = definition_of(study)
    definition = _resumed(stored, definition)
    if changed := differences(stored.identity(), definition.identity()):
        raise StudyError(
            f"study {name!r} exists with another definition ({'; '.join(changed)}). "
            "Give the new one a name with --name, or repeat what it was started with."
        )
    check_alike(study, data, allow_mixed=allow_mixed)
    if not new:
        settle(study, place)
    study.set_user_attr(DEFINITION, definition.model_dump(mode="json"))  # with what may change
    return study


def _resumed(stored: StudyDefinition, given: StudyDefinition) -> StudyDefinition:
    """The given definition, as a study that is resumed takes it: what its file does not name may have had another
    default when the study was started."""
    former = {"tta": FORMER_TTA, "pruner": FORMER_PRUNER}
    kept = {
        name: value
        for name, value in former.items()
        if name not in given.model_fields_set and getattr(stored, name) == value
    }
    return given.model_copy(update=kept)


def _check_network(study: optuna.Study, definition: StudyDefinition) -> None:
    """Check that the file of the user's own network is what the study was started with.

    Raises:
        StudyError: it is another.
    """
    recorded, given = source_of(study), definition.own and definition.own.source
    if not recorded or not given or recorded == given:
        return
    from fmnist.own_network import difference

    file = definition.defaults.architecture.partition(":")[0]
    raise StudyError(
        f"study {study.study_name!r} was started with another {file}: restore it, or give the new study a name with "
        f"--name\n{difference(recorded, given, file)}"
    )


def source_of(study: optuna.Study) -> "Source | None":
    """The file of a study's own network as it is on record; None if it is in none.

    Raises:
        StudyError: the study has been deleted since it was opened.
    """
    recorded = attributes(study).get(NETWORK)
    if recorded is None:
        return None
    from fmnist.own_network import Source

    return Source(**recorded)


def own_network_of(study: optuna.Study) -> "OwnNetwork | None":
    """The user's own network of a study, loaded if its file has the content on record; None if it is one of ours.

    Raises:
        NetworkError: it cannot be loaded.
        StudyError: the study's definition does not fit its constructor.
    """
    definition = definition_of(study)
    if not definition.is_own:
        return None
    from fmnist.own_network import of_record

    own = of_record(definition.defaults.architecture, source_of(study))
    try:
        definition.of_network(own)
    except DefinitionError as error:  # the definition was changed, or a module, of which no content is on record
        lines = (f"study {study.study_name!r} does not fit its network: {line}" for line in str(error).splitlines())
        raise StudyError("\n".join(lines)) from error
    return own


def check_alike(study: optuna.Study, data: "DataSet", *, allow_mixed: bool) -> None:
    """See whether this process would do the same as the one that made the study.

    Raises:
        StudyError: data set, version of fmnist-search or of torch differ, and `allow_mixed` does not permit it.
    """
    if allow_mixed:
        return
    name = study.study_name
    if study.user_attrs[DATA]["fingerprint"] != data.fingerprint:
        raise StudyError(
            f"study {name!r} was started on {study.user_attrs[DATA]['name']}, this is {data.name} in {data.folder}, "
            "with other check-sums. Name the study's data with --data-dir, start a study of another name, "
            "or mix them with --allow-mixed."
        )
    if changed := differences(study.user_attrs[VERSIONS], versions()):
        raise StudyError(
            f"study {name!r} was started with other versions ({'; '.join(changed)}), so its trials cannot be "
            "compared in every digit. Install the study's versions, or mix them with --allow-mixed."
        )


def check_precision(study: optuna.Study, precision: str, *, allow_mixed: bool) -> None:
    """Check that this process trains in the precision of the study, which its first worker decides.

    Call it under the storage's lock.

    Raises:
        StudyError: it is another, and `allow_mixed` does not permit it.
    """
    trained = attributes(study).get(PRECISION)
    if trained is None:  # or a study of 0.2.0, which has it in the records of its trials only
        saved = map(saved_of, study.get_trials(deepcopy=False))
        trained = next((each.precision for each in saved if each and each.precision), precision)
        study.set_user_attr(PRECISION, trained)
    if trained != precision and not allow_mixed:
        raise StudyError(
            f"study {study.study_name!r} is trained in {trained}, and this machine trains in {precision}, so its "
            "trials cannot be compared in every digit. Use machines of one kind, or mix them with --allow-mixed."
        )


def versions() -> dict[str, str]:
    """The versions that decide a training's result."""
    return {"fmnist_search": version("fmnist-search"), "torch": version("torch")}


def load_study(storage: RDBStorage | BaseStorage, name: str) -> optuna.Study:
    """Open an existing study, to read it.

    Raises:
        StudyError: there is none of that name, or it was not made by fmnist-search, or was changed by something else,
            or its folder would be elsewhere.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise StudyError(f"study {name!r} would have its files outside the output folder; choose another name")
    names = optuna.get_all_study_names(storage)
    if name not in names:
        known = f"there are {', '.join(sorted(names))}" if names else "there are none yet"
        raise StudyError(f"no study named {name!r} in this database; {known}")
    study = optuna.load_study(storage=storage, study_name=name)
    if not {DEFINITION, KEY} <= study.user_attrs.keys():
        raise StudyError(f"study {name!r} was not made by this version of fmnist-search; choose another name")
    try:
        recorded = _Attributes.model_validate(study.user_attrs)
    except ValidationError as error:
        raise _altered(study, _place(error)) from error
    if recorded.has_file != bool(recorded.network):
        raise _altered(study, NETWORK)
    return study


class _Attributes(BaseModel):
    """What `open_study` has recorded by the time that there is a definition; anybody who may write can change it."""

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
        """Whether its network is in a file of the user's own."""
        defaults = self.definition.get("defaults")
        return isinstance(defaults, dict) and in_file(str(defaults.get("architecture")))


def _place(error: ValidationError) -> str:
    return ".".join(map(str, error.errors()[0]["loc"])) or DEFINITION


def _altered(study: optuna.Study, where: str) -> StudyError:
    return StudyError(
        f"study {study.study_name!r}: its user attributes ({where}) were changed, or written by another version of "
        "fmnist-search; use that version, restore the database, or choose another name"
    )


def definition_of(study: optuna.Study, known: Mapping[str, Any] | None = None) -> StudyDefinition:
    """The definition that the study was made with.

    Args:
        known: the study's user attributes, if they were read already.

    Raises:
        StudyError: the study has been deleted since it was opened, or its definition is not one of this version.
    """
    try:
        return StudyDefinition.model_validate({"tta": FORMER_TTA} | (known or attributes(study))[DEFINITION])
    except ValidationError as error:
        raise _altered(study, _place(error)) from error


def attributes(study: optuna.Study) -> dict[str, Any]:
    """The study's user attributes as they are now.

    Raises:
        StudyError: the study has been deleted since it was opened.
    """
    try:
        return study.user_attrs
    except KeyError:
        raise StudyError(f"study {study.study_name!r} was deleted") from None


def goal(study: optuna.Study) -> dict[str, int]:
    """The study's goal: `trials` to finish, and how many had `failed` when that was asked for."""
    return attributes(study).get(GOAL, NO_GOAL)  # type: ignore[no-any-return]


@contextmanager
def raise_if_deleted(study: optuna.Study, checkpoints: str) -> Iterator[None]:
    """Say so if the study or its database is deleted meanwhile; Optuna says KeyError of whatever it looks for next.

    Args:
        checkpoints: where those of the study are, which the user may want to keep.

    Raises:
        StudyError: the study was.
        DatabaseGone: the database was.
    """
    try:
        yield
    except DatabaseGone as error:
        raise DatabaseGone(f"{error}; the checkpoints are in {checkpoints}") from error
    except KeyError:
        attributes(study)
        raise


def finalists_name(name: str) -> str:
    """The study in which the best configurations of another are trained again."""
    return f"{name}{FINALISTS}"


def finalists_of(study: optuna.Study) -> optuna.Study | None:
    """The study's finalists, once they are chosen."""
    name = finalists_name(study.study_name)
    if name not in optuna.get_all_study_names(storage_of(study)):
        return None
    finalists = optuna.load_study(storage=storage_of(study), study_name=name)
    return finalists if DEFINITION in finalists.user_attrs else None


def request_stop(study: optuna.Study) -> None:
    """Ask all processes that work on the study and its finalists to wind down. Those that start later are not meant."""
    for each in (study, finalists_of(study)):
        if each:
            each.set_user_attr(STOP, uuid4().hex)


def stop_requests(study: optuna.Study) -> str | None:
    """What changes with each request to stop, and when the study is deleted."""
    try:
        request: str | None = attributes(study).get(STOP)
    except StudyError:
        return "deleted"
    return request


RUNS = "runs"  # a user attribute of a study: each `Run` whose command or machine is not that of the one before


@dataclass(frozen=True)
class Run:
    """One `run`: when it first began (ISO 8601, UTC), its command, on what machine, of what commit."""

    at: str
    command: str
    machine: str
    git_commit: str | None


def note(study: optuna.Study, command: str) -> None:
    """Put a run on record; call it under the storage's lock."""
    from fmnist.checkpoint import git_commit

    run = Run(datetime.now(UTC).isoformat(timespec="seconds"), command, machine(), git_commit())
    noted = runs(study)
    if not noted or asdict(noted[-1]) | {"at": ""} != asdict(run) | {"at": ""}:
        study.set_user_attr(RUNS, [asdict(each) for each in [*noted, run]])


def runs(study: optuna.Study) -> list[Run]:
    """The runs on record, the first one first."""
    return [Run(**each) for each in study.user_attrs.get(RUNS, [])]


def command_line(arguments: Sequence[str]) -> str:
    """A command of fmnist-search for a shell, without the password of any database in it."""
    return shlex.join(["fmnist-search", *map(_without_password, arguments)])


def _without_password(argument: str) -> str:
    option, separator, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    if "://" not in value:
        return argument
    try:
        return f"{option}{separator}{masked(value)}"
    except StorageError:  # no database
        return argument


def machine() -> str:
    """This machine: host, processor, cores, system."""
    return f"{socket.gethostname()}: {processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def processor() -> str:
    """The processor's model as Linux has it, else what Python knows."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown processor"

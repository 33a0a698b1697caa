"""Where a study keeps its files, and which study owns a location.

Paths below the folder of the SQLite database are stored relative to it, so that database and files can be moved
together. Each location contains its study's key in a file, MARK; no study writes to or deletes from a location with
another study's key.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import optuna

from fmnist.errors import UsageError
from search import choices
from search.artifacts import Artifacts, open_artifacts, trial_of
from search.choices import FINALISTS, OUTPUT
from search.database.optuna_schema import engine_of, records
from search.outputs import check_outputs
from search.study.record import CHECKPOINT, DROPPED, parse_saved

# User attributes of a study. ARTIFACTS is None if its checkpoints are in its own folder.
FOLDER, ARTIFACTS, KEY, KEEP = "folder", "artifacts", "key", "keep"

MARK = "study.id"


class StudyError(UsageError):
    """A study is missing or not the intended one; the message says what to do."""


@dataclass(frozen=True)
class Place:
    """Where a run puts a study's files.

    folder: for its report, and for its checkpoints unless `artifacts` is given. artifacts: a folder or s3:// URL that
    studies may share; each uses a subfolder of its name. keep: number of best trials whose checkpoints are kept.
    named: whether the user chose the folder; if not, an existing study keeps its own.
    """

    folder: Path
    artifacts: str | None = None
    keep: int = choices.KEEP
    named: bool = True


def folder_of(study: optuna.Study, output: Path | None = None) -> Path:
    """The folder of a study's report: in `output` if given, else the recorded one.

    If the recorded folder is a path of another machine and does not exist here, the default.
    """
    if output is not None:
        return output / study.study_name
    recorded = _recorded_folder(study)
    if Path(study.user_attrs[FOLDER]).is_absolute() and not recorded.is_dir():
        return (_base(study) or OUTPUT) / study.study_name
    return recorded


def location_of(study: optuna.Study, folder: Path | None = None) -> str:
    """The location of a study's checkpoints: the path of a folder, or a URL.

    Args:
        folder: the study's folder, if it is not the recorded one.
    """
    stored: str | None = study.user_attrs[ARTIFACTS]
    if stored is None:
        return str((folder or _recorded_folder(study)) / "checkpoints")
    return stored if "://" in stored else str((_base(study) or Path()) / stored)


def artifacts_of(study: optuna.Study, folder: Path | None = None) -> Artifacts:
    """The artifact store with a study's checkpoints; `folder` as in `location_of`."""
    return open_artifacts(location_of(study, folder))


def is_owned(study: optuna.Study, location: str) -> bool:
    """Whether a location contains the study's key."""
    key: str = study.user_attrs[KEY]
    return open_artifacts(location).read(MARK) == key.encode()


def below(artifacts: str, name: str) -> list[str]:
    """Possible locations of a study in a shared location.

    New studies use the first; earlier versions stored all studies in the shared location itself.
    """
    earlier = f"{artifacts}/finalists" if name.endswith(FINALISTS) else artifacts
    return [f"{artifacts}/{name}", earlier]


def check_free(name: str, place: Place) -> None:
    """Check that a new study may use a place for its files.

    Raises:
        StudyError: it contains another study's files.
        NotOurs: a search would overwrite a file there that fmnist-search did not write.
        ArtifactError, OSError: it cannot be read.
    """
    check_outputs(place.folder)
    for location in _locations(place.folder, place.artifacts and below(place.artifacts, name)[0]):
        store = open_artifacts(location)
        if store.read(MARK) is not None or any(trial_of(file) is not None for file in store.names()):
            raise _occupied(location)


def claim(study: optuna.Study, place: Place) -> None:
    """Record where the study's files are, and mark these locations with its key. Requires the database's lock.

    Raises:
        StudyError: a location belongs to another study, or the study's checkpoints are elsewhere.
        ArtifactError, OSError: a location cannot be read or written.
    """
    folder, artifacts = place.folder, None
    if FOLDER in study.user_attrs:
        folder = place.folder if place.named else folder_of(study)
        artifacts = _new_artifacts(study, place, folder)
    elif place.artifacts is not None:
        artifacts = below(place.artifacts, study.study_name)[0]
    for location in _locations(folder, artifacts):
        _mark(study, location)
    study.set_user_attr(ARTIFACTS, artifacts and (artifacts if "://" in artifacts else _relative(study, artifacts)))
    study.set_user_attr(KEEP, place.keep)
    study.set_user_attr(FOLDER, _relative(study, folder))  # last: a study with it has claimed its locations


def check_artifacts(study: optuna.Study, folder: Path | None = None) -> None:
    """Check that this process can reach the study's checkpoints; `folder` as in `location_of`.

    Raises:
        StudyError: the location is missing or belongs to another study.
        ArtifactError: the artifact store cannot be used.
    """
    _check_owned(study, location_of(study, folder))


def check_stays(study: optuna.Study, artifacts: str) -> None:
    """Check that the study's checkpoints are in the shared location `artifacts`.

    Raises:
        StudyError: they are elsewhere.
    """
    location = location_of(study)
    if not any(_same(location, each) for each in below(artifacts, study.study_name)):
        raise _elsewhere(study, location, artifacts)


def is_own(study: optuna.Study, location: str) -> bool:
    """Whether no other study uses this location; earlier versions stored several studies in one."""
    return study.user_attrs[ARTIFACTS] is None or location.rpartition("/")[2] == study.study_name


def deletable_roots(study: optuna.Study, output: Path | None, artifacts: str | None) -> list[str]:
    """Locations below which a command may delete files: those of its options; by default the database's folder."""
    return [str(place) for place in (output or _base(study), artifacts) if place is not None]


def is_within(location: str, roots: list[str]) -> bool:
    """Whether a location is one of the roots or below one."""
    if "://" in location:
        return any(f"{location}/".startswith(f"{root}/") for root in roots)
    path = Path(location).resolve()
    return any(path.is_relative_to(Path(root).resolve()) for root in roots if "://" not in root)


def check_within(study: optuna.Study, location: str, roots: list[str]) -> None:
    """Check that the study's files may be deleted from a location.

    Raises:
        StudyError: it is not below one of the roots, or does not belong to the study.
        ArtifactError, OSError: it cannot be read.
    """
    if not is_within(location, roots):
        raise StudyError(
            f"the checkpoints of study {study.study_name!r} are in {location}: to delete them, repeat the --output or "
            "--artifacts with which the study was run"
        )
    _check_owned(study, location)


def _check_owned(study: optuna.Study, location: str) -> None:
    if not is_owned(study, location):
        raise _absent(study, location) if open_artifacts(location).read(MARK) is None else _occupied(location)


def _base(study: optuna.Study) -> Path | None:
    # The folder of an SQLite database, relative if below the working directory; None for a server.
    url = engine_of(study).url
    if url.get_backend_name() != "sqlite":
        return None
    folder = Path(str(url.database)).parent
    with suppress(FileNotFoundError):  # the working directory was deleted
        if folder.is_relative_to(Path.cwd()):
            return folder.relative_to(Path.cwd())
    return folder


def _recorded_folder(study: optuna.Study) -> Path:
    recorded, base = Path(study.user_attrs[FOLDER]), _base(study)
    if base is None or not recorded.is_absolute():
        return (base or Path()) / recorded
    # Earlier versions recorded only absolute paths; the database may since have been moved together with its folders.
    beside = base / study.study_name
    return beside if is_owned(study, str(beside / "checkpoints")) else recorded


def _new_artifacts(study: optuna.Study, place: Place, folder: Path) -> str | None:
    # The new value of ARTIFACTS of an existing study.
    recorded, checkpoints = location_of(study), _checkpoints(study)
    wanted = below(place.artifacts, study.study_name) if place.artifacts else [location_of(study, folder)]
    found = [location for location in wanted if _same(location, recorded) or _contains(study, location, checkpoints)]
    location = found[0] if found else wanted[0]
    if checkpoints and not found and is_owned(study, recorded):
        raise _elsewhere(study, recorded, location)
    if checkpoints and not place.named and _base(study) is None and not is_owned(study, location):
        raise _absent(study, recorded)  # claiming the same path on this machine would orphan them
    return None if location == str(folder / "checkpoints") else location


def _contains(study: optuna.Study, location: str, checkpoints: set[str]) -> bool:
    # The key alone does not suffice: checkpoints may have been left behind when the folder was copied.
    return is_owned(study, location) and (
        not checkpoints or not checkpoints.isdisjoint(open_artifacts(location).names())
    )


def _locations(folder: Path, artifacts: str | None) -> list[str]:
    # The locations that contain a study's key.
    return [str(folder / "checkpoints")] if artifacts is None else [artifacts, str(folder)]


def _mark(study: optuna.Study, location: str) -> None:
    store, key = open_artifacts(location), study.user_attrs[KEY].encode()
    if store.read(MARK) is None:
        store.write(MARK, key)
    if store.read(MARK) != key:  # read again: a study in another database may have been faster
        raise _occupied(location)


def _checkpoints(study: optuna.Study) -> set[str]:
    with engine_of(study).connect() as connection:
        kept = records(connection, study, CHECKPOINT, without=DROPPED)
    return {name for record in kept if (name := parse_saved(record.stored, record.number)["name"])}


def _relative(study: optuna.Study, path: Path | str) -> str:
    absolute, base = Path(path).resolve(), _base(study)
    if base is not None and absolute.is_relative_to(base.resolve()):
        return str(absolute.relative_to(base.resolve()))
    return str(absolute)


def _same(one: str, other: str) -> bool:
    if "://" in one or "://" in other:
        return one == other
    return Path(one).resolve() == Path(other).resolve()


def _occupied(location: str) -> StudyError:
    return StudyError(
        f"{location} contains the files of another study; move them away, give this study another name with --name, "
        "or choose another location with --output or --artifacts"
    )


def _elsewhere(study: optuna.Study, location: str, wanted: str) -> StudyError:
    return StudyError(
        f"study {study.study_name!r} has its checkpoints in {location}, not in {wanted}; remove the option that "
        "names the second location, copy the checkpoints there, or start a new study with --name"
    )


def _absent(study: optuna.Study, location: str) -> StudyError:
    return StudyError(
        f"the checkpoints of study {study.study_name!r} are in {location} on the machine that started it, not on this "
        "machine: share that folder between the machines, name the output folder with a copy of them with --output, "
        "or start the study with --artifacts s3://BUCKET/PREFIX"
    )

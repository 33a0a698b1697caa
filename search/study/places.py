"""Where a study keeps its files, and which study a place belongs to.

A study records its folder and the location of its checkpoints relative to its SQLite database where they lie below
its folder, so that database and files can be moved together. Each place holds the key of its study in a file, MARK;
no study writes to or deletes from a place that holds another's key.
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

# User attributes of a study. ARTIFACTS is None where its checkpoints are in its own folder.
FOLDER, ARTIFACTS, KEY, KEEP = "folder", "artifacts", "key", "keep"

MARK = "study.id"


class StudyError(UsageError):
    """A study is absent or not the one that was meant; the message says what to do."""


@dataclass(frozen=True)
class Place:
    """Where a run wants a study's files.

    folder: for its report, and for its checkpoints unless `artifacts` is given. artifacts: a folder or s3:// URL that
    studies may share; each has a place of its name below it. keep: number of best trials whose checkpoints are kept.
    named: whether the user chose the folder; if not, an existing study stays where it is.
    """

    folder: Path
    artifacts: str | None = None
    keep: int = choices.KEEP
    named: bool = True


def folder_of(study: optuna.Study, output: Path | None = None) -> Path:
    """The folder of a study's report: in `output` if that is given, else the recorded one.

    Where this machine does not have the recorded folder, the default: the path of another machine is not created here.
    """
    if output is not None:
        return output / study.study_name
    recorded = _recorded_folder(study)
    if Path(study.user_attrs[FOLDER]).is_absolute() and not recorded.is_dir():
        return (_base(study) or OUTPUT) / study.study_name
    return recorded


def location_of(study: optuna.Study, folder: Path | None = None) -> str:
    """Where a study's checkpoints are: the path of a folder, or a URL.

    Args:
        folder: the study's, if it is not the recorded one.
    """
    stored: str | None = study.user_attrs[ARTIFACTS]
    if stored is None:
        return str((folder or _recorded_folder(study)) / "checkpoints")
    return stored if "://" in stored else str((_base(study) or Path()) / stored)


def artifacts_of(study: optuna.Study, folder: Path | None = None) -> Artifacts:
    """The store of a study's checkpoints; `folder` as for `location_of`."""
    return open_artifacts(location_of(study, folder))


def is_owned(study: optuna.Study, location: str) -> bool:
    """Whether a place holds the study's key."""
    key: str = study.user_attrs[KEY]
    return open_artifacts(location).read(MARK) == key.encode()


def below(artifacts: str, name: str) -> list[str]:
    """The places that a study of that name may have in a location of several studies.

    The first is where a new study has its own; earlier versions put all studies into the location itself.
    """
    earlier = f"{artifacts}/finalists" if name.endswith(FINALISTS) else artifacts
    return [f"{artifacts}/{name}", earlier]


def check_free(name: str, place: Place) -> None:
    """Check that a new study may keep its files in a place.

    Raises:
        StudyError: it holds the files of another study.
        NotOurs: a search would overwrite somebody else's file there.
        ArtifactError, OSError: it cannot be read.
    """
    check_outputs(place.folder)
    for location in _locations(place.folder, place.artifacts and below(place.artifacts, name)[0]):
        store = open_artifacts(location)
        if store.read(MARK) is not None or any(trial_of(file) is not None for file in store.names()):
            raise _occupied(location)


def settle(study: optuna.Study, place: Place) -> None:
    """Record where the study's files are, and mark the places as its own. Call it under the storage's lock.

    Raises:
        StudyError: a place is another study's, or the study's checkpoints are not there but elsewhere.
        ArtifactError, OSError: a place cannot be read or written.
    """
    folder, artifacts = place.folder, None
    if FOLDER in study.user_attrs:
        folder = place.folder if place.named else folder_of(study)
        artifacts = _settled(study, place, folder)
    elif place.artifacts is not None:
        artifacts = below(place.artifacts, study.study_name)[0]
    for location in _locations(folder, artifacts):
        _claim(study, location)
    study.set_user_attr(ARTIFACTS, artifacts and (artifacts if "://" in artifacts else _relative(study, artifacts)))
    study.set_user_attr(KEEP, place.keep)
    study.set_user_attr(FOLDER, _relative(study, folder))  # last: a study that has it is settled


def check_artifacts(study: optuna.Study, folder: Path | None = None) -> None:
    """Check that this process reaches the study's checkpoints; `folder` as for `location_of`.

    Raises:
        StudyError: what is at that place is not the study's.
        ArtifactError: the artifact store cannot be used.
    """
    _check_owned(study, location_of(study, folder))


def check_stays(study: optuna.Study, artifacts: str) -> None:
    """Check that the study's checkpoints are in that location.

    Raises:
        StudyError: they are not.
    """
    location = location_of(study)
    if not any(_same(location, each) for each in below(artifacts, study.study_name)):
        raise _elsewhere(study, location, artifacts)


def is_own(study: optuna.Study, location: str) -> bool:
    """Whether a place is this study's alone; earlier versions put several studies into one location."""
    return study.user_attrs[ARTIFACTS] is None or location.rpartition("/")[2] == study.study_name


def deletable_roots(study: optuna.Study, output: Path | None, artifacts: str | None) -> list[str]:
    """The places below which a command may delete files: those of its options, and the database's folder by default."""
    return [str(place) for place in (output or _base(study), artifacts) if place is not None]


def is_within(location: str, roots: list[str]) -> bool:
    """Whether a place is one of the roots, or below one of them."""
    if "://" in location:
        return any(f"{location}/".startswith(f"{root}/") for root in roots)
    path = Path(location).resolve()
    return any(path.is_relative_to(Path(root).resolve()) for root in roots if "://" not in root)


def check_within(study: optuna.Study, location: str, roots: list[str]) -> None:
    """Check that files of the study may be removed from a place.

    Raises:
        StudyError: it is not below one of the roots, or not the study's.
        ArtifactError, OSError: it cannot be read.
    """
    if not is_within(location, roots):
        raise StudyError(
            f"the checkpoints of study {study.study_name!r} are in {location}: name that place with --output or "
            "--artifacts, as `run` had it, to remove any"
        )
    _check_owned(study, location)


def _check_owned(study: optuna.Study, location: str) -> None:
    if not is_owned(study, location):
        raise _absent(study, location) if open_artifacts(location).read(MARK) is None else _occupied(location)


def _base(study: optuna.Study) -> Path | None:
    """The folder of an SQLite database, relative to the working directory if it is in that; None for a server's."""
    url = engine_of(study).url
    if url.get_backend_name() != "sqlite":
        return None
    folder = Path(str(url.database)).parent
    with suppress(FileNotFoundError):  # somebody deleted the working directory
        if folder.is_relative_to(Path.cwd()):
            return folder.relative_to(Path.cwd())
    return folder


def _recorded_folder(study: optuna.Study) -> Path:
    recorded, base = Path(study.user_attrs[FOLDER]), _base(study)
    if base is None or not recorded.is_absolute():
        return (base or Path()) / recorded
    # Earlier versions recorded absolute paths only: this database may have been moved with its folders.
    beside = base / study.study_name
    return beside if is_owned(study, str(beside / "checkpoints")) else recorded


def _settled(study: optuna.Study, place: Place, folder: Path) -> str | None:
    """Where an existing study keeps its checkpoints from now on; None for its own folder."""
    recorded, named = location_of(study), _named(study)
    wanted = below(place.artifacts, study.study_name) if place.artifacts else [location_of(study, folder)]
    there = [location for location in wanted if _same(location, recorded) or _holds(study, location, named)]
    location = there[0] if there else wanted[0]
    if named and not there and is_owned(study, recorded):
        raise _elsewhere(study, recorded, location)
    if named and not place.named and _base(study) is None and not is_owned(study, location):
        raise _absent(study, recorded)  # to claim a place of that name on this machine would orphan them
    return None if location == str(folder / "checkpoints") else location


def _holds(study: optuna.Study, location: str, named: set[str]) -> bool:
    """Whether a place is the study's and has one of its checkpoints, if there are any."""
    return is_owned(study, location) and (not named or not named.isdisjoint(open_artifacts(location).names()))


def _locations(folder: Path, artifacts: str | None) -> list[str]:
    """The places that bear a study's mark."""
    return [str(folder / "checkpoints")] if artifacts is None else [artifacts, str(folder)]


def _claim(study: optuna.Study, location: str) -> None:
    store, key = open_artifacts(location), study.user_attrs[KEY].encode()
    if store.read(MARK) is None:
        store.write(MARK, key)
    if store.read(MARK) != key:  # read again: a study of another database may have come first
        raise _occupied(location)


def _named(study: optuna.Study) -> set[str]:
    """The checkpoints that the study's trials name."""
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
        f"{location} holds the files of another study; move them away, give this study another name with --name, "
        "or name another place with --output or --artifacts"
    )


def _elsewhere(study: optuna.Study, location: str, wanted: str) -> StudyError:
    return StudyError(
        f"study {study.study_name!r} has its checkpoints in {location}, not in {wanted}; leave out the option that "
        "names the other place, copy the checkpoints there, or start a new study with --name"
    )


def _absent(study: optuna.Study, location: str) -> StudyError:
    return StudyError(
        f"the checkpoints of study {study.study_name!r} are in {location} on the machine that started it, and not "
        "here: share that folder between the machines, name the output folder that has them here with --output, or "
        "start the study with --artifacts s3://BUCKET/PREFIX"
    )

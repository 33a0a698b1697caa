"""File locations of studies: each has its own, and they can be moved with the database."""

import shutil
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from fmnist import checkpoint
from fmnist.data import DataSet
from search.artifacts import open_artifacts
from search.database.connection import lock, open_storage
from search.database.optuna_schema import backend
from search.database.url import default_url, sqlite_url
from search.outputs import REPORT
from search.queue import tickets
from search.study.places import ARTIFACTS, FOLDER, MARK, Place, StudyError, artifacts_of, folder_of, location_of
from search.study.record import checkpoint_of
from search.study.store import load_study, open_study
from search.worker import retention
from search.worker.loop import WorkerSettings, work
from tests.conftest import Command
from tests.factories import definition
from tests.postgresql import Server

DEFINED = definition(sampler="random")


@pytest.fixture(params=["folder", "bucket"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A location that several studies share."""
    url: str = request.getfixturevalue("bucket") if request.param == "bucket" else str(tmp_path / "shared")
    return url


class Searches:
    """Searches of two trials on tiny data."""

    def __init__(self, data: DataSet, data_folder: Path) -> None:
        self.data, self.data_folder = data, data_folder

    def opened(self, url: str, name: str, place: Place, trials: int = 2) -> optuna.Study:
        storage = open_storage(url, "create")
        with lock(url):
            study = open_study(storage, name, definition(sampler="random", seed=len(name)), self.data, place)
            tickets.top_up(study, DEFINED, trials)
        return study

    def run(self, url: str, name: str, place: Place, trials: int = 2) -> optuna.Study:
        self.opened(url, name, place, trials)
        work(WorkerSettings(url, name, self.data_folder), lambda: False)
        return load_study(open_storage(url), name)


@pytest.fixture
def searches(tiny: DataSet, tiny_folder: Path) -> Searches:
    return Searches(tiny, tiny_folder)


def checkpoints(study: optuna.Study) -> dict[str, bytes]:
    """The study's checkpoints, after checking their weights against the records of their trials."""
    found = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        name = checkpoint_of(trial)
        if name is None:
            continue
        content = artifacts_of(study).read(name)
        assert content is not None, name
        weights = checkpoint.parse(content, name).weights
        assert checkpoint.weights_digest(weights) == trial.user_attrs["checkpoint"]["weights"], name
        found[name] = content
    return found


def as_earlier_versions_had_it(study: optuna.Study, location: str) -> None:
    """Checkpoints directly in the shared location, which contains the last study's key; absolute paths."""
    own, shared = artifacts_of(study), open_artifacts(location)
    for name in own.names():
        content = own.read(name)
        assert content is not None
        shared.write(name, content)
        own.remove(name)
    study.set_user_attr(ARTIFACTS, location)
    study.set_user_attr(FOLDER, str(folder_of(study).resolve()))


def deleted(study: optuna.Study, folder: Path, *roots: str) -> None:
    for files in retention.files_of(study, folder):
        retention.delete(files, list(roots))


def test_studies_that_share_a_location_do_not_interfere(searches: Searches, location: str, tmp_path: Path) -> None:
    url = default_url(tmp_path)
    one = searches.run(url, "one", Place(tmp_path / "one", location))
    other = searches.run(url, "other", Place(tmp_path / "other", location))
    before = checkpoints(one)
    assert len(before) == len(checkpoints(other)) == 2
    assert retention.drop_orphans(other, artifacts_of(other)) == 0
    artifacts_of(other).write("trial-00009-epoch-1.pt", b"left by a worker that died")
    assert retention.drop_orphans(other, artifacts_of(other)) == 1
    deleted(other, tmp_path / "other", location)
    assert checkpoints(one) == before
    assert open_artifacts(f"{location}/other").names() == []


def test_a_location_of_a_study_in_another_database_is_refused(
    searches: Searches, location: str, tmp_path: Path
) -> None:
    one = searches.run(default_url(tmp_path), "s", Place(tmp_path / "s", location))
    before = checkpoints(one)
    second = default_url(tmp_path / "elsewhere")
    for place in (Place(tmp_path / "elsewhere" / "s", location), Place(tmp_path / "s", f"{location}/b")):
        with pytest.raises(StudyError, match="another study"):
            searches.opened(second, "s", place)
    assert optuna.get_all_study_names(open_storage(second)) == []
    assert checkpoints(one) == before


def test_a_location_with_unmarked_checkpoints_is_refused(searches: Searches, location: str, tmp_path: Path) -> None:
    open_artifacts(f"{location}/s").write("trial-00000-epoch-1.pt", b"of somebody")
    with pytest.raises(StudyError, match="another study"):
        searches.opened(default_url(tmp_path), "s", Place(tmp_path / "s", location))


def test_studies_of_earlier_versions_continue_in_a_shared_location(
    searches: Searches, location: str, tmp_path: Path
) -> None:
    url = default_url(tmp_path)
    storage = open_storage(url, "create")
    for name in ("one", "other"):
        searches.run(url, name, Place(tmp_path / name, location))
    for name in ("one", "other"):  # the second study overwrites the first one's files of the same names
        as_earlier_versions_had_it(load_study(storage, name), location)
    assert len(open_artifacts(location).names()) == len([MARK, "trial 0", "trial 1"])
    other = searches.run(url, "other", Place(tmp_path / "other", location), trials=4)
    assert location_of(other) == location
    assert len(checkpoints(other)) == 4
    with pytest.raises(StudyError, match="another study"):  # its key and its files were overwritten
        searches.run(url, "one", Place(tmp_path / "one", location))
    open_artifacts(location).write("trial-00077-epoch-1.pt", b"of nobody knows which")
    assert retention.drop_orphans(other, artifacts_of(other)) == 0
    deleted(load_study(open_storage(url, "write"), "one"), tmp_path / "one", location)
    assert len(checkpoints(other)) == 4
    deleted(load_study(open_storage(url, "write"), "other"), tmp_path / "other", location)
    assert open_artifacts(location).names() == ["trial-00077-epoch-1.pt"]


@pytest.mark.parametrize("recorded", ["relative", "absolute"])
def test_database_and_files_can_be_moved_together(
    searches: Searches, recorded: str, tmp_path: Path, tiny_folder: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    study = searches.run(default_url(old), "s", Place(old / "s"))
    before = checkpoints(study)
    if recorded == "absolute":  # as in earlier versions
        load_study(open_storage(default_url(old), "write"), "s").set_user_attr(FOLDER, str(old / "s"))
    shutil.copytree(old, new)
    moved = load_study(open_storage(default_url(new)), "s")
    assert folder_of(moved).resolve() == new / "s"
    assert checkpoints(moved) == before
    shutil.rmtree(old / "s" / "checkpoints")
    searches.run(default_url(new), "s", Place(tmp_path / "anywhere" / "s", named=False), trials=3)
    assert len(checkpoints(load_study(open_storage(default_url(new)), "s"))) == 3
    assert not (tmp_path / "anywhere").exists()
    assert not (old / "s" / "checkpoints").exists()
    writable = load_study(open_storage(default_url(new), "write"), "s")
    deleted(writable, folder_of(writable), str(new))
    assert not (new / "s").exists()


def test_deleting_in_a_copy_does_not_affect_the_original(searches: Searches, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    study = searches.run(default_url(old), "s", Place(old / "s"))
    before = checkpoints(study)
    shutil.copytree(old, new)
    copy = load_study(open_storage(default_url(new), "write"), "s")
    deleted(copy, folder_of(copy), str(new))
    assert not (new / "s").exists()
    assert checkpoints(study) == before


def test_a_new_location_does_not_orphan_checkpoints(searches: Searches, url: str, tmp_path: Path) -> None:
    """The recorded folder is the default; a given one must contain the checkpoints, if there are any."""
    first, second = tmp_path / "first" / "s", tmp_path / "second" / "s"
    searches.opened(url, "s", Place(first))
    assert folder_of(searches.opened(url, "s", Place(second))).resolve() == second  # nothing has been trained yet
    study = searches.run(url, "s", Place(first, named=False))
    assert folder_of(study).resolve() == second
    before = checkpoints(study)
    with pytest.raises(StudyError, match=r"has its checkpoints in .*second.*copy"):
        searches.opened(url, "s", Place(first))
    with pytest.raises(StudyError, match=r"has its checkpoints in .*second.*copy"):
        searches.opened(url, "s", Place(second, str(tmp_path / "third")))
    assert checkpoints(load_study(open_storage(url), "s")) == before
    shutil.rmtree(first)
    shutil.move(second, first)
    assert checkpoints(searches.opened(url, "s", Place(first))) == before


def test_files_on_another_machine_are_not_claimed(
    searches: Searches, postgresql: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Studies on a server record absolute folders; creating them on another machine would orphan files."""
    url = postgresql.create_database()
    there, here = tmp_path / "there" / "s", tmp_path / "here"
    searches.run(url, "s", Place(there))
    there.parent.rename(tmp_path / "another machine")
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(StudyError, match="on the machine that started it, not on this machine"):
        searches.opened(url, "s", Place(Path("studies/s"), named=False))
    with pytest.raises(StudyError, match="on the machine that started it, not on this machine"):
        work(WorkerSettings(url, "s", searches.data_folder, output=here / "studies"), lambda: False)
    assert folder_of(load_study(open_storage(url), "s")) == Path("studies/s")  # for reports
    assert not there.exists()
    assert not list(here.iterdir())
    shutil.copytree(tmp_path / "another machine", here / "mounted")
    searches.opened(url, "s", Place(here / "mounted" / "s"), trials=3)
    work(WorkerSettings(url, "s", searches.data_folder, output=here / "mounted"), lambda: False)
    assert len(checkpoints(load_study(open_storage(url), "s"))) == 3


def test_an_incompletely_created_study_keeps_its_location(searches: Searches, tmp_path: Path) -> None:
    url = default_url(tmp_path)
    study = searches.opened(url, "s", Place(tmp_path / "s"), trials=0)
    with backend(study).engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM study_user_attributes WHERE key IN ('definition', 'folder')")
    assert len(checkpoints(searches.run(url, "s", Place(tmp_path / "s")))) == 2


def test_delete_keeps_files_outside_the_given_folders(searches: Searches, location: str, tmp_path: Path) -> None:
    study = searches.run(default_url(tmp_path), "s", Place(tmp_path / "s", location))
    (tmp_path / "s" / REPORT).write_text("<title>s - fmnist-search</title>")
    store = artifacts_of(study)
    names = store.names()
    deleted(load_study(open_storage(default_url(tmp_path), "write"), "s"), tmp_path / "s", str(tmp_path / "s"))
    assert not (tmp_path / "s").exists()
    assert store.names() == names


def test_a_worker_uses_the_output_folder_that_it_is_given(invoke: Command, study_file: Path, tmp_path: Path) -> None:
    """The recorded folder is absolute, because it is not below the database's, and has been moved."""
    storage = sqlite_url(tmp_path / "database" / "a.db")
    assert invoke("enqueue", study_file.name, "--storage", storage, "--output", "first").returncode == 0
    (tmp_path / "first").rename(tmp_path / "second")
    assert invoke("worker", "tiny", "--storage", storage, "--workers", "1").returncode != 0
    worked = invoke("worker", "tiny", "--storage", storage, "--output", "second", "--workers", "1")
    assert worked.returncode == 0, worked.stderr
    assert list((tmp_path / "second" / "tiny" / "checkpoints").glob("trial-00000-*.pt"))
    assert not (tmp_path / "first").exists()

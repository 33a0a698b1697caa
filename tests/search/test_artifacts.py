"""One set of tests for both artifact stores: a folder, and a bucket on a real S3 server."""

import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import TrialState

from fmnist import checkpoint
from fmnist.checkpoint import Checkpoint
from fmnist.data import DataSet
from search import doctor
from search.artifacts import ArtifactError, Artifacts, Bucket, checkpoint_name, located, open_artifacts
from search.dashboard.artifacts import TrialArtifacts
from search.database.connection import open_storage
from search.report.analysis import analyse
from search.study.places import MARK, artifacts_of, folder_of
from search.study.record import checkpoint_of
from search.study.store import load_study
from search.worker import retention
from search.worker.loop import work
from tests.conftest import Make
from tests.factories import definition

pytest.importorskip("moto")


@pytest.fixture(params=["folder", "prefix", "whole bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The location of an empty store."""
    if request.param == "folder":
        return str(tmp_path / "deep" / "artifacts")
    url: str = request.getfixturevalue("bucket")
    return url if request.param == "whole bucket" else f"{url}/some/prefix"


@pytest.fixture
def artifacts(place: str) -> Artifacts:
    return open_artifacts(place)


def test_missing_files_read_as_none_and_are_removed_without_error(artifacts: Artifacts) -> None:
    assert artifacts.names() == []
    assert artifacts.read("nothing.pt") is None
    artifacts.remove("nothing.pt")
    assert artifacts.names() == []


@pytest.mark.parametrize("size", [0, 1, 20_000_000], ids="{:,} bytes".format)
def test_a_written_file_is_read_back_completely(artifacts: Artifacts, place: str, size: int) -> None:
    content = (bytes(range(256)) * (size // 256 + 1))[:size]
    artifacts.write("trial-00000-epoch-0.25.pt", content)
    assert open_artifacts(place).read("trial-00000-epoch-0.25.pt") == content


def test_replacing_and_removing_leaves_other_files_unchanged(artifacts: Artifacts) -> None:
    for name in ("b", "a", "c"):
        artifacts.write(name, name.encode())
    artifacts.write("b", b"more than it was")
    assert artifacts.names() == ["a", "b", "c"]
    artifacts.remove("a")
    assert artifacts.names() == ["b", "c"]
    assert [artifacts.read(name) for name in "abc"] == [None, b"more than it was", b"c"]


def test_names_lists_more_than_one_page_of_results(bucket: str) -> None:
    artifacts = open_artifacts(f"{bucket}/prefix")
    names = [checkpoint_name(number, 1) for number in range(1001)]
    for name in names:
        artifacts.write(name, b"")
    assert artifacts.names() == names


def test_a_store_has_its_location_and_those_of_files(artifacts: Artifacts, place: str) -> None:
    artifacts.write("a", b"")
    assert artifacts.location == place
    assert artifacts.locate("a") == f"{place}/a"


def test_a_missing_file_in_a_folder_has_no_location(tmp_path: Path) -> None:
    assert open_artifacts(str(tmp_path)).locate("a") is None


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_adjacent_and_nested_stores_are_independent(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    root = str(tmp_path) if kind == "folder" else request.getfixturevalue("bucket")
    places = [f"{root}/{path}" for path in ("one", "one-more", "one/deeper", "on", "what?", "what?e", "what#")]
    for place in [*places, root]:
        open_artifacts(place).write("mark", place.encode())
    for place in [*places, root]:
        assert open_artifacts(place).names() == ["mark"]
        assert open_artifacts(place).read("mark") == place.encode()
    open_artifacts(places[0]).remove("mark")
    assert [place for place in places if not open_artifacts(place).names()] == places[:1]


def test_extra_slashes_are_ignored(bucket: str) -> None:
    open_artifacts(f"{bucket}/a/b").write("mark", b"")
    for url in (f"{bucket}/a/b/", f"{bucket}//a//b"):
        assert open_artifacts(url).names() == ["mark"]
        assert open_artifacts(url).locate("mark") == f"{bucket}/a/b/mark"
    assert located(f"{bucket}/a/b/") == f"{bucket}/a/b"


def test_a_folder_is_located_independently_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert located("artifacts") == str(tmp_path / "artifacts")
    assert located(None) is None
    assert located("s3://") == "s3://"


def each_call(artifacts: Artifacts) -> list[Callable[[], object]]:
    return [
        lambda: artifacts.write("a", b""),
        lambda: artifacts.read("a"),
        lambda: artifacts.remove("a"),
        artifacts.names,
    ]


@pytest.mark.parametrize("url", ["s3://no-such-bucket/prefix", "s3://Not A Bucket!/prefix"])
def test_a_missing_bucket_is_a_one_line_error_in_each_call(s3: None, url: str) -> None:
    for call in each_call(open_artifacts(url)):
        with pytest.raises(ArtifactError, match=rf"^{url}: .*bucket.*; check bucket, endpoint") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_an_unreachable_server_is_an_error(bucket: str, monkeypatch: pytest.MonkeyPatch, unused_endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", unused_endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for call in each_call(open_artifacts(bucket)):
        with pytest.raises(ArtifactError, match=rf"^{bucket}: Could not connect to the endpoint URL"):
            call()


@pytest.fixture
def unused_endpoint() -> Iterator[str]:
    """An address that refuses connections: bound, but not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_missing_credentials_are_reported(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    with pytest.raises(ArtifactError, match=rf"^{bucket}: Unable to locate credentials; check"):
        open_artifacts(bucket).names()


def test_a_malformed_endpoint_is_an_error(s3: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(ArtifactError, match=r"^s3://bucket: Invalid endpoint: nonsense; check"):
        open_artifacts("s3://bucket").names()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3://", "the bucket is missing"),
        ("s3:///prefix", "the bucket is missing"),
        ("gs://b/p", "unsupported artifact store"),
    ],
)
def test_malformed_urls_are_refused(s3: None, url: str, why: str) -> None:
    with pytest.raises(ArtifactError, match=rf"^{url}: {why}.*s3://BUCKET/PREFIX$"):
        open_artifacts(url)


def test_without_boto3_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ArtifactError, match=re.escape("pip install -e '.[s3]'")):
        open_artifacts("s3://bucket/prefix")


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "..", ".", "", "a\0"])
def test_a_name_that_leads_out_of_the_store_is_refused(artifacts: Artifacts, name: str) -> None:
    for call in (lambda: artifacts.write(name, b""), lambda: artifacts.read(name), lambda: artifacts.remove(name)):
        with pytest.raises(ArtifactError, match="not an artifact's name"):
            call()


def test_a_folder_that_cannot_be_created_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError):
        open_artifacts(str(tmp_path / "file" / "deeper")).write("a", b"")


def saved(study: optuna.Study, number: int) -> Checkpoint:
    artifacts, name = artifacts_of(study), checkpoint_of(study.get_trials(deepcopy=False)[number])
    assert name is not None
    content = artifacts.read(name)
    assert content is not None
    return checkpoint.parse(content, name)


def test_a_study_trains_resumes_and_is_deleted_in_a_bucket(bucket: str, make: Make, tmp_path: Path) -> None:
    study, settings = make(definition(), 2, artifacts=f"{bucket}/studies/s")
    artifacts = artifacts_of(study)
    assert isinstance(artifacts, Bucket)
    assert artifacts.names() == [MARK]

    work(settings, lambda: any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)))
    assert [trial.state for trial in study.trials] == [TrialState.WAITING] * 2
    first = saved(study, 0)
    assert artifacts.names() == [MARK, checkpoint_name(0, 0.25)]
    assert len(first.history) == 1

    work(settings, lambda: False)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    history = saved(study, 0).history
    assert history[:1] == first.history  # including the seconds taken, so it was not trained again
    assert history[-1].epoch == 2
    assert artifacts.names() == [MARK, checkpoint_name(0, 2), checkpoint_name(1, 2)]
    assert not (tmp_path / "s" / "checkpoints").exists()

    dashboard = TrialArtifacts(open_storage(settings.storage), folder_of, tmp_path / "uploads")
    *_, meta = get_all_artifact_meta(study.trials[0], storage=open_storage(settings.storage))
    with dashboard.open_reader(meta.artifact_id) as reader:
        assert reader.read() == artifacts.read(checkpoint_name(0, 2))

    best = study.best_trial.number
    assert retention.drop_outperformed(study, artifacts, keep=1) == 1
    assert artifacts.names() == [MARK, checkpoint_name(best, 2)]
    fresh = load_study(open_storage(settings.storage), "s")  # the other has cached the finished trials
    assert [checkpoint_of(trial) is None for trial in fresh.trials] == [number != best for number in range(2)]
    assert retention.drop_outperformed(study, artifacts, keep=1) == 0

    for name in (checkpoint_name(best, 1), checkpoint_name(7, 0.5), "notes.txt"):
        artifacts.write(name, b"")
    assert retention.drop_orphans(study, artifacts) == 2
    assert artifacts.names() == ["notes.txt", MARK, checkpoint_name(best, 2)]

    for files in retention.files_of(study, tmp_path / "s"):
        retention.delete(files, [bucket])
    assert artifacts.names() == ["notes.txt"]


def test_a_checkpoint_other_than_the_recorded_one_is_neither_reported_nor_served(
    make: Make, tmp_path: Path, tiny: DataSet
) -> None:
    """Even if it is a valid checkpoint of the same study."""
    study, settings = make(definition(), 2)
    work(settings, lambda: False)
    artifacts, best = artifacts_of(study), study.best_trial.number
    other = artifacts.read(checkpoint_name(1 - best, 2))
    assert other is not None
    assert analyse(study, tmp_path / "s", lambda: tiny).network is not None
    artifacts.write(checkpoint_name(best, 2), other)

    analysis = analyse(study, tmp_path / "s", lambda: tiny)
    assert analysis.network is None
    for words in (checkpoint_name(best, 2), f"trial {best}", "digest"):
        assert words in (analysis.missing or "")
    dashboard = TrialArtifacts(open_storage(settings.storage), folder_of, tmp_path / "uploads")
    *_, meta = get_all_artifact_meta(study.trials[best], storage=open_storage(settings.storage))
    with pytest.raises(ArtifactNotFound, match=f"trial {best}"):
        dashboard.open_reader(meta.artifact_id)


def test_doctor_checks_a_bucket(bucket: str) -> None:
    place = f"{bucket}/prefix"
    assert doctor.check_artifacts(place).found == f"{place} is writable"
    assert open_artifacts(place).names() == []
    absent = doctor.check_artifacts("s3://nosuch/prefix")
    assert absent.status == "failed"
    assert "check bucket, endpoint and credentials" in (absent.fix or "")

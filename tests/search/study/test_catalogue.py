from pathlib import Path

import pytest

from fmnist.architectures import ARCHITECTURES
from search.study import catalogue, definition, space
from search.study.definition import DefinitionError
from tests.conftest import Command
from tests.factories import STUDY


def test_every_bundled_study_is_listed_with_its_question_and_time() -> None:
    listed = {entry.name: entry for entry in catalogue.entries()}
    assert listed.keys() == {path.stem for path in definition.bundled()}
    assert listed.keys() == {"architectures", "augmentation", "cnn", "epochs", "grid", "random", "regularization"}
    for entry in listed.values():
        assert entry.description
        assert entry.minutes


def test_the_number_of_trials_of_a_grid_is_listed() -> None:
    trials = {entry.name: entry.trials for entry in catalogue.entries()}
    assert trials["epochs"] == 3 * 5
    assert trials["augmentation"] == (1 + 6 * 3) * 4
    assert trials["regularization"] == (4 + 3 + 3 + 3) * 4
    assert trials["grid"] == 3 * 3 * 2 * 2
    assert (trials["random"], trials["cnn"]) == (36, 50)


def test_the_studies_of_the_write_up_match_its_questions() -> None:
    epochs = definition.read(definition.locate("epochs"))
    assert [point["epochs"] for point in space.grid(epochs)] == [3, 5, 7]
    network = epochs.defaults
    assert (network.architecture, network.filters, network.augmentation_kind) == ("simple", 8, "both")
    assert epochs.reference == "write-up"
    architectures = space.grid(definition.read(definition.locate("architectures")))
    assert {point["architecture"] for point in architectures} == ARCHITECTURES.keys()
    assert {point["blocks"] for point in architectures if point["architecture"] == "cnn"} == {1, 2, 3, 4}
    augmentation = definition.read(definition.locate("augmentation"))
    kinds = {point["augmentation_kind"] for point in space.grid(augmentation) if point["augmentation"]}
    assert kinds == {"flip", "rotation", "both", "crop", "jitter", "erasing"}


def test_local_studies_are_listed_and_hide_bundled_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    for name in ("mine", "cnn"):
        (tmp_path / "studies" / f"{name}.toml").write_text(STUDY)
    listed = {entry.name: entry for entry in catalogue.entries()}
    assert listed["mine"].description == listed["cnn"].description == "two quick parameters on tiny data"
    assert listed["mine"].minutes is None
    (tmp_path / "studies" / "mine.toml").write_text("trials = 0")
    with pytest.raises(DefinitionError, match=r"mine\.toml: trials"):
        catalogue.entries()


def test_the_studies_command_prints_the_list(invoke: Command) -> None:
    result = invoke("studies")
    assert result.returncode == 0
    rows = [line.split()[:4] for line in result.stdout.splitlines()]
    for entry in catalogue.entries():
        assert [entry.name, entry.sampler, str(entry.trials), str(entry.minutes)] in rows

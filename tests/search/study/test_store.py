from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from fmnist.data import DataSet
from search.database.connection import open_storage
from search.database.url import default_url
from search.study.definition import StudyDefinition
from search.study.places import Place, StudyError, folder_of
from search.study.store import DEFINITION, definition_of, load_study, open_study, raise_if_deleted


def definition(**changes: object) -> StudyDefinition:
    return StudyDefinition.model_validate(
        {"defaults": {"epochs": 4}, "space": {"epochs": {"low": 2, "high": 9}}, **changes}
    )


@pytest.fixture
def storage(tmp_path: Path) -> optuna.storages.RDBStorage:
    return open_storage(default_url(tmp_path), "create")


def test_a_study_stores_its_complete_definition(
    storage: optuna.storages.RDBStorage, tiny: DataSet, tmp_path: Path
) -> None:
    given = definition(sampler="qmc", seed=4, trials=7)
    open_study(storage, "s", given, tiny, Place(tmp_path / "s"))
    resumed = load_study(storage, "s")
    assert definition_of(resumed) == given
    assert folder_of(resumed) == tmp_path / "s"
    assert resumed.direction == optuna.study.StudyDirection.MAXIMIZE


def test_a_resumed_study_may_change_only_its_extent(
    storage: optuna.storages.RDBStorage, tiny: DataSet, tmp_path: Path
) -> None:
    open_study(storage, "s", definition(), tiny, Place(tmp_path))
    open_study(storage, "s", definition(trials=99, description="new words"), tiny, Place(tmp_path))
    changed = definition(pruner="median", space={"epochs": {"low": 2, "high": 5}})
    with pytest.raises(StudyError, match=r"pruner: freeze -> median; space.epochs.high: 9 -> 5.*--name"):
        open_study(storage, "s", changed, tiny, Place(tmp_path))


def test_a_study_file_without_a_pruner_resumes_with_the_former_default(
    storage: optuna.storages.RDBStorage, tiny: DataSet, tmp_path: Path
) -> None:
    open_study(storage, "s", definition(pruner="slack"), tiny, Place(tmp_path / "s"))
    for _ in range(2):
        assert definition_of(open_study(storage, "s", definition(), tiny, Place(tmp_path / "s"))).pruner == "slack"
    with pytest.raises(StudyError, match=r"pruner: slack -> freeze"):
        open_study(storage, "s", definition(pruner="freeze"), tiny, Place(tmp_path / "s"))
    open_study(storage, "other", definition(pruner="median"), tiny, Place(tmp_path / "other"))
    with pytest.raises(StudyError, match=r"pruner: median -> freeze"):
        open_study(storage, "other", definition(), tiny, Place(tmp_path / "other"))


def without_tta(study: optuna.Study) -> None:
    """Make a study look like one from before test-time augmentation."""
    study.set_user_attr(DEFINITION, {key: value for key, value in study.user_attrs[DEFINITION].items() if key != "tta"})


def test_a_study_from_before_test_time_augmentation_resumes_without_it(
    storage: optuna.storages.RDBStorage, tiny: DataSet, tmp_path: Path
) -> None:
    new = open_study(storage, "new", definition(), tiny, Place(tmp_path / "new"))
    assert definition_of(new).tta == "auto"
    old = open_study(storage, "old", definition(tta="none"), tiny, Place(tmp_path / "old"))
    without_tta(old)
    assert definition_of(old).tta == "none"
    for _ in range(2):
        assert definition_of(open_study(storage, "old", definition(), tiny, Place(tmp_path / "old"))).tta == "none"
    for wanted in ("auto", "mirror"):
        with pytest.raises(StudyError, match=f"tta: none -> {wanted}"):
            open_study(storage, "old", definition(tta=wanted), tiny, Place(tmp_path / "old"))
    open_study(storage, "mirrored", definition(tta="mirror"), tiny, Place(tmp_path / "mirrored"))
    with pytest.raises(StudyError, match="tta: mirror -> auto"):
        open_study(storage, "mirrored", definition(), tiny, Place(tmp_path / "mirrored"))


def test_another_data_set_is_refused(storage: optuna.storages.RDBStorage, tiny: DataSet, tmp_path: Path) -> None:
    open_study(storage, "s", definition(), tiny, Place(tmp_path))
    with pytest.raises(StudyError, match=r"started on data set 'digits', but other"):
        open_study(storage, "s", definition(), replace(tiny, name="other", fingerprint="0"), Place(tmp_path))


def test_missing_and_foreign_studies_are_refused(storage: optuna.storages.RDBStorage) -> None:
    with pytest.raises(StudyError, match="no study named 's' in this database; there are none yet"):
        load_study(storage, "s")
    optuna.create_study(storage=storage, study_name="theirs")
    with pytest.raises(StudyError, match="no study named 's' in this database; there are theirs"):
        load_study(storage, "s")
    with pytest.raises(StudyError, match="'theirs' was not created by this version of fmnist-search"):
        load_study(storage, "theirs")


def test_deleting_an_open_study_raises_a_clear_error(
    storage: optuna.storages.RDBStorage, tiny: DataSet, tmp_path: Path
) -> None:
    study = open_study(storage, "s", definition(), tiny, Place(tmp_path))
    with pytest.raises(KeyError, match="of another kind"), raise_if_deleted(study, "there"):
        raise KeyError("of another kind")
    optuna.delete_study(study_name="s", storage=storage)
    with pytest.raises(StudyError, match="study 's' was deleted"), raise_if_deleted(study, "there"):
        study.get_trials()


def test_an_incompletely_created_study_is_completed(
    storage: optuna.storages.RDBStorage, tiny: DataSet, tmp_path: Path
) -> None:
    optuna.create_study(storage=storage, study_name="s", direction="maximize")
    open_study(storage, "s", definition(), tiny, Place(tmp_path))
    assert definition_of(load_study(storage, "s")) == definition()
    optuna.create_study(storage=storage, study_name="theirs", direction="minimize")
    with pytest.raises(StudyError, match="not created by this version"):
        open_study(storage, "theirs", definition(), tiny, Place(tmp_path))

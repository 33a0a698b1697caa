from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, PercentilePruner, SuccessiveHalvingPruner
from optuna.samplers import GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from fmnist.data import DataSet
from search.definition import StudyDefinition
from search.storage import default_url, open_storage
from search.study import (
    HISTORY,
    TPE_BEST,
    Place,
    StudyError,
    definition_of,
    folder_of,
    load_study,
    open_study,
    pruner,
    sampler,
    telling,
)


def definition(**changes: object) -> StudyDefinition:
    return StudyDefinition.model_validate(
        {"defaults": {"epochs": 4}, "space": {"epochs": {"low": 2, "high": 9}}, **changes}
    )


@pytest.fixture
def storage(tmp_path: Path) -> optuna.storages.RDBStorage:
    return open_storage(default_url(tmp_path), "create")


def test_a_study_keeps_its_whole_definition(storage: optuna.storages.RDBStorage, tiny: DataSet, tmp_path: Path) -> None:
    given = definition(sampler="qmc", seed=4, trials=7)
    open_study(storage, "s", given, tiny, Place(tmp_path / "s"))
    again = load_study(storage, "s")
    assert definition_of(again) == given
    assert folder_of(again) == tmp_path / "s"
    assert again.direction == optuna.study.StudyDirection.MAXIMIZE


def test_a_resumed_study_may_change_its_number_of_trials_only(
    storage: optuna.storages.RDBStorage, tiny: DataSet, tmp_path: Path
) -> None:
    open_study(storage, "s", definition(), tiny, Place(tmp_path))
    open_study(storage, "s", definition(trials=99, description="new words"), tiny, Place(tmp_path))
    changed = definition(pruner="median", space={"epochs": {"low": 2, "high": 5}})
    with pytest.raises(StudyError, match=r"pruner: halving -> median; space.epochs.high: 9 -> 5.*--name"):
        open_study(storage, "s", changed, tiny, Place(tmp_path))


def test_a_study_stays_with_its_data(storage: optuna.storages.RDBStorage, tiny: DataSet, tmp_path: Path) -> None:
    open_study(storage, "s", definition(), tiny, Place(tmp_path))
    with pytest.raises(StudyError, match=r"started on data set 'digits', this is other"):
        open_study(storage, "s", definition(), replace(tiny, name="other", fingerprint="0"), Place(tmp_path))


def test_absent_and_foreign_studies_are_refused(storage: optuna.storages.RDBStorage) -> None:
    with pytest.raises(StudyError, match="no study named 's' in this database; there are none yet"):
        load_study(storage, "s")
    optuna.create_study(storage=storage, study_name="theirs")
    with pytest.raises(StudyError, match="no study named 's' in this database; there are theirs"):
        load_study(storage, "s")
    with pytest.raises(StudyError, match="'theirs' was not made by this version of fmnist-search"):
        load_study(storage, "theirs")


def test_names_choose_samplers_and_pruners() -> None:
    samplers = {
        "tpe": TPESampler,
        "gp": GPSampler,
        "random": RandomSampler,
        "grid": RandomSampler,
        "qmc": RandomSampler,
    }
    for name, kind in samplers.items():
        assert type(sampler(definition(sampler=name), 3)) is kind
    pruners = {
        "halving": SuccessiveHalvingPruner,
        "hyperband": HyperbandPruner,
        "median": MedianPruner,
        "percentile": PercentilePruner,
        "none": NopPruner,
    }
    for name, made in pruners.items():
        assert type(pruner(definition(pruner=name))) is made


def test_a_study_that_was_left_half_made_is_finished(
    storage: optuna.storages.RDBStorage, tiny: DataSet, tmp_path: Path
) -> None:
    optuna.create_study(storage=storage, study_name="s", direction="maximize")
    open_study(storage, "s", definition(), tiny, Place(tmp_path))
    assert definition_of(load_study(storage, "s")) == definition()
    optuna.create_study(storage=storage, study_name="theirs", direction="minimize")
    with pytest.raises(StudyError, match="not made by this version"):
        open_study(storage, "theirs", definition(), tiny, Place(tmp_path))


def test_samplers_look_at_the_best_the_newest_and_those_that_run() -> None:
    accuracies = np.random.default_rng(1).random(HISTORY + 500)
    trials = [
        optuna.trial.create_trial(value=accuracy, state=TrialState.PRUNED if number % 3 else TrialState.COMPLETE)
        for number, accuracy in enumerate(accuracies)
    ]
    trials += [optuna.trial.create_trial(state=state) for state in (TrialState.RUNNING, TrialState.WAITING)]
    for number, trial in enumerate(trials):
        trial.number = number
    kept = telling(trials)
    numbers = [trial.number for trial in kept]
    assert numbers == sorted(numbers)
    assert HISTORY - TPE_BEST < len(kept) <= HISTORY + 1
    assert set(range(525, HISTORY + 501)) <= set(numbers)  # the newest 975, and the one that runs
    complete = sorted((trial for trial in trials if trial.state == TrialState.COMPLETE), key=lambda trial: -trial.value)
    assert {trial.number for trial in complete[:TPE_BEST]} <= set(numbers)
    assert telling(trials[:HISTORY]) == trials[:HISTORY]

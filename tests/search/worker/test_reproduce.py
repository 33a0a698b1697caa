from dataclasses import replace

import pytest
from optuna.trial import TrialState

from fmnist.data import DataSet
from search.study.record import CHECKPOINT
from search.worker.loop import work
from search.worker.reproduce import Compared, NotReproducible, reproduce
from tests.conftest import Make
from tests.factories import definition


def test_a_trial_is_reproduced_with_its_own_number_of_threads(make: Make, tiny: DataSet) -> None:
    """The number of threads affects rounding, so a trial keeps the one that it started with."""
    study, settings = make(definition(), 1)
    work(settings, lambda: bool(study.get_trials(deepcopy=False)[0].intermediate_values))
    work(replace(settings, threads=2), lambda: False)
    (trial,) = study.trials
    assert [attempt["threads"] for attempt in trial.user_attrs["attempts"]] == [1, 2]
    assert trial.user_attrs[CHECKPOINT]["threads"] == 1
    compared: list[Compared] = []
    reproduction = reproduce(study, 0, tiny, compared.append)
    assert reproduction.same_metrics
    assert reproduction.same_weights
    assert [each.epoch for each in compared] == [0.25, 0.5, 1, 2]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_trial_is_resumed_and_reproduced_in_its_own_precision(
    make: Make, tiny: DataSet, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """One of the two is not what this machine would choose."""
    study, settings = make(definition(), 1)
    with monkeypatch.context() as patch:
        patch.setattr("fmnist.training.default_precision", lambda _: precision)
        work(settings, lambda: bool(study.get_trials(deepcopy=False)[0].intermediate_values))
    work(settings, lambda: False)
    (trial,) = study.trials
    assert len(trial.user_attrs["attempts"]) == 2
    assert trial.user_attrs[CHECKPOINT]["precision"] == precision
    reproduction = reproduce(study, 0, tiny, lambda _: None)
    assert reproduction.same_metrics
    assert reproduction.same_weights


def test_another_data_set_is_refused(make: Make, tiny: DataSet) -> None:
    study, settings = make(definition(), 1)
    work(settings, lambda: False)
    other = replace(tiny, name="fashion", fingerprint="0" * 64)
    with pytest.raises(NotReproducible, match=r"trained on data set 'digits', but fashion in .*--data-dir"):
        reproduce(study, 0, other, lambda _: pytest.fail("trained"))


def test_a_trial_without_a_record_is_refused(make: Make, tiny: DataSet) -> None:
    study, _ = make(definition(), 1)
    for number, why in ((0, "trial 0 is WAITING; choose one that is"), (1, "has no trial 1; its last is 0")):
        with pytest.raises(NotReproducible, match=why):
            reproduce(study, number, tiny, lambda _: None)
    study._storage.set_trial_state_values(study.trials[0]._trial_id, TrialState.FAIL)
    with pytest.raises(NotReproducible, match="trial 0 is FAIL"):
        reproduce(study, 0, tiny, lambda _: None)

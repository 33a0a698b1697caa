from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import Trial, TrialState

from fmnist import checkpoint
from fmnist.data import DataSet, split
from search.definition import StudyDefinition
from search.objective import Outcome, run_trial
from search.study import pruner

Run = Callable[..., Outcome]


def definition(**changes: object) -> StudyDefinition:
    return StudyDefinition.model_validate(
        {
            "defaults": {"architecture": "simple", "epochs": 3, "filters": 4, "learning_rate": 0.003},
            "space": {"filters": {"low": 2, "high": 6}, "learning_rate": {"low": 1e-9, "high": 0.5, "log": True}},
            **changes,
        }
    )


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(direction="maximize", pruner=pruner(definition()))


@pytest.fixture
def run(tiny: DataSet, tmp_path: Path) -> Run:
    def run(trial: Trial, stopping: Callable[[], bool] = lambda: False, name: str = "trial.pt") -> Outcome:
        return run_trial(trial, definition(), tiny, split(tiny, "test"), torch.device("cpu"), tmp_path / name, stopping)

    return run


def ask(study: optuna.Study, **params: object) -> Trial:
    study.enqueue_trial({"filters": 4, "learning_rate": 0.003, **params})
    return study.ask()


def test_a_trial_completes_reports_each_epoch_and_leaves_its_checkpoint(
    study: optuna.Study, run: Run, tmp_path: Path
) -> None:
    trial = ask(study)
    outcome = run(trial)
    assert outcome.state == TrialState.COMPLETE
    reported = study.trials[0].intermediate_values
    assert list(reported) == [25, 50, 100, 200, 300]
    assert outcome.value == reported[300] > 0.5
    saved = checkpoint.load(tmp_path / "trial.pt")
    assert [metrics.accuracy for metrics in saved.history] == list(reported.values())
    assert saved.resume is None
    assert study.trials[0].user_attrs["seconds"] > 0


def test_a_hopeless_trial_is_pruned_at_its_first_report(study: optuna.Study, run: Run) -> None:
    good = ask(study)
    study.tell(good, run(good, name="good.pt").value)
    outcome = run(ask(study, learning_rate=1e-9), name="bad.pt")
    assert outcome.state == TrialState.PRUNED
    assert outcome.reason == "pruned after epoch 0.25 of 3"
    assert list(study.trials[1].intermediate_values) == [25]


def test_same_seed_same_weights_bit_for_bit(run: Run, tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        run(ask(optuna.create_study(direction="maximize")), name=name)
    a, b = (checkpoint.load(tmp_path / name).weights for name in ("a.pt", "b.pt"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_trial_stopped_between_epochs_ends_bit_for_bit_where_it_would_have(
    study: optuna.Study, run: Run, tmp_path: Path
) -> None:
    run(ask(optuna.create_study(direction="maximize")), name="whole.pt")
    trial = ask(study)
    assert run(trial, stopping=lambda: True).state == TrialState.WAITING
    assert list(study.trials[0].intermediate_values) == [25]
    assert run(trial).state == TrialState.COMPLETE
    whole, resumed = (checkpoint.load(tmp_path / name) for name in ("whole.pt", "trial.pt"))
    assert all(torch.equal(whole.weights[key], resumed.weights[key]) for key in whole.weights)
    assert [m.correct for m in whole.history] == [m.correct for m in resumed.history]


def test_reports_lost_between_checkpoint_and_database_are_made_up(study: optuna.Study, run: Run) -> None:
    run(ask(optuna.create_study(direction="maximize")))
    trial = ask(study)
    trial.report(0.5, 25)
    assert run(trial).state == TrialState.COMPLETE
    assert list(study.trials[0].intermediate_values) == [25, 50, 100, 200, 300]
    assert study.trials[0].intermediate_values[25] == 0.5


def test_a_verdict_stands_though_it_was_not_told(study: optuna.Study, run: Run) -> None:
    good = ask(study)
    study.tell(good, run(good, name="good.pt").value)
    hopeless = ask(study, learning_rate=1e-9)
    first = run(hopeless, name="bad.pt")
    assert first.state == TrialState.PRUNED
    assert run(hopeless, name="bad.pt") == first


def test_a_checkpoint_that_was_scored_otherwise_is_not_taken_up(
    study: optuna.Study, run: Run, tiny: DataSet, tmp_path: Path
) -> None:
    run(ask(optuna.create_study(direction="maximize")))
    splits = split(tiny, "validation")
    path = tmp_path / "trial.pt"
    run_trial(ask(study), definition(), tiny, splits, torch.device("cpu"), path, lambda: False)
    assert {metrics.total for metrics in checkpoint.load(path).history} == {200}


def test_a_checkpoint_of_another_training_is_not_taken_up(study: optuna.Study, run: Run, tmp_path: Path) -> None:
    run(ask(study, filters=2))
    assert run(ask(study, filters=4)).state == TrialState.COMPLETE
    assert checkpoint.load(tmp_path / "trial.pt").hyperparameters.filters == 4


def test_a_damaged_checkpoint_costs_time_but_no_trial(study: optuna.Study, run: Run, tmp_path: Path) -> None:
    (tmp_path / "trial.pt").write_bytes(b"half a checkpoint")
    assert run(ask(study)).state == TrialState.COMPLETE


def test_a_diverged_trial_ends_pruned_with_its_reason(
    study: optuna.Study, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmnist.training.F.cross_entropy", lambda logits, _: logits.sum() * float("nan"))
    outcome = run(ask(study))
    assert outcome.state == TrialState.PRUNED
    assert outcome.reason == "diverged: the training loss is nan in epoch 1"

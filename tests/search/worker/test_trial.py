import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import Trial, TrialState

from fmnist import archive, checkpoint
from fmnist.checkpoint import weights_digest
from fmnist.data import DataSet, split
from fmnist.training import Training
from search.artifacts import Folder
from search.queue.freezing import is_audited
from search.study.definition import StudyDefinition
from search.study.record import AUDIT, CHECKPOINT, FINISHED
from search.study.space import distributions, training_seed
from search.worker.sampling import pruner
from search.worker.trial import Objective, Outcome, run_trial

Run = Callable[..., Outcome]


def definition(**changes: object) -> StudyDefinition:
    return StudyDefinition.model_validate(
        {
            "pruner": "halving",
            "defaults": {"architecture": "simple", "epochs": 3, "filters": 4, "learning_rate": 0.003},
            "space": {"filters": {"low": 2, "high": 6}, "learning_rate": {"low": 1e-9, "high": 0.5, "log": True}},
            **changes,
        }
    )


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(direction="maximize", pruner=pruner(definition()))


@pytest.fixture
def artifacts(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def objective(tiny: DataSet, artifacts: Folder) -> Objective:
    return Objective(definition(), tiny, split(tiny, "test"), torch.device("cpu"), artifacts)


@pytest.fixture
def run(objective: Objective) -> Run:
    return lambda trial, stopping=lambda: False: run_trial(trial, objective, stopping)


def saved(trial: Trial, artifacts: Folder) -> checkpoint.Checkpoint:
    """The trial's newest checkpoint."""
    return checkpoint.load(artifacts.path / trial.user_attrs[CHECKPOINT]["name"])


def ask(study: optuna.Study, **params: object) -> Trial:
    study.enqueue_trial({"filters": 4, "learning_rate": 0.003, **params})
    return study.ask(distributions(definition()))


def test_a_completed_trial_has_reported_each_epoch_and_keeps_one_checkpoint(
    study: optuna.Study, run: Run, artifacts: Folder
) -> None:
    trial = ask(study)
    outcome = run(trial)
    assert outcome.state == TrialState.COMPLETE
    reported = study.trials[0].intermediate_values
    assert list(reported) == [25, 50, 100, 200, 300]
    assert outcome.value == reported[300] > 0.5
    assert artifacts.names() == ["trial-00000-epoch-3.pt"]  # the earlier ones were deleted
    stored = saved(trial, artifacts)
    assert [metrics.accuracy for metrics in stored.history] == list(reported.values())
    assert stored.resume is None
    assert trial.user_attrs[CHECKPOINT]["seconds"] > 0
    assert trial.user_attrs[CHECKPOINT]["weights"] == weights_digest(stored.weights)


def test_a_hopeless_trial_is_pruned_at_its_first_report(study: optuna.Study, run: Run) -> None:
    good = ask(study)
    study.tell(good, run(good).value)
    outcome = run(ask(study, learning_rate=1e-9))
    assert outcome.state == TrialState.PRUNED
    assert outcome.reason == "pruned after epoch 0.25 of 3"
    assert list(study.trials[1].intermediate_values) == [25]


def test_same_seed_same_weights_bit_for_bit(run: Run, artifacts: Folder) -> None:
    trials = [ask(optuna.create_study(direction="maximize")) for _ in range(2)]
    for trial in trials:
        run(trial)
    one, other = (trial.user_attrs[CHECKPOINT]["weights"] for trial in trials)
    assert one == other


def test_the_digest_sees_every_bit_and_name() -> None:
    weights = {"a": torch.zeros(3), "b": torch.ones(2, 2).to(memory_format=torch.contiguous_format)}
    same = {"b": torch.ones(2, 2), "a": torch.zeros(3)}
    assert weights_digest(weights) == weights_digest(same)
    for other in ({**weights, "a": torch.tensor([0.0, -0.0, 0.0])}, {"a": weights["a"], "c": weights["b"]}):
        assert weights_digest(weights) != weights_digest(other)


@pytest.mark.parametrize("reports", [1, 2, 4])
def test_a_resumed_trial_is_bit_identical_to_an_uninterrupted_one(
    study: optuna.Study, run: Run, artifacts: Folder, reports: int
) -> None:
    uninterrupted_trial = ask(optuna.create_study(direction="maximize"))
    run(uninterrupted_trial)
    uninterrupted = saved(uninterrupted_trial, artifacts)
    trial, after = ask(study), iter([False] * (reports - 1) + [True])
    assert run(trial, stopping=lambda: next(after)).state == TrialState.WAITING
    assert len(study.trials[0].intermediate_values) == reports
    torch.set_num_threads(2)  # a resumed trial keeps its number of threads
    assert run(trial).state == TrialState.COMPLETE
    assert torch.get_num_threads() == 1
    resumed = saved(trial, artifacts)
    assert all(torch.equal(uninterrupted.weights[key], resumed.weights[key]) for key in resumed.weights)
    assert [m.correct for m in uninterrupted.history] == [m.correct for m in resumed.history]
    assert [m.loss for m in uninterrupted.history] == [m.loss for m in resumed.history]


def test_a_resumed_trial_trains_only_what_is_missing(study: optuna.Study, objective: Objective) -> None:
    trial, after = ask(study), iter([False, False, True])
    run_trial(trial, objective, lambda: next(after))
    start_quarters: list[float] = []
    run_trial(trial, objective, watch=lambda training: start_quarters.append(training.quarters))
    assert start_quarters == [4]


def test_reports_missing_after_a_checkpoint_are_added_on_resuming(study: optuna.Study, run: Run) -> None:
    trial = ask(study)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.worker.trial._report", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(trial)
    assert study.trials[0].intermediate_values == {}
    assert trial.user_attrs[CHECKPOINT]["name"] == "trial-00000-epoch-0.25.pt"
    assert run(trial, stopping=lambda: True).state == TrialState.WAITING
    assert list(study.trials[0].intermediate_values) == [25, 50]


def test_a_report_is_not_made_twice(study: optuna.Study, run: Run) -> None:
    trial = ask(study)
    trial.report(0.5, 25)
    assert run(trial).state == TrialState.COMPLETE
    assert list(study.trials[0].intermediate_values) == [25, 50, 100, 200, 300]
    assert study.trials[0].intermediate_values[25] == 0.5


def test_a_pruned_verdict_stands_in_the_next_attempt(study: optuna.Study, run: Run) -> None:
    good = ask(study)
    study.tell(good, run(good).value)
    hopeless = ask(study, learning_rate=1e-9)
    first = run(hopeless)
    assert first.state == TrialState.PRUNED
    assert run(hopeless) == first


def test_an_audited_trial_is_trained_to_its_end_but_pruned(
    study: optuna.Study, objective: Objective, tiny: DataSet
) -> None:
    """Stopped twice on the way, it ends as PRUNED with its final accuracy in its record."""
    audited = replace(objective, definition=objective.definition.model_copy(update={"audit": 1.0}))
    good = ask(study)
    study.tell(good, run_trial(good, audited).value)
    hopeless = ask(study, learning_rate=1e-9)
    after = iter([False, True, False, True])
    for _ in range(2):
        assert run_trial(hopeless, audited, lambda: next(after)).state == TrialState.WAITING
    outcome = run_trial(hopeless, audited)
    (since,) = study.trials[1].intermediate_values
    assert outcome == Outcome(
        TrialState.PRUNED, reason=f"pruned after epoch {since / 100:g} of 3; trained to the end for the audit"
    )
    hyperparameters = audited.definition.defaults.model_copy(update={"learning_rate": 1e-9})
    training = Training(hyperparameters, training_seed(audited.definition, 1))
    accuracies = [metrics.accuracy for metrics in training.epochs(audited.splits)]
    assert hopeless.user_attrs[AUDIT] == {"since": since / 100, "accuracy": accuracies[-1]}
    assert [row[0] for row in hopeless.user_attrs[CHECKPOINT]["history"]] == [0.25, 0.5, 1, 2, 3]


def test_the_audit_covers_its_share_of_trials(objective: Objective) -> None:
    audited = [is_audited(objective.definition.model_copy(update={"audit": 0.2}), number) for number in range(2000)]
    assert abs(sum(audited) / 2000 - 0.2) < 0.03
    assert not any(is_audited(objective.definition, number) for number in range(100))


def test_a_checkpoint_scored_on_other_images_is_not_resumed(
    study: optuna.Study, objective: Objective, artifacts: Folder, tiny: DataSet
) -> None:
    trial = ask(study)
    run_trial(trial, objective)
    run_trial(trial, replace(objective, splits=split(tiny, "validation")))
    assert {metrics.total for metrics in saved(trial, artifacts).history} == {100}


def test_a_checkpoint_of_another_training_run_is_not_resumed(study: optuna.Study, run: Run, artifacts: Folder) -> None:
    run(ask(study, filters=2))
    trial = ask(study, filters=4)
    trial.set_user_attr(CHECKPOINT, study.trials[0].user_attrs[CHECKPOINT])
    assert run(trial).state in FINISHED
    assert saved(trial, artifacts).hyperparameters.filters == 4


def interrupted(study: optuna.Study, run: Run) -> Trial:
    """A trial that was stopped after its third report."""
    trial, after = ask(study), iter([False, False, True])
    assert run(trial, stopping=lambda: next(after)).state == TrialState.WAITING
    return trial


def flipped(content: bytes) -> bytes:
    """Flip a bit in the middle, among the weights."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def of_other_weights(content: bytes) -> bytes:
    """A valid checkpoint of the same training run with different weights."""
    payload = torch.load(io.BytesIO(content), weights_only=True)
    next(iter(payload["weights"].values())).add_(1)
    return archive.write(payload)


def in_the_previous_format(content: bytes) -> bytes:
    payload = torch.load(io.BytesIO(content), weights_only=True)
    file = io.BytesIO()
    torch.save(payload | {"format": checkpoint.WITHOUT_DIGEST}, file)
    return file.getvalue()


@pytest.mark.parametrize("change", [flipped, of_other_weights, in_the_previous_format, None])
def test_an_altered_checkpoint_is_never_resumed(
    study: optuna.Study, objective: Objective, run: Run, artifacts: Folder, change: Callable[[bytes], bytes] | None
) -> None:
    """The trial restarts and reaches the same weights; None: a folder replaces the file."""
    uninterrupted_trial = ask(optuna.create_study(direction="maximize"))
    run(uninterrupted_trial)
    trial = interrupted(study, run)
    name = trial.user_attrs[CHECKPOINT]["name"]
    content = artifacts.read(name)
    assert content is not None
    if change is None:
        (artifacts.path / name).unlink()
        (artifacts.path / name).mkdir()
        assert artifacts.read(name) is None
    else:
        artifacts.write(name, change(content))
    start_quarters: list[int] = []
    outcome = run_trial(trial, objective, watch=lambda training: start_quarters.append(training.quarters))
    assert (outcome.state, start_quarters) == (TrialState.COMPLETE, [0])
    assert trial.user_attrs[CHECKPOINT]["weights"] == uninterrupted_trial.user_attrs[CHECKPOINT]["weights"]


@pytest.mark.parametrize("right", [True, False])
def test_a_record_without_digest_is_checked_by_its_weights(
    study: optuna.Study, objective: Objective, run: Run, artifacts: Folder, right: bool
) -> None:
    trial = interrupted(study, run)
    record = dict(trial.user_attrs[CHECKPOINT])
    content = artifacts.read(record["name"])
    assert content is not None
    del record["digest"]
    trial.set_user_attr(CHECKPOINT, record if right else record | {"weights": "0" * 64})
    artifacts.write(record["name"], in_the_previous_format(content))
    start_quarters: list[int] = []
    run_trial(trial, objective, watch=lambda training: start_quarters.append(training.quarters))
    assert start_quarters == [4 if right else 0]


def test_a_nonempty_folder_in_place_of_a_checkpoint_is_reported_and_kept(artifacts: Folder) -> None:
    (artifacts.path / "trial-00000-epoch-1.pt").mkdir()
    (artifacts.path / "trial-00000-epoch-1.pt" / "mine").touch()
    with pytest.raises(OSError, match=r"trial-00000-epoch-1\.pt"):
        artifacts.write("trial-00000-epoch-1.pt", b"")
    artifacts.remove("trial-00000-epoch-1.pt")
    assert (artifacts.path / "trial-00000-epoch-1.pt" / "mine").exists()


@pytest.mark.parametrize("content", [b"half a checkpoint", None])
def test_a_trial_with_a_damaged_or_missing_checkpoint_is_trained_again(
    study: optuna.Study, run: Run, artifacts: Folder, content: bytes | None
) -> None:
    trial = ask(study)
    trial.set_user_attr(CHECKPOINT, {"name": "trial-00000-epoch-1.pt"})
    if content is not None:
        artifacts.write("trial-00000-epoch-1.pt", content)
    assert run(trial).state == TrialState.COMPLETE


def test_a_diverged_trial_is_pruned_with_a_reason(
    study: optuna.Study, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmnist.training.F.cross_entropy", lambda logits, *_, **__: logits.sum() * float("nan"))
    outcome = run(ask(study))
    assert outcome.state == TrialState.PRUNED
    assert outcome.reason == "diverged: the training loss is nan in epoch 1"

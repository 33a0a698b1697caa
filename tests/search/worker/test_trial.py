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


def test_a_trial_completes_reports_each_epoch_and_leaves_its_checkpoint(
    study: optuna.Study, run: Run, artifacts: Folder
) -> None:
    trial = ask(study)
    outcome = run(trial)
    assert outcome.state == TrialState.COMPLETE
    reported = study.trials[0].intermediate_values
    assert list(reported) == [25, 50, 100, 200, 300]
    assert outcome.value == reported[300] > 0.5
    assert artifacts.names() == ["trial-00000-epoch-3.pt"]  # the earlier ones are gone
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
def test_a_trial_stopped_between_epochs_ends_bit_for_bit_where_it_would_have(
    study: optuna.Study, run: Run, artifacts: Folder, reports: int
) -> None:
    whole = ask(optuna.create_study(direction="maximize"))
    run(whole)
    uninterrupted = saved(whole, artifacts)
    trial, after = ask(study), iter([False] * (reports - 1) + [True])
    assert run(trial, stopping=lambda: next(after)).state == TrialState.WAITING
    assert len(study.trials[0].intermediate_values) == reports
    torch.set_num_threads(2)  # whoever goes on with it does so as it was begun
    assert run(trial).state == TrialState.COMPLETE
    assert torch.get_num_threads() == 1
    resumed = saved(trial, artifacts)
    assert all(torch.equal(uninterrupted.weights[key], resumed.weights[key]) for key in resumed.weights)
    assert [m.correct for m in uninterrupted.history] == [m.correct for m in resumed.history]
    assert [m.loss for m in uninterrupted.history] == [m.loss for m in resumed.history]


def test_a_resumed_trial_trains_only_what_is_missing(study: optuna.Study, objective: Objective) -> None:
    trial, after = ask(study), iter([False, False, True])
    run_trial(trial, objective, lambda: next(after))
    begun: list[float] = []
    run_trial(trial, objective, watch=lambda training: begun.append(training.quarters))
    assert begun == [4]


def test_reports_lost_between_checkpoint_and_database_are_made_up(study: optuna.Study, run: Run) -> None:
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


def test_a_verdict_stands_though_it_was_not_told(study: optuna.Study, run: Run) -> None:
    good = ask(study)
    study.tell(good, run(good).value)
    hopeless = ask(study, learning_rate=1e-9)
    first = run(hopeless)
    assert first.state == TrialState.PRUNED
    assert run(hopeless) == first


def test_an_audited_trial_goes_on_unseen_to_its_end(study: optuna.Study, objective: Objective, tiny: DataSet) -> None:
    """Stopped twice on the way, it ends as the pruned trial that it is for all others, with its end on record."""
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
    whole = [m.accuracy for m in Training(hyperparameters, training_seed(audited.definition, 1)).epochs(audited.splits)]
    assert hopeless.user_attrs[AUDIT] == {"since": since / 100, "accuracy": whole[-1]}
    assert [row[0] for row in hopeless.user_attrs[CHECKPOINT]["history"]] == [0.25, 0.5, 1, 2, 3]


def test_the_audit_takes_its_share(objective: Objective) -> None:
    drawn = [is_audited(objective.definition.model_copy(update={"audit": 0.2}), number) for number in range(2000)]
    assert abs(sum(drawn) / 2000 - 0.2) < 0.03
    assert not any(is_audited(objective.definition, number) for number in range(100))


def test_a_checkpoint_that_was_scored_otherwise_is_not_taken_up(
    study: optuna.Study, objective: Objective, artifacts: Folder, tiny: DataSet
) -> None:
    trial = ask(study)
    run_trial(trial, objective)
    run_trial(trial, replace(objective, splits=split(tiny, "validation")))
    assert {metrics.total for metrics in saved(trial, artifacts).history} == {100}


def test_a_checkpoint_of_another_training_is_not_taken_up(study: optuna.Study, run: Run, artifacts: Folder) -> None:
    run(ask(study, filters=2))
    trial = ask(study, filters=4)
    trial.set_user_attr(CHECKPOINT, study.trials[0].user_attrs[CHECKPOINT])
    assert run(trial).state in FINISHED
    assert saved(trial, artifacts).hyperparameters.filters == 4


def interrupted(study: optuna.Study, run: Run) -> Trial:
    """A trial that was stopped after its first epoch."""
    trial, after = ask(study), iter([False, False, True])
    assert run(trial, stopping=lambda: next(after)).state == TrialState.WAITING
    return trial


def flipped(content: bytes) -> bytes:
    """With another bit in the middle, among the weights."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def of_other_weights(content: bytes) -> bytes:
    """A whole checkpoint of the same training, which it did not write."""
    payload = torch.load(io.BytesIO(content), weights_only=True)
    next(iter(payload["weights"].values())).add_(1)
    return archive.write(payload)


def of_the_format_before(content: bytes) -> bytes:
    payload = torch.load(io.BytesIO(content), weights_only=True)
    file = io.BytesIO()
    torch.save(payload | {"format": checkpoint.WITHOUT_DIGEST}, file)
    return file.getvalue()


@pytest.mark.parametrize("change", [flipped, of_other_weights, of_the_format_before, None])
def test_a_checkpoint_that_is_not_as_it_was_written_is_never_gone_on_with(
    study: optuna.Study, objective: Objective, run: Run, artifacts: Folder, change: Callable[[bytes], bytes] | None
) -> None:
    """The trial is trained afresh, and ends with the weights that it would have had; None: a folder is in its place."""
    whole = ask(optuna.create_study(direction="maximize"))
    run(whole)
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
    begun: list[int] = []
    outcome = run_trial(trial, objective, watch=lambda training: begun.append(training.quarters))
    assert (outcome.state, begun) == (TrialState.COMPLETE, [0])
    assert trial.user_attrs[CHECKPOINT]["weights"] == whole.user_attrs[CHECKPOINT]["weights"]


@pytest.mark.parametrize("right", [True, False])
def test_of_a_record_without_digest_the_weights_are_compared(
    study: optuna.Study, objective: Objective, run: Run, artifacts: Folder, right: bool
) -> None:
    trial = interrupted(study, run)
    record = dict(trial.user_attrs[CHECKPOINT])
    content = artifacts.read(record["name"])
    assert content is not None
    del record["digest"]
    trial.set_user_attr(CHECKPOINT, record if right else record | {"weights": "0" * 64})
    artifacts.write(record["name"], of_the_format_before(content))
    begun: list[int] = []
    run_trial(trial, objective, watch=lambda training: begun.append(training.quarters))
    assert begun == [4 if right else 0]


def test_a_folder_with_something_in_it_is_named_and_stays(artifacts: Folder) -> None:
    (artifacts.path / "trial-00000-epoch-1.pt").mkdir()
    (artifacts.path / "trial-00000-epoch-1.pt" / "mine").touch()
    with pytest.raises(OSError, match=r"trial-00000-epoch-1\.pt"):
        artifacts.write("trial-00000-epoch-1.pt", b"")
    artifacts.remove("trial-00000-epoch-1.pt")
    assert (artifacts.path / "trial-00000-epoch-1.pt" / "mine").exists()


@pytest.mark.parametrize("content", [b"half a checkpoint", None])
def test_a_damaged_or_lost_checkpoint_costs_time_but_no_trial(
    study: optuna.Study, run: Run, artifacts: Folder, content: bytes | None
) -> None:
    trial = ask(study)
    trial.set_user_attr(CHECKPOINT, {"name": "trial-00000-epoch-1.pt"})
    if content is not None:
        artifacts.write("trial-00000-epoch-1.pt", content)
    assert run(trial).state == TrialState.COMPLETE


def test_a_diverged_trial_ends_pruned_with_its_reason(
    study: optuna.Study, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmnist.training.F.cross_entropy", lambda logits, *_, **__: logits.sum() * float("nan"))
    outcome = run(ask(study))
    assert outcome.state == TrialState.PRUNED
    assert outcome.reason == "diverged: the training loss is nan in epoch 1"

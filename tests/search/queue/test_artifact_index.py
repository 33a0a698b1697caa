"""The artifacts of trials as Optuna lists them."""

import optuna
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import TrialState

from search.artifacts import open_artifacts
from search.database.optuna_schema import backend
from search.queue import artifact_index, lease, tickets
from search.queue.artifact_index import CONFUSION, CURVE
from search.queue.lease import Holder, Ticket
from search.study.places import ARTIFACTS
from search.study.record import CHECKPOINT
from search.worker import retention
from tests.factories import claimed, queued


@pytest.fixture
def study(url: str) -> optuna.Study:
    return queued(url, 3)


def saved(study: optuna.Study) -> Ticket:
    """A ticket with one saved checkpoint."""
    ticket = claimed(study)
    record = {"name": f"trial-{ticket.number:05d}-epoch-1.pt"}
    study._storage.set_trial_user_attr(ticket.trial_id, CHECKPOINT, record)
    return ticket


def listed(study: optuna.Study, number: int) -> list[str]:
    fresh = optuna.load_study(storage=backend(study), study_name="s")
    return [meta.filename for meta in get_all_artifact_meta(fresh.trials[number], storage=backend(study))]


def test_a_complete_trial_lists_its_pictures_and_its_checkpoint(study: optuna.Study) -> None:
    lease.finish(study, saved(study), TrialState.COMPLETE, 0.9)
    assert listed(study, 0) == [CURVE, CONFUSION, "trial-00000-epoch-1.pt"]
    trial = study.trials[0]
    metas = get_all_artifact_meta(trial, storage=backend(study))
    assert [(meta.mimetype, meta.encoding) for meta in metas[:2]] == [("image/svg+xml", None)] * 2
    assert metas[2].mimetype == "application/octet-stream"
    with backend(study).engine.connect() as connection:
        found = artifact_index.registered(connection, metas[2].artifact_id)
        assert found == (study._study_id, trial._trial_id, "trial-00000-epoch-1.pt")
        assert artifact_index.registered(connection, "another") is None


def test_a_pruned_trial_lists_only_pictures(study: optuna.Study) -> None:
    lease.finish(study, saved(study), TrialState.PRUNED)
    assert listed(study, 0) == [CURVE, CONFUSION]


def test_a_failed_trial_lists_its_pictures(study: optuna.Study) -> None:
    for attempt in range(lease.MOST_ATTEMPTS):
        assert listed(study, 0) == [], attempt
        lease.fail(study, saved(study), "it raised")
    assert study.trials[0].state == TrialState.FAIL
    assert listed(study, 0) == [CURVE, CONFUSION]


def test_a_trial_that_is_unfinished_or_has_no_score_lists_nothing(study: optuna.Study) -> None:
    lease.give_back(study, saved(study))
    assert listed(study, 0) == []
    saved(study)
    assert listed(study, 0) == []
    bare = tickets.claim(study, Holder(), "other")
    assert bare is not None
    lease.finish(study, bare, TrialState.PRUNED, reason="diverged: at once")
    assert listed(study, bare.number) == []


def test_an_outperformed_checkpoint_is_unlisted(study: optuna.Study, tmp_path: object) -> None:
    study.set_user_attr(ARTIFACTS, None)  # in its own folder
    artifacts = open_artifacts(str(tmp_path))
    for accuracy in (0.7, 0.9):
        ticket = saved(study)
        artifacts.write(f"trial-{ticket.number:05d}-epoch-1.pt", b"")
        lease.finish(study, ticket, TrialState.COMPLETE, accuracy)
    assert retention.drop_outperformed(study, artifacts, keep=1) == 1
    assert listed(study, 0) == [CURVE, CONFUSION]
    assert listed(study, 1) == [CURVE, CONFUSION, "trial-00001-epoch-1.pt"]

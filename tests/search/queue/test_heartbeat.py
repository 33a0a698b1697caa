"""When the heart of a ticket's holder beats, and when it stops."""

import itertools
import threading
from datetime import datetime
from pathlib import Path

import optuna
import pytest
from sqlalchemy import select

from search.database.connection import open_storage
from search.database.optuna_schema import HEARTBEATS, backend
from search.database.url import DatabaseGone, default_url
from search.queue import lease, tickets
from search.queue.lease import Holder, Ticket

LONG_AGO = datetime(2001, 1, 1)


@pytest.fixture
def study(url: str) -> optuna.Study:
    study = optuna.create_study(storage=open_storage(url, "create"), study_name="s", direction="maximize")
    for _ in range(2):
        study.enqueue_trial({"x": 0.5})
    return study


def claim(study: optuna.Study, token: str, **holder: object) -> Ticket:
    ticket = tickets.claim(study, Holder(**holder), token)  # type: ignore[arg-type]
    assert ticket is not None
    return ticket


def last_beat(study: optuna.Study, ticket: Ticket) -> object:
    with backend(study).engine.connect() as connection:
        return connection.scalar(select(HEARTBEATS.c.heartbeat).where(HEARTBEATS.c.trial_id == ticket.trial_id))


def test_the_heart_beats_while_training_moves_and_stops_with_it(study: optuna.Study) -> None:
    ticket = claim(study, "a", grace=0.3)
    beats: list[int] = []
    asked = threading.Semaphore(0)
    steps = iter([1, 2, 3, 3, 3, 3])

    def count() -> int:
        asked.release()
        return next(steps, 3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "beat", lambda *_: beats.append(1))
        with lease.beating(study, ticket, count):
            for _ in range(8):
                assert asked.acquire(timeout=30)
    assert len(beats) == 3


def test_a_beat_renews_only_the_holders_heartbeat(study: optuna.Study) -> None:
    ticket = claim(study, "a")
    with backend(study).engine.begin() as connection:
        connection.execute(HEARTBEATS.update().values(heartbeat=LONG_AGO))
    lease.beat(study, ticket)
    renewed = last_beat(study, ticket)
    assert renewed != LONG_AGO
    lease.give_back(study, ticket)
    claim(study, "b")
    with backend(study).engine.begin() as connection:
        connection.execute(HEARTBEATS.update().values(heartbeat=LONG_AGO))
    lease.beat(study, ticket)
    assert last_beat(study, ticket) == LONG_AGO


def test_a_heart_stops_quietly_with_its_database(tmp_path: Path) -> None:
    """The training will meet the same trouble, and say so."""
    study = optuna.create_study(storage=open_storage(default_url(tmp_path), "create"), direction="maximize")
    study.enqueue_trial({})
    ticket = claim(study, "a", grace=0.3)
    (tmp_path / "studies.db").unlink()
    asked, steps = threading.Semaphore(0), itertools.count(1)

    def count() -> int:
        asked.release()
        return next(steps)

    with lease.beating(study, ticket, count):  # an error in its thread would fail this test
        for _ in range(3):
            assert asked.acquire(timeout=30)
    with pytest.raises(DatabaseGone):
        lease.beat(study, ticket)

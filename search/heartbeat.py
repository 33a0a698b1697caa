"""Heartbeat of the worker that holds a ticket, renewed only while its training advances."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError

from search.database.optuna_schema import ATTRIBUTES, HEARTBEATS, backend, now
from search.database.url import StorageError
from search.lease import ATTEMPTS, Ticket

BEATS = 6  # heartbeats in a grace period


@contextmanager
def beating(study: optuna.Study, ticket: Ticket, steps: Callable[[], int]) -> Iterator[None]:
    """Within it, a thread renews the heartbeat for as long as `steps` goes on rising.

    A training that hangs therefore falls silent. A beat that the database refuses is left
    out: the training will meet the same trouble and wait for its end.
    """
    over = threading.Event()

    def keep() -> None:
        seen = 0
        while not over.wait(ticket.attempts[-1]["grace"] / BEATS):
            if (count := steps()) > seen:
                seen = count
                try:
                    beat(study, ticket)
                except (SQLAlchemyError, StorageInternalError, StorageError):
                    continue

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def beat(study: optuna.Study, ticket: Ticket) -> None:
    """Renew the heartbeat, if the ticket is still held."""
    held = select(ATTRIBUTES.c.trial_id).where(
        ATTRIBUTES.c.trial_id == ticket.trial_id, ATTRIBUTES.c.key == ATTEMPTS, ATTRIBUTES.c.value_json == ticket.record
    )
    with backend(study).engine.begin() as connection:
        mine = update(HEARTBEATS).where(HEARTBEATS.c.trial_id == ticket.trial_id, held.exists())
        connection.execute(mine.values(heartbeat=now(connection)))

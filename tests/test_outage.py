import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from search import outage


def trouble(invalidated: bool = False, words: str = "Connection refused") -> OperationalError:
    return OperationalError("SELECT", {}, psycopg.OperationalError(words), connection_invalidated=invalidated)


def test_an_outage_is_waited_for_after_however_long_the_work_had_gone_well(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(outage.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(outage.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    tries = []

    def trains_for_an_hour_between_outages() -> str:
        tries.append(clock[0])
        if len(tries) == 9:
            return "done"
        clock[0] += 3600 if len(tries) % 4 == 1 else 1
        raise trouble()

    assert outage.persistently(trains_for_an_hour_between_outages) == "done"
    tries.clear()

    def never_again() -> None:
        tries.append(clock[0])
        raise trouble()

    with pytest.raises(OperationalError):
        outage.persistently(never_again)
    assert outage.PATIENCE < tries[-1] - tries[0] < outage.PATIENCE + 2 * outage.LONGEST_PAUSE


def test_what_will_not_pass_is_not_waited_for() -> None:
    for error in (trouble(words="password authentication failed"), trouble(words='database "x" does not exist')):
        with pytest.raises(OperationalError):
            outage.persistently(lambda error=error: (_ for _ in ()).throw(error))

import signal
from pathlib import Path

import pytest

from search.console.terminal import Interrupts, signals_deferred, signals_handled

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_requests_a_stop_and_the_second_interrupts(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    notes: list[str] = []
    interrupts = Interrupts(lambda: notes.append("stopping"))
    with interrupts.installed():
        signal.raise_signal(number)
        assert (interrupts.asked, interrupts.by, notes) == (True, number, ["stopping"])
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_deferred_signals_arrive_afterwards_even_after_an_error() -> None:
    arrived: list[int] = []
    with signals_handled(lambda number, _frame: arrived.append(number)):
        with signals_deferred():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            assert arrived == []
        assert arrived == [signal.SIGINT, signal.SIGTERM]
        with pytest.raises(FileNotFoundError):
            interrupted()
        assert arrived[2:] == [signal.SIGTERM]


@signals_deferred()
def interrupted() -> None:
    signal.raise_signal(signal.SIGTERM)
    Path("/nosuch").stat()

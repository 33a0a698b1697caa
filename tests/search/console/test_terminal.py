import signal
from pathlib import Path

import pytest

from search.console.terminal import Interrupts, signals_deferred, signals_handled

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_asks_and_the_second_ends(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    said: list[str] = []
    interrupts = Interrupts(lambda: said.append("stopping"))
    with interrupts.installed():
        signal.raise_signal(number)
        assert (interrupts.asked, interrupts.by, said) == (True, number, ["stopping"])
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_what_is_held_back_comes_afterwards_even_after_an_error() -> None:
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

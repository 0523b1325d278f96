"""Signals: one wish to end, however often it is heard, saves first; impatience does not."""

import signal
import time
from collections.abc import Iterator

import pytest

from utils.signals import ECHO, SafePoints, Stopped


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """Ctrl-C counts, although a shell without job control has its background processes, as `make test &`, ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_is_heard_twice_is_one_wish(second: int) -> None:
    done: list[int] = []
    with pytest.raises((Stopped, KeyboardInterrupt), match="saved") as stopped, SafePoints(lambda: "saved") as safe:
        for item in safe.between(range(3)):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(second)
            done.append(item)
    assert isinstance(stopped.value, Stopped) and stopped.value.number == signal.SIGINT
    assert done == [0]


def test_a_second_signal_after_a_while_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), SafePoints(lambda: pytest.fail("saved")) as safe:
        for _ in safe.between(range(3)):
            signal.raise_signal(signal.SIGTERM)
            monkeypatch.setattr(time, "monotonic", lambda: began + ECHO + 1)
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("went on")

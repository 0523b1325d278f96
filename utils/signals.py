"""SIGTERM, a closed terminal and Ctrl-C end a program at once or, in a block, only where nothing is half-done."""

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, TracebackType
from typing import TypeVar

T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
ECHO = 2.0  # seconds: one Ctrl-C comes from the terminal and again from ablate.py, and GNU's timeout signals twice


class Stopped(BaseException):
    """Signal `number` ended the program; the text says what that means for the user's work."""

    def __init__(self, number: int, text: str = "interrupted") -> None:
        super().__init__(text)
        self.number = number


def stop_at_once() -> None:
    """From now on a signal raises `Stopped` wherever the program is, so that its blocks are left in good order."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # what nohup and the like have switched off stays so
            signal.signal(number, stop)


class SafePoints:
    """A block that a signal ends between the items of `between` or at its own end, and nowhere else.

    A second signal raises KeyboardInterrupt at once, but for one within `ECHO` of the first: that is the same wish.

    Args:
        stop: called where a signal ends the block; what it returns becomes the text of `Stopped`.
        heed: False to ignore signals: of several processes that train together one saves, and the launcher ends all.
    """

    def __init__(self, stop: Callable[[], str], heed: bool = True) -> None:
        self._stop, self._heed = stop, heed
        self._heard: int | None = None
        self._when = 0.0

    def __enter__(self) -> "SafePoints":
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, before in self._before.items():
            if before != signal.SIG_IGN:
                signal.signal(number, self._hear if self._heed else signal.SIG_IGN)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if self._heard is not None and kind in (None, Stopped):
                raise Stopped(self._heard, self._stop())
        finally:
            for number, before in self._before.items():
                signal.signal(number, before)

    def between(self, items: Iterable[T]) -> Iterator[T]:
        """The items; before each of them the block ends if a signal has come."""
        for item in items:
            if self._heard is not None:
                raise Stopped(self._heard)
            yield item

    def _hear(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._heard is None:
            self._heard, self._when = number, now
        elif now - self._when > ECHO:
            raise KeyboardInterrupt

"""SIGTERM, SIGINT and SIGHUP end a run in order: finished units stay, Ray stops, the lock goes."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PATIENCE_S = 20.0
_interrupted = threading.Event()
_hard_end: list[threading.Timer] = []


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the signals into one KeyboardInterrupt here; end the process if that takes 20 seconds.

    A hard end loses nothing either: the lock of a dead process is taken over, and its Ray dies with it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    hook = sys.unraisablehook
    _interrupted.clear()
    arm()
    try:
        yield
    except BaseException as error:
        if _interrupted.is_set():  # whatever a library made of it
            _let_go(error)
            raise KeyboardInterrupt from error
        raise
    finally:
        sys.unraisablehook = hook
        while _hard_end:
            _hard_end.pop().cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def arm() -> None:
    """Take the signals (again): ``ray.init`` installs handlers of its own, which abort the process."""
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _interrupted.is_set():  # a second one would cut the tidying short
        return
    _interrupted.set()
    sys.unraisablehook = _say_nothing
    _hard_end.append(threading.Timer(_PATIENCE_S, os._exit, (1,)))
    _hard_end[0].daemon = True
    _hard_end[0].start()
    raise KeyboardInterrupt


def _say_nothing(unraisable: object) -> None:
    """In place of Python's report of a destructor that fails, as those of half-made objects do."""


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of an error and of those before it hold, while nothing is said of it."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__

"""The black box of a run: the file, and a thread that writes readings and last words into it.

A monitor would do more than that: it collects garbage, and the program shall run as it does alone.

A file of its own because the process that was started and the Pythons that it starts record alike.
"""

import _thread
import os
import sys
import time
from contextlib import suppress
from typing import Final

from memtools._threads import disregard_thread
from memtools.black_box import BlackBox
from memtools.readings import Level, Reading, take_reading

_INTERVAL_S: Final = 0.25
_WARNING: Final = 0.8  # of the limit, as a monitor has it by default
_CRITICAL: Final = 0.9
_NORMAL: Final = 0.7  # below it a rise has ended


class Recording:
    """A black box that is written from now on, in this process only.

    Args:
        folder: where the file goes.
        name: what the program is called.

    Raises:
        ConfigError: for a folder that will not do.
        OSError: where the file cannot be made.
    """

    def __init__(self, folder: str, name: str) -> None:
        self._box = BlackBox(folder, name=name)
        self._box.open()
        self._box.look_for_question(report=_report, interval_s=_INTERVAL_S)  # the file tells that it is looked at
        self._pid = os.getpid()
        self._is_closed = False
        # Unknown to `threading`: the program's own counts and lists of threads do not change.
        _thread.start_new_thread(self._write_readings, ())

    def close(self) -> None:
        """Write a regular end; nothing happens in a forked child."""
        self._is_closed = True
        if os.getpid() == self._pid:
            self._box.close()

    def _write_readings(self) -> None:
        disregard_thread()
        before = Level.NORMAL
        while not self._is_closed:
            with suppress(OSError):
                reading = take_reading()
                level = _level_of(reading, before)
                self._box.observe(reading, level)
                if level > before:
                    self._box.write_last_words(reading, level)
                before = level
                self._box.look_for_question(report=_report, interval_s=_INTERVAL_S)
            time.sleep(_INTERVAL_S)


def begin_recording(folder: str | None, name: str) -> Recording | None:
    """Begin to record a process of a run; None where that is not wanted, or not possible.

    The latter is reported on stderr.
    """
    if folder is None:
        return None
    try:
        return Recording(folder, name)
    except (OSError, ValueError) as error:  # a ConfigError is a ValueError
        with suppress(Exception):
            sys.stderr.write(f"memtools: there is no black box: {error}\n")
        return None


def _report() -> str:
    from memtools.reports import report  # what only a process that is asked needs

    return report(title="the program, up to now").to_text()


def _level_of(reading: Reading, before: Level) -> Level:
    fraction = reading.fraction or 0.0
    if fraction < _NORMAL:
        return Level.NORMAL
    reached = Level.CRITICAL if fraction >= _CRITICAL else Level.WARNING if fraction >= _WARNING else Level.NORMAL
    return max(reached, before)  # so that the last words are written once for each rise

"""The health of a process as its supervisor sees it, and its end when memory is exhausted."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final, Literal, TypeAlias

from memtools._records import record
from memtools._safe_calls import RateLimitedLogger
from memtools._threads import OwnThread
from memtools.analysis import Forecast
from memtools.errors import ConfigError
from memtools.monitor._admission import AdmissionQueue
from memtools.monitor._sampler import Sampler
from memtools.readings import Level, Reading
from memtools.units import parse_seconds

# EX_TEMPFAIL of sysexits.h, "try again later". Neither a shell nor a signal gives it; gunicorn stops on 3 and 4 alone.
EXIT_CODE: Final = 75
STALE_S: Final = 10.0  # beyond the interval between two samples
_POLL_S: Final = 0.05
_RETRY_LOG_S: Final = 60.0
_STOPS_GUNICORN: Final = (3, 4)

Status: TypeAlias = Literal["ready", "critical", "exhausted", "ending", "stopped", "stale"]

_log = logging.getLogger("memtools.monitor")


@record
class Health:
    """What a supervisor has to know of a process: whether to send it work, and whether to restart it.

    Attributes:
        status: `"ready"`; `"critical"`: memory is short; `"exhausted"`: it has been for the time of `exhausted_after`,
            and nothing helped; `"ending"`: the process ends for that reason; `"stopped"`: no sampling loop runs;
            `"stale"`: the last reading is too old to say anything.
        reason: the same as a sentence, with figures.
        level: how short memory is, by the last sample.
        used_bytes: the memory in use, by the last sample; None before the first.
        limit_bytes: the effective limit; None where there is none.
        headroom_bytes: what was left below the nearest limit, when that was read last; None where it is not known.
        age_s: how old the last reading is, in seconds; None before the first.
        monitor: the monitor's name.
        seconds_to_limit: when the limit is reached, by the forecast (`MemoryMonitor(forecast=True)`); None while no
            floor rises, and without a forecast.
    """

    status: Status
    reason: str
    level: Level
    used_bytes: int | None
    limit_bytes: int | None
    headroom_bytes: int | None
    age_s: float | None
    monitor: str
    seconds_to_limit: float | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the process should be sent work: the level is below `CRITICAL`, by a reading that is fresh."""
        return self.status == "ready"

    @property
    def is_live(self) -> bool:
        """Whether the process should go on: False once memory is exhausted. A monitor that is blind proves nothing."""
        return self.status not in ("exhausted", "ending")


def assess_health(
    sampler: Sampler,
    now: float,
    *,
    name: str,
    is_running: bool,
    is_ending: bool,
    exhausted_s: float,
    bound_s: float,
    forecast: Forecast | None = None,
) -> Health:
    """Return the health; it reads nothing and waits for nothing.

    Args:
        sampler: has the figures.
        now: the present time of its clock.
        name: the monitor's name.
        is_running: whether a sampling loop runs.
        is_ending: whether the process is being ended.
        exhausted_s: for how long nothing has helped, in seconds; 0.0 if something did.
        bound_s: for how long that may be.
        forecast: when the limit is reached; None while no floor rises.
    """
    reading, level, found = sampler.reading, sampler.level, sampler.headroom
    age_s = None if reading is None else max(0.0, now - reading.at)
    status: Status
    if is_ending:
        status, reason = "ending", "memory is exhausted, and the process ends"
    elif not is_running:
        status, reason = "stopped", "the sampling loop of the monitor does not run"
    elif age_s is None or age_s > sampler.interval_s + STALE_S:
        status, reason = (
            "stale",
            "the monitor has no reading yet" if age_s is None else f"its reading is {age_s:.0f} s old",
        )
    elif level is Level.CRITICAL and exhausted_s >= bound_s:
        status, reason = "exhausted", f"{_figure(level, reading)}; nothing has helped for {exhausted_s:.0f} s"
    else:
        status, reason = "critical" if level is Level.CRITICAL else "ready", _figure(level, reading)
    if sampler.is_blind:
        reason += "; the headroom, which decides, cannot be read"
    if forecast is not None and forecast.seconds_to_limit is not None:
        reason += f"; {forecast}"
    return Health(
        status=status,
        reason=reason,
        level=level,
        used_bytes=None if reading is None else reading.used_bytes,
        limit_bytes=sampler.limit.value_bytes,
        headroom_bytes=None if found is None else found.value_bytes,
        age_s=age_s,
        monitor=name,
        seconds_to_limit=None if forecast is None else forecast.seconds_to_limit,
    )


def _figure(level: Level, reading: Reading | None) -> str:
    return f"memory is {level.name}: {reading}"


class ProcessEnd:
    """Ends the process once memory is exhausted, so that its supervisor starts another one.

    In this order, in a thread: no more admissions; the report into the log, and into a file; the active admissions get
    half of the grace to end; SIGTERM to this process, on which servers end as they do for their supervisor. A second
    thread calls `os._exit` when the grace is over, whatever hangs.

    Without a handler for SIGTERM the process would end in the middle of its `finally` blocks. So one is installed that
    raises `SystemExit` in the main thread, where the program has none at that time; for the SIGTERM of another process
    it does what was done before.

    Args:
        grace_s: seconds from the beginning to `os._exit`.
        code: the exit code.
        report_file: where the report is written, `{pid}` replaced by the number of the process; None for the log alone.
        admissions: are closed, and waited for.
        report: returns the report.

    Raises:
        ConfigError: for a value that makes no sense.
    """

    def __init__(
        self,
        *,
        grace_s: object,
        code: object,
        report_file: str | os.PathLike[str] | None,
        admissions: AdmissionQueue,
        report: Callable[[], str],
    ) -> None:
        self._grace_s = parse_seconds(grace_s, name="grace")
        self._code = _parse_code(code)
        self._report_file = _parse_file(report_file)
        self._admissions = admissions
        self._report = report
        self._warnings = RateLimitedLogger(_log, interval_s=_RETRY_LOG_S)
        self._beginning = threading.Lock()  # never waited for
        self.has_begun = False

    @property
    def code(self) -> int:
        """The exit code."""
        return self._code

    def begin(self, name: str, reason: str) -> None:
        """Begin, unless it has begun; where no thread can be started, the next call tries again.

        Args:
            name: the monitor's name, for the log.
            reason: why, as a sentence.
        """
        global _ending
        beginning = self._beginning
        if self.has_begun or not beginning.acquire(blocking=False):
            return
        try:
            OwnThread(target=self._exit_late, name=f"memtools-{name}-exit", daemon=True).start()
            _ending, self.has_begun = self, True
            OwnThread(target=self._run, args=(name, reason), name=f"memtools-{name}-end", daemon=True).start()
        except (RuntimeError, MemoryError) as error:  # the first thread alone ends the process as well, after the grace
            self._warnings.error("thread", "%s: memory is exhausted, and no thread starts: %s", name, error)
        finally:
            beginning.release()

    def after_fork(self) -> None:
        """Forget that the parent of a forked child ends."""
        global _ending
        self._beginning = threading.Lock()
        self.has_begun = False
        _ending = None

    def _exit_late(self) -> None:
        time.sleep(self._grace_s)
        os._exit(self._code)

    def _run(self, name: str, reason: str) -> None:
        deadline = time.monotonic() + self._grace_s / 2
        self._admissions.close()
        message = "%s: %s; the process ends: no more work is admitted, and it exits with %d within %.0f s"
        _attempt(lambda: _log.critical(message, name, reason, self._code, self._grace_s))
        _attempt(lambda: self._write_report(name))
        while self._admissions.statistics().active and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.SIG_IGN):
            os._exit(self._code)  # SIGTERM would end it at this place as well, or never
        os.kill(os.getpid(), signal.SIGTERM)

    def _write_report(self, name: str) -> None:
        report = self._report()
        _log.critical("%s: the report at the end\n%s", name, report)
        if self._report_file is not None:
            # Not by way of a second file: /dev/termination-log is a mount point, which cannot be replaced.
            file = Path(self._report_file.replace("{pid}", str(os.getpid())))
            file.write_text(f"{report}\n", encoding="utf-8", errors="backslashreplace")


_ending: ProcessEnd | None = None
_has_raised = False


def handle_sigterm() -> None:
    """Install the handler that ends the process with the code, where the program has no handler.

    A server that is started later puts its own in the place of it, and on its way out raises SIGTERM again for the one
    that was there before.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        return
    with suppress(ValueError):  # a subinterpreter
        signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(number: int, _frame: FrameType | None) -> None:
    global _has_raised
    if _ending is None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    elif not _has_raised:
        _has_raised = True  # another one would end the `finally` blocks
        raise SystemExit(_ending.code)


def _attempt(call: Callable[[], object]) -> None:
    # Memory is exhausted: what fails here must not keep the process from its end.
    try:
        call()
    except BaseException as error:
        with suppress(BaseException):
            _log.error("the report at the end failed: %r", error)


def _parse_code(code: object) -> int:
    accepted = (
        f"a whole number from 1 to 125, but not {_STOPS_GUNICORN[0]} and {_STOPS_GUNICORN[1]}: gunicorn stops on them"
    )
    if isinstance(code, bool) or not isinstance(code, int) or not 1 <= code <= 125 or code in _STOPS_GUNICORN:
        raise ConfigError("code", code, accepted)
    return code


def _parse_file(file: Any) -> str | None:
    if file is None:
        return None
    try:
        path = os.fsdecode(file)
    except TypeError:
        raise ConfigError("report_file", file, "a path, or None") from None
    folder = os.path.dirname(path) or "."
    if not path or not os.path.isdir(folder):
        raise ConfigError("report_file", path, "a file in a folder that exists")
    return path

"""Every exception and warning of memtools.

Every exception derives from `MemtoolsError` and from the matching built-in exception. Fields are stored in `args`, so
exceptions can be pickled.
"""

import reprlib
from typing import Final

_MAX_REPR_LENGTH: Final = 200  # characters of a refused value


class MemtoolsError(Exception):
    """Base class of all exceptions that memtools raises on purpose."""


class ConfigError(MemtoolsError, ValueError, TypeError):
    """An argument, option or environment variable is invalid; nothing has been changed.

    It is a ValueError and a TypeError, because it is raised for a wrong value and for a wrong type.

    Attributes:
        name: the argument or variable.
        value: the refused value.
        accepted: what is accepted instead; or, beginning with "requires", what the value needs besides.
    """

    def __init__(self, name: str, value: object, accepted: str) -> None:
        super().__init__(name, value, accepted)
        self.name = name
        self.value = value
        self.accepted = accepted

    def __str__(self) -> str:
        given = f"{self.name}={_short_repr(self.value)}"
        if self.accepted.startswith("requires "):
            return f"{given} {self.accepted}"
        return f"{given} is not accepted: use {self.accepted}"


class MissingExtraError(MemtoolsError, ImportError):
    """A library that this part needs is not installed; the message is the command that installs it.

    Attributes:
        module: the missing library.
        extra: the extra of memtools that installs it.
    """

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(module, extra)
        self.module = module
        self.extra = extra

    def __str__(self) -> str:
        return f"{self.module} is not installed: pip install 'memtools[{self.extra}]'"


class ReadingError(MemtoolsError, OSError):
    """The operating system did not report a figure of this process, and no other source has it.

    It is an error because a wrong number would be worse: budgets and thresholds act on it. `errno`, `strerror` and
    `filename` give the reason, as in every `OSError`: most often the process has no free file descriptor (EMFILE), or
    /proc is not mounted.
    """


class BudgetExceeded(MemtoolsError, RuntimeError):
    """A scope, a call or a task used more memory than its budget.

    It is not a `MemoryError`, because task queues end the worker for that one.

    Attributes:
        scope: the name of the scope, call or task.
        used_bytes: the memory used when this was found, in bytes.
        budget_bytes: the budget, in bytes.
        measure: the figure that was compared with the budget: `"peak"`, `"retained"` or `"rss"`.
    """

    def __init__(self, scope: str, used_bytes: int, budget_bytes: int, measure: str = "peak") -> None:
        super().__init__(scope, used_bytes, budget_bytes, measure)
        self.scope = scope
        self.used_bytes = used_bytes
        self.budget_bytes = budget_bytes
        self.measure = measure

    def __str__(self) -> str:
        used, budget = _format_pair(self.used_bytes, self.budget_bytes)
        return f"{self.scope} used {used}, budget {budget} ({self.measure})"


class ScopeClosed(MemtoolsError, RuntimeError):
    """A scope or component that has ended or not started was asked to do work.

    Attributes:
        scope: the name of the scope or component.
        reason: why it does not accept work.
    """

    def __init__(self, scope: str, reason: str = "it is closed") -> None:
        super().__init__(scope, reason)
        self.scope = scope
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.scope} takes no work: {self.reason}"


class ScopeFull(MemtoolsError, RuntimeError):
    """A task was refused because `max_pending` tasks were waiting; its coroutine has been closed.

    Attributes:
        scope: the name of the task scope.
        waiting: how many tasks were waiting to start.
        max_pending: how many may wait.
    """

    def __init__(self, scope: str, waiting: int, max_pending: int) -> None:
        super().__init__(scope, waiting, max_pending)
        self.scope = scope
        self.waiting = waiting
        self.max_pending = max_pending

    def __str__(self) -> str:
        return f"{self.scope} takes no more tasks: {self.waiting} are waiting, max_pending={self.max_pending}"


class WorkerDied(MemtoolsError, RuntimeError):
    """The worker process that ran a task has died: that task fails, and the pool goes on.

    The task may have done part of its work, so it is not run again.

    Attributes:
        pool: the name of the process pool.
        task: the name of the task's function.
        pid: the process id of the worker.
        reason: how it ended: the signal that killed it, or its exit status.
    """

    def __init__(self, pool: str, task: str, pid: int, reason: str) -> None:
        super().__init__(pool, task, pid, reason)
        self.pool = pool
        self.task = task
        self.pid = pid
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.task} did not end: its worker process {self.pid} of {self.pool} {self.reason}"


class WorkerStartFailed(MemtoolsError, RuntimeError):
    """A task could not be run, since no worker process could be started for it; the pool goes on.

    Attributes:
        pool: the name of the process pool.
        task: the name of the task's function.
        attempts: how many workers in a row have failed to start.
        reason: why the last of them did.
    """

    def __init__(self, pool: str, task: str, attempts: int, reason: str) -> None:
        super().__init__(pool, task, attempts, reason)
        self.pool = pool
        self.task = task
        self.attempts = attempts
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.task} was not run: {self.attempts} workers of {self.pool} in a row have failed to start; "
            f"the last one: {self.reason}"
        )


class AdmissionReused(MemtoolsError, RuntimeError):
    """One admission was entered a second time; call `admit()` for each block."""

    def __str__(self) -> str:
        return "this admission was entered before: call monitor.admit() for each block"


class AdmissionRefused(MemtoolsError, RuntimeError):
    """An admission was entered, or waited for, while the process ends because its memory is exhausted."""

    def __str__(self) -> str:
        return "no more work is admitted: memory is exhausted, and the process ends"


class MonitorAlreadyStarted(MemtoolsError, RuntimeError):
    """A monitor was started while it is started.

    Attributes:
        name: the monitor's name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"{self.name} is started already: stop it first, or make a second monitor"


class DeliveryFailed(MemtoolsError, OSError):
    """A channel could not deliver an alert.

    Channels raise it; it never leaves the package. Any other exception means the same with `retry=True`, and of it only
    the name of its class is shown: its text may hold an address.

    Attributes:
        reason: what went wrong, free of secrets, for the log.
        retry: whether trying again makes sense.
        retry_after_s: the pause that the other side asks for, in seconds, if it does.
    """

    def __init__(self, reason: str, retry: bool = True, retry_after_s: float | None = None) -> None:
        super().__init__(reason, retry, retry_after_s)
        self.reason = reason
        self.retry = retry
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.reason


class NotWeakReferenceable(MemtoolsError, TypeError):
    """A cache without strong references was given a value that cannot be weakly referenced; nothing has been changed.

    Attributes:
        kind: the name of the value's type.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind

    def __str__(self) -> str:
        return (
            f"a value of type {self.kind} cannot be weakly referenced, and this cache holds nothing else: "
            "wrap it in an object, or give the cache a strong tier (`strong` above 0, `weak_only=False`)"
        )


class RecursiveFactory(MemtoolsError, RuntimeError):
    """A factory waits for the key that it is making, directly or through other factories: it would never return.

    Attributes:
        key: the key as text.
    """

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    @classmethod
    def of(cls, key: object) -> "RecursiveFactory":
        """Return the error for `key`; it holds a short text of the key, and does not keep the key alive."""
        return cls(reprlib.repr(key))

    def __str__(self) -> str:
        return f"the factory for key {self.key} waits for that key itself, directly or through other factories"


class LeakError(MemtoolsError, AssertionError):
    """The tested function leaks: something grows with each call.

    Attributes:
        tested: the name of the function or test.
        findings: what grew per call, and which object holds it; one line each.
    """

    def __init__(self, tested: str, findings: tuple[str, ...]) -> None:
        super().__init__(tested, findings)
        self.tested = tested
        self.findings = findings

    def __str__(self) -> str:
        return "\n  ".join((f"{self.tested} leaks", *self.findings))


class MemtoolsWarning(Warning):
    """Base class of all warnings of memtools."""


class ConfigWarning(MemtoolsWarning, UserWarning):
    """A setting that cannot have been meant, such as a misspelt variable of the environment; memtools goes on."""


class LeakWarning(MemtoolsWarning, ResourceWarning):
    """A possible leak, or growth that cannot be told from one; hidden by default like every `ResourceWarning`."""


def _format_pair(used_bytes: int, budget_bytes: int) -> tuple[str, str]:
    # In MiB, unless rounding would hide the difference. `format_size` cannot be used: `units` imports this module.
    used, budget = f"{used_bytes / 2**20:.1f} MiB", f"{budget_bytes / 2**20:.1f} MiB"
    if used == budget or budget_bytes < 2**20:
        return f"{used_bytes:,} B", f"{budget_bytes:,} B"
    return used, budget


def _short_repr(value: object) -> str:
    # The refused value can be any object: its `repr` may be very long, or raise (that of an int of 5,000 digits does).
    try:
        text = repr(value)
    except Exception:
        return f"<a {type(value).__name__} that cannot be shown>"
    return text if len(text) <= _MAX_REPR_LENGTH else f"{text[:_MAX_REPR_LENGTH]}…"

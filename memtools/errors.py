"""What can go wrong, in words that carry their numbers.

Every error of ours is a `MemtoolsError` and also the built-in error that a stranger would catch. Fields travel through
`args` and are put into words by `__str__`, so that errors survive pickling between processes.
"""

import reprlib

_SHOWN_AT_MOST = 200  # characters of a refused value


class MemtoolsError(Exception):
    """The root of every error that memtools raises on purpose."""


class ConfigError(MemtoolsError, ValueError):
    """An argument, option or environment value that makes no sense; nothing has been changed.

    Attributes:
        name: the argument that was refused.
        value: what was given.
        accepted: the accepted forms, in words.
    """

    def __init__(self, name: str, value: object, accepted: str) -> None:
        super().__init__(name, value, accepted)
        self.name = name
        self.value = value
        self.accepted = accepted

    def __str__(self) -> str:
        return f"{self.name}={_shown(self.value)} is not accepted: use {self.accepted}"


class BudgetExceeded(MemtoolsError, RuntimeError):
    """An owner used more memory than its budget.

    Not a `MemoryError`: task queues treat that one as the end of the worker.

    Attributes:
        scope: the name of the owner.
        used_bytes: what it used when it was stopped, in bytes.
        budget_bytes: what it was allowed, in bytes.
        measure: which figure was held against the budget: `"peak"`, `"retained"` or `"rss"`.
    """

    def __init__(self, scope: str, used_bytes: int, budget_bytes: int, measure: str = "peak") -> None:
        super().__init__(scope, used_bytes, budget_bytes, measure)
        self.scope = scope
        self.used_bytes = used_bytes
        self.budget_bytes = budget_bytes
        self.measure = measure

    def __str__(self) -> str:
        used, budget = _amounts(self.used_bytes, self.budget_bytes)
        return f"{self.scope} used {used}, budget {budget} ({self.measure})"


class ScopeClosed(MemtoolsError, RuntimeError):
    """Work was handed to a scope that has ended or not begun.

    Attributes:
        scope: the name of the scope.
        reason: why it takes no work.
    """

    def __init__(self, scope: str, reason: str = "it is closed") -> None:
        super().__init__(scope, reason)
        self.scope = scope
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.scope} takes no work: {self.reason}"


class LeakError(MemtoolsError, AssertionError):
    """Something grows with each call of what was tested.

    Attributes:
        tested: the name of the function or test.
        findings: what grew, per call, and who holds it; one line each.
    """

    def __init__(self, tested: str, findings: tuple[str, ...]) -> None:
        super().__init__(tested, findings)
        self.tested = tested
        self.findings = findings

    def __str__(self) -> str:
        return "\n  ".join((f"{self.tested} leaks", *self.findings))


class MemtoolsWarning(Warning):
    """The root of every warning that memtools gives."""


class LeakWarning(MemtoolsWarning, ResourceWarning):
    """Something may leak, or could not be told from a leak; hidden by default as every `ResourceWarning`."""


class MissingExtraError(MemtoolsError, ImportError):
    """A part was used that needs a library which is not installed; the text is the command that installs it.

    Attributes:
        module: the library that is missing.
        extra: the extra of memtools that brings it.
    """

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(module, extra)
        self.module = module
        self.extra = extra

    def __str__(self) -> str:
        return f"{self.module} is not installed: pip install 'memtools[{self.extra}]'"


def _amounts(used_bytes: int, budget_bytes: int) -> tuple[str, str]:
    # In MiB, unless rounding would hide by how much the budget was missed. `units` stands above this module.
    used, budget = f"{used_bytes / 2**20:.1f} MiB", f"{budget_bytes / 2**20:.1f} MiB"
    if used == budget or budget_bytes < 2**20:
        return f"{used_bytes:,} B", f"{budget_bytes:,} B"
    return used, budget


def _shown(value: object) -> str:
    # Whatever was refused is a stranger's object: its `repr` may be endless, or fail (an int of 5,000 digits does).
    try:
        text = repr(value)
    except Exception:
        return f"<a {type(value).__name__} that cannot be shown>"
    return text if len(text) <= _SHOWN_AT_MOST else f"{text[:_SHOWN_AT_MOST]}…"


# What a cache refuses, in words.
#
# Leaves to others: arguments that make no sense (`memtools.errors.ConfigError`).


class NotWeakReferenceable(MemtoolsError, TypeError):
    """A value that cannot be weakly referenced was put into a cache that only refers weakly; nothing has been changed.

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
    """A factory waits for the very key that it is making, itself or through other factories: it would wait for ever.

    Attributes:
        key: the key as text.
    """

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    @classmethod
    def of(cls, key: object) -> "RecursiveFactory":
        """Return the error for `key`, shown shortly: an error must not keep a stranger's object alive."""
        return cls(reprlib.repr(key))

    def __str__(self) -> str:
        return f"the factory for key {self.key} waits for that key itself, directly or through other factories"

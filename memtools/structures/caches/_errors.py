"""What a cache refuses, in words.

Leaves to others: arguments that make no sense (`memtools.errors.ConfigError`).
"""

import reprlib

from memtools.errors import MemtoolsError


class NotWeaklyReferable(MemtoolsError, TypeError):
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


class NotPicklable(MemtoolsError, TypeError):
    """A cache was to be pickled.

    Attributes:
        kind: the name of the cache's type.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind

    def __str__(self) -> str:
        return f"cannot pickle {self.kind}: its values belong to others; pickle dict(cache.items()) if you want a copy"

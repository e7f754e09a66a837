from collections.abc import Iterable
from typing import Self, SupportsIndex, TypeVar, overload

T = TypeVar("T")

class FastWindow(list[T]):
    _limit: int
    _keep: int
    _portion: int
    _evicted: int
    _is_exact: bool
    _is_told: bool

    def append(self, item: T, /) -> None: ...
    def extend(self, iterable: Iterable[T], /) -> None: ...
    def insert(self, index: SupportsIndex, item: T, /) -> None: ...
    @overload
    def __setitem__(self, index: SupportsIndex, value: T, /) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[T], /) -> None: ...
    def __iadd__(self, iterable: Iterable[T], /) -> Self: ...  # type: ignore[override, misc]  # as in typeshed's `list`

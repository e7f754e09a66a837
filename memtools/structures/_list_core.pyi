from collections.abc import Iterable
from typing import Self, SupportsIndex, TypeVar, overload

_T = TypeVar("_T")

class CBoundedListCore(list[_T]):
    _limit: int
    _keep: int
    _chunk: int
    _evicted: int
    _is_exact: bool
    _has_hook: bool

    def append(self, item: _T, /) -> None: ...
    def extend(self, iterable: Iterable[_T], /) -> None: ...
    def insert(self, index: SupportsIndex, item: _T, /) -> None: ...
    @overload
    def __setitem__(self, index: SupportsIndex, value: _T, /) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[_T], /) -> None: ...
    def __iadd__(self, iterable: Iterable[_T], /) -> Self: ...  # type: ignore[override, misc]  # as in typeshed's `list`
    def _add(self, items: list[_T], limit: int, keep: int, /) -> list[_T]: ...

def renew_locks() -> None: ...

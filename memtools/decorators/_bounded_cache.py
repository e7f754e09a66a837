"""`bounded_cache`: remember the results of a function, within a bound."""

import functools
import inspect
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, NamedTuple, ParamSpec, TypeVar, cast, overload
from weakref import ref

from memtools._forks import register_object_after_fork
from memtools._records import record
from memtools._suggestions import suggest_arguments
from memtools.decorators._decoration import accept_descriptors, is_descriptor
from memtools.errors import ConfigError
from memtools.scopes._functions import call_kind
from memtools.structures import BoundedDict, _dict_bounds
from memtools.structures._cache_store import HITS_NEED_LOCK
from memtools.structures._single_flight import MISSING, CallsInProgress, TaskCall
from memtools.structures._window import Unset

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
T = TypeVar("T")

_DEFAULT_MAXLEN: Final = 128  # as that of `functools.lru_cache`
_MIN_PRUNED: Final = 64  # keys of one object, from which on those that have left the cache are looked for

# What stands between the positional arguments and those by name, and the types that are their own keys: as in
# `functools.lru_cache`, so that the same calls are the same.
_BY_NAME: Final = (object(),)
_OWN_KEYS: Final = frozenset((int, str))

_dict_get: Final[Callable[..., Any]] = dict[Any, Any].get


class CacheInfo(NamedTuple):
    """What a cached function did: the same four figures as those of `functools.lru_cache`.

    They are the calls that were answered from the cache and those that were not, the maximum number of results (None if
    only bytes are bounded), and the number of results that are held.
    """

    hits: int
    misses: int
    maxsize: int | None
    currsize: int


@record
class CallCacheStatistics:
    """What a cached function did, and what its cache holds.

    Attributes:
        hits: calls that were answered from the cache.
        misses: calls that were not.
        length: the number of results that are held.
        maxlen: the maximum number of results, or None.
        size_bytes: the shallow size of the keys and results in bytes; None without `max_bytes`.
        max_bytes: the maximum of bytes, or None.
        evicted: results that were dropped for lack of space, by expiry, or when memory ran short.
        expired: how many of them had expired.
        in_progress: coroutines that run now and that later callers would wait for.
    """

    hits: int
    misses: int
    length: int
    maxlen: int | None
    size_bytes: int | None
    max_bytes: int | None
    evicted: int
    expired: int
    in_progress: int

    @property
    def hit_ratio(self) -> float:
        """The share of hits among all calls, from 0 to 1; 0 before the first call."""
        calls = self.hits + self.misses
        return self.hits / calls if calls else 0.0


if TYPE_CHECKING:
    # What type checkers take a cached function for; at run time it is a function with more attributes. They take a
    # classmethod for a function of the class and do not bind it: cast where it matters.

    class Cached(Generic[P, R_co]):
        """A function whose results are remembered."""

        __name__: str
        __qualname__: str
        __wrapped__: Callable[..., Any]

        def cache_info(self) -> CacheInfo:
            """Return hits, misses, maximum and current size, as `functools.lru_cache` does."""
            ...

        def cache_clear(self) -> None:
            """Forget all results and figures."""
            ...

        def cache_parameters(self) -> dict[str, Any]:
            """Return the arguments of the decorator."""
            ...

        def cache_statistics(self) -> CallCacheStatistics:
            """Return what the function did, and what its cache holds."""
            ...

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
        @overload
        def __get__(self, instance: None, owner: type | None = None) -> "Cached[P, R_co]": ...
        @overload
        def __get__(self: "Cached[Concatenate[S, Q], R]", instance: S, owner: type | None = None) -> "Cached[Q, R]": ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...

    class _CacheDecorator:
        """What `bounded_cache` with arguments returns."""

        @overload
        def __call__(self, function: "classmethod[T, P, R]", /) -> "classmethod[T, P, R]": ...
        @overload
        def __call__(  # type: ignore[overload-overlap]  # a staticmethod object is callable, too
            self, function: "staticmethod[P, R]", /
        ) -> "staticmethod[P, R]": ...
        @overload
        def __call__(self, function: Callable[P, R], /) -> Cached[P, R]: ...
        def __call__(self, function: Any, /) -> Any: ...


@overload
def bounded_cache(maxlen: "classmethod[T, P, R]", /) -> "classmethod[T, P, R]": ...
@overload
def bounded_cache(  # type: ignore[overload-overlap]  # as above
    maxlen: "staticmethod[P, R]", /
) -> "staticmethod[P, R]": ...
@overload
def bounded_cache(maxlen: Callable[P, R], /) -> "Cached[P, R]": ...
@overload
def bounded_cache(
    maxlen: int | Unset | None = ...,
    typed: bool = False,
    *,
    max_bytes: int | str | None = None,
    ttl: float | None = None,
    sizeof: Callable[[Any], int] = ...,
    shrinkable: bool = True,
    clock: Callable[[], float] = ...,
) -> "_CacheDecorator": ...
@suggest_arguments(maxsize="maxlen", max_size="maxlen", max_len="maxlen", timeout="ttl", timer="clock")
def bounded_cache(
    maxlen: Any = Unset.UNSET,
    typed: bool = False,
    *,
    max_bytes: int | str | None = None,
    ttl: float | None = None,
    sizeof: Callable[[Any], int] = sys.getsizeof,
    shrinkable: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Any:
    """Remember the results of a function: `functools.lru_cache`, bounded by number, bytes and time.

    With or without arguments; on functions, methods, class and static methods, and coroutine functions. The calls that
    `lru_cache` takes for the same are the same here, and the function gets the methods of one of `lru_cache`:
    `cache_info()`, `cache_clear()`, `cache_parameters()`, and `__wrapped__`; besides, `cache_statistics()`.

    - *Methods*: the results belong to the object, which is told by identity and held weakly; they go when it dies.
      `maxlen` and `max_bytes` bound all objects together. An object that cannot be weakly referenced is a part of the
      key, as with `lru_cache`.
    - *Coroutine functions*: tasks of one event loop that miss the same call at the same time share one run. It fails
      for all of them, and a failure is not remembered. A waiting task that is cancelled does not cancel the others.
    - *Threads*: safe. Threads that miss the same call at the same time each call the function, as with `lru_cache`.
    - *Memory*: when it runs short, the results that were not used for the longest time are dropped
      (`memtools.cleanup`).

    ```python
    @bounded_cache(max_bytes="64 MiB")
    def render(page: str) -> bytes:
        return page.encode() * 1000

    render("home")
    render("home")
    assert render.cache_info().hits == 1
    ```

    Args:
        maxlen: the maximum number of results, 128 by default; None, for no limit, only with `max_bytes`, which is the
            default there. With 0 nothing is remembered. The function, where the decorator is used without arguments.
        typed: whether arguments of different types are different calls: `f(3)` and `f(3.0)`.
        max_bytes: the maximum of bytes of all results and keys by shallow size, such as `"64 MiB"`. A result that is
            larger is returned and not remembered.
        ttl: how long a result is remembered, in seconds.
        sizeof: returns the size of a result in bytes; called once for each if `max_bytes` is given.
        shrinkable: whether results are dropped when memory runs short.
        clock: returns monotonic seconds, for `ttl`.

    Raises:
        ConfigError: when decorating, for an argument that makes no sense, and for a generator function: what it yields
            can be had only once. From a call, where the answer of `sizeof` is no size.
    """
    is_bare = callable(maxlen) or is_descriptor(maxlen)
    limit: Any = maxlen
    if is_bare or maxlen is Unset.UNSET:
        limit = _DEFAULT_MAXLEN if max_bytes is None else None
    if not isinstance(cast("object", typed), bool):
        raise ConfigError("typed", typed, "True or False")
    make = partial(_CallCache, limit, typed, max_bytes, ttl, sizeof, shrinkable, clock)
    make()  # refuses invalid arguments now

    def decorate(function: Any) -> Any:
        return _cached(function, make(), always_binds=False)

    def decorate_any(function: Any) -> Any:
        if isinstance(function, classmethod):
            # On some versions of Python it calls what it holds with the class, on others it binds that first.
            return accept_descriptors(partial(_cached, cache=make(), always_binds=True))(function)
        return accept_descriptors(decorate)(function)

    return decorate_any(maxlen) if is_bare else decorate_any


def _cached(function: Any, cache: "_CallCache", *, always_binds: bool) -> Any:
    """Return `function` with its results remembered in `cache`.

    Args:
        function: a function, or another callable.
        cache: where its results are remembered.
        always_binds: the first argument of each call is an object or class whose method this is.
    """
    kind = "plain" if inspect.isclass(function) else call_kind(function)
    if kind not in ("plain", "coroutine"):
        raise ConfigError("function", function, f"a plain or coroutine function: what a {kind} yields comes only once")
    make = partial(_cached_function, function, cache, is_coroutine=kind == "coroutine")
    if always_binds:
        return make(cache.key_for_method)
    if type(function) is FunctionType and _is_in_class_body(function.__qualname__):
        return CachedMethod(make(cache.key_for), make(cache.key_for_method))
    return make(cache.key_for)


def _is_in_class_body(qualname: str) -> bool:
    outer = qualname.rpartition(".")[0]
    return outer != "" and not outer.endswith("<locals>")


def _cached_function(function: Any, cache: "_CallCache", key_for: Any, *, is_coroutine: bool) -> FunctionType:
    # A real function, for the reasons in `memtools.scopes._functions`: the code uses no global name, but only what its
    # closure holds, so that its globals can be those of the wrapped function.
    if is_coroutine:
        made: Any = _coroutine(function, key_for, cache.find, cache.run, MISSING)
    else:
        made = _plain(function, key_for, cache.find, cache.add, MISSING)
    if type(function) is FunctionType:
        made = FunctionType(made.__code__, function.__globals__, function.__name__, None, made.__closure__)
    functools.update_wrapper(made, function)
    made.cache_info = cache.cache_info
    made.cache_clear = cache.cache_clear
    made.cache_parameters = cache.cache_parameters
    made.cache_statistics = cache.cache_statistics
    return made  # type: ignore[no-any-return]


def _plain(function: Any, key_for: Any, find: Any, add: Any, missing: Any) -> Callable[..., Any]:
    def cached(*args: Any, **kwargs: Any) -> Any:
        key = key_for(args, kwargs)
        result = find(key)
        if result is not missing:
            return result
        result = function(*args, **kwargs)
        add(key, result)
        return result

    return cached


def _coroutine(function: Any, key_for: Any, find: Any, run: Any, missing: Any) -> Callable[..., Any]:
    async def cached(*args: Any, **kwargs: Any) -> Any:
        key = key_for(args, kwargs)
        result = find(key)
        if result is not missing:
            return result
        return await run(key, function, args, kwargs)

    return cached


class CachedMethod:
    """What stands in the body of a class for a function with remembered results.

    Called as it stands, as by a static method, it is the function; what it binds to is a method, whose first argument
    is an object that is held weakly.

    Args:
        direct: what is called where nothing is bound.
        method: what is bound to an object, and what the class has.
    """

    def __init__(self, direct: FunctionType, method: FunctionType) -> None:
        functools.update_wrapper(self, direct)
        self.__wrapped__ = cast("Any", direct).__wrapped__
        self._direct = direct
        self._method = method
        if inspect.iscoroutinefunction(direct):
            mark = getattr(inspect, "markcoroutinefunction", None)  # since Python 3.12
            if mark is not None:
                mark(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._direct(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self._method if instance is None else MethodType(self._method, instance)

    def __reduce__(self) -> str:
        return self._direct.__qualname__  # by reference, as functions are


class _Key(list[Any]):
    """The arguments of a call; hashed once, since the hash of an argument may be slow."""

    __slots__ = ("_hash",)

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self[:] = arguments
        self._hash = hash(arguments)

    def __hash__(self) -> int:  # type: ignore[override]  # a list has none
        return self._hash


def _make_key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    """Return the key of a call; the same for the calls that `functools.lru_cache` takes for the same."""
    if not kwargs and len(args) == 1 and type(args[0]) in _OWN_KEYS:
        return args[0]  # type: ignore[no-any-return]  # an int or a str
    return _Key(_flat(args, kwargs))


def _make_typed_key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    """Return the key of a call for `typed=True`."""
    return _Key((*_flat(args, kwargs), *map(type, args), *map(type, kwargs.values())))


def _flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    if kwargs:
        args += _BY_NAME
        for item in kwargs.items():
            args += item
    return args


class _InstanceRef(ref[Any]):
    """A weak reference to the object whose method was called; it stands for the object in keys.

    Attributes:
        keys: the keys that it is in; some may have left the cache.
        instance_id: the id of the object.
    """

    __slots__ = ("instance_id", "keys")
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    keys: set[Hashable]
    instance_id: int


class _CallCache:
    """The results of one function.

    The arguments are those of `bounded_cache`.

    Attributes:
        key_for: returns the key of a call of a function.
    """

    def __init__(
        self,
        maxlen: int | None,
        typed: bool,
        max_bytes: int | str | None,
        ttl: float | None,
        sizeof: Callable[[Any], int],
        shrinkable: bool,
        clock: Callable[[], float],
    ) -> None:
        self._arguments = maxlen, typed, max_bytes, ttl, sizeof, shrinkable, clock
        self._typed = typed
        self.key_for = _make_typed_key if typed else _make_key
        self._results: BoundedDict[Hashable, Any] = BoundedDict(
            (), maxlen, max_bytes=max_bytes, ttl=ttl, drop="least_recent", sizeof=sizeof, shrinkable=shrinkable,
            clock=clock,
        )  # fmt: skip
        self._has_fast_path = ttl is None and not HITS_NEED_LOCK
        self._make_recent: Callable[[Hashable], None] = cast("Any", self._results)._order.move_to_end
        self._hits = self._misses = 0
        self._lock = threading.RLock()
        self._calls: CallsInProgress[Hashable, Any] = CallsInProgress(self._lock)
        self._instances: dict[int, _InstanceRef] = {}
        self._dead: deque[_InstanceRef] = deque()
        register_object_after_fork(self, _CallCache._renew_after_fork)

    def __reduce__(self) -> tuple[Any, ...]:
        # With a function that is pickled by value: it starts empty.
        return _CallCache, self._arguments

    def key_for_method(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
        """Return the key of a call of a method, whose first argument is held weakly."""
        if not args:
            return self.key_for(args, kwargs)
        instance = args[0]
        reference = self._instances.get(id(instance))
        if reference is None or reference() is not instance:
            reference = self._refer_to(instance)
        return self.key_for(args if reference is None else (reference, *args[1:]), kwargs)

    def find(self, key: Hashable) -> Any:
        """Return the result that is remembered for `key`, or `MISSING`; count the hit or miss."""
        if not self._has_fast_path:
            return self._find_with_lock(key)
        # The fast path, as `BoundedDict.get` does it: every hit pays for each line.
        result: Any = _dict_get(self._results, key, MISSING)
        if result is MISSING:
            self._misses += 1
            return result
        try:  # noqa: SIM105  # a third of the time of `suppress`
            self._make_recent(key)
        except KeyError:  # another thread has just removed it
            pass
        self._hits += 1
        return result

    def add(self, key: Hashable, result: Any) -> None:
        """Remember a result."""
        self._results[key] = result
        if type(key) is _Key and key and type(key[0]) is _InstanceRef:
            self._add_to_instance(key[0], key)
        if self._dead:
            self._forget_dead()

    async def run(
        self, key: Hashable, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Return the result of the run for `key` of this event loop, which is started where there is none."""
        create = partial(self._create, key, partial(function, *args, **kwargs))
        return await self._calls.join_in_loop(key, create, name="bounded_cache call").wait(key)

    def cache_info(self) -> CacheInfo:
        """Return hits, misses, maximum and current size, as `functools.lru_cache` does."""
        self._forget_dead()
        return CacheInfo(self._hits, self._misses, self._results.maxlen, len(self._results))

    def cache_clear(self) -> None:
        """Forget all results and figures; a result that is being computed by a coroutine is not remembered either."""
        with self._lock:
            self._calls.forget_all()
            self._hits = self._misses = 0
        self._results.clear()
        self._instances.clear()

    def cache_parameters(self) -> dict[str, Any]:
        """Return the arguments of the decorator; `maxsize` and `typed` by the names of `functools.lru_cache`."""
        results = self._results
        return {"maxsize": results.maxlen, "typed": self._typed, "max_bytes": results.max_bytes, "ttl": results.ttl}

    def cache_statistics(self) -> CallCacheStatistics:
        """Return what the function did, and what its cache holds."""
        self._forget_dead()
        held = self._results.statistics()
        with self._lock:
            in_progress = len(self._calls)
        return CallCacheStatistics(
            hits=self._hits,
            misses=self._misses,
            length=held.length,
            maxlen=held.maxlen,
            size_bytes=held.size_bytes,
            max_bytes=held.max_bytes,
            evicted=held.evicted,
            expired=held.expired,
            in_progress=in_progress,
        )

    def _find_with_lock(self, key: Hashable) -> Any:
        result: Any = self._results.get(key, MISSING)
        with self._lock:
            if result is MISSING:
                self._misses += 1
            else:
                self._hits += 1
        return result

    def _refer_to(self, instance: Any) -> _InstanceRef | None:
        """Return a new reference to `instance`, or None if it cannot be weakly referenced."""
        with self._lock:
            found = self._instances.get(id(instance))
            if found is not None and found() is instance:
                return found
            try:
                reference = _InstanceRef(instance, self._on_death)
            except TypeError:
                return None
            reference.keys = set()
            reference.instance_id = id(instance)
            self._instances[id(instance)] = reference
            return reference

    def _add_to_instance(self, reference: _InstanceRef, key: Hashable) -> None:
        with self._lock:
            reference.keys.add(key)
            if len(reference.keys) > 2 * len(self._results) + _MIN_PRUNED:
                reference.keys = {key for key in reference.keys if key in self._results}
        if reference() is None:  # it has died while its method ran, as that of a finaliser may
            self._results.pop(key, None)

    def _on_death(self, reference: _InstanceRef) -> None:
        # The callback of a weak reference runs in whatever code dropped the object: it must not wait for a lock. Where
        # one is taken, the next call that takes it does the rest.
        self._dead.append(reference)
        self._forget_dead()

    def _forget_dead(self) -> None:
        while self._dead and _dict_bounds.lock.acquire(blocking=False):
            removed: list[Any] = []  # lives until the lock is released
            try:
                reference = self._dead.popleft()
                if self._instances.get(reference.instance_id) is reference:
                    del self._instances[reference.instance_id]
                removed.extend(self._results.pop(key, None) for key in list(reference.keys))
            except IndexError:  # another thread has just taken it
                pass
            finally:
                _dict_bounds.lock.release()

    async def _create(
        self, key: Hashable, create: Callable[[], Any], table: dict[Hashable, TaskCall[Any]], call: TaskCall[Any]
    ) -> Any:
        result = await create()
        if table.get(key) is call:  # or the cache was cleared meanwhile
            self.add(key, result)
        return result

    def _renew_after_fork(self) -> None:
        self._lock = threading.RLock()
        self._calls.renew_after_fork(self._lock)

"""Track tasks that a program creates, and charge calls in other threads to the owner that makes them.

`track_tasks()` does so for one event loop, by a task factory around the one that is set. `track_all_loops()` does so
for every loop of a program (asyncio and uvloop, loaded already or later), and the program does not notice: a task
factory and an attribute of the loop would be visible to it. Every task goes through `create_task` of the loop's class,
which hands the coroutine to the factory, if there is one. There the coroutine becomes a tracked one, and
`get_task_factory()` still returns what the program set. Traps:

- *Tracebacks.* An exception that leaves a tracked step has frames of this package between those of asyncio and of the
  coroutine. They are removed where the exception passes, so that logs and `traceback.print_exc()` read as without it.
- *Debug mode* remembers where a task was created: the frame of this package is removed from that as well.
- *Imports.* asyncio is not loaded for a program that does without it: a finder waits for the two modules, lets the
  other finders find them, and is gone from the module's spec when they have been loaded.
- *uvloop's* `Loop` is a Python class over the compiled one, and takes attributes; the compiled one does not.
- A direct `asyncio.Task(coro)` is not tracked, as it passes by any task factory.
"""

import importlib.machinery
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from importlib.abc import Loader, MetaPathFinder
from types import CodeType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Self, TypeAlias, TypeGuard, TypeVar, cast

from memtools._safe_calls import strip_own_frames
from memtools.errors import ConfigError
from memtools.ledger import _coroutines
from memtools.ledger._context import active_owner, get_active, per_thread, set_active, set_current
from memtools.ledger._coroutines import TrackedCoroutine, is_trackable
from memtools.ledger._counters import aggregate_eagerly
from memtools.ledger._owner import Meter, Owner, native_module
from memtools.ledger.meters._choose import choose_meter, native_reason

if TYPE_CHECKING:
    import asyncio

    Loop: TypeAlias = asyncio.AbstractEventLoop

P = ParamSpec("P")
R = TypeVar("R")

Factory: TypeAlias = Callable[..., Any]  # Any: what a factory takes and makes differs from Python to Python

# The module that defines the loop's class, and the class.
_LOOPS: Final = {"asyncio.base_events": "BaseEventLoop", "uvloop": "Loop"}
_OWN_FILES: Final = frozenset({__file__, _coroutines.__file__})
_MISSING: Final = object()

_native = native_module()


def bind_to_current(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function`, charged to the owner that is active here, whichever thread calls it.

    `asyncio.to_thread` copies the context, so a scope that is opened in the worker has the right parent; but what the
    worker allocates outside of any scope is charged to the current owner of the loop's thread (48 of 60 MB to a
    bystander). A bound function makes its owner the current one of the thread that runs it.

    Without an active owner the function itself is returned.
    """
    owner = active_owner()
    if owner is None:
        return function
    return cast("Callable[P, R]", _BoundCall(function, owner))


class _BoundCall:
    """A call that makes its owner the current one. A class, so that a repr in a log still names the function."""

    __slots__ = ("_function", "_owner")

    def __init__(self, function: Callable[..., object], owner: Owner) -> None:
        self._function = function
        self._owner = owner

    def __call__(self, *args: object, **kwargs: object) -> object:
        before_active = get_active()
        set_active(self._owner)
        owner = active_owner()  # the bound one may have ended while the call was queued
        charged = owner.charged_to if owner is not None else None
        try:
            if charged is None:
                return self._function(*args, **kwargs)
            return _call_charged(charged, self._function, args, kwargs)
        finally:
            set_active(before_active)

    def __repr__(self) -> str:
        return f"<{self._function!r} for {self._owner!r}>"


def _call_charged(
    owner: Owner, function: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
) -> object:
    slot = per_thread.slot
    before = slot.owner
    aggregate_eagerly(owner)  # the thread that made the call goes on beside this one
    set_current(slot, owner)
    try:
        return function(*args, **kwargs)
    finally:
        set_current(slot, before)


class TaskTracking:
    """What `track_tasks()` did to one loop; undone by `close()` or at the end of a `with`.

    Closing restores the task factory only if no other one has been set since.
    """

    def __init__(self, loop: "Loop | None", meter: Meter, *, numpy: bool = False) -> None:
        self._loop = loop
        self._meter = meter
        self._numpy = numpy
        self._inner: Factory | None = loop.get_task_factory() if loop is not None else None
        self._closed = False
        self._track = TrackedCoroutine[Any](None, meter, name="", kind="task").copy_for
        if numpy:
            from memtools.ledger.meters._native import enable_numpy  # only where the extension was built

            enable_numpy()
        meter.acquire()
        if loop is None:
            return
        self._run_in_executor = loop.run_in_executor
        loop.set_task_factory(self.make_task)
        # An attribute of this one loop object, not of its class.
        loop.run_in_executor = cast("Any", self._run_bound)  # type: ignore[method-assign]

    def close(self) -> None:
        """Leave the loop as it was found; tasks that are tracked already stay so. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._loop is not None:
            if self._loop.get_task_factory() == self.make_task:
                self._loop.set_task_factory(self._inner)
            if self._loop.run_in_executor == self._run_bound:
                del self._loop.run_in_executor
        if self._numpy:
            from memtools.ledger.meters._native import disable_numpy

            disable_numpy()
        self._meter.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "active"
        return f"<TaskTracking {state} meter={self._meter.name}>"

    def make_task(self, loop: "Loop", coro: Any, **options: Any) -> Any:
        """Make a task whose steps are tracked: the task factory."""
        # An argument that is no coroutine is refused by the task, with its own message.
        if not self._closed and is_trackable(coro):
            coro = self._track(coro)
        if self._inner is not None:
            return self._inner(loop, coro, **options)
        return sys.modules["asyncio"].Task(coro, loop=loop, **options)

    def _run_bound(self, executor: Any, function: Callable[..., Any], *args: Any) -> Any:
        # A process pool pickles its functions, and an owner belongs to one process.
        if executor is None or _is_thread_pool(executor):
            function = bind_to_current(function)
        return self._run_in_executor(executor, function, *args)


def track_tasks(loop: "Loop | None" = None, *, meter: str | None = None, numpy: bool = False) -> TaskTracking:
    """Give every task that this loop creates from now on an account of its own, whatever code creates it.

    A task is named by its name, or by its coroutine where it has only a number for a name. Calls of
    `asyncio.to_thread` and of thread pools through the loop are charged to the task that makes them. A task factory
    that is there goes on making the tasks.

    Args:
        loop: the event loop; by default the running one.
        meter: the meter that counts; by default `MEMTOOLS_METER`, else the default meter.
        numpy: count arrays over a handler of the program, too, by one of numpy's kind (native meter only): in this
            context and those copied from it, and wherever an owner is opened. Works without a loop.

    Raises:
        ConfigError: without a loop, unless `numpy` is set; where the loop is tracked already; for `numpy` with a meter
            that cannot count arrays.
        MissingExtraError: for `numpy` where it is not installed.
    """
    chosen = choose_meter(meter)
    if numpy and chosen.name != "native":
        why = native_reason() or f"the meter is {chosen.name!r}"
        raise ConfigError("numpy", numpy, f"it with meter='native', the only meter that counts arrays; here {why}")
    if loop is None:
        asyncio = sys.modules.get("asyncio")
        loop = asyncio._get_running_loop() if asyncio is not None else None
    if loop is None and not numpy:
        raise ConfigError("loop", loop, "an event loop, or call it where one is running")
    if loop is not None and getattr(loop.get_task_factory(), "__func__", None) is TaskTracking.make_task:
        raise ConfigError("loop", loop, "a loop that is not tracked already")
    return TaskTracking(loop, chosen, numpy=numpy)


def track_all_loops(meter: Meter) -> "GlobalTaskTracking":
    """Track every task that any loop creates from now on.

    Args:
        meter: the meter that counts.
    """
    return GlobalTaskTracking(meter)


class GlobalTaskTracking:
    """What `track_all_loops()` did; undone by `close()`. Tasks that are tracked already stay so."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._closed = False
        self._replaced: list[tuple[type, str, object, object]] = []
        self._finder: _PostImportFinder | None = None
        meter.acquire()

        waiting = {name for name in _LOOPS if not self._patch(sys.modules.get(name))}
        if waiting:
            self._finder = _PostImportFinder(waiting, self._patch)
            sys.meta_path.insert(0, self._finder)

    def close(self) -> None:
        """Leave the classes as they were found, except for attributes that have been replaced since.

        A second call does nothing.
        """
        if self._closed:
            return
        self._closed = True
        if self._finder is not None and self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        for kind, name, before, wrapper in self._replaced:
            if vars(kind).get(name) is not wrapper:
                continue
            if before is _MISSING:
                delattr(kind, name)
            else:
                setattr(kind, name, before)
        self._meter.release()

    def _patch(self, module: ModuleType | None) -> bool:
        kind = getattr(module, _LOOPS[module.__name__], None) if module is not None else None
        if kind is None:
            return False
        self._replace(kind, "create_task", _wrap_create_task(kind.create_task, self._meter))
        self._replace(kind, "run_in_executor", _wrap_run_in_executor(kind.run_in_executor))
        return True

    def _replace(self, kind: type, name: str, wrapper: object) -> None:
        self._replaced.append((kind, name, vars(kind).get(name, _MISSING), wrapper))
        setattr(kind, name, wrapper)


class _TracelessCoroutine(TrackedCoroutine[Any]):  # Any: as in `TrackedCoroutine`
    """A tracked coroutine that leaves no frame in the tracebacks of exceptions that pass through it."""

    __slots__ = ()

    def __next__(self) -> Any:
        try:
            return self.send(None)
        except BaseException as error:
            _strip_own_frames(error)
            raise

    def _end(self, before: Owner | None, error: BaseException | None) -> None:
        # The caller raises the same error again with a bare `raise`, which adds no frame.
        if error is not None:
            _strip_own_frames(error)
        super()._end(before, error)


class _TracelessCall:
    """A bound function that leaves no frame in the tracebacks of what it raises."""

    __slots__ = ("_bound", "_function")

    def __init__(self, function: Callable[..., Any], bound: Callable[..., Any]) -> None:
        self._function = function
        self._bound = bound

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._bound(*args, **kwargs)
        except BaseException as error:
            _strip_own_frames(error)
            raise

    def __repr__(self) -> str:
        return repr(self._function)


class _PostImportFinder(MetaPathFinder):
    """Calls back when a module has been loaded, whichever finder finds it."""

    def __init__(self, waiting: set[str], on_loaded: Callable[[ModuleType], object]) -> None:
        self._waiting = waiting
        self._on_loaded = on_loaded

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Let the other finders find the module, and wrap its loader."""
        if fullname not in self._waiting:
            return None
        self._waiting.discard(fullname)  # first: the search for the spec calls this finder again
        spec = _find_spec(sys.meta_path, self, fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _PostImportLoader(spec.loader, self._on_loaded)
        return spec


class _PostImportLoader(Loader):
    """The module's own loader, which calls back once the module has been executed."""

    def __init__(self, loader: Loader, on_loaded: Callable[[ModuleType], object]) -> None:
        self._loader = loader
        self._on_loaded = on_loaded

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Create it as its own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute it as its own loader does, under that loader's name; then call back."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        try:
            self._loader.exec_module(module)
        except BaseException as error:
            _strip_own_frames(error)
            raise
        self._on_loaded(module)


def _find_spec(
    finders: Iterable[Any], excluded: object, fullname: str, path: Sequence[str] | None, target: ModuleType | None
) -> importlib.machinery.ModuleSpec | None:
    # Any: finders in `sys.meta_path` have no common type.
    for finder in finders:
        find = getattr(finder, "find_spec", None)
        spec: importlib.machinery.ModuleSpec | None = (
            find(fullname, path, target) if find and finder is not excluded else None
        )
        if spec is not None:
            return spec
    return None


def _wrap_create_task(original: Callable[..., Any], meter: Meter) -> Callable[..., Any]:
    # Any: arguments differ between Python versions, and are between the program and its loop.
    track = _TracelessCoroutine(None, meter, name="", kind="task").copy_for

    def create_task(self: Any, coro: Any, **options: Any) -> Any:
        if _is_trackable_and_named(coro):
            coro = track(coro)
        try:
            task = original(self, coro, **options)
        except BaseException as error:
            _strip_own_frames(error)
            raise
        created_at = getattr(task, "_source_traceback", None)
        if created_at:
            created_at[:] = [frame for frame in created_at if frame.filename not in _OWN_FILES]
        return task

    return _copy_metadata(original, create_task)


def _wrap_run_in_executor(original: Callable[..., Any]) -> Callable[..., Any]:
    def run_in_executor(self: Any, executor: Any, func: Any, *args: Any) -> Any:
        if callable(func) and not _is_coroutine_function(func) and (executor is None or _is_thread_pool(executor)):
            bound = bind_to_current(func)
            func = func if bound is func else _TracelessCall(func, bound)
        try:
            return original(self, executor, func, *args)
        except BaseException as error:
            _strip_own_frames(error)
            raise

    return _copy_metadata(original, run_in_executor)


def _copy_metadata(original: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    # As `functools.wraps`, which also needs attributes that a compiled method lacks.
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        if hasattr(original, name):
            setattr(wrapper, name, getattr(original, name))
    wrapper.__wrapped__ = original  # type: ignore[attr-defined]  # what inspect.signature looks for
    return wrapper


def _is_thread_pool(executor: object) -> bool:
    module = sys.modules.get("concurrent.futures.thread")
    return module is not None and isinstance(executor, module.ThreadPoolExecutor)


def _is_trackable_and_named(coro: object) -> TypeGuard[Coroutine[Any, Any, Any]]:
    # A coroutine without a name (`agen.aclose()`, of which loops make tasks) is shown by its type, which would change.
    return is_trackable(coro) and hasattr(coro, "__name__")


def _is_coroutine_function(func: object) -> bool:
    # In debug mode the loop refuses these; the wrapped one would pass.
    code = getattr(func, "__code__", None)
    return isinstance(code, CodeType) and bool(code.co_flags & 0x80)  # inspect.CO_COROUTINE


def _strip_own_frames(error: BaseException) -> None:
    error.__traceback__ = strip_own_frames(error.__traceback__, _is_own)


def _is_own(code: CodeType) -> bool:
    return code.co_filename in _OWN_FILES

"""Follow every task of every loop that a program makes, so that the program cannot tell.

Covers: `asyncio` and `uvloop`, loaded already or later; task factories of the program's own, eager ones too; the
loops' thread pool calls. Leaves to others: the driver (`_driver`), one loop that its owner knows of (`_installing`).

Why not `track_tasks()` on each new loop: it sets a task factory and an attribute of the loop, and the program would see
both. Every task, whoever makes it, goes through `create_task` of the loop's class, which hands the coroutine to the
factory, if there is one. There it is put under its driver, and `get_task_factory()` goes on saying what the program
set. Traps:

- *Tracebacks.* An exception that leaves a driven step has our frames between those of asyncio and of the coroutine.
  They are taken off where the exception passes, so that logs and `traceback.print_exc()` read as without us.
- *Debug mode* remembers where a task was created: our frame is taken out of that as well.
- *Imports.* asyncio is not loaded for a program that does without it: a finder waits for the two modules, lets the
  others find them, and is gone from the module's spec when they have been loaded.
- *uvloop's* `Loop` is a Python class over the compiled one, and takes attributes; the compiled one does not.
- A direct `asyncio.Task(coro)` passes by, as it passes by any task factory.
"""

import importlib.machinery
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from importlib.abc import Loader, MetaPathFinder
from types import CodeType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Self, TypeAlias, TypeGuard, TypeVar, cast

from memtools.errors import ConfigError
from memtools.ledger import _coroutines
from memtools.ledger._context import active, active_owner, give_turn, per_thread
from memtools.ledger._coroutines import UNUSED, TrackedCoroutine, is_trackable
from memtools.ledger._counters import share
from memtools.ledger._owner import Owner, native_seats
from memtools.ledger.meters._choose import Meter, choose_meter, native_reason
from memtools.ledger.meters._native import begin_to_count, end_to_count

# Take the owner along to another thread.
#
# `asyncio.to_thread` copies the context, so a scope that is opened in the worker has the right parent; but what the
# worker allocates outside of any scope is charged to whoever has the turn in the loop's thread (48 of 60 MB to a
# bystander). A carried function has the turn in the thread that runs it.

P = ParamSpec("P")
R = TypeVar("R")

_native = native_seats()


def bind_to_current(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function`, charged to the owner that is active here, whichever thread calls it.

    Without an active owner the function itself is returned.
    """
    owner = active_owner()
    if owner is None:
        return function
    return cast("Callable[P, R]", _Carried(function, owner))


class _Carried:
    """A call that brings its owner along. A class, so that a repr in a log still names the function."""

    __slots__ = ("_function", "_owner")

    def __init__(self, function: Callable[..., object], owner: Owner) -> None:
        self._function = function
        self._owner = owner

    def __call__(self, *args: object, **kwargs: object) -> object:
        before_active = active.get()
        active.set(self._owner)
        owner = active_owner()  # the one that brought it may have ended in the queue
        charged = owner.charged if owner is not None else None
        try:
            if charged is None:
                return self._function(*args, **kwargs)
            return _charged_call(charged, self._function, args, kwargs)
        finally:
            active.set(before_active)

    def __repr__(self) -> str:
        return f"<{self._function!r} for {self._owner!r}>"


def _charged_call(
    owner: Owner, function: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
) -> object:
    slot = per_thread.slot
    before = slot.owner
    share(owner)  # the thread that it comes from goes on beside this one
    if owner.budgeted is not None and _native is not None:
        _native.get_ready()
    give_turn(slot, owner)
    try:
        return function(*args, **kwargs)
    finally:
        give_turn(slot, before)


# The module that defines the loop's class, and the class.
_LOOPS: Final = {"asyncio.base_events": "BaseEventLoop", "uvloop": "Loop"}
_OUR_FILES: Final = frozenset({__file__, _coroutines.__file__})
_MISSING: Final = object()


def track_all_loops(meter: Meter) -> "GlobalTaskTracking":
    """Have every task that any loop creates from now on followed, whichever loop it is.

    Args:
        meter: who counts.
    """
    return GlobalTaskTracking(meter)


class GlobalTaskTracking:
    """What `track_all_loops()` did; undone by `close()`. Tasks that are followed already stay so."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._closed = False
        self._replaced: list[tuple[type, str, object, object]] = []
        self._finder: _Finder | None = None
        meter.hold()

        waiting = {name for name in _LOOPS if not self._patch(sys.modules.get(name))}
        if waiting:
            self._finder = _Finder(waiting, self._patch)
            sys.meta_path.insert(0, self._finder)

    def close(self) -> None:
        """Leave the classes as they were found, except where somebody has replaced something since.

        A second call does nothing.
        """
        if self._closed:
            return
        self._closed = True
        if self._finder is not None and self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        for kind, name, before, ours in self._replaced:
            if vars(kind).get(name) is not ours:
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
        self._replace(kind, "create_task", _following(kind.create_task, self._meter))
        self._replace(kind, "run_in_executor", _carrying_along(kind.run_in_executor))
        return True

    def _replace(self, kind: type, name: str, ours: object) -> None:
        self._replaced.append((kind, name, vars(kind).get(name, _MISSING), ours))
        setattr(kind, name, ours)


class _Followed(TrackedCoroutine[Any]):  # Any: as in `Driven`
    """A driver that leaves no frame in the tracebacks of what passes through it."""

    __slots__ = ()

    def __next__(self) -> Any:
        try:
            return self.send(None)
        except BaseException as error:
            _take_our_frames_off(error)
            raise

    def _end(self, before: Owner | None, error: BaseException | None) -> None:
        # The driver raises the same error again with a bare `raise`, which adds no frame.
        if error is not None:
            _take_our_frames_off(error)
        super()._end(before, error)


class _CarriedCall:
    """A carried function that leaves no frame in the tracebacks of what it raises."""

    __slots__ = ("_carried", "_function")

    def __init__(self, function: Callable[..., Any], carried: Callable[..., Any]) -> None:
        self._function = function
        self._carried = carried

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._carried(*args, **kwargs)
        except BaseException as error:
            _take_our_frames_off(error)
            raise

    def __repr__(self) -> str:
        return repr(self._function)


class _Finder(MetaPathFinder):
    """Tells when a module has been loaded, whoever finds it."""

    def __init__(self, waiting: set[str], tell: Callable[[ModuleType], object]) -> None:
        self._waiting = waiting
        self._tell = tell

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Let the others find the module, and have its loader tell when it is there."""
        if fullname not in self._waiting:
            return None
        self._waiting.discard(fullname)  # first: looking for the spec asks us again
        spec = _found_by(sys.meta_path, self, fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _TellingLoader(spec.loader, self._tell)
        return spec


class _TellingLoader(Loader):
    """The module's own loader, that tells once the module has been executed."""

    def __init__(self, loader: Loader, tell: Callable[[ModuleType], object]) -> None:
        self._loader = loader
        self._tell = tell

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Create it as its own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute it as its own loader does, under its own loader's name; then tell."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        try:
            self._loader.exec_module(module)
        except BaseException as error:
            _take_our_frames_off(error)
            raise
        self._tell(module)


def _found_by(
    finders: Iterable[Any], but: object, fullname: str, path: Sequence[str] | None, target: ModuleType | None
) -> importlib.machinery.ModuleSpec | None:
    # Any: what stands in `sys.meta_path` has `find_spec` by custom, and no type.
    for finder in finders:
        find = getattr(finder, "find_spec", None)
        spec: importlib.machinery.ModuleSpec | None = (
            find(fullname, path, target) if find and finder is not but else None
        )
        if spec is not None:
            return spec
    return None


def _following(original: Callable[..., Any], meter: Meter) -> Callable[..., Any]:
    # Any: arguments differ from Python to Python, and are between the program and its loop.
    follow = _Followed(UNUSED, meter, name="", kind="task").following

    def create_task(self: Any, coro: Any, **options: Any) -> Any:
        if _can_be_followed(coro):
            coro = follow(coro)
        try:
            task = original(self, coro, **options)
        except BaseException as error:
            _take_our_frames_off(error)
            raise
        created_at = getattr(task, "_source_traceback", None)
        if created_at:
            created_at[:] = [frame for frame in created_at if frame.filename not in _OUR_FILES]
        return task

    return _dressed_as(original, create_task)


def _carrying_along(original: Callable[..., Any]) -> Callable[..., Any]:
    def run_in_executor(self: Any, executor: Any, func: Any, *args: Any) -> Any:
        if callable(func) and not _is_coroutine_function(func) and (executor is None or _is_thread_pool(executor)):
            carried = bind_to_current(func)
            func = func if carried is func else _CarriedCall(func, carried)
        try:
            return original(self, executor, func, *args)
        except BaseException as error:
            _take_our_frames_off(error)
            raise

    return _dressed_as(original, run_in_executor)


def _dressed_as(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    # As `functools.wraps`, which also takes what a compiled method lacks.
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        if hasattr(original, name):
            setattr(ours, name, getattr(original, name))
    ours.__wrapped__ = original  # type: ignore[attr-defined]  # what inspect.signature looks for
    return ours


def _is_thread_pool(executor: object) -> bool:
    module = sys.modules.get("concurrent.futures.thread")
    return module is not None and isinstance(executor, module.ThreadPoolExecutor)


def _can_be_followed(coro: object) -> TypeGuard[Coroutine[Any, Any, Any]]:
    # What has no name (`agen.aclose()`, which loops make tasks of) is shown by its type, and would be shown by ours.
    return is_trackable(coro) and hasattr(coro, "__name__")


def _is_coroutine_function(func: object) -> bool:
    # In debug mode the loop refuses these; the wrapped one would pass.
    code = getattr(func, "__code__", None)
    return isinstance(code, CodeType) and bool(code.co_flags & 0x80)  # inspect.CO_COROUTINE


def _take_our_frames_off(error: BaseException) -> None:
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in _OUR_FILES:
        trace = trace.tb_next
    error.__traceback__ = trace


# Follow every task of an event loop: `track_tasks()`.
#
# Covers: the task factory that puts each new task under a driver, around a factory that is there; the loop's executor
# calls, so that `to_thread` brings its owner along; doing so for every loop of a program (`python -m memtools run`).
# Leaves to others: the driver itself (`_driver`), carrying (`_carrying`).

if TYPE_CHECKING:
    import asyncio

    Loop: TypeAlias = asyncio.AbstractEventLoop

Factory: TypeAlias = Callable[..., Any]  # Any: what a factory takes and makes differs from Python to Python


class TaskTracking:
    """What `track_tasks()` did to one loop; undone by `close()` or at the end of a `with`.

    Closing takes the factory back only if nobody has set another one since.
    """

    def __init__(self, loop: "Loop | None", meter: Meter, *, numpy: bool = False) -> None:
        self._loop = loop
        self._meter = meter
        self._numpy = numpy
        self._inner: Factory | None = loop.get_task_factory() if loop is not None else None
        self._closed = False
        self._follow = TrackedCoroutine(UNUSED, meter, name="", kind="task").following
        if numpy:
            begin_to_count()
        meter.hold()
        if loop is None:
            return
        self._run_in_executor = loop.run_in_executor
        loop.set_task_factory(self.make_task)
        # An attribute of this one loop object, not of its class.
        loop.run_in_executor = cast("Any", self._run_carried)  # type: ignore[method-assign]

    def close(self) -> None:
        """Leave the loop as it was found; tasks that are followed already stay so. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._loop is not None:
            if self._loop.get_task_factory() == self.make_task:
                self._loop.set_task_factory(self._inner)
            if self._loop.run_in_executor == self._run_carried:
                del self._loop.run_in_executor
        if self._numpy:
            end_to_count()
        self._meter.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "active"
        return f"<Installation {state} meter={self._meter.name}>"

    def make_task(self, loop: "Loop", coro: Any, **options: Any) -> Any:
        """Make a task whose steps are followed: the task factory."""
        # What is no coroutine is refused by the task, in its own words.
        if not self._closed and is_trackable(coro):
            coro = self._follow(coro)
        if self._inner is not None:
            return self._inner(loop, coro, **options)
        return sys.modules["asyncio"].Task(coro, loop=loop, **options)

    def _run_carried(self, executor: Any, function: Callable[..., Any], *args: Any) -> Any:
        # A process pool pickles what it is given, and no owner could follow into another process.
        if executor is None or _is_thread_pool(executor):
            function = bind_to_current(function)
        return self._run_in_executor(executor, function, *args)


def track_tasks(loop: "Loop | None" = None, *, meter: str | None = None, numpy: bool = False) -> TaskTracking:
    """Give every task that this loop creates from now on an account of its own, whoever creates it.

    A task is called by its name, or by its coroutine where it has only a number for a name. Calls of
    `asyncio.to_thread` and of thread pools through the loop are charged to the task that makes them. A task factory
    that is there goes on making the tasks.

    Args:
        loop: the event loop; by default the running one.
        meter: who counts; by default `MEMTOOLS_METER`, else the default meter.
        numpy: count what numpy's arrays hold, too, by a handler of numpy's own kind (native meter only): in this
            context and those copied from it, and wherever an owner is opened. May be asked for without a loop.

    Raises:
        ConfigError: without a loop, unless it is for numpy; where the loop has been installed on already; for numpy
            with a meter that cannot count its arrays.
        MissingExtraError: for numpy where it is not installed.
    """
    chosen = choose_meter(meter)
    if numpy and chosen.name != "native":
        why = native_reason() or f"the meter is {chosen.name!r}"
        raise ConfigError("numpy", numpy, f"it with meter='native', the only one that can count arrays; here {why}")
    if loop is None:
        asyncio = sys.modules.get("asyncio")
        loop = asyncio._get_running_loop() if asyncio is not None else None
    if loop is None and not numpy:
        raise ConfigError("loop", loop, "an event loop, or call it where one is running")
    if loop is not None and getattr(loop.get_task_factory(), "__func__", None) is TaskTracking.make_task:
        raise ConfigError("loop", loop, "a loop that memtools has not been installed on already")
    return TaskTracking(loop, chosen, numpy=numpy)

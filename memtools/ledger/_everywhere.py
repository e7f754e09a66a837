"""Follow every task of every loop that a program makes, so that the program cannot tell.

Covers: `asyncio` and `uvloop`, loaded already or later; task factories of the program's own, eager ones too; the
loops' thread pool calls. Leaves to others: the driver (`_driver`), one loop that its owner knows of (`_installing`).

Why not `install()` on each new loop: it sets a task factory and an attribute of the loop, and the program would see
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
from types import CodeType, ModuleType
from typing import Any, Final, TypeGuard

from memtools.ledger import _carrying, _driver, _steps
from memtools.ledger._carrying import carry
from memtools.ledger._driver import UNUSED, Driven, can_be_driven
from memtools.ledger._meters import Meter
from memtools.ledger._owner import Owner

# The module that defines the loop's class, and the class.
_LOOPS: Final = {"asyncio.base_events": "BaseEventLoop", "uvloop": "Loop"}
_OUR_FILES: Final = frozenset({__file__, _driver.__file__, _steps.__file__, _carrying.__file__})
_MISSING: Final = object()


def follow_everywhere(meter: Meter) -> "Everywhere":
    """Have every task that any loop creates from now on followed, whichever loop it is.

    Args:
        meter: who counts.
    """
    return Everywhere(meter)


class Everywhere:
    """What `follow_everywhere()` did; undone by `close()`. Tasks that are followed already stay so."""

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


class _Followed(Driven[Any]):  # Any: as in `Driven`
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
            carried = carry(func)
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
    return can_be_driven(coro) and hasattr(coro, "__name__")


def _is_coroutine_function(func: object) -> bool:
    # In debug mode the loop refuses these; the wrapped one would pass.
    code = getattr(func, "__code__", None)
    return isinstance(code, CodeType) and bool(code.co_flags & 0x80)  # inspect.CO_COROUTINE


def _take_our_frames_off(error: BaseException) -> None:
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in _OUR_FILES:
        trace = trace.tb_next
    error.__traceback__ = trace

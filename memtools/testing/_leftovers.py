"""The tasks, threads and descriptors that the body of a test leaves behind.

What other parts of the process opened meanwhile does not count: the loop's default executor, pools, handlers and
fixtures that are older than the body, singletons of the process such as multiprocessing's resource tracker, and
memtools itself. Tasks and threads that end by themselves get half a second for it.
"""

import gc
import logging
import os
import stat
import sys
import threading
import types
import weakref
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from time import perf_counter, sleep  # names of this module: a test may have replaced those of `time`
from typing import Any, Final

from memtools._threads import frame_of_thread, running_threads
from memtools.readings import resident_bytes

# A number of turns, and no clock: a test may have stopped the clock of the process.
_TURN_S: Final = 0.001
_TURNS: Final = 500
_LOOK_S: Final = 0.01
_LOOKS: Final = 50
_LOOKS_S: Final = 0.5  # a look at a large heap takes longer than the pause after it
_QUIET_TURNS: Final = 3  # a callback of the loop starts a task in the first, the task has its first step in the second
_ORIGIN_DEPTH: Final = 6  # frames above a coroutine's call; some are in asyncio itself
_MAX_REACHED: Final = 2_000  # objects that are looked at below one pool

_RANDOM_DEVICES: Final = ("/dev/urandom", "/dev/random")  # hashlib and random may keep one for the process
_OPAQUE: Final = (
    types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType, types.CodeType, types.FrameType, str, bytes
)  # fmt: skip

# Any, here and below: what is looked at belongs to asyncio, anyio and multiprocessing, which may not be loaded.
Descriptor = tuple[int, tuple[int, int, int], str]  # number, (device, inode, type), target


class Leftovers:
    """What the process had before the body of a test; `found()` returns what the body left behind.

    Args:
        module: the name of the test's module: what its globals hold is not a singleton of the process.
        name_origins: whether to record where coroutines are called, to name a task by it. Each live coroutine takes
            some 200 bytes more meanwhile.
    """

    def __init__(self, module: str = "", *, name_origins: bool = False) -> None:
        resident_bytes()  # the first reading opens a descriptor for the process
        self._module = module
        self._modules = set(sys.modules)
        found = _scan()
        self._tasks = _Known(found.tasks)
        self._pools = _Known(found.pools)
        self._threads = _Known(threading.enumerate())
        self._handlers = _Known(_handlers())
        self._descriptors = _descriptors()
        self._watched_loop: Any = None
        self._task_lines: tuple[str, ...] = ()
        self._origin_depth = sys.get_coroutine_origin_tracking_depth()
        if name_origins and not self._origin_depth:
            sys.set_coroutine_origin_tracking_depth(_ORIGIN_DEPTH)

    def end_body(self) -> None:
        """Undo what the constructor changed in this thread: call it as soon as the body has ended."""
        sys.set_coroutine_origin_tracking_depth(self._origin_depth)

    async def wait_for_tasks(self) -> None:
        """Let new tasks of the running loop end, and record those that do not: their loop may end soon."""
        loop = _running_loop()
        if loop is None:
            return  # the loop of another library
        asyncio = sys.modules["asyncio"]
        mine = asyncio.current_task()
        for turn in range(_TURNS):
            remaining = [task for task in asyncio.all_tasks(loop) if task is not mine and self._is_new(task)]
            if turn >= _QUIET_TURNS and not remaining:
                break
            if turn >= _QUIET_TURNS:
                sleep(_TURN_S)  # noqa: ASYNC251  # the clock of the loop may be stopped: a timer might never end
            await _next_turn()
        remaining = [task for task in asyncio.all_tasks(loop) if task is not mine and self._is_new(task)]
        self._watched_loop = loop
        self._task_lines = tuple(_task_line(task) for task in remaining)

    def adopt(self, before: "Leftovers") -> None:
        """Count what came since `before` was made as if it had been there: a fixture has opened it."""
        found = _scan()
        self._tasks.update(task for task in found.tasks if task not in before._tasks)
        self._pools.update(pool for pool in found.pools if pool not in before._pools)
        self._threads.update(thread for thread in threading.enumerate() if thread not in before._threads)
        self._handlers.update(handler for handler in _handlers() if handler not in before._handlers)
        self._descriptors += [entry for entry, _ in _new_descriptors(_descriptors(), before._descriptors)]

    def found(self) -> tuple[str, ...]:
        """Return the leftovers, one line each; what may still end by itself gets half a second."""
        began = perf_counter()
        lines = self._lines()
        for _ in range(_LOOKS):
            if not lines or lines == self._task_lines or perf_counter() - began > _LOOKS_S:
                break
            gc.collect()  # garbage in a cycle may hold a descriptor
            sleep(_LOOK_S)
            lines = self._lines()
        return lines

    def _is_new(self, task: Any) -> bool:
        return task not in self._tasks and not task.done() and not _is_runner(task)

    def _lines(self) -> tuple[str, ...]:
        # A task that the watched loop starts after the look is not the body's: the body had ended.
        scan = _scan()
        tasks = [task for task in scan.tasks if self._is_new(task) and task.get_loop() is not self._watched_loop]
        threads = [thread for thread in threading.enumerate() if thread not in self._threads]
        descriptors = _new_descriptors(_descriptors(), self._descriptors)
        if threads or descriptors:
            excused = _Excused(self._roots(scan), scan.loops, self._module)
            excused_numbers = excused.descriptors | self._other_descriptors()
            threads = [thread for thread in threads if not excused.has_thread(thread)]
            descriptors = [(entry, target) for entry, target in descriptors if entry[0] not in excused_numbers]
        counts = Counter(target for _, target in descriptors)
        return (
            *self._task_lines,
            *map(_task_line, tasks),
            *(f"thread {thread.name!r}" for thread in threads),
            *(f"descriptor {target}" + (f" ({count} times)" if count > 1 else "") for target, count in counts.items()),
        )

    def _roots(self, scan: "_Scan") -> list[Any]:
        # Threads and descriptors of these stay: pools that are older than the body, and those of the whole process.
        return [pool for pool in scan.pools if pool in self._pools or _is_process_wide(pool, self._module)]

    def _other_descriptors(self) -> set[int]:
        numbers = {number for handler in self._handlers for number in _numbers_of_handler(handler)}
        numbers |= _singleton_descriptors()
        for name in set(sys.modules) - self._modules:
            if name != self._module:
                numbers |= _descriptors_of_module(sys.modules.get(name))
        return numbers


class _Known:
    """Objects by identity, without keeping them alive, and without calling their `__hash__` and `__eq__`."""

    def __init__(self, objects: Iterable[Any]) -> None:
        self._references: dict[int, weakref.ref[Any]] = {}
        self.update(objects)

    def update(self, objects: Iterable[Any]) -> None:
        """Add objects."""
        self._references.update((id(one), weakref.ref(one)) for one in objects)

    def __contains__(self, one: object) -> bool:
        reference = self._references.get(id(one))
        return reference is not None and reference() is one

    def __iter__(self) -> Iterator[Any]:
        return (one for reference in list(self._references.values()) if (one := reference()) is not None)


class _Scan:
    """The unfinished tasks, pools and event loops of one pass over the heap."""

    def __init__(self) -> None:
        self.tasks: list[Any] = []
        self.pools: list[Any] = []
        self.loops: list[Any] = []


def _scan() -> _Scan:
    found = _Scan()
    task_types, loop_types, pool_types = _loaded_types()
    if not (task_types or pool_types):
        return found
    # No public function lists the tasks of a loop that is not running, or the pools.
    for one in gc.get_objects():
        kind: type = type(one)  # pyright: ignore[reportUnknownVariableType]  # of any object
        if issubclass(kind, task_types):
            if not one.done():
                found.tasks.append(one)
        elif issubclass(kind, pool_types):
            found.pools.append(one)
        elif issubclass(kind, loop_types):
            found.loops.append(one)
    return found


def _loaded_types() -> tuple[tuple[type, ...], tuple[type, ...], tuple[type, ...]]:
    asyncio = sys.modules.get("asyncio")
    tasks = () if asyncio is None else (asyncio.Task, asyncio.tasks._PyTask)
    loops = () if asyncio is None else (asyncio.AbstractEventLoop,)
    names = (
        ("concurrent.futures._base", "Executor"),
        ("multiprocessing.pool", "Pool"),
        ("multiprocessing.queues", "Queue"),
    )
    pools = tuple(
        getattr(module, name) for place, name in names if (module := sys.modules.get(place)) and hasattr(module, name)
    )
    return tasks, loops, pools


class _Excused:
    """Threads and descriptors that belong to pools other than the body's.

    Args:
        pools: pools that are older than the body, or of the whole process.
        loops: the event loops.
        module: the name of the test's module.
    """

    def __init__(self, pools: Iterable[Any], loops: Iterable[Any], module: str) -> None:
        self._pools = list(pools)
        self._pools += [pool for loop in loops if (pool := _default_executor(loop)) is not None]
        self._module = module
        self._held: set[int] = set()
        self.descriptors: set[int] = set()
        for pool in self._pools:
            for one in _reachable(pool):
                self.descriptors |= _numbers_of(one)
                if isinstance(one, threading.Thread):
                    self._held.add(id(one))

    def has_thread(self, thread: threading.Thread) -> bool:
        """Return whether the thread is not the body's: an idle worker, a thread of a library, or no thread any more."""
        if type(thread).__name__ == "_DummyThread":
            return thread.ident not in running_threads()  # one is listed for ever up to Python 3.12
        fields = vars(thread)
        target = fields.get("_target")
        if target is not None and target is _worker_function():
            arguments = fields.get("_args") or (bool,)  # without them the worker has just ended
            executor = arguments[0]()
            return _is_idle(thread) and any(executor is pool for pool in self._pools)
        if type(thread).__module__.startswith("anyio."):
            return thread in fields.get("idle_workers", ())
        owner = target.__self__ if type(target) is types.MethodType else None
        if type(owner).__module__ == "trio._core._thread_cache":
            return getattr(owner, "_job", None) is None
        listener = getattr(sys.modules.get("logging.handlers"), "QueueListener", None)
        if listener is not None and issubclass(type(owner), listener) and _is_installed(owner):
            return True
        manager = fields.get("executor_reference")  # of the thread that manages a process pool
        if callable(manager) and any(manager() is pool for pool in self._pools):
            return True
        return id(thread) in self._held or _is_process_wide(thread, self._module, libraries_only=True)


def _worker_function() -> Any:
    module = sys.modules.get("concurrent.futures.thread")
    return getattr(module, "_worker", None)


def _is_idle(thread: threading.Thread) -> bool:
    # The queue is implemented in C: while a worker waits for work, its own function is the innermost frame.
    frame = frame_of_thread(thread.ident or 0)
    return frame is not None and frame.f_code is _worker_function().__code__


def _default_executor(loop: Any) -> Any:
    if loop.is_closed():
        return None
    base = getattr(sys.modules.get("concurrent.futures._base"), "Executor", None)
    if base is None:
        return None
    # uvloop keeps its executor in C, where only the garbage collector sees it.
    held: list[Any] = gc.get_referents(loop)
    held += gc.get_referents(*(one for one in held if type(one) is dict))
    return next((one for one in held if issubclass(type(one), base)), None)


def _is_installed(listener: Any) -> bool:
    # A logging.handlers.QueueListener whose handler is in use belongs to the logging of the process.
    return any(getattr(handler, "queue", None) is listener.queue for handler in _installed_handlers())


def _is_process_wide(thing: object, module: str, *, libraries_only: bool = False) -> bool:
    # A global of a module, or an attribute of a class there: made once, on first use.
    for name, one in list(sys.modules.items()):
        if name in (module, "__main__") or (libraries_only and not _is_library(one)):
            continue
        for value in list(getattr(one, "__dict__", {}).values()):
            if value is thing:
                return True
            if type(value) is type and any(held is thing for held in list(vars(value).values())):
                return True
    return False


def _is_library(module: Any) -> bool:
    parts = str(getattr(module, "__file__", None) or "").replace("\\", "/").split("/")
    return (
        "site-packages" in parts
        or "dist-packages" in parts
        or f"python{sys.version_info[0]}.{sys.version_info[1]}" in parts
    )


def _reachable(root: Any) -> Iterator[Any]:
    seen = {id(root)}
    waiting = [root]
    while waiting and len(seen) < _MAX_REACHED:
        one = waiting.pop()
        yield one
        for below in gc.get_referents(one):
            if id(below) not in seen and not isinstance(below, _OPAQUE):
                seen.add(id(below))
                waiting.append(below)


def _descriptors() -> list[Descriptor]:
    if sys.platform != "linux":
        return []
    found: list[Descriptor] = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
            status = os.fstat(int(name))
        except OSError:
            continue  # the descriptor of the listing itself
        found.append((int(name), (status.st_dev, status.st_ino, stat.S_IFMT(status.st_mode)), target))
    return found


def _new_descriptors(now: Iterable[Descriptor], before: Iterable[Descriptor]) -> list[tuple[Descriptor, str]]:
    # By file first: a file that was renamed or deleted meanwhile has another target. Then by target: a log that was
    # rotated is another file.
    new: list[Descriptor] = []
    known = {entry[0]: entry for entry in before}
    for entry in now:
        if (same := known.get(entry[0])) is not None and same[1] == entry[1]:
            del known[entry[0]]
        else:
            new.append(entry)
    for place in (1, 2):
        counts = Counter(entry[place] for entry in known.values())
        remaining: list[Descriptor] = []
        for entry in new:
            if counts[entry[place]]:
                counts[entry[place]] -= 1
                number = next(number for number, one in known.items() if one[place] == entry[place])
                del known[number]
            else:
                remaining.append(entry)
        new = remaining
    return [(entry, entry[2]) for entry in new if entry[2] not in _RANDOM_DEVICES]


def _numbers_of(one: Any) -> set[int]:
    # Only types whose attributes are known: asking a foreign object for `fileno` would run its code.
    kind: type = type(one)  # pyright: ignore[reportUnknownVariableType]  # of any object
    try:
        if kind.__module__ == "multiprocessing.connection":
            return {one._handle} if one._handle is not None else set()
        if kind.__module__ in ("multiprocessing.popen_fork", "multiprocessing.popen_spawn_posix",
                               "multiprocessing.popen_forkserver"):  # fmt: skip
            return {number for number in (one.sentinel, *one.finalizer._args) if isinstance(number, int)}
        if kind.__module__ in ("_io", "socket", "ssl"):
            return {one.fileno()}
    except (AttributeError, IndexError, OSError, TypeError, ValueError):
        pass  # closed meanwhile, or not started
    return set()


def _numbers_of_handler(handler: logging.Handler) -> Iterator[int]:
    fields = vars(handler)
    for name in ("stream", "sock", "socket"):
        yield from _numbers_of(fields.get(name))


def _handlers() -> list[logging.Handler]:
    return [handler for reference in vars(logging)["_handlerList"] if (handler := reference()) is not None]


def _installed_handlers() -> Iterator[logging.Handler]:
    yield from logging.root.handlers
    for logger in list(logging.root.manager.loggerDict.values()):
        yield from getattr(logger, "handlers", ())


def _singleton_descriptors() -> set[int]:
    numbers: set[int] = set()
    for name, module in list(sys.modules.items()):
        # multiprocessing has a tracker and a fork server, one each for the process, and so has joblib.
        if name.endswith("resource_tracker"):
            numbers.add(getattr(getattr(module, "_resource_tracker", None), "_fd", None) or -1)
        elif name.endswith("forkserver"):
            numbers.add(getattr(getattr(module, "_forkserver", None), "_forkserver_alive_fd", None) or -1)
    return numbers


def _descriptors_of_module(module: Any) -> set[int]:
    # An import happens once, in the first test that needs it: what the module opened is the module's.
    numbers: set[int] = set()
    for value in list(getattr(module, "__dict__", {}).values()):
        numbers |= _numbers_of(value)
        if type(value) is type:
            numbers |= {number for held in list(vars(value).values()) for number in _numbers_of(held)}
    return numbers


@types.coroutine
def _next_turn() -> Generator[None, None, None]:
    # As `asyncio.sleep(0)`, which a test may have replaced.
    yield


def _running_loop() -> Any:
    asyncio = sys.modules.get("asyncio")
    return None if asyncio is None else asyncio._get_running_loop()


def _is_runner(task: Any) -> bool:
    # The runner of coroutine tests in anyio keeps its own task between two tests.
    frame = getattr(task.get_coro(), "cr_frame", None)
    if frame is None or not str(frame.f_globals.get("__name__", "")).startswith("anyio."):
        return False
    return str(frame.f_code.co_qualname).startswith("TestRunner.")


def _task_line(task: Any) -> str:
    return f"task {task.get_name()!r}: {_where(task)}{_origin(task)}"


def _where(task: Any) -> str:
    frames = task.get_stack(limit=1)
    if frames:
        return f"it waits in {frames[0].f_code.co_qualname}, line {frames[0].f_lineno}"
    coroutine = task.get_coro()
    if type(coroutine) is types.CoroutineType:
        code = coroutine.cr_code
        return f"it has not started {code.co_qualname}, line {code.co_firstlineno}"
    for one in gc.get_referents(coroutine):  # `aclose()` refers to its generator
        if type(one) is types.AsyncGeneratorType:
            return f"it closes the generator {one.ag_code.co_qualname}, line {one.ag_code.co_firstlineno}"
    return f"it runs {type(coroutine).__qualname__}"


def _origin(task: Any) -> str:
    frames = getattr(task.get_coro(), "cr_origin", None) or ()
    asyncio_folder = os.path.dirname(sys.modules["asyncio"].__file__ or "")
    for path, line, name in frames:
        if os.path.dirname(path) != asyncio_folder:
            return f"; created in {name}, {os.path.basename(path)}:{line}"
    return ""

"""Ray: tasks that are counted for the memory that earlier ones took (extra `ray`).

Ray schedules, and counts what a task says it needs (`memory=`); it neither measures nor learns that. Here each call is
measured on its worker, its peak comes back beside its result, and the next calls are counted for what the last ones
took. So there is no actor and no thread, and each program that submits tasks learns by itself.
"""

import functools
import inspect
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, ParamSpec, TypeVar

from memtools._text import printable
from memtools.cluster._needs import Needs, learn
from memtools.errors import ConfigError, MissingExtraError
from memtools.scopes import memory_scope
from memtools.units import format_size, parse_size

try:
    import ray as _untyped_ray
except ImportError as _missing:
    raise MissingExtraError("ray", "ray") from _missing

__all__ = ["MeasuredTask", "remote"]

P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger("memtools.cluster")
_ray: Final[Any] = _untyped_ray  # Any: most of its functions have no types

_KEPT_RUNS: Final = 100
_MAX_NAME: Final = 200
_REFUSED: Final = ("memory", "num_returns")  # options of Ray that are set here


class MeasuredTask(Generic[P, R]):
    """A function that runs on workers of Ray, as `ray.remote` makes it, and knows what it needs; made by `remote`.

    Threads: any. Sent to a worker, as for tasks that submit tasks, it begins to learn anew there.
    """

    def __init__(self, function: Callable[P, R], needs: int | str, options: dict[str, Any]) -> None:
        self._function = function
        self._given = needs
        self._options = options
        self._given_bytes = None if needs == "auto" else _parse_needs(needs)
        self._name = printable(f"{function.__module__}.{function.__qualname__}", _MAX_NAME)
        make: Callable[[Callable[..., Any]], Any] = _ray.remote(**options) if options else _ray.remote
        self._task = make(_measured(function, self._name))
        self._peaks: deque[tuple[int, bool]] = deque(maxlen=_KEPT_RUNS)
        self._counted_bytes = 0

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Any:  # Any: an ObjectRef, whose type Ray does not tell
        """Submit a call; return Ray's own reference to its result.

        Ray starts it on a node whose running tasks leave room for what it is counted for.

        Raises:
            ConfigError: for a size that no node of the cluster has.
        """
        result, peak = self._task.options(memory=self._size_bytes(), num_returns=2).remote(*args, **kwargs)
        peak.future().add_done_callback(self._note)
        return result

    def needs(self) -> Needs:
        """Return what the next call is counted for.

        It is the 95th percentile of the peaks of the last hundred calls that ended without an exception, and a quarter
        more; at most what the largest node has, where it then runs alone. Before the fifth such call it is the smallest
        share of a processor: the memory of a node over its processors.

        A peak is that of a `memory_scope` around the call (docs/ledger.md): what the function allocates, without its
        arguments, and without what C libraries allocate unseen. Where `exact` is False, better give a size.
        """
        nodes = [node["Resources"] for node in _ray.nodes() if node["Alive"] and node["Resources"].get("memory")]
        largest_bytes = int(max((node["memory"] for node in nodes), default=1))
        share_bytes = int(min((node["memory"] / max(node.get("CPU", 1), 1) for node in nodes), default=1))
        found = learn(self._name, tuple(self._peaks), max(share_bytes, 1))
        if found.value_bytes <= largest_bytes:
            return found
        return Needs(found.name, largest_bytes, found.runs, found.peak_bytes, found.exact)

    def __reduce__(self) -> tuple[Any, ...]:
        return MeasuredTask, (self._function, self._given, self._options)

    def __repr__(self) -> str:
        return f"<MeasuredTask {self._name}>"

    def _size_bytes(self) -> int:
        if self._given_bytes is not None:
            largest = max((node["Resources"].get("memory", 0) for node in _ray.nodes() if node["Alive"]), default=0)
            if self._given_bytes > largest:
                accepted = f"at most {format_size(int(largest))}, which is the most that a node has"
                raise ConfigError("needs", self._given, accepted)
            return self._given_bytes
        found = self.needs()
        if found.value_bytes != self._counted_bytes:
            self._counted_bytes = found.value_bytes
            _log.info("needs='auto' takes for %s", found)
        return found.value_bytes

    def _note(self, ended: Any) -> None:
        # Called in a thread of Ray; a call that has failed has no peak.
        if not ended.cancelled() and ended.exception() is None:
            self._peaks.append(ended.result())


def remote(function: Callable[P, R], /, *, needs: int | str = "auto", **options: Any) -> MeasuredTask[P, R]:
    """Make a function a task of Ray that is counted for the memory it needs.

    ```python
    import ray
    from memtools.cluster.ray import remote

    def build(rows: int) -> int:
        return len(list(range(rows)))

    def main() -> None:
        ray.init()
        task = remote(build)  # or remote(build, needs="500 MiB")
        print(ray.get([task.remote(400_000) for _ in range(20)]))
        print(task.needs())
    ```

    Ray starts a task where what the running ones are counted for leaves room for it. It is a count and no limit: Ray
    does not stop a task that takes more, and tasks without `memory=` are counted for nothing. The workers need memtools
    as well.

    Args:
        function: a function; no coroutine function and no generator.
        needs: how much a call may take, a size, or `"auto"` to learn it from the calls: see `MeasuredTask.needs`.
        options: those of `ray.remote`, but `memory` and `num_returns`.

    Raises:
        ConfigError: for a function, a size or an option that is refused.
    """
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if not inspect.isfunction(function) or any(is_kind(function) for is_kind in kinds):
        raise ConfigError("function", function, "a function; no coroutine function and no generator")
    for name in _REFUSED:
        if name in options:
            raise ConfigError(name, options[name], "needs= for the memory, and one result")
    return MeasuredTask(function, needs, options)


def _parse_needs(needs: int | str) -> int:
    size_bytes = parse_size(needs, name="needs")
    if size_bytes <= 0:
        raise ConfigError("needs", needs, 'a size above zero, or "auto"')
    return size_bytes


def _measured(function: Callable[P, R], name: str) -> Callable[P, tuple[R, tuple[int, bool]]]:
    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> tuple[R, tuple[int, bool]]:
        with memory_scope(name) as scope:
            result = function(*args, **kwargs)
        return result, (scope.usage.peak_bytes, scope.usage.exact)

    return call

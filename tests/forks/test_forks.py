"""Functions that run in a forked child."""

import gc
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator

import pytest

from memtools import _forks
from memtools._forks import register_after_fork, register_object_after_fork

if sys.platform == "win32":
    pytest.skip("there is no fork on Windows", allow_module_level=True)


class Renewable:
    """An object that counts how often it was renewed; unhashable, and equal to every other one."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.renewed = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Renewable)

    def renew(self) -> None:
        self.renewed += 1


@pytest.fixture(autouse=True)
def own_functions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the test its own list of functions: registrations of functions never end."""
    monkeypatch.setattr(_forks, "_functions", [])
    yield
    gc.collect()


def in_child(question: Callable[[], str]) -> str:
    """Fork, ask the child, and return its answer."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # some tests fork while threads run
        child = os.fork()
    if child == 0:
        try:
            os.write(write_end, question().encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    return answer


def test_functions_run_in_the_child_in_order_of_registration() -> None:
    calls: list[str] = []
    register_after_fork(lambda: calls.append("first"))
    register_after_fork(lambda: calls.append("second"))

    assert in_child(lambda: " ".join(calls)) == "first second"
    assert calls == []


def test_object_is_renewed_in_the_child_only() -> None:
    renewable = Renewable()
    register_object_after_fork(renewable, Renewable.renew)

    assert in_child(lambda: str(renewable.renewed)) == "1"
    assert renewable.renewed == 0


def test_equal_unhashable_objects_are_renewed_separately() -> None:
    renewables = [Renewable(), Renewable()]
    for renewable in renewables:
        register_object_after_fork(renewable, Renewable.renew)

    assert in_child(lambda: str([renewable.renewed for renewable in renewables])) == "[1, 1]"


def test_registration_does_not_keep_an_object_alive() -> None:
    before = len(_forks._registrations)
    renewable = Renewable()
    reference = weakref.ref(renewable)
    register_object_after_fork(renewable, Renewable.renew)
    assert len(_forks._registrations) == before + 1

    del renewable

    assert reference() is None
    assert len(_forks._registrations) == before
    assert in_child(lambda: "alive") == "alive"


def test_function_that_fails_does_not_stop_the_remaining_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    unraisable: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: unraisable.append(str(report.exc_value)))
    renewable = Renewable()

    def fail() -> None:
        raise ValueError("renewal failed")

    def fail_too() -> None:
        raise LookupError("second failure")

    for function in (fail, lambda: calls.append("after"), fail_too, lambda: calls.append("last")):
        register_after_fork(function)
    register_object_after_fork(renewable, Renewable.renew)

    answer = in_child(lambda: f"{' '.join(calls)}, {renewable.renewed}, {unraisable}")

    assert answer == "after last, 1, ['renewal failed']"


def test_lock_held_by_another_thread_is_renewed_in_the_child() -> None:
    class Guarded:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def renew(self) -> None:
            self.lock = threading.Lock()

    guarded = Guarded()
    register_object_after_fork(guarded, Guarded.renew)
    is_held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with guarded.lock:
            is_held.set()
            assert may_end.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert is_held.wait(10)
    try:
        assert in_child(lambda: str(guarded.lock.acquire(timeout=5))) == "True"
    finally:
        may_end.set()
        holder.join()


def test_objects_registered_by_many_threads_are_all_renewed() -> None:
    start = threading.Barrier(4)
    renewables: list[Renewable] = []

    def register() -> None:
        start.wait(10)
        for _ in range(100):
            renewable = Renewable()
            register_object_after_fork(renewable, Renewable.renew)
            renewables.append(renewable)
            register_object_after_fork(Renewable(), Renewable.renew)  # dies at once

    threads = [threading.Thread(target=register) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert in_child(lambda: str(sum(renewable.renewed for renewable in renewables))) == "400"


def test_grandchild_renews_again() -> None:
    renewable = Renewable()
    register_object_after_fork(renewable, Renewable.renew)

    assert in_child(lambda: in_child(lambda: str(renewable.renewed))) == "2"

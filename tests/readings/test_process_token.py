"""The birthmark: true where it was made, false in a forked child, by either of its two ways."""

import ctypes
import sys
from collections.abc import Callable

import pytest

from memtools.readings import _process
from memtools.readings._process import process_token


def _raw_fork() -> int:
    child: int = ctypes.PyDLL(None).fork()
    return child


@pytest.fixture(params=["page", "pid"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "page" and sys.platform != "linux":
        pytest.skip("only Linux wipes a page at a fork")
    if request.param == "pid":
        monkeypatch.setattr(_process, "_MADV_WIPEONFORK", 9999)  # refused, as by a kernel before 4.14
    return str(request.param)


def test_mark_holds_where_it_was_made(way: str) -> None:
    mark = process_token()

    assert mark[0]
    assert isinstance(mark, _process._PidToken) == (way == "pid")


def test_mark_does_not_hold_in_a_child_that_python_knows_of(way: str, in_child: Callable[..., object]) -> None:
    mark = process_token()

    assert in_child(lambda: bool(mark[0])) is False
    assert mark[0]


def test_mark_does_not_hold_in_a_child_that_python_never_heard_of(way: str, in_child: Callable[..., object]) -> None:
    mark = process_token()

    assert in_child(lambda: bool(mark[0]), fork=_raw_fork) is False
    assert mark[0]


def test_child_has_its_own_mark(way: str, in_child: Callable[..., object]) -> None:
    process_token()

    assert in_child(lambda: bool(process_token()[0])) is True

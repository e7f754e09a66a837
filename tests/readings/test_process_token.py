"""The process token: true in the process that made it, false in a forked child."""

import ctypes
import sys
from collections.abc import Callable

import pytest

from memtools.readings import _statm
from memtools.readings._statm import _PidToken, process_token


def _raw_fork() -> int:
    child: int = ctypes.PyDLL(None).fork()
    return child


@pytest.fixture(params=["page", "pid"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "page" and sys.platform != "linux":
        pytest.skip("only Linux wipes a page at a fork")
    if request.param == "pid":
        monkeypatch.setattr(_statm, "_MADV_WIPEONFORK", 9999)  # a kernel before 4.14 refuses it, too
    return str(request.param)


def test_token_is_true_in_the_process_that_made_it(kind: str) -> None:
    token = process_token()

    assert token[0]
    assert isinstance(token, _PidToken) == (kind == "pid")


def test_token_is_false_in_a_child_of_os_fork(kind: str, in_child: Callable[..., object]) -> None:
    token = process_token()

    assert in_child(lambda: bool(token[0])) is False
    assert token[0]


def test_token_is_false_in_a_child_forked_by_c_code(kind: str, in_child: Callable[..., object]) -> None:
    token = process_token()

    assert in_child(lambda: bool(token[0]), fork=_raw_fork) is False
    assert token[0]


def test_child_can_make_its_own_token(kind: str, in_child: Callable[..., object]) -> None:
    process_token()

    assert in_child(lambda: bool(process_token()[0])) is True

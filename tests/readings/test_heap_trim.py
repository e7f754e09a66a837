"""Handing free pages of the heap back: by psutil, by glibc, or not at all."""

import ctypes
import sys

import psutil
import pytest

from memtools.readings import _counters, resident_bytes, trim_heap


@pytest.fixture(autouse=True)
def way_found_anew():
    _counters._find_trim.cache_clear()
    yield
    _counters._find_trim.cache_clear()


def test_psutil_is_asked_where_it_can(monkeypatch):
    asked = []
    monkeypatch.setattr(psutil, "heap_trim", lambda: asked.append(1), raising=False)

    assert trim_heap()
    assert asked == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is glibc's")
def test_glibc_is_asked_where_psutil_cannot(monkeypatch):
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this C library is not glibc")
    monkeypatch.delattr(psutil, "heap_trim", raising=False)
    blocks = [bytearray(40_000) for _ in range(3_000)]
    spacers = [bytearray(600) for _ in blocks]
    del blocks

    assert trim_heap()
    assert resident_bytes() > 0
    assert len(spacers) == 3_000


def test_without_either_nothing_is_done(monkeypatch):
    monkeypatch.delattr(psutil, "heap_trim", raising=False)
    monkeypatch.setattr(_counters, "_glibc_malloc_trim", lambda: None)

    assert not trim_heap()


def test_a_c_library_without_malloc_trim_has_no_way(monkeypatch):
    class Musl:
        def __init__(self, name):
            pass

    monkeypatch.setattr(ctypes, "CDLL", Musl)

    assert _counters._glibc_malloc_trim() is None

"""Trimming the heap with psutil, with glibc, or not at all."""

import ctypes
import sys

import psutil
import pytest

from memtools.readings import _counters, resident_bytes, trim_heap


@pytest.fixture(autouse=True)
def uncached_trim():
    _counters._find_trim.cache_clear()
    yield
    _counters._find_trim.cache_clear()


def test_trim_uses_psutil_if_it_has_heap_trim(monkeypatch):
    calls = []
    monkeypatch.setattr(psutil, "heap_trim", lambda: calls.append(1), raising=False)

    assert trim_heap()
    assert calls == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is glibc's")
def test_trim_uses_glibc_if_psutil_has_no_heap_trim(monkeypatch):
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this C library is not glibc")
    monkeypatch.delattr(psutil, "heap_trim", raising=False)
    blocks = [bytearray(40_000) for _ in range(3_000)]
    spacers = [bytearray(600) for _ in blocks]
    del blocks

    assert trim_heap()
    assert resident_bytes() > 0
    assert len(spacers) == 3_000


def test_trim_without_psutil_and_glibc_returns_false(monkeypatch):
    monkeypatch.delattr(psutil, "heap_trim", raising=False)
    monkeypatch.setattr(_counters, "_glibc_malloc_trim", lambda: None)

    assert not trim_heap()


def test_c_library_without_malloc_trim_has_no_trim(monkeypatch):
    class Musl:
        def __init__(self, name):
            pass

    monkeypatch.setattr(ctypes, "CDLL", Musl)

    assert _counters._glibc_malloc_trim() is None

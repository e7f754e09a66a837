"""CPython's own tests of `functools.lru_cache`, run on `bounded_cache`."""

import functools
import types
import unittest
from typing import Any

import pytest

from memtools import bounded_cache

pytest.importorskip("test.test_functools", reason="this Python comes without its own test suite")

from test import test_functools

# Tests that cannot pass, with the reason.
EXCLUDED = {
    "test_common_signatures": "the signatures of `cache_info` and `cache_clear` name what they return",
    "test_lru_checks_arg_is_callable": "what cannot be decorated is a ConfigError, which is a ValueError (Python 3.15)",
    "test_lru_cache_parameters": "there are `max_bytes` and `ttl` besides",
    "test_lru_reentrancy_with_len": "puts a cached function in the place of `len`, which the cache itself calls",
    "test_lru_with_maxsize_negative": "a negative maximum is an error, not 0",
}


def lru_cache(maxsize: Any = 128, typed: bool = False) -> Any:
    """Take the arguments of `functools.lru_cache`; what is unbounded there is bounded by bytes."""
    if maxsize is None:
        return bounded_cache(None, typed, max_bytes="1 GiB")
    return bounded_cache(maxsize, typed)


class _Functools(types.ModuleType):
    """The module `functools` with another `lru_cache`."""

    lru_cache = staticmethod(lru_cache)

    def __getattr__(self, name: str) -> Any:
        return getattr(functools, name)


ours = _Functools("functools")


@lru_cache()
def cached_function(x: int, y: int) -> int:
    return 3 * x + y


class _TestLRU(test_functools.TestLRU):  # type: ignore[misc]  # typeshed knows no `test`
    module = ours
    cached_func = (cached_function,)

    @lru_cache()
    def cached_meth(self, x: int, y: int) -> int:
        return 3 * x + y

    @staticmethod
    @lru_cache()
    def cached_staticmeth(x: int, y: int) -> int:
        return 3 * x + y


class TestBoundedCache(_TestLRU, unittest.TestCase):
    # A name that is None is no test.
    locals().update(dict.fromkeys(EXCLUDED))


def test_suite_is_not_empty() -> None:
    assert unittest.defaultTestLoader.loadTestsFromTestCase(TestBoundedCache).countTestCases() > 20

"""CPython's own tests of mappings and of `weakref.WeakValueDictionary`, run on `WeakCache`.

Two configurations: `WeakCache()` with a strong tier, as a plain mapping of any values; `WeakCache(strong=0)`, a pure
weak cache, in place of `WeakValueDictionary`. Excluded tests are named here with the reason.
"""

import types
import weakref
from unittest import mock

import pytest

from memtools.structures import WeakCache

try:
    from test import mapping_tests, test_weakref
except ImportError as error:  # some distributions ship the interpreter without its tests
    pytest.skip(f"this interpreter comes without CPython's own tests: {error}", allow_module_level=True)

EXCLUDED = {
    "test_make_weak_valued_dict_repr": "asks for the text '<WeakValueDictionary at'; WeakCache shows its contents",
    "test_remove_closure": "looks at `_remove`, a callback in Python, which WeakCache does not have",
}
# Tests of the same class about WeakKeyDictionary, which WeakCache does not replace.
ABOUT_KEYS = {name for name in dir(test_weakref.MappingTestCase) if name.startswith("test_") and "weak_key" in name}


class PureCache(WeakCache):
    """`WeakCache(strong=0)` behind the constructor of WeakValueDictionary, and its extras that only tests use.

    These tests call `next(d.keys())`, as WeakValueDictionary returns generators there. WeakCache returns views, so the
    methods here return iterators over them.
    """

    def __init__(self, other=(), /, **entries):
        super().__init__(strong=0)
        self.update(other, **entries)

    def keys(self):
        return iter(super().keys())

    def values(self):
        return iter(super().values())

    def items(self):
        return iter(super().items())

    def valuerefs(self):
        return self._snapshot()

    def itervaluerefs(self):
        return iter(self._snapshot())

    @property
    def data(self):
        return self._index


class TestAnyMapping(mapping_tests.BasicTestMappingProtocol):
    """The mapping protocol with values of any kind, held strongly."""

    type2test = WeakCache


class TestPureMapping(mapping_tests.BasicTestMappingProtocol):
    """The mapping protocol with values that are only held weakly, as CPython runs it for WeakValueDictionary."""

    type2test = PureCache

    def _reference(self):
        # The test case keeps the values alive.
        return {"key1": test_weakref.Object(1), "key2": test_weakref.Object(2), "key3": test_weakref.Object(3)}

    # Feeds keys as values, which are texts: refused at the first one, before the error that the test waits for. It
    # passes in `TestAnyMapping`.
    test_update = None


class _ValueHalf(test_weakref.MappingTestCase):
    __test__ = False

    def setUp(self):
        super().setUp()
        replaced = types.SimpleNamespace(**{**vars(weakref), "WeakValueDictionary": PureCache})
        patch = mock.patch.object(test_weakref, "weakref", replaced)
        patch.start()
        self.addCleanup(patch.stop)


# A name that is None is no test.
TestValueHalf = type("TestValueHalf", (_ValueHalf,), {"__test__": True, **dict.fromkeys(ABOUT_KEYS | set(EXCLUDED))})


def test_every_excluded_test_exists():
    names = set(dir(test_weakref.MappingTestCase))

    assert set(EXCLUDED) <= names


def test_value_tests_run_on_weak_cache():
    names = {name for name in dir(TestValueHalf) if name.startswith("test_") and getattr(TestValueHalf, name)}

    assert {"test_weak_values", "test_weak_valued_len_cycles", "test_threaded_weak_valued_consistency"} <= names
    assert len(names) >= 18


def test_patched_weak_value_dictionary_is_the_cache():
    case = TestValueHalf("test_weak_values")
    case.setUp()

    made, _ = case.make_weak_valued_dict()
    case.doCleanups()

    assert isinstance(made, PureCache)

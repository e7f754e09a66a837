"""CPython's own suites for dictionaries and mappings, run with `BoundedDict` in place of `dict`."""

import ast
import unittest
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from memtools.structures import BoundedDict

pytest.importorskip("test.test_dict", reason="this Python comes without its own test suite")

from test import mapping_tests, test_dict

LARGE = 10_000_000
_ONE_TABLE = "counts the calls of `__hash__` and `__eq__`; size, expiry and order are kept in tables of their own"
# Tests that cannot pass, with the reason.
EXCLUDED = {
    "test_track_dynamic": "`dict` itself leaves some out of garbage collection, but no instance of a subclass",
    "test_track_literals": "as test_track_dynamic",
}
EXCLUDED_LEAST_RECENT = {
    **EXCLUDED,
    "test_setdefault_atomic": _ONE_TABLE,
    "test_setitem_atomic_at_resize": _ONE_TABLE,
    "test_merge_and_mutate": "`update` reads a portion of the other mapping before it changes anything",
}


class Bounded(BoundedDict[Any, Any]):
    """Bounded by entries, with the arguments of `dict`."""

    def __init__(self, contents: Mapping[Any, Any] | Iterable[Any] = (), /, **entries: Any) -> None:
        super().__init__((), LARGE)
        self.update(contents, **entries)


class LeastRecent(BoundedDict[Any, Any]):
    """With the order of use, bounded by bytes, and with entries that expire; takes what `dict` takes."""

    def __init__(self, contents: Mapping[Any, Any] | Iterable[Any] = (), /, **entries: Any) -> None:
        super().__init__((), LARGE, max_bytes="8 GiB", ttl=86_400, drop="least_recent")
        self.update(contents, **entries)


class TestMappingBounded(mapping_tests.TestHashMappingProtocol):  # type: ignore[misc]  # typeshed knows no `test`
    type2test = Bounded


class TestMappingLeastRecent(mapping_tests.TestHashMappingProtocol):  # type: ignore[misc]
    type2test = LeastRecent

    @unittest.skip("`x.__class__` is a class derived from the named one; the rest of it passes in the suite for dict")
    def test_fromkeys(self) -> None: ...


class _Displays(ast.NodeTransformer):
    """Makes a bounded dict of every `{...}` in a program, so that all of the suite is about it."""

    def _wrap(self, display: Any) -> ast.expr:
        self.generic_visit(display)
        name = ast.Name("dict", ast.Load())
        return ast.copy_location(ast.Call(name, [display], []), display)

    visit_Dict = visit_DictComp = _wrap  # noqa: N815  # as `ast` calls them


def suite_of(bounded: type[Any], excluded: dict[str, str]) -> type[Any]:
    """Return the suite for `dict`, in which the name `dict` and every `{...}` are a bounded dict."""
    path = Path(test_dict.__file__)
    tree = ast.fix_missing_locations(_Displays().visit(ast.parse(path.read_text(encoding="utf-8"))))
    namespace: dict[str, Any] = {"__name__": f"{__name__}.{bounded.__name__}", "dict": bounded}
    exec(compile(tree, str(path), "exec"), namespace)
    names = {"__module__": __name__, **dict.fromkeys(excluded)}  # a name that is None is no test
    return type(f"TestDict{bounded.__name__}", (namespace["DictTest"],), names)


TestDictBounded = suite_of(Bounded, EXCLUDED)
TestDictLeastRecent = suite_of(LeastRecent, EXCLUDED_LEAST_RECENT)


def test_suites_are_not_empty() -> None:
    suites = (TestMappingBounded, TestMappingLeastRecent, TestDictBounded, TestDictLeastRecent)

    counts = [unittest.defaultTestLoader.loadTestsFromTestCase(suite).countTestCases() for suite in suites]

    assert min(counts[:2]) > 20
    assert min(counts[2:]) > 60

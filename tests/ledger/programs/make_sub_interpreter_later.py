"""Load the module that makes sub-interpreters after the first owner was opened."""

import sys

from memtools.ledger import native_reason, statistics
from memtools.scopes import memory_scope

with memory_scope("before", meter="native"):
    pass


def finders():
    return [finder for finder in sys.meta_path if type(finder).__module__.startswith("memtools")]


assert len(finders()) == 1
if sys.argv[1] == "python":
    try:
        import _interpreters as made
    except ImportError:
        import _xxsubinterpreters as made
    assert finders() == []
    made.destroy(made.create())
elif sys.argv[1] == "C, seen by the next owner":
    import _testcapi

    _testcapi.run_in_subinterp("pass")
    assert finders()
    assert not native_reason()
    statistics()
with memory_scope("after", meter="native") as after:
    pass
assert not after.usage.exact
assert "sub-interpreter" in native_reason()
print("checked")

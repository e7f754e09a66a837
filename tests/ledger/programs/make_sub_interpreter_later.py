"""Load the module that makes sub-interpreters after the first owner was opened."""

import sys

from memtools.ledger import native_reason, statistics
from memtools.scopes import memory_scope

with memory_scope("before", meter="native"):
    pass


def finders():
    return [finder for finder in sys.meta_path if type(finder).__name__ == "_SubinterpreterFinder"]


assert len(finders()) == 1
if sys.argv[1] == "python":
    if sys.version_info >= (3, 14):
        from concurrent import interpreters

        assert finders() == []
        interpreters.create().close()
    else:
        try:
            import _interpreters as made
        except ImportError:
            import _xxsubinterpreters as made
        assert finders() == []
        made.destroy(made.create())
elif sys.argv[1] == "pool":
    from concurrent.futures import InterpreterPoolExecutor

    assert finders() == []
    with InterpreterPoolExecutor(1) as pool:
        assert pool.submit(abs, -1).result() == 1
elif sys.argv[1] == "private module":
    import _interpreters

    assert finders()  # every program imports that module
    ident = _interpreters.create()
    assert not native_reason()
    with memory_scope("meanwhile", meter="native") as meanwhile:
        pass
    _interpreters.destroy(ident)
    assert not meanwhile.usage.exact
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

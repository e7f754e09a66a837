"""Choose meters inside of a sub-interpreter, where tracemalloc cannot be imported."""

from concurrent import interpreters

INSIDE = """
from memtools.errors import ConfigError
from memtools.ledger import choose_meter, native_reason
from memtools.scopes import memory_scope

assert "subinterpreters" in native_reason(), native_reason()
assert choose_meter().name == "rss"
for meter in ("tracemalloc", "native"):
    try:
        memory_scope("inside", meter=meter)
    except ConfigError as error:
        assert "'rss'" in str(error), error
        assert f"there is no {meter!r} here" in str(error), error
    else:
        raise AssertionError(f"{meter} was chosen")
with memory_scope("inside") as scope:
    kept = bytearray(1_000_000)
assert scope.usage.meter == "rss"
"""

made = interpreters.create()
made.exec(INSIDE)
made.close()
print("checked")

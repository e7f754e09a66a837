"""Make a sub-interpreter before memtools is imported."""

try:
    import _interpreters as made
except ImportError:
    import _xxsubinterpreters as made
made.destroy(made.create())
from memtools.ledger import choose_meter, native_reason  # noqa: E402  # after the sub-interpreter

assert "sub-interpreter" in native_reason(), native_reason()
print(choose_meter().name)

"""Give a task a context in which the owner of its scope is active, from wherever the task is created.

A context is copied where a task is created: in the block, in another task of the program, in a callback. Whatever else
it holds is kept; only the active owner is ours to set.
"""

from contextvars import Context, copy_context

from memtools.ledger import Owner
from memtools.ledger._current import active


def context_below(owner: Owner, context: Context | None) -> Context | None:
    """Return `context`, or a copy of the present one, with `owner` active in it; None where a plain copy will do.

    A context that is given is used as it is, so that the task's changes are seen in it; once the owner has ended, what
    is opened in it hangs below the owner's parent.
    """
    if context is None:
        if active.get() is owner:
            return None
        context = copy_context()
    if context.get(active) is owner:
        return context
    try:
        context.run(active.set, owner)
    except RuntimeError:
        # Somebody runs in that context right now, and changing who is active there is not ours to do.
        return context
    return context

"""Name the right argument when a caller guesses a wrong one.

A file of its own because several packages use it and it needs nothing else of memtools.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def suggest_arguments(**right_name_of: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that the `TypeError` for a guessed keyword argument names the right one.

    A call that succeeds pays for one more Python call; what the function itself raises passes unchanged.

    ```python
    @suggest_arguments(limit="budget")
    def spend(budget: int) -> int:
        return budget

    try:
        spend(limit=3)
    except TypeError as error:
        print(error)  # spend() got an unexpected keyword argument 'limit'; use 'budget'
    ```

    Args:
        right_name_of: what to use instead of each guess: the name of an argument, or a text that follows "use". A guess
            must not be the name of a keyword argument of the function.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def suggesting(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except TypeError:
                guess = next((name for name in kwargs if name in right_name_of), None)
                if guess is None:
                    raise
                message = _message(function, guess, right_name_of[guess])
            raise TypeError(message)

        return suggesting

    return decorate


def _message(function: Callable[..., Any], guess: str, right: str) -> str:  # Any: functions of every signature
    shown = repr(right) if right.isidentifier() else right
    return f"{function.__qualname__}() got an unexpected keyword argument {guess!r}; use {shown}"

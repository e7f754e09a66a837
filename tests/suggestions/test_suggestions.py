"""Guessed keyword arguments: the `TypeError` names the right argument."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from memtools import BoundedList, WeakCache, bounded_history, memory_budget, profile_memory, task_scope
from memtools._suggestions import suggest_arguments


@suggest_arguments(limit="budget", bound="a plain number")
def spend(budget: int, *, factor: int = 1) -> int:
    """Multiply."""
    if budget < 0:
        raise TypeError("spend() was given an unexpected number")
    return budget * factor


def test_suggestion_keeps_result_name_docs_and_signature() -> None:
    assert spend(2, factor=3) == 6
    assert (spend.__name__, spend.__doc__) == ("spend", "Multiply.")
    assert str(inspect.signature(spend)) == "(budget: int, *, factor: int = 1) -> int"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": 1}, r"^spend\(\) got an unexpected keyword argument 'limit'; use 'budget'$"),
        ({"factor": 1, "bound": 1}, r"^spend\(\) got an unexpected keyword argument 'bound'; use a plain number$"),
        ({"budgets": 1}, r"^spend\(\) got an unexpected keyword argument 'budgets'"),
        ({"budget": -1}, r"^spend\(\) was given an unexpected number$"),
        ({}, r"^spend\(\) missing 1 required positional argument: 'budget'$"),
    ],
)
def test_suggestion_is_made_for_guessed_arguments_only(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message) as caught:
        spend(**arguments)

    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("make", "guess", "right"),
    [
        (memory_budget, "limit", "'budget'"),
        (memory_budget, "max_bytes", "'budget'"),
        (memory_budget, "sample", "'sample_every'"),
        (profile_memory, "sample", "'sample_every'"),
        (bounded_history, "by", "'key'"),
        (bounded_history, "result", "'keep_results'"),
        (bounded_history, "maxlen", "it as the first argument, without a name"),
        (bounded_history, "sample", "sample_every= of profile_memory: bounded_history remembers every call"),
        (WeakCache, "maxsize", "'strong'"),
        (BoundedList, "maxsize", "'maxlen'"),
        (BoundedList, "limit", "maxlen= or max_bytes="),
        (task_scope, "limit", "'max_running'"),
        (task_scope, "max_concurrency", "'max_running'"),
        (task_scope, "max_tasks", "'max_running'"),
    ],
)
def test_guessed_argument_is_answered_with_the_right_one(make: Callable[..., Any], guess: str, right: str) -> None:
    with pytest.raises(TypeError) as caught:
        make(**{guess: 1})

    assert str(caught.value).endswith(f"() got an unexpected keyword argument {guess!r}; use {right}")

"""Errors carry their numbers, say them in words, and travel between processes."""

import copy
import pickle
import sys

import pytest

from memtools.errors import BudgetExceeded, ConfigError, MemtoolsError, MissingExtraError, ScopeClosed

MIB = 2**20
EXAMPLES = [
    ConfigError("maxlen", -1, "a whole number"),
    BudgetExceeded("report", 612 * MIB, 512 * MIB),
    BudgetExceeded("report", 612 * MIB, 512 * MIB, "rss"),
    ScopeClosed("nightly"),
    ScopeClosed("nightly", "it has not begun"),
    MissingExtraError("apprise", "alerts"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=str)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling(error: MemtoolsError, protocol: int) -> None:
    error.add_note("seen in worker 3")

    revived = pickle.loads(pickle.dumps(error, protocol))

    assert type(revived) is type(error)
    assert str(revived) == str(error)
    assert vars(revived) == vars(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=str)
def test_an_error_can_be_copied(error: MemtoolsError) -> None:
    assert str(copy.deepcopy(error)) == str(copy.copy(error)) == str(error)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (ConfigError, ValueError),
        (BudgetExceeded, RuntimeError),
        (ScopeClosed, RuntimeError),
        (MissingExtraError, ImportError),
    ],
)
def test_an_error_is_also_the_builtin_that_a_stranger_would_catch(
    kind: type[MemtoolsError], builtin: type[Exception]
) -> None:
    assert issubclass(kind, MemtoolsError)
    assert issubclass(kind, builtin)


def test_a_budget_error_is_not_the_end_of_a_worker() -> None:
    assert not issubclass(BudgetExceeded, MemoryError)


def test_a_budget_error_says_who_how_much_and_against_what() -> None:
    error = BudgetExceeded("report", 612 * MIB, 512 * MIB)

    assert str(error) == "report used 612.0 MiB, budget 512.0 MiB (peak)"
    assert (error.scope, error.used_bytes, error.budget_bytes, error.measure) == (
        "report",
        641728512,
        536870912,
        "peak",
    )


@pytest.mark.parametrize(
    ("used_bytes", "budget_bytes", "words"),
    [
        (50 * MIB + 104, 50 * MIB, "used 52,428,904 B, budget 52,428,800 B"),
        (2048, 1024, "used 2,048 B, budget 1,024 B"),
        (MIB, MIB - 1, "used 1,048,576 B, budget 1,048,575 B"),
        (2 * MIB, MIB, "used 2.0 MiB, budget 1.0 MiB"),
    ],
)
def test_rounding_never_makes_use_and_budget_look_the_same(used_bytes: int, budget_bytes: int, words: str) -> None:
    assert words in str(BudgetExceeded("report", used_bytes, budget_bytes))


def test_a_config_error_names_the_argument_the_value_and_the_way_out() -> None:
    error = ConfigError("limit", "512Mb", "text such as '512 MiB'")

    assert str(error) == "limit='512Mb' is not accepted: use text such as '512 MiB'"


def test_a_closed_scope_says_why_it_takes_no_work() -> None:
    assert str(ScopeClosed("nightly")) == "nightly takes no work: it is closed"


def test_a_missing_library_is_answered_with_the_command_that_installs_it() -> None:
    error = MissingExtraError("apprise", "alerts")

    assert str(error) == "apprise is not installed: pip install 'memtools[alerts]'"
    assert (error.module, error.extra) == ("apprise", "alerts")


def test_an_endless_value_does_not_make_an_endless_message() -> None:
    assert len(str(ConfigError("keep", "x" * 10**6, "a number"))) < 300


def test_a_value_that_cannot_be_shown_still_gives_a_message() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise OSError("gone")

    assert "<a Broken that cannot be shown>" in str(ConfigError("hook", Broken(), "a callable"))


def test_an_integer_too_long_to_print_still_gives_a_message() -> None:
    digits = sys.get_int_max_str_digits() + 1

    assert "<a int that cannot be shown>" in str(ConfigError("size", -(10**digits), "bytes"))

"""Errors: texts, fields, base classes, pickling."""

import copy
import pickle
import sys

import pytest

from memtools.errors import BudgetExceeded, ConfigError, MemtoolsError, MissingExtraError, ReadingError, ScopeClosed

MIB = 2**20
EXAMPLES = [
    ConfigError("maxlen", -1, "a whole number"),
    BudgetExceeded("report", 612 * MIB, 512 * MIB),
    BudgetExceeded("report", 612 * MIB, 512 * MIB, "rss"),
    ScopeClosed("nightly"),
    ScopeClosed("nightly", "it has not started"),
    MissingExtraError("apprise", "alerts"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=str)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_error_survives_pickling(error: MemtoolsError, protocol: int) -> None:
    error.add_note("seen in worker 3")

    copied = pickle.loads(pickle.dumps(error, protocol))

    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert vars(copied) == vars(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=str)
def test_error_can_be_copied(error: MemtoolsError) -> None:
    assert str(copy.deepcopy(error)) == str(copy.copy(error)) == str(error)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (ConfigError, ValueError),
        (ConfigError, TypeError),
        (ReadingError, OSError),
        (BudgetExceeded, RuntimeError),
        (ScopeClosed, RuntimeError),
        (MissingExtraError, ImportError),
    ],
)
def test_error_derives_from_the_matching_builtin(kind: type[MemtoolsError], builtin: type[Exception]) -> None:
    assert issubclass(kind, MemtoolsError)
    assert issubclass(kind, builtin)


def test_budget_error_is_not_a_memory_error() -> None:
    assert not issubclass(BudgetExceeded, MemoryError)


def test_budget_error_names_scope_usage_and_budget() -> None:
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
def test_usage_and_budget_differ_in_the_text(used_bytes: int, budget_bytes: int, words: str) -> None:
    assert words in str(BudgetExceeded("report", used_bytes, budget_bytes))


def test_config_error_names_argument_value_and_alternative() -> None:
    error = ConfigError("limit", "512Mb", "text such as '512 MiB'")

    assert str(error) == "limit='512Mb' is not accepted: use text such as '512 MiB'"


def test_scope_closed_gives_the_reason() -> None:
    assert str(ScopeClosed("nightly")) == "nightly takes no work: it is closed"


def test_missing_extra_error_has_the_install_command() -> None:
    error = MissingExtraError("apprise", "alerts")

    assert str(error) == "apprise is not installed: pip install 'memtools[alerts]'"
    assert (error.module, error.extra) == ("apprise", "alerts")


def test_message_with_a_long_value_is_short() -> None:
    assert len(str(ConfigError("keep", "x" * 10**6, "a number"))) < 300


def test_message_with_a_broken_repr_names_the_type() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise OSError("gone")

    assert "<a Broken that cannot be shown>" in str(ConfigError("hook", Broken(), "a callable"))


def test_message_with_a_huge_integer_names_the_type() -> None:
    digits = sys.get_int_max_str_digits() + 1

    assert "<a int that cannot be shown>" in str(ConfigError("size", -(10**digits), "bytes"))


def test_config_error_with_a_requirement_says_what_is_required() -> None:
    error = ConfigError("on_exceed", "deny", "requires meter='native' (meter is 'rss')")

    assert str(error) == "on_exceed='deny' requires meter='native' (meter is 'rss')"

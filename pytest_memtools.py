"""The pytest plugin: markers, fixtures, a summary and a report file.

A module outside the package, which imports nothing from memtools until a test asks for it: every pytest run in an
environment with memtools installed loads this file.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from memtools.testing._plugin import MarkedTest, MarkerOptions, ProbeScope

_MARKERS = {
    "memory_growth": "memory_growth(max_bytes='1 KiB', repeats=5, warmup=2): fail where each run of the test, fixtures "
    "included, leaves more than `max_bytes` behind, or a task, thread or descriptor.",
    "memory_peak": "memory_peak(max_bytes): fail where the body of the test has more than `max_bytes` alive at once.",
    "no_leaked_tasks": "no_leaked_tasks(): fail where the body leaves a task, a thread or a descriptor behind.",
}
_FIXTURES = ("memory_profiler", "memory_probe")
_INI = {
    "memtools_growth_max_bytes": "memory_growth for every test: bytes that a run may leave behind",
    "memtools_repeats": "runs that are counted by memory_growth",
    "memtools_warmup": "runs before anything is counted by memory_growth",
    "memtools_peak_max_bytes": "memory_peak for every test",
    "memtools_meter": "the meter: native, tracemalloc or rss",
}
_marked = pytest.StashKey["MarkedTest"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the settings."""
    group = parser.getgroup("memtools")
    group.addoption("--memtools-report", metavar="FILE", help="write what was measured to FILE, as JSON")
    for name, text in _INI.items():
        parser.addini(name, text)
    parser.addini("memtools_no_leaked_tasks", "no_leaked_tasks for every test", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    for line in _MARKERS.values():
        config.addinivalue_line("markers", line)
    config.pluginmanager.register(_Summary(config), "memtools-summary")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Read the markers, and reject tests whose markers cannot work."""
    defaults = _defaults(config)
    for item in items:
        markers = {name: marker for name in _MARKERS if (marker := item.get_closest_marker(name))}
        fixtures = [name for name in _FIXTURES if name in getattr(item, "fixturenames", ())]
        if not (markers or fixtures or defaults):
            continue
        if not isinstance(item, pytest.Function) or (item.cls is not None and _is_test_case(item.cls)):
            _reject_unsupported(item, markers)
            continue
        item.stash[_marked] = _marked_for(item, markers, defaults)


def _is_test_case(cls: type) -> bool:
    unittest = sys.modules.get("unittest")
    return unittest is not None and issubclass(cls, unittest.TestCase)


def _reject_unsupported(item: pytest.Item, markers: dict[str, pytest.Mark]) -> None:
    # Settings for the whole suite do not apply to such tests, as the docs say.
    if markers:
        raise pytest.UsageError(
            f"{item.nodeid}: {', '.join(markers)} not supported on a unittest.TestCase method, which pytest does not "
            "call itself: write it as a function, or as a method of a plain class"
        )


def _defaults(config: pytest.Config) -> dict[str, Any]:
    found = {name: value for name in _INI if (value := config.getini(name))}
    if config.getini("memtools_no_leaked_tasks"):
        found["memtools_no_leaked_tasks"] = True
    # The other settings only say how, not that something is measured.
    measuring = {"memtools_growth_max_bytes", "memtools_peak_max_bytes", "memtools_no_leaked_tasks"}
    return found if measuring & found.keys() else {}


def _marked_for(item: pytest.Function, markers: dict[str, pytest.Mark], defaults: dict[str, Any]) -> MarkedTest:
    from memtools.errors import ConfigError
    from memtools.testing._plugin import MarkedTest, parse_options

    arguments = {name: (marker.args, marker.kwargs) for name, marker in markers.items()}
    try:
        options: MarkerOptions = parse_options(arguments, defaults, item.config.getini("memtools_meter") or None)
    except (ConfigError, TypeError) as error:
        raise pytest.UsageError(f"{item.nodeid}: {error}") from None
    return MarkedTest(item.nodeid, options)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test with memory_growth repeatedly; pytest runs every other test."""
    marked = item.stash.get(_marked, None)
    if marked is None or not marked.is_repeated:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _run_repeatedly(item, nextitem, marked):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _run_repeatedly(item: pytest.Item, nextitem: pytest.Item | None, marked: MarkedTest) -> list[pytest.TestReport]:
    # The whole protocol, as pytest-rerunfailures does it: a fixture may leak, too.
    from _pytest.runner import runtestprotocol

    reports: list[pytest.TestReport] = []
    for runs in marked.run_counts():
        for _ in range(runs):
            # As if another test of the same module came next: fixtures of modules and of the session stay.
            reports = runtestprotocol(item, log=False, nextitem=cast("pytest.Item", item.parent))
            if not all(report.passed for report in reports):
                marked.abort()
                return _teardown(item, nextitem, reports)
            _clear_report_sections(item)
    _report_growth(marked, reports)
    return _teardown(item, nextitem, reports)


def _clear_report_sections(item: pytest.Item) -> None:
    # Captured output and properties of every run would be kept for the report, and would look like a leak.
    item._report_sections.clear()  # pyright: ignore[reportPrivateUsage]  # as plugins that rerun tests do
    item.user_properties.clear()


def _teardown(
    item: pytest.Item, nextitem: pytest.Item | None, reports: list[pytest.TestReport]
) -> list[pytest.TestReport]:
    try:
        item.session._setupstate.teardown_exact(nextitem)  # pyright: ignore[reportPrivateUsage]  # as above
    except Exception:
        reports[-1].outcome = "failed"
        reports[-1].longrepr = str(pytest.ExceptionInfo.from_current().getrepr())
    return reports


def _report_growth(marked: MarkedTest, reports: list[pytest.TestReport]) -> None:
    failure = marked.growth_failure()
    call = next(report for report in reports if report.when == "call")
    call.user_properties = [*(kept for kept in call.user_properties if kept[0] != "memtools"), *marked.properties()]
    if failure:
        call.outcome = "failed"
        call.longrepr = failure


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Open an account around the body of a test that asks for one."""
    marked = pyfuncitem.stash.get(_marked, None)
    if marked is None:
        return (yield)
    body = pyfuncitem.obj
    if inspect.iscoroutinefunction(body):
        pyfuncitem.obj = _checked_inside_loop(body, marked)
    marked.begin_body()
    try:
        result = yield
    except BaseException:
        marked.end_body(failed=True)
        raise
    finally:
        pyfuncitem.obj = body
    marked.end_body(failed=False)
    if not marked.is_repeated:
        pyfuncitem.user_properties += marked.properties()
    failure = marked.body_failure()
    if failure:
        pytest.fail(failure, pytrace=False)
    return result


def _checked_inside_loop(body: Callable[..., Any], marked: MarkedTest) -> Callable[..., Any]:
    # A plugin that runs coroutines itself (anyio) may end its loop and all tasks with the test: take the snapshot
    # first.
    @functools.wraps(body)
    async def checked(*args: Any, **kwargs: Any) -> Any:
        result = await body(*args, **kwargs)
        marked.snapshot_tasks()
        return result

    return checked


@pytest.fixture
def memory_profiler(request: pytest.FixtureRequest) -> MarkedTest:
    """The account of the test's body: `current_bytes`, `peak_bytes`, `usage`; printed in the summary."""
    return _account_of(request)


@pytest.fixture
def memory_probe(request: pytest.FixtureRequest) -> Callable[[str], ProbeScope]:
    """Make a scope for a part of the test, by name; its figures are printed in the summary.

    `with memory_probe("load") as scope: ...`, or `async with`.
    """
    from memtools.testing._plugin import ProbeScope

    marked = _account_of(request)
    return lambda name: ProbeScope(marked, name)


def _account_of(request: pytest.FixtureRequest) -> MarkedTest:
    return cast("pytest.Item", request.node).stash[_marked]  # pyright: ignore[reportUnknownMemberType]  # untyped there


@pytest.fixture
def assert_collected() -> Iterator[Any]:
    """Expect objects to be garbage when the test has ended: `assert_collected(service)`."""
    from memtools.testing._plugin import CollectedObjects

    collected = CollectedObjects()
    yield collected
    collected.check()


class _Summary:
    """The measurements, for the terminal and the report file; with pytest-xdist, in the controlling process."""

    def __init__(self, config: pytest.Config) -> None:
        self._file: str | None = config.getoption("memtools_report")
        self._results: list[dict[str, Any]] = []
        self._unmeasured = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the measurements of a test."""
        if report.when == "call":
            self._results += [
                {**figures, "outcome": report.outcome}
                for name, figures in report.user_properties
                if name == "memtools" and isinstance(figures, dict)
            ]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:  # Any: pytest does not export its class
        """Print one line for each measured test."""
        if not self._results:
            return
        from memtools.testing._plugin import summary_lines

        terminalreporter.section("memory")
        for line in summary_lines(self._results):
            terminalreporter.write_line(line)

    def pytest_sessionfinish(self) -> None:
        """Write the report file."""
        if self._file is None or _is_xdist_worker():
            return
        Path(self._file).write_text(json.dumps({"tests": self._results}, indent=2) + "\n", encoding="utf-8")


def _is_xdist_worker() -> bool:
    return "PYTEST_XDIST_WORKER" in os.environ

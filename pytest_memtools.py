"""The pytest plugin: markers, fixtures, a summary and a report file.

A module outside the package, which imports nothing from memtools until a test asks for it: every pytest run in an
environment with memtools installed loads this file.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from memtools.testing._plugin import CollectedObjects, MarkedTest, MarkerOptions, ProbeScope

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
_collected = pytest.StashKey["CollectedObjects"]()


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
    config.pluginmanager.register(_RepeatedRuns(), "memtools-repeated-runs")


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
        kind = "a unittest.TestCase method" if isinstance(item, pytest.Function) else f"a {type(item).__name__}"
        raise pytest.UsageError(
            f"{item.nodeid}: {', '.join(markers)} not supported on {kind}, which pytest does not call itself: write it "
            "as a function, or as a method of a plain class"
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
    return MarkedTest(item.nodeid, options, item.module.__name__)


class _Phase:
    """What became of one phase of a run: setup, call or teardown."""

    def __init__(self, report: pytest.TestReport, error: BaseException | None) -> None:
        self.report = report
        self.error = error

    @property
    def is_passed(self) -> bool:
        """Whether the runs may go on; what is expected to fail may do so by its growth."""
        return self.report.passed or (self.error is None and self.report.longreprtext.startswith("[XPASS(strict)]"))


class _QuietHooks:
    """The hooks of pytest, except that the reports of subtests are collected instead of shown."""

    def __init__(self, hooks: Any, reports: list[pytest.TestReport]) -> None:  # Any: of pluggy
        self._hooks = hooks
        self._reports = reports

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hooks, name)

    def pytest_runtest_logreport(self, *, report: pytest.TestReport) -> list[None]:
        """Collect the report."""
        self._reports.append(report)
        return []


class _RepeatedRuns:
    """Run a test with memory_growth repeatedly before the one run that pytest reports.

    The runs happen when pytest, or a plugin that reruns failed tests, says that an attempt begins: so each attempt
    measures anew, and the plugin sees one outcome, a leak as a failure of the body. If one of the runs fails, the
    reported run has the same exceptions in the same phases instead of its own.
    """

    def __init__(self) -> None:
        self._item: pytest.Function | None = None
        self._failed: dict[str, _Phase] = {}
        self._subtests: list[pytest.TestReport] = []

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Note which test begins: the hook for its attempts has only the name."""
        marked = item.stash.get(_marked, None)
        is_repeated = marked is not None and marked.is_repeated and not item.config.getoption("setuponly", False)
        before = self._item
        self._item = item if is_repeated and isinstance(item, pytest.Function) else None
        try:
            return (yield)
        finally:
            self._item = before
            self._forget()

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Run the test until it is clear whether it leaves memory behind."""
        item = self._item
        if item is None or item.nodeid != nodeid:
            return
        self._forget()
        marked = item.stash[_marked]
        counts = marked.run_counts()
        try:
            for runs in counts:
                for _ in range(runs):
                    if not self._run(item):
                        marked.abort()
                        return
        finally:
            counts.close()

    def _forget(self) -> None:
        self._failed = {}
        self._subtests = []

    def _run(self, item: pytest.Function) -> bool:
        # The whole protocol, because a fixture may leak, too; without reports and without a debugger.
        subtests: list[pytest.TestReport] = []
        with _hooks_without_reports(item.session, subtests), warnings.catch_warnings(record=True):
            phases = _run_once(item)
        if all(phase.is_passed for phase in phases.values()) and not any(report.failed for report in subtests):
            # Captured output and properties of every run would be kept for the report, and would look like a leak.
            item._report_sections.clear()  # pyright: ignore[reportPrivateUsage]  # as plugins that rerun tests do
            item.user_properties.clear()
            return True
        self._failed = phases
        self._subtests = subtests
        return False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Fail where the setup of an earlier run has failed."""
        if item is self._item:
            self._raise("setup")

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        """Let the body end as in the earlier run that has failed, without running it again."""
        if pyfuncitem is not self._item or not self._failed:
            return None
        reports, self._subtests = self._subtests, []
        capture = pyfuncitem.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture is not None else contextlib.nullcontext():
            for report in reports:
                pyfuncitem.ihook.pytest_runtest_logreport(report=report)
        self._raise("call")
        return True if reports else None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """Fail where the teardown of an earlier run has failed."""
        result = yield
        if item is self._item:
            self._raise("teardown")
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
        """Drop the finalizers of a fixture that has ended from the wider fixtures that it used.

        pytest keeps one there for each time that it was set up, which would look like a leak of the test.
        """
        if self._item is None:
            return
        for name in fixturedef.argnames:
            used = getattr(request, "_fixture_defs", {}).get(name)
            finalizers = getattr(used, "_finalizers", None)
            if isinstance(finalizers, list) and used.scope != fixturedef.scope:
                finalizers[:] = [one for one in finalizers if _owner(one) is not fixturedef]

    def _raise(self, when: str) -> None:
        __tracebackhide__ = True
        phase = self._failed.pop(when, None)
        if phase is None:
            return
        if phase.error is not None:
            raise phase.error
        if when == "teardown" and phase.report.failed:
            pytest.fail(phase.report.longreprtext, pytrace=False)


@contextlib.contextmanager
def _hooks_without_reports(session: pytest.Session, reports: list[pytest.TestReport]) -> Generator[None, None, None]:
    hooks_of = session.gethookproxy
    session.gethookproxy = lambda fspath: _QuietHooks(hooks_of(fspath), reports)  # type: ignore[method-assign, assignment, return-value]
    try:
        yield
    finally:
        del session.gethookproxy


def _run_once(item: pytest.Function) -> dict[str, _Phase]:
    # As pytest's own `runtestprotocol`, which does not give its exceptions away. What is not public here is used by the
    # plugins that rerun tests, too.
    passed_on: tuple[type[BaseException], ...] = (pytest.exit.Exception,)
    if not item.config.getoption("usepdb", False):
        passed_on += (KeyboardInterrupt,)
    item._initrequest()  # pyright: ignore[reportPrivateUsage]
    phases: dict[str, _Phase] = {}

    def run(when: Any, hook: Any, **arguments: object) -> bool:
        call = pytest.CallInfo.from_call(lambda: hook(item=item, **arguments), when=when, reraise=passed_on)
        report = item.ihook.pytest_runtest_makereport(item=item, call=call)
        phases[when] = _Phase(report, None if call.excinfo is None else call.excinfo.value)
        return bool(report.passed)

    try:
        if run("setup", item.ihook.pytest_runtest_setup):
            run("call", item.ihook.pytest_runtest_call)
        # As if another test of the same module came next: fixtures of modules and of the session stay.
        run("teardown", item.ihook.pytest_runtest_teardown, nextitem=item.parent)
    finally:
        item._request = False  # type: ignore[assignment]  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        item.funcargs = None  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
        if getattr(item, "_instance", None) is not None:  # the next run has an instance of the test class of its own
            del item._instance  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
            item._obj = None  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    return phases


def _owner(finalizer: Any) -> object:
    return getattr(getattr(finalizer, "func", None), "__self__", None)


def _fixture_definitions(item: pytest.Item) -> Iterator[Any]:
    info = getattr(item, "_fixtureinfo", None)
    for definitions in getattr(info, "name2fixturedefs", {}).values():
        yield from definitions


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Let a coroutine test look for leftover tasks inside its loop, which may end with the test."""
    marked = item.stash.get(_marked, None)
    if marked is None or not marked.needs_no_leftovers:
        return (yield)
    with _checked_inside_loop(cast("pytest.Function", item), marked):
        return (yield)


@contextlib.contextmanager
def _checked_inside_loop(item: pytest.Function, marked: MarkedTest) -> Generator[None, None, None]:
    # Before the plugins see the function: some replace it by a plain one.
    hypothesis = getattr(item.obj, "hypothesis", None)
    owner, name = (hypothesis, "inner_test") if hasattr(hypothesis, "inner_test") else (item, "obj")
    body = getattr(owner, name)
    if not inspect.iscoroutinefunction(body):
        yield
        return

    @functools.wraps(body)
    async def checked(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        result = await body(*args, **kwargs)
        await marked.wait_for_tasks()
        return result

    setattr(owner, name, checked)
    try:
        yield
    finally:
        setattr(owner, name, body)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Open an account around the body of a test that asks for one."""
    __tracebackhide__ = True
    marked = pyfuncitem.stash.get(_marked, None)
    if marked is None:
        return (yield)
    properties = pyfuncitem.user_properties
    properties[:] = [(name, value) for name, value in properties if name != "memtools"]  # of an earlier attempt
    marked.begin_body()
    try:
        result = yield
    except BaseException:
        marked.end_body(failed=True)
        raise
    marked.end_body(failed=False)
    properties += marked.properties()
    failure = marked.growth_failure() or marked.body_failure()
    if failure:
        pytest.fail(failure, pytrace=False)
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(request: pytest.FixtureRequest) -> Generator[None, object, object]:
    """Tell what a fixture opens that the body itself asks for (`getfixturevalue`) from what the body opens."""
    marked = _running(request)
    if marked is None:
        return (yield)
    before = marked.before_fixture()
    result = yield
    marked.after_fixture(before)
    return result


def _running(request: pytest.FixtureRequest) -> MarkedTest | None:
    item = getattr(request, "_pyfuncitem", None)
    marked = item.stash.get(_marked, None) if item is not None else None
    return marked if marked is not None and marked.is_in_body else None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Check the objects that must be collected, when pytest itself holds them no longer."""
    report = yield
    collected = item.stash.get(_collected, None)
    if collected is None:
        return report
    if call.excinfo is not None:
        collected.clear()  # its traceback holds the objects; that the test has failed is told already
    elif call.when == "teardown":
        del item.stash[_collected]
        item.funcargs = {}  # type: ignore[attr-defined]  # pytest drops the values of fixtures only after this report
        _check_collected(collected, report)
    return report


def _check_collected(collected: CollectedObjects, report: pytest.TestReport) -> None:
    from memtools.errors import LeakError

    try:
        collected.check()
    except LeakError as error:
        report.outcome = "failed"
        report.longrepr = str(error)


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
def assert_collected(request: pytest.FixtureRequest) -> Any:
    """Expect objects to be garbage when the test has ended: `assert_collected(service)`.

    They are checked after the teardown of all fixtures of the test; not at all where the test fails.
    """
    from memtools.testing._plugin import CollectedObjects

    item = cast("pytest.Item", request.node)  # pyright: ignore[reportUnknownMemberType]  # untyped there
    collected = CollectedObjects(lambda: _kept_beyond(item))
    item.stash[_collected] = collected
    return collected


def _kept_beyond(item: pytest.Item) -> Iterator[tuple[str, object]]:
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    for name, value in parameters.items():
        yield f"the parameter {name!r} for the whole session", value
    for definition in _fixture_definitions(item):
        result = getattr(definition, "cached_result", None)
        if result is not None and definition.scope != "function":
            yield f"what fixture {definition.argname!r} returns until the end of its {definition.scope}", result[0]


class _Summary:
    """The measurements, for the terminal and the report file; with pytest-xdist, in the controlling process."""

    def __init__(self, config: pytest.Config) -> None:
        self._file: str | None = config.getoption("memtools_report")
        self._results: list[dict[str, Any]] = []
        self._unmeasured = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the measurements of a test."""
        if report.when == "call" and report.outcome != "rerun":
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

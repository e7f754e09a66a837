"""The facts that a bug report needs: `python -m memtools info`."""

import json
import os
import platform
import re
import sys
import sysconfig
import tracemalloc
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Final, cast

from memtools.commands._installation import extension_states, hidden_installation, how_to_build
from memtools.commands._run import default_meter
from memtools.errors import ConfigError, ReadingError
from memtools.ledger import choose_meter, native_reason
from memtools.readings import effective_limit, headroom, read_process
from memtools.units import format_size

# Variables that change how memory is allocated, or how memtools works.
_VARIABLES: Final = re.compile(
    r"PYTHON(MALLOC|TRACEMALLOC|GC|_GIL).*|MALLOC_.*|LD_PRELOAD|DYLD_INSERT_LIBRARIES|MEMTOOLS_.*"
)
_TOOL_IDS: Final = range(6)  # PEP 669


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None; from its metadata, without importing it."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def memtools_version() -> str:
    """Return the version of memtools."""
    return installed_version("memtools") or "(run from its source, not installed)"


def print_facts(*, as_json: bool) -> int:
    """Write the facts to standard output; return the exit code."""
    facts = collect_facts()
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2, default=str) + "\n")
        return 0
    width = max(len(name) for section in facts.values() for name in section)
    for heading, section in facts.items():
        sys.stdout.write(f"{heading}\n")
        for name, value in section.items():
            sys.stdout.write(f"  {name:<{width}}  {_format_value(value)}\n")
        if not section:
            sys.stdout.write("  none\n")
    return 0


def collect_facts() -> dict[str, dict[str, object]]:
    """Return the facts by section and name."""
    sections: dict[str, Callable[[], dict[str, object]]] = {
        "versions": _versions,
        "meters": _meters,
        "C extensions": _extensions,
        "limit": _limit,
        "memory": _memory,
        "allocator": _allocator,
        "interpreter": _interpreter,
        "environment": _environment,
    }
    return {name: _facts_or_error(section) for name, section in sections.items()}


def _facts_or_error(section: Callable[[], dict[str, object]]) -> dict[str, object]:
    # An invalid MEMTOOLS_LIMIT is shown as the error that it causes: it may be the bug.
    try:
        return section()
    except (ConfigError, ReadingError, OSError) as error:
        return {"error": str(error)}


def _versions() -> dict[str, object]:
    facts: dict[str, object] = {
        "memtools": memtools_version(),
        "python": f"{platform.python_version()} ({platform.python_implementation()}, {platform.python_compiler()})",
        "platform": platform.platform(),
    }
    for name in ("psutil", "wrapt", "typing-extensions", "uvloop"):
        facts[name] = installed_version(name)
    return facts


def _meters() -> dict[str, object]:
    facts: dict[str, object] = {"available": _meter_names()}
    facts["default"] = choose_meter().name
    facts["native"] = native_reason() or "built, and its self-test passed"
    facts["chosen by"] = "MEMTOOLS_METER" if os.environ.get("MEMTOOLS_METER") else "default"
    facts["of memtools run"] = default_meter().name
    return facts


def _extensions() -> dict[str, object]:
    states = extension_states()
    facts: dict[str, object] = {name: reason or "built" for name, reason in states.items()}
    if not any(states.values()):
        return facts
    folder = hidden_installation()
    if folder is None:
        facts["to build them"] = how_to_build()
    else:
        facts["hidden installation"] = f"{folder} has them; this is the source in the current folder"
        facts["to use it"] = "type memtools info, or python -P -m memtools info"
    return facts


def _meter_names() -> list[str]:
    # The error lists the accepted names, so the list is right for any build.
    try:
        choose_meter("?")
    except ConfigError as error:
        return re.findall(r"'(\w+)'", error.accepted)
    return []


def _limit() -> dict[str, object]:
    limit, left = effective_limit(refresh=True), headroom(refresh=True)
    return {
        "limit_bytes": limit.value_bytes,
        "source": str(limit.source),
        "path": limit.path,
        "cgroup levels above": limit.level,
        "headroom_bytes": left.value_bytes,
        "headroom source": str(left.source),
        "unreadable files": list(dict.fromkeys([*limit.gaps, *left.gaps])),
    }


def _memory() -> dict[str, object]:
    process = read_process()
    return {
        "resident_bytes": process.resident_bytes,
        "peak_bytes": process.peak_bytes,
        "virtual_bytes": process.virtual_bytes,
    }


def _allocator() -> dict[str, object]:
    by_default = "pymalloc" if sysconfig.get_config_var("WITH_PYMALLOC") else "malloc"
    if _is_free_threaded():
        by_default = "mimalloc"
    chosen = os.environ.get("PYTHONMALLOC") if not sys.flags.ignore_environment else None
    debug = "debug hooks" if sys.flags.dev_mode else None
    return {
        "python": chosen or debug or by_default,
        "C library": " ".join(filter(None, platform.libc_ver())) or None,
    }


def _interpreter() -> dict[str, object]:
    monitoring = getattr(sys, "monitoring", None)
    tools = {str(number): monitoring.get_tool(number) for number in _TOOL_IDS} if monitoring is not None else None
    gil_enabled: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    return {
        "free-threaded build": _is_free_threaded(),
        "GIL enabled": gil_enabled(),
        "tracemalloc": f"tracing, {tracemalloc.get_traceback_limit()} frames" if tracemalloc.is_tracing() else "off",
        "sys.monitoring tools": tools if tools is not None else "none before Python 3.12",
    }


def _environment() -> dict[str, object]:
    found = {name: value for name, value in sorted(os.environ.items()) if _VARIABLES.fullmatch(name)}
    if "MEMTOOLS_CLUSTER" in found:
        from memtools.cluster._carrier import without_password  # it loads sqlite3

        found["MEMTOOLS_CLUSTER"] = without_password(found["MEMTOOLS_CLUSTER"])
    return dict(found)


def _is_free_threaded() -> bool:
    return bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def _format_value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return format_size(value)
    if isinstance(value, list):
        return ", ".join(map(str, cast("list[object]", value))) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{number}: {tool or 'free'}" for number, tool in cast("dict[object, object]", value).items())
    return str(value)

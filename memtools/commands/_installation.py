"""How memtools was installed: whether its C extensions were built, why not, and what to do about it."""

import importlib.machinery
import json
import os
import platform
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Final, cast

_PACKAGE: Final = "memtools"
_HERE: Final = Path(__file__).parents[1]
_EXTENSIONS: Final = (
    "memtools.ledger._native",
    "memtools.structures._list_core",
    "memtools.commands._interpreter",
)
# Written beside the metadata by the build, a line for each extension that could not be compiled.
_MISSING_FILE: Final = "missing_extensions.txt"

# What installs a C compiler with the headers of the C library, and what installs those of Python, by the `ID` or
# `ID_LIKE` of /etc/os-release. `{}` is the version of Python.
_PACKAGES: Final[dict[str, tuple[str, str]]] = {
    "debian": ("apt-get install gcc libc6-dev", "python{}-dev"),
    "alpine": ("apk add gcc musl-dev", "python3-dev"),
    "fedora": ("dnf install gcc", "python3-devel"),
    "rhel": ("dnf install gcc", "python3-devel"),
    "suse": ("zypper install gcc", "python3-devel"),
    "arch": ("pacman -S gcc", ""),
}


def extension_states() -> dict[str, str]:
    """Return for each C extension why there is none for this Python, empty where there is one; nothing is loaded."""
    reasons = _recorded_reasons()
    return {name: "" if _has_extension(_HERE, name) else _why_missing(name, reasons) for name in _EXTENSIONS}


def hidden_installation() -> str | None:
    """Return the folder of an installed memtools with C extensions that a source without them hides, if there is one.

    The source is found first where it is in the current folder, as with `python -m memtools` in a checkout.
    """
    try:
        if not _HERE.parent.samefile(os.getcwd()) or _has_extension(_HERE, _EXTENSIONS[0]):
            return None
    except OSError:
        return None
    folder = next(_installations(), None)
    return str(folder) if folder is not None and _has_extension(folder / _PACKAGE, _EXTENSIONS[0]) else None


def _installations() -> Iterator[Path]:
    # In the order in which they would be imported without the source.
    others = [folder for folder in sys.path if folder and not _is_same(Path(folder), _HERE.parent)]
    spec = importlib.machinery.PathFinder.find_spec(_PACKAGE, others)
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parents[1]
    for found in distributions(name=_PACKAGE):
        # An editable installation need not be on the search path: a finder of its own may lead to it.
        folder = _editable_source(found) or Path(str(found.locate_file("")))
        if not _is_same(folder, _HERE.parent):
            yield folder


def how_to_build() -> str:
    """Return what to type so that memtools is installed with its C extensions: system packages first, where missing."""
    if sys.platform == "win32":
        return "they are not built on Windows"
    parts = [_system_packages(), _pip_command()]
    return ", then ".join(filter(None, parts))


def _has_extension(package: Path, name: str) -> bool:
    folder = package.joinpath(*name.split(".")[1:-1])
    return importlib.machinery.PathFinder.find_spec(name, [str(folder)]) is not None


def _why_missing(name: str, reasons: dict[str, str]) -> str:
    *folders, stem = name.split(".")[1:]
    others = sorted(path.name for path in _HERE.joinpath(*folders).glob(f"{stem}.*.so"))
    if name in reasons:
        return f"not built: {reasons[name]}"
    return f"built for another Python ({', '.join(others)})" if others else "not built"


def _own_distribution() -> Distribution | None:
    """Return what pip knows of this memtools; None where it runs from a source that is not installed."""
    try:
        found = distribution(_PACKAGE)
    except PackageNotFoundError:
        return None
    folder = _editable_source(found) or Path(str(found.locate_file("")))
    return found if _is_same(folder, _HERE.parent) else None


def _recorded_reasons() -> dict[str, str]:
    found = _own_distribution()
    text = (found.read_text(_MISSING_FILE) if found is not None else None) or ""
    return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)


def _editable_source(found: Distribution) -> Path | None:
    origin = _origin(found)
    folder = _local_folder(origin)
    is_editable = cast("dict[str, object]", origin.get("dir_info") or {}).get("editable") is True
    return folder if is_editable else None


def _origin(found: Distribution) -> dict[str, object]:
    # PEP 610: where pip took it from, if not from an index.
    try:
        return cast("dict[str, object]", json.loads(found.read_text("direct_url.json") or "{}"))
    except ValueError:
        return {}


def _local_folder(origin: dict[str, object]) -> Path | None:
    from urllib.parse import urlsplit  # here, because `memtools run` loads this module, too
    from urllib.request import url2pathname

    parts = urlsplit(str(origin.get("url", "")))
    if parts.scheme != "file" or "dir_info" not in origin:
        return None
    return Path(url2pathname(parts.path))


def _pip_command() -> str:
    found = _own_distribution()
    source = _editable_source(found) if found is not None else None
    if source is not None:
        return f"pip install --no-deps --editable {shlex.quote(str(source))}"
    if found is None or (_HERE.parent / "setup.py").exists():
        return f"pip install {shlex.quote(str(_HERE.parent))}"
    again = "pip install --force-reinstall --no-deps --no-cache-dir"
    folder = _local_folder(_origin(found))
    if folder is not None:
        return f"{again} {shlex.quote(str(folder))}"
    return f"{again} --no-binary {_PACKAGE} {_PACKAGE}"


def _system_packages() -> str:
    compiler = str(sysconfig.get_config_var("CC") or "cc").split()[0]
    has_compiler = shutil.which(compiler) is not None
    has_headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    if has_compiler and has_headers:
        return ""
    if sys.platform == "darwin":
        return "xcode-select --install"
    for system in _system_ids():
        if system in _PACKAGES:
            command, headers = _PACKAGES[system]
            version = "{}.{}".format(*sys.version_info)
            return f"{command} {'' if has_headers else headers.format(version)}".rstrip()
    wanted = ["a C compiler"] * (not has_compiler) + ["the headers of this Python"] * (not has_headers)
    return f"install {' and '.join(wanted)}"


def _system_ids() -> list[str]:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return []
    return [release.get("ID", ""), *release.get("ID_LIKE", "").split()]


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False

"""Which versions are at work here. Read from the metadata of what is installed: nothing is imported for it."""

from importlib.metadata import PackageNotFoundError, version


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def memtools_version() -> str:
    """Return our own version."""
    return installed_version("memtools") or "(running from its source, not installed)"

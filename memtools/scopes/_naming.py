"""What a scope may be called."""

from memtools.errors import ConfigError


def parse_name(name: object, *, argument: str = "name") -> str:
    """Return `name`, text that is not empty.

    Raises:
        ConfigError: for anything else.
    """
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(argument, name, "text that is not empty")
    return name

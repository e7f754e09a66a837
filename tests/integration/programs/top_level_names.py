"""Check that names of packages load only what they need, and that a wrong name is reported."""
# ruff: noqa: E402, F403, F405, PT017  # a program; `import *` after the single names is what is tested

import sys

import memtools


def loaded():
    return {name.split(".")[1] for name in sys.modules if name.startswith("memtools.")}


late = {"monitor", "testing", "exporters", "lifecycle"}
assert not late & loaded(), late & loaded()
assert "memtools.readings._resident" not in sys.modules
assert set(memtools.readings.__all__) <= set(dir(memtools.readings))
assert memtools.readings.split_resident is memtools.readings.split_resident
assert "memtools.readings._resident" in sys.modules
assert set(memtools.__all__) <= set(dir(memtools))
for name in memtools.__all__:
    getattr(memtools, name)
assert late <= loaded()
assert memtools.testing.find_leaks is memtools.find_leaks
for namespace in (memtools, memtools.readings):
    try:
        namespace.find_leeks  # noqa: B018  # there is no such name
    except AttributeError as error:
        assert (error.name, error.obj) == ("find_leeks", namespace)
    else:
        raise AssertionError("a name that does not exist was found")
from memtools import *

assert find_leaks is memtools.find_leaks

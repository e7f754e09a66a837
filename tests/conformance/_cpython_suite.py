"""Run one suite of CPython's own, counted by the native ledger or alone, and print its outcome as JSON."""
# ruff: noqa: E402  # the suites are imported while the ledger counts

import io
import json
import sys
import unittest

is_counted, suite, left_out = sys.argv[1] == "counted", sys.argv[2], sys.argv[3:]


def without(tests):
    for test in tests:
        if isinstance(test, unittest.TestSuite):
            yield from without(test)
        elif test.id().rpartition(".")[2] not in left_out:
            yield test


if is_counted:
    from memtools.ledger import choose_meter
    from memtools.ledger._ledger import open_owner

    open_owner("suite", "scope", meter=choose_meter("native"))
from test import support

support.use_resources = None
found = unittest.TestSuite(without(unittest.defaultTestLoader.loadTestsFromName(f"test.{suite}")))
result = unittest.TextTestRunner(stream=io.StringIO(), verbosity=0).run(found)
print(
    json.dumps(
        {
            "run": result.testsRun,
            "failed": sorted(str(test) for test, _ in result.failures),
            "broken": sorted(str(test) for test, _ in result.errors),
            "skipped": sorted(str(test) for test, _ in result.skipped),
        }
    ),
    file=sys.__stdout__,
    flush=True,
)

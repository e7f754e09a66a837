"""Where the native meter was not built, that is found out once."""

import subprocess
import sys
import textwrap


def test_an_extension_that_is_missing_is_looked_for_once() -> None:
    program = """
        import sys

        class Blocker:
            asked = 0
            def find_spec(self, name, path=None, target=None):
                if name == "memtools.ledger._native":
                    self.asked += 1
                    raise ImportError("blocked")
                return None

        blocker = Blocker()
        sys.meta_path.insert(0, blocker)
        from memtools import memory_scope
        from memtools.ledger import native_reason
        for _ in range(100):
            memory_scope("scope")
        print(blocker.asked, "blocked" in native_reason())
    """

    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)

    assert done.stdout.split() == ["1", "True"], done.stderr

"""The extension is looked up once where it was not built."""

import subprocess
import sys
import textwrap


def test_missing_extension_is_looked_up_once() -> None:
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
        memory_scope("first")
        before = blocker.asked
        for _ in range(100):
            memory_scope("scope")
        print(before > 0, blocker.asked - before, "blocked" in native_reason())
    """

    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)

    assert done.stdout.split() == ["True", "0", "True"], done.stderr

"""Check the check of words: what it finds, what it leaves alone, and what it says."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

_SCRIPT = Path(__file__).parent.parent / ".ci" / "check_prose.py"

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not _SCRIPT.exists(), reason="the check stands in the checkout, not in what is installed"),
]


@pytest.fixture(scope="module")
def check() -> ModuleType:
    specification = importlib.util.spec_from_file_location("check_prose", _SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# Nobody frees it.", ["Nobody"]),
        ("it is whoever's, or theirs", ["whoever", "theirs"]),
        ('raise ValueError("no such parcel")', ["parcel"]),
        ("class ParcelQueue: ...", ["Parcel"]),
        ("self._tally_count += 1", ["tally"]),
        ("TALLIES = []", ["TALLIES"]),
        ("HTTPPoster = None", ["Poster"]),
        ("an error of ours", ["of ours"]),
        ("# an error of\n    # ours", ["of # ours"]),
        ("Leaves to others: nothing.", ["Leaves to others"]),
        ("through the front door", ["door"]),
        ("imports of this room only", ["this room"]),
        ("least_room(limits)", ["least_room"]),
        ("LevelRoom(level)", ["LevelRoom"]),
        ("owner.let_go()", ["let_go"]),
    ],
)
def test_retired_words_are_found(check: ModuleType, text: str, words: list[str]) -> None:
    assert [finding.word for finding in check.check_text(text)] == words


@pytest.mark.parametrize(
    "text",
    [
        "The heartbeat of a dashboard, the headroom and the keyboard.",
        "There is room for two more; has_room() asks whether there is more room.",
        "the room for growth, the room to grow",
        "The caller waits its turn, then wires the driver and looks at the row behind the wall.",
        "colours and hours of our own",
    ],
)
def test_ordinary_english_is_left_alone(check: ModuleType, text: str) -> None:
    assert check.check_text(text) == []


def test_changelog_naming_an_old_public_name_passes(check: ModuleType) -> None:
    text = "- `Ladder.climb` is now `Reclaimer.reclaim`, see [why](decisions/0007-a-ladder.md).\n"

    assert check.check_text(text, "CHANGELOG.md") == []
    assert [one.word for one in check.check_text(text, "docs/cleanup.md")] == ["Ladder", "climb"]


def test_file_names_are_checked_except_those_of_decisions(check: ModuleType) -> None:
    assert [one.word for one in check.check_name("memtools/cleanup/_ladder.py")] == ["ladder"]
    assert check.check_name("docs/decisions/0007-a-ladder.md") == []


def test_long_test_names_are_found_in_classes_too(check: ModuleType) -> None:
    too_long, just_right = "test_" + 56 * "a", "test_" + 55 * "a"
    source = f"class TestIt:\n    def {just_right}(self): ...\n    async def {too_long}(self): ...\n"

    findings = check.check_test_names(source, "tests/test_it.py")

    assert [(one.line, one.word) for one in findings] == [(3, too_long)]


def test_script_finding_words_names_the_line_and_fails(tmp_path: Path) -> None:
    (tmp_path / "memtools" / "build").mkdir(parents=True)
    (tmp_path / "memtools" / "build" / "old.py").write_text("# nobody reads what was built\n")
    (tmp_path / "memtools" / "queue.c").write_text("/* In order:\n * a parcel at a time. */\n")

    done = subprocess.run([sys.executable, str(_SCRIPT), str(tmp_path)], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stdout.splitlines() == ["memtools/queue.c:2:parcel: queued message", "1 finding"]


def test_script_finding_nothing_says_so_and_succeeds(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("Plain English, subject first.\n")

    done = subprocess.run([sys.executable, str(_SCRIPT), str(tmp_path)], capture_output=True, text=True, check=False)

    assert done.returncode == 0
    assert done.stdout == "No retired word, and no test name that is too long.\n"

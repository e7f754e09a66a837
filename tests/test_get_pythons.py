"""The script that brings newer Pythons onto a Debian machine: what it refuses, and that it changes nothing then."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "get-pythons"
CANNOT = 3
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not SCRIPT.exists(), reason="this copy of the project comes without its scripts"),
    pytest.mark.skipif(sys.platform != "linux", reason="the script is for Debian"),
]


def get_pythons(*arguments: str, **options: object) -> "subprocess.CompletedProcess[str]":
    # Read from standard input: another user may not be able to read the checkout.
    return subprocess.run(  # type: ignore[call-overload, no-any-return]  # the options are those of the call
        ["bash", "-s", "--", *arguments], input=SCRIPT.read_text(encoding="utf-8"), cwd="/", capture_output=True,
        text=True, timeout=60, check=False, **options,
    )  # fmt: skip


def _packages() -> str:
    script = SCRIPT.read_text(encoding="utf-8").splitlines()
    lines = [line for line in script if line.startswith(("PACKAGES=", "for version in"))]
    return subprocess.check_output(
        ["bash", "-c", "\n".join([*lines, 'echo "$PACKAGES"'])], text=True, timeout=60
    ).strip()


def test_missing_folder_is_answered_with_the_usage() -> None:
    done = subprocess.run([SCRIPT], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    assert done.stderr.startswith("usage: .ci/get-pythons FOLDER")


def test_other_users_than_root_are_told_why_they_cannot(tmp_path: Path) -> None:
    folder = tmp_path / "pythons"
    done = get_pythons(str(folder), **({"user": 65534, "group": 65534, "extra_groups": []} if IS_ROOT else {}))

    assert done.returncode == CANNOT
    assert "only root" in done.stderr.splitlines()[-1]
    assert not folder.exists()


@pytest.mark.skipif(not IS_ROOT, reason="only root gets that far")
def test_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("the only copy")

    done = get_pythons(str(tmp_path))

    assert done.returncode == CANNOT
    assert done.stderr.splitlines()[-1].startswith("get-pythons: ")  # where mounts are not allowed, that comes first
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.skipif(not IS_ROOT, reason="only root gets that far")
def test_root_of_an_earlier_run_is_used_again(tmp_path: Path) -> None:
    (tmp_path / ".get-pythons-complete").write_text(_packages() + "\n")

    done = get_pythons(str(tmp_path))

    assert done.returncode in (0, CANNOT)  # the latter where mounts are not allowed
    assert [path.name for path in tmp_path.iterdir()] == [".get-pythons-complete"]


def test_packages_hold_both_pythons_and_the_server() -> None:
    packages = _packages().split(",")

    assert {"python3.14-dev", "python3.15-dev", "redis-server"} <= set(packages)


@pytest.mark.skipif(not IS_ROOT, reason="only root gets that far")
def test_root_that_lacks_a_package_keeps_what_lies_in_it(tmp_path: Path) -> None:
    (tmp_path / ".get-pythons-complete").write_text("an older list\n")
    (tmp_path / "usr" / "sbin").mkdir(parents=True)
    (tmp_path / "thesis.txt").write_text("the only copy")

    done = get_pythons(str(tmp_path))

    assert done.returncode == CANNOT  # there is no Debian in it
    assert (tmp_path / "thesis.txt").read_text() == "the only copy"
    assert (tmp_path / ".get-pythons-complete").read_text() == "an older list\n"

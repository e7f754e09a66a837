"""`memtools diff`: files, output, and exit codes."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from memtools.commands._main import main
from memtools.reports import Growth, Report, Row

MIB = 2**20


def _write(path: Path, live: float, *, meter: str = "native") -> str:
    row = Row("parse", 10, 0, 0, MIB, int(live * MIB), 1.0, (meter,), (), (), int(live * MIB), 0)
    taken = Report(path.name, (), (), (row,), Growth(50 * MIB, 60 * MIB))
    path.write_text(taken.to_json(), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The paths of two reports: the later one keeps 12 MiB more in `parse`."""
    return [_write(tmp_path / "before.json", 3), _write(tmp_path / "after.json", 15)]


def test_difference_is_printed(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", *files]) == 0

    out = capsys.readouterr().out
    assert "the later one keeps 12.0 MiB more in `parse`" in out
    assert out.startswith("memtools: before.json -> after.json\n")


def test_json_is_printed(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "--json", *files, "--fail-above", "1 MiB"]) == 1

    read = json.loads(capsys.readouterr().out)
    assert read["owners"][0]["kept_change_bytes"] == 12 * MIB
    assert read["above"] == ["function parse: live 12.0 MiB more than 3.0 MiB"]


def test_page_is_written_beside_the_text(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", *files, "--html", str(tmp_path / "diff.html")]) == 0
    assert "12.0 MiB more" in (tmp_path / "diff.html").read_text(encoding="utf-8")
    assert "12.0 MiB more" in capsys.readouterr().out

    assert main(["diff", *files, "--html", "-"]) == 0
    assert capsys.readouterr().out.startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("limit", "code"), [("13 MiB", 0), ("11 MiB", 1), ("500%", 0), ("300%", 1), ("5 Mb", 2), ("many%", 2)]
)
def test_exit_code_says_whether_it_is_above(
    limit: str, code: int, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", *files, "--fail-above", limit]) == code

    error = capsys.readouterr().err
    assert ("above" in error) == (code != 0)
    assert error.startswith({0: "", 1: f"above {limit}: function parse: live", 2: "memtools: fail_above="}[code])


def test_less_than_before_is_not_above(files: list[str]) -> None:
    assert main(["diff", *reversed(files), "--fail-above", "0%"]) == 0


def test_standard_input_is_a_file(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(Path(files[0]).read_text(encoding="utf-8")))

    assert main(["diff", "-", files[1], "--fail-above", "11 MiB"]) == 1


def test_nothing_comparable_is_no_pass(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = _write(tmp_path / "other.json", 90, meter="rss")

    assert main(["diff", files[0], other]) == 0
    assert main(["diff", files[0], other, "--fail-above", "1 GiB"]) == 2
    assert "no owner can be compared" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read "),
        (b"", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[1]", "holds a JSON list"),
        (b"{}", "before='no schema' is not accepted"),
        (b'{"schema": 9}', "before='schema 9' is not accepted"),
    ],
)
def test_file_that_is_no_report_is_an_error(
    content: bytes | None, message: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_bytes(content)

    assert main(["diff", str(path), files[1]]) == 2

    streams = capsys.readouterr()
    assert message in streams.err
    assert streams.out == ""


def test_page_that_cannot_be_written_is_an_error(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", *files, "--html", "/nowhere/diff.html"]) == 2

    assert "cannot write /nowhere/diff.html: No such file" in capsys.readouterr().err


def test_missing_file_name_is_a_usage_error(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["diff", files[0]])

    assert ended.value.code == 2
    assert "B" in capsys.readouterr().err


def test_numbers_beyond_all_bounds_are_refused(files: list[str], tmp_path: Path) -> None:
    fields: dict[str, Any] = json.loads(Path(files[0]).read_text(encoding="utf-8"))
    fields["functions"][0]["peak_bytes"] = float("inf")
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(fields), encoding="utf-8")

    assert main(["diff", str(path), files[1]]) == 2

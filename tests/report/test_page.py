"""What every page is made with: words for numbers, foreign text made harmless, and places."""

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import Page

from job.errors import ConflictError, DataError, StoppedError, UsageError
from job.process.progress import Progress
from job.report import page
from job.storage import parse

HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "a\x00b\x1b[31m",
    "\u202egnp.exe", "]]></style>", "' onload='x", "\ud800", "&lt;", "x" * 100_000,
]  # fmt: skip


def drawn(**contents) -> bytes:
    """Return the page of a run that failed with what is given."""
    told = {
        "name": "r", "kind": "bad", "status": "failed", "error": None, "advice": "mend it",
        "command": None, "facts": [], "curves": None, "attempts": None, "earlier": 0,
        "config": None, "digest": None, "missing": [],
    }  # fmt: skip
    return page.render("unfinished.html", **{**told, **contents})


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_foreign_text_does_nothing_wherever_it_stands(text):
    row = {"number": 1, "began": text, "machine": text, "versions": text, "end": text}
    field = {"flag": text, "value": text, "default": text, "other": True}
    found = Page(
        drawn(
            name=text,
            error=text,
            command=[text, text],
            facts=[(text, text)],
            attempts=[row],
            config=[field],
            digest=text,
            missing=[(text, text)],
        )
    )
    assert len(found.content) < 80_000
    assert "49" not in found.text


@given(st.text())
@settings(deadline=None, max_examples=50)
def test_any_text_can_be_a_name(text):
    Page(drawn(name=text, error=text))


def test_a_name_that_is_missing_from_a_page_is_an_error_and_no_blank():
    with pytest.raises(Exception, match="undefined"):
        page.render("unfinished.html", name="r")


@pytest.mark.parametrize(
    ("share", "digits", "told"),
    [
        (0.98621, 2, "98.62 %"), (1, 2, "100.00 %"), (0.99996, 2, "> 99.99 %"), (0, 1, "0.0 %"),
        (0.9999, 1, "> 99.9 %"), (0.0001, 1, "< 0.1 %"), (0.5, 0, "50 %"), (0.004, 0, "< 1 %"),
    ],
)  # fmt: skip
def test_a_share_never_says_all_or_nothing_where_it_is_not(share, digits, told):
    assert page.percent(share, digits) == told


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0, "0 s"), (0.0591, "0.059 s"), (0.996, "1.0 s"), (6.72, "6.7 s"), (9.96, "10.0 s"),
        (59.6, "1 min 0 s"), (88.35, "1 min 28 s"), (7500, "2 h 5 min"),
    ],
)  # fmt: skip
def test_a_time_is_told_as_people_say_it(value, told):
    assert page.seconds(value) == told


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "x"])
def test_what_is_no_time_is_refused(value):
    with pytest.raises(ValueError, match=r"no time|could not"):
        page.seconds(value)


def test_a_size_is_told_as_people_say_it():
    told = [page.size(value) for value in (0, 1023, 1536, 461_520, 5 * 2**30)]
    assert told == ["0 bytes", "1023 bytes", "1.5 KiB", "451 KiB", "5.0 GiB"]


def test_a_part_that_cannot_be_had_is_noted_and_a_stop_is_not_swallowed():
    parts = page.Parts()
    assert parts.of("a", lambda: 1) == 1
    assert parts.of("b", lambda: {}["x"]) is None
    assert parts.of("c", lambda: 1 // 0) is None

    def refuse() -> None:
        raise DataError("it is damaged")

    assert parts.of("d", refuse) is None
    assert [(name, why[:30]) for name, why in parts.missing] == [
        ("b", "what was written of it can't b"),
        ("c", "what was written of it can't b"),
        ("d", "it is damaged"),
    ]

    def stop() -> None:
        raise StoppedError("stopped")

    with pytest.raises(StoppedError):
        parts.of("e", stop)


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (DataError("bad"), "bad"), (ZeroDivisionError(), "ZeroDivisionError()"),
        (KeyboardInterrupt(), "stopped meanwhile"), (StoppedError("x"), "stopped meanwhile"),
        (TimeoutError(), "no answer in time"), (MemoryError(), "MemoryError()"),
        (ImportError("No module named matplotlib"), "No module named matplotlib"),
    ],
)  # fmt: skip
def test_whatever_keeps_a_page_from_being_written_is_one_warning(raised, reason):
    log = io.StringIO()
    with page.only_a_warning(parse("runs/r/report.html"), Progress("json", log)):
        raise raised
    [line] = log.getvalue().splitlines()
    said = json.loads(line)
    assert (said["event"], said["level"]) == ("report_not_written", "warning")
    assert (said["page"], said["reason"]) == ("runs/r/report.html", reason)


def test_an_older_page_makes_room_and_nothing_else_does(tmp_path):
    place = parse(str(tmp_path / "a.html"))
    older, newer = drawn(name="older"), drawn(name="newer")
    assert page.save(place, older) is False
    assert page.save(place, older) is False  # the same again
    assert page.save(place, newer) is True
    assert (tmp_path / "a.html").read_bytes() == newer
    (tmp_path / "a.html").write_text("<!doctype html> of somebody else, that tells of "
                                     + page.GENERATOR.decode().center(3000))  # fmt: skip
    with pytest.raises(ConflictError):
        page.save(place, newer)


def test_a_page_is_put_where_a_person_looks_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    own = parse("run/report.html")
    first, second = drawn(name="first"), drawn(name="second")
    assert page.place_it(first, own, None, "run") == "written to run/report.html"
    assert page.place_it(first, own, None, "run") == "written to run/report.html"  # as it is
    assert page.place_it(second, own, None, "run") == "written to ./run.html"
    assert page.place_it(first, None, None, "run").startswith("written to ./run.html, in place of")
    assert page.place_it(second, own, parse("x.html"), "run") == "written to x.html"
    found = [(tmp_path / name).read_bytes() for name in ("run/report.html", "run.html", "x.html")]
    assert found == [first, first, second]
    with pytest.raises(UsageError):
        page.place_it(first, own, parse(" "), "run")


def test_style_and_base_name_colours_once_for_light_and_once_for_dark():
    style = drawn().decode().partition("<style>")[2].partition("</style>")[0]
    light, dark = (part.partition("}")[0] for part in style.split(":root {")[1:3])
    used = set(re.findall(r"var\(--([a-z-]+)", style)) - {"share", "sheet", "sheet-size"}
    used -= {"tile-width", "tile-height"}
    assert used <= set(re.findall(r"--([a-z-]+):", light))
    assert set(re.findall(r"--([a-z-]+):", dark)) <= set(re.findall(r"--([a-z-]+):", light))


def test_templates_and_style_are_packed_with_the_job(tmp_path):
    program = "import sys, uv_build; print(uv_build.build_wheel(sys.argv[1]))"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        cwd=REPOSITORY,
        env=os.environ | {"PATH": path},
        check=True,
        capture_output=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    folder = REPOSITORY / "job" / "report" / "templates"
    packed = {
        Path(name).name for name in zipfile.ZipFile(wheel).namelist() if "/templates/" in name
    }
    assert packed - {"templates"} == {path.name for path in folder.iterdir()}

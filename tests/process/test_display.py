"""The foot of a terminal while a training runs; and that nobody else ever sees it."""

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
import threading

import pytest

from job.process import display
from job.process.progress import Moment, Progress

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
MOMENT = Moment(
    epoch=3, epochs=10, step=5_000, steps=18_750, loss=0.21144, accuracy=0.97123, batch_size=32
)


class Terminal(io.StringIO):
    def isatty(self):
        return True

    @property
    def plain(self) -> str:
        return ESCAPE.sub("", self.getvalue())


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    return Terminal()


def clock(monkeypatch, *seconds):
    ticks = iter(seconds)
    monkeypatch.setattr(display.time, "monotonic", lambda: next(ticks))


def after(step: int, **changes) -> Moment:
    return Moment(**{**vars(MOMENT), "step": step, **changes})


def test_it_tells_all_that_people_ask_for(terminal, monkeypatch):
    clock(monkeypatch, 100.0, 100.5, 101.0, 113.0)
    foot = display.Display(terminal)
    foot.show(after(5_000))
    assert "-:-- left" in terminal.plain  # one moment tells no speed
    foot.show(after(5_500))
    foot.saved()
    foot.show(after(6_000, epoch=4))
    last = terminal.plain.split("\r")[-1]
    assert "epoch  4/10" in terminal.plain
    assert "step 6,000 of 18,750" in terminal.plain
    # 1,000 steps of 32 images in 13 s; 12,750 steps are left.
    assert (
        "loss 0.2114   accuracy 0.9712   2,462 images/s   1 checkpoint, the last 12 s ago" in last
    )
    assert "2:46 left" in terminal.plain


def test_hours_are_told_as_hours(terminal, monkeypatch):
    clock(monkeypatch, 0.0, 100.0)
    foot = display.Display(terminal)
    foot.show(after(1_000))
    foot.show(after(1_100))
    assert "4:54:10 left" in terminal.plain


def test_another_member_of_an_ensemble_begins_anew(terminal, monkeypatch):
    clock(monkeypatch, 0.0, 1.0, 2.0)
    foot = display.Display(terminal)
    foot.show(after(5_000))
    foot.show(after(5_500))
    foot.show(after(10))
    assert terminal.plain.count("-:-- left") == 2


@pytest.mark.parametrize("columns", [10, 40, 80, 200])
def test_its_two_lines_stay_two_however_narrow_the_terminal(terminal, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    foot = display.Display(terminal)
    foot.show(after(5_000))
    drawn = terminal.plain.rstrip("\n").split("\n")
    assert len(drawn) == 2
    assert all(len(line.rstrip()) <= columns for line in drawn)


def test_the_cursor_is_never_left_hidden(terminal):
    progress = Progress("text", terminal)
    progress.moved(lambda: MOMENT)
    written = terminal.getvalue()  # as a SIGKILL would leave it
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l")


def test_what_is_said_stands_alone(terminal):
    progress = Progress("text", terminal)
    with progress.showing():
        progress.moved(lambda: MOMENT)
        before = len(terminal.getvalue())
        progress.event("promoted", run="r", number=3)
        said = terminal.getvalue()[before:]
        assert "\x1b[2K" in said  # the lines are erased first
        assert said.endswith("promoted   r, entry 3 of the log\n")
        progress.moved(lambda: MOMENT)
        before = len(terminal.getvalue())
    assert "\x1b[2K" in terminal.getvalue()[before:]


def test_it_is_taken_away_when_the_training_fails(terminal):
    progress = Progress("text", terminal)
    ending = contextlib.ExitStack()
    ending.enter_context(progress.showing())
    progress.moved(lambda: MOMENT)
    before = len(terminal.getvalue())
    error = RuntimeError()
    assert not ending.__exit__(RuntimeError, error, None)
    assert "\x1b[2K" in terminal.getvalue()[before:]


def test_a_checkpoint_of_another_thread_is_counted_and_hides_nothing(terminal):
    progress = Progress("text", terminal)
    with progress.showing():
        progress.moved(lambda: MOMENT)
        before = len(terminal.getvalue())
        saved = {"step": 7, "uri": "u"}
        thread = threading.Thread(
            target=lambda: progress.event("checkpoint_saved", **saved), daemon=True
        )
        thread.start()
        thread.join(10)
        assert len(terminal.getvalue()) == before
        progress.moved(lambda: MOMENT)
        assert "1 checkpoint, the last 0 s ago" in terminal.plain


@pytest.mark.parametrize(
    ("log", "quiet", "is_terminal", "variables"),
    [
        ("json", False, True, {}),
        ("auto", False, False, {}),
        ("text", False, False, {}),  # as `make train > log`
        ("text", True, True, {}),
        ("text", False, True, {"TERM": "dumb"}),
    ],
)
def test_nobody_else_sees_it(terminal, monkeypatch, log, quiet, is_terminal, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = terminal if is_terminal else io.StringIO()
    progress = Progress(log, stream, quiet=quiet)
    with progress.showing():
        progress.moved(lambda: pytest.fail("computed for nobody"))
    assert stream.getvalue() == ""


def test_a_terminal_that_is_gone_ends_no_run(terminal, monkeypatch, capsys):
    def gone(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(terminal, "write", gone)
    progress = Progress("text", terminal)
    with progress.showing():
        progress.moved(lambda: MOMENT)
        progress.event("promoted", run="r", number=3)
    told = capsys.readouterr().err
    assert told.count("the log can't be written") == 1


def test_quiet_tells_of_warnings_and_failures_alone():
    stream = io.StringIO()
    progress = Progress("text", stream, quiet=True)
    progress.event("promoted", run="r", number=3)
    progress.event("checkpoint_kept", uri="u", reason="why")
    progress.event("failed", error="e", code=65)
    assert stream.getvalue().splitlines() == [
        "warning    an old checkpoint stays: why",
        "mnist-job: error: e (exit 65)",
    ]


@pytest.mark.slow
def test_a_real_training_in_a_real_terminal(small_mnist, tmp_path):
    ours, its = pty.openpty()
    flags = ["--data", small_mnist, "--epochs", "2", "--output", str(tmp_path), "--run-id", "r"]
    process = subprocess.Popen(
        [sys.executable, "-m", "job", "train", *flags],
        stdout=its,
        stderr=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
    )
    os.close(its)
    written = b""
    while True:
        try:
            if not (some := os.read(ours, 65_536)):
                break
        except OSError:  # how Linux says that the other end is closed
            break
        written += some
    os.close(ours)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    text = written.decode()
    assert "step 63 of 126" in ESCAPE.sub("", text)
    lines = [ESCAPE.sub("", line).strip() for line in text.split("\r\n")]
    # What stays on the screen is what a file would hold.
    assert [line[:11].strip() for line in lines if line.startswith(("epoch 1/2", "accuracy"))][
        -1
    ] == ("accuracy")
    assert text.rfind("\x1b[2K") < text.rfind("mistakes")


def test_rich_is_loaded_only_to_draw():
    program = (
        "import io, sys\n"
        "from job.process.progress import Progress\n"
        "import job.training.checkpoint, job.cli\n"
        "progress = Progress('json', io.StringIO())\n"
        "progress.moved(lambda: None)\n"
        "progress.event('promoted', run='r', number=3)\n"
        "assert 'rich' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

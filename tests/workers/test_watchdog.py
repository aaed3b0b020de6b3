"""What a worker and its watcher make of each other's words and silence, in real processes."""

import subprocess
import sys
import threading
import time

import pytest

from job.errors import TemporaryError
from job.process.preemption import Preemption
from job.process.progress import Progress
from job.workers import watchdog
from job.workers.watchdog import Link, Signs

# A watcher that says nothing after a first word, and its worker.
SILENT = """
import os, subprocess, sys, time
from job.workers import watchdog
link, theirs = watchdog.open_link()
child = f"import os, sys, time; from job.process.progress import Progress; {sys.argv[1]}"
worker = subprocess.Popen(
    [sys.executable, "-c", child],
    env=os.environ | {watchdog.LINK: str(theirs.fileno())},
    pass_fds=[theirs.fileno()],
)
theirs.close()
link.say("")
time.sleep(60)
"""
WORKER = (
    "from job.workers import watchdog; watchdog._BEAT_SECONDS = 0.1; "
    "watchdog._AWAKEN_BEATS, watchdog._END_BEATS = 5, 10; watchdog.start(Progress('json')); "
)


@pytest.mark.parametrize("then", ["time.sleep(60)", "watchdog.leave(0)"])
def test_a_watcher_that_cannot_be_woken_is_ended_by_its_worker(then):
    """Even if that is through already: nobody else would notice."""
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", SILENT, WORKER + "time.sleep(0.3); " + then],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert ended.returncode == -9
    assert time.monotonic() - began < 30
    assert '"event": "watcher_silent"' in ended.stdout  # and the worker has ended: this is the end


@pytest.fixture
def ends():
    """Return what a watcher saw of its worker, and the worker's end."""
    link, theirs = watchdog.open_link()
    yield Signs(link), Link(theirs)
    link.connection.close()
    theirs.close()


@pytest.fixture
def clock(monkeypatch):
    """Return a list whose one number is the time."""
    now = [1000.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    return now


def after(signs: Signs, clock: list[float], seconds: float) -> None:
    """Let time pass in the steps in which a watcher looks."""
    for _ in range(round(2 * seconds)):
        clock[0] += 0.5
        signs.look(None)


def test_silence_is_allowed_until_the_cluster_has_formed(clock, ends):
    signs, worker = ends
    worker.say("(")
    after(signs, clock, watchdog.FORMING_SECONDS - 1)
    assert (signs.trouble(), signs.doubt()) == (None, None)
    worker.say(")")
    after(signs, clock, watchdog.FROZEN_SECONDS - 1)
    assert signs.trouble() is None
    assert signs.doubt() == "showed no life for 18 s"
    after(signs, clock, 2)
    assert signs.trouble() == "showed no life for 20 s"


def test_one_that_never_forms_a_cluster_is_ended(clock, ends):
    signs, _ = ends
    after(signs, clock, watchdog.FORMING_SECONDS + 1)
    assert signs.trouble() == "showed no life for 121 s"


def lives(signs: Signs, worker: Link, clock: list[float], seconds: float) -> None:
    for _ in range(round(seconds)):
        worker.say(".")
        after(signs, clock, 1)


@pytest.mark.parametrize(("last", "with_others"), [("+0.5", False), ("(", True)])
def test_living_is_not_moving(clock, ends, last, with_others):
    signs, worker = ends
    for line in ("(", ")", "+0.5", last):
        worker.say(line)
    lives(signs, worker, clock, watchdog.HUNG_SECONDS)
    assert signs.trouble() is None
    assert (signs.doubt() is None) is with_others
    lives(signs, worker, clock, 2)
    assert signs.trouble().startswith("did no step for 3")
    assert signs.hangs_with_others() is with_others
    worker.say(")")
    lives(signs, worker, clock, 1)
    assert signs.trouble() is None


def test_before_training_and_after_it_nothing_is_due(clock, ends):
    signs, worker = ends
    for lines in (["(", ")"], ["+0.5", "-"], ["("]):
        for line in lines:
            worker.say(line)
        lives(signs, worker, clock, 600)
        assert (signs.trouble(), signs.doubt()) == (None, None)
    assert signs.waits


def test_long_steps_are_given_their_time(clock, ends):
    signs, worker = ends
    worker.say("+100.0")
    lives(signs, worker, clock, 490)
    assert signs.trouble() is None
    lives(signs, worker, clock, 20)
    assert signs.trouble() is not None


def test_what_a_paused_watcher_did_not_see_is_no_silence(clock, ends):
    signs, worker = ends
    for line in ("(", ")", "+0.5"):
        worker.say(line)
    signs.look(None)
    clock[0] += 300
    assert signs.look(None) == 300
    assert (signs.trouble(), signs.doubt()) == (None, None)
    clock[0] += 1
    assert signs.look(None) == 0


def test_words_are_passed_on(clock, ends):
    signs, worker = ends
    clock[0] += 1
    signs.look("worker 1 is lost")
    assert worker.hear() == ["worker 1 is lost"]
    signs.look("more")
    assert worker.hear() == []  # one a second
    worker.say("?")
    signs.look(None)
    assert worker.hear() == [""]  # but at once to who wants to go
    worker.say("!its reason")
    signs.look(None)
    assert signs.why == "its reason"


def test_that_all_are_ready_is_said_at_once(clock, ends):
    signs, worker = ends
    worker.say("=")
    signs.look(None)
    assert signs.ready
    assert worker.hear() == [""]
    signs.look(None, all_ready=True)
    assert worker.hear() == ["="]
    clock[0] += 1
    signs.look("worker 1 is lost", all_ready=True)
    assert worker.hear() == ["=worker 1 is lost"]


@pytest.fixture
def pair(monkeypatch):
    """Return a watcher's end, of a worker that this process is."""
    link, theirs = watchdog.open_link()
    monkeypatch.setattr(watchdog, "_worker", watchdog._Worker(Link(theirs), Progress("json")))
    yield link
    link.connection.close()
    theirs.close()


def test_who_waits_for_all_to_be_ready_hears_of_a_loss_and_of_a_stop(pair):
    watchdog._worker.fault = "worker 1 (b:1) is lost: it ended with exit code 70"
    with pytest.raises(TemporaryError, match="exit code 70: run all workers again"):
        watchdog.ready(Preemption(), Progress("json"))
    watchdog._worker.fault = ""
    with pytest.raises(TemporaryError, match="--time-limit 1 reached"):
        watchdog.ready(Preemption(1, spent_seconds=1), Progress("json"))
    watchdog._worker.all_ready.set()
    watchdog.ready(Preemption(), Progress("json"))
    assert pair.hear() == ["="] * 3


def test_only_what_is_repeated_is_lost_where_there_is_no_room(pair):
    """As where an epoch is one chunk of milliseconds, and the watcher looks ten times a second."""
    began = time.monotonic()
    for _ in range(10_000):
        watchdog.moved(0.001)
    assert time.monotonic() - began < 1
    heard = []

    def listen_late():
        time.sleep(0.3)
        while "?" not in heard and time.monotonic() < began + 10:
            heard.extend(pair.hear())

    listener = threading.Thread(target=listen_late)
    listener.start()
    with watchdog.together():
        watchdog.rests()
    watchdog._say("!why")
    watchdog._say("?")
    listener.join()
    assert heard[-5:] == ["(", "-", ")", "!why", "?"]
    assert 0 < len(heard) < 10_000


def test_who_does_not_listen_holds_nobody_up():
    link, theirs = watchdog.open_link()
    for _ in range(100_000):
        link.say("x" * 100)
    assert set(Link(theirs).hear()) == {"x" * 100}
    theirs.close()
    with pytest.raises(OSError, match="pipe"):
        link.say("")
    link.connection.close()

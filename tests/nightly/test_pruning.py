"""Which runs go and which stay, and that a removal which was broken off anywhere goes on."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import Finished

from job import storage
from job.config import RunConfig
from job.errors import ConflictError, DataError, OutputError, UsageError
from job.nightly import champions, pruning
from job.nightly.champions import Log, Model
from job.nightly.pruning import Fate, Rules
from job.results import publishing
from job.results.publishing import RunFolder
from job.storage import Place, parse

NOW = datetime.now(UTC)
HOUR, DAY = 3600.0, 86_400.0
TRAINING_SECONDS = 60.0
FILES = {
    "model.keras": b"archive " * 100,
    "model_weights.h5": b"weights " * 200,
    "predictions.safetensors": b"said " * 50,
}
CHECKPOINT = "checkpoints/0000000070-ab.safetensors"
Command = Callable[..., Finished]


@pytest.fixture(params=["file", "s3", "gs"])
def output(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    """Return an empty output of each kind."""
    if request.param == "file":
        return parse(str(tmp_path / "out"))
    server = request.getfixturevalue("stores")[request.param]
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return parse(f"{server.root}/{tmp_path.name}/{id(tmp_path)}")


@pytest.fixture
def local(tmp_path: Path) -> Place:
    """Return an empty output on this machine."""
    return parse(str(tmp_path / "out"))


def started(age_seconds: float) -> str:
    return (NOW - timedelta(seconds=age_seconds)).isoformat(timespec="milliseconds")


def begin(output: Place, run: str, age_seconds: float, attempt: int = 1) -> None:
    """Leave what a run has that was begun so long ago and never completed."""
    record = {"attempt": attempt, "config_sha256": "c" * 64, "started": started(age_seconds)}
    put(output, f"{run}/attempts/{attempt:04}.json", record)
    storage.create(output / f"{run}/{CHECKPOINT}", b"state")


def complete(output: Place, run: str, age_seconds: float, **more: Any) -> None:
    """Leave a run that has been complete for so long."""
    begin(output, run, age_seconds + TRAINING_SECONDS)
    for name, data in FILES.items():
        storage.create(output / f"{run}/{name}", data)
    metrics = {
        "run_id": run,
        "started": started(age_seconds + TRAINING_SECONDS),
        "timing": {"total_seconds": TRAINING_SECONDS},
        "artifacts": [{"path": name, "size": len(data)} for name, data in FILES.items()],
    }
    put(output, f"{run}/metrics.json", metrics | more)


def put(output: Place, path: str, document: Any) -> None:
    storage.create(output / path, json.dumps(document).encode())


def promote(output: Place, *runs: str, anchor: str | None = None) -> None:
    """Append an entry to the log for each of `runs`, even of one whose removal was begun.

    `Log.append` looks whether it was; so does a writer who looked just before that.
    """
    for run in runs:
        champion, best = model(run), model(anchor or run)
        entry = champions.promotion(Log(output).newest(), champion, best, why="a test")
        storage.create(
            Log(output).place(entry.number), publishing.to_json(champions.document(entry))
        )


def model(run: str) -> Model:
    return Model(run, "mlp", f"weights of {run}", "data", "test", 1 if run == "best" else 0, 9)


def plan(output: Place, **rules: Any) -> list[Fate]:
    return pruning.plan(output, Rules(**rules), NOW)


def going(fates: list[Fate]) -> list[str]:
    return [fate.found.run for fate in fates if fate.goes]


def why(fates: list[Fate], run: str) -> str:
    [fate] = [fate for fate in fates if fate.found.run == run]
    return fate.why


def everything(place: Place) -> dict[str, bytes]:
    """Return all that lies in a folder, by path."""
    found = {}
    below = storage.folders(place)
    for name in storage.names(place):
        if name in below:
            deeper = everything(place / name)
            found |= {f"{name}/{path}": data for path, data in deeper.items()}
        else:
            found[name] = storage.read(place / name, 10**6)
    return found


# --- which go -----------------------------------------------------------------------------------


def test_the_newest_complete_runs_stay(local: Place) -> None:
    for number, days in enumerate([3, 1, 5, 2, 4]):
        complete(local, f"run-{number}", days * DAY)
    fates = plan(local, keep=2)
    assert [fate.found.run for fate in fates] == ["run-2", "run-4", "run-0", "run-3", "run-1"]
    assert going(fates) == ["run-2", "run-4", "run-0"]
    assert why(fates, "run-3") == "one of the newest 2"
    assert why(fates, "run-2") == "none of the newest 2, and not named by the log"
    assert going(plan(local, keep=5)) == []


def test_a_run_is_as_old_as_its_completion(local: Place) -> None:
    """One that trained for two days, and one that was begun and completed meanwhile."""
    complete(local, "long", 2 * DAY)
    complete(local, "short", DAY, started=started(4 * DAY), timing={"total_seconds": 3 * DAY})
    assert going(plan(local, keep=1)) == ["long"]


def test_what_the_newest_entries_of_the_log_name_stays(local: Place) -> None:
    for number in range(6):
        complete(local, f"run-{number}", (20 - number) * DAY)
    complete(local, "best", 30 * DAY)
    complete(local, "last", DAY)
    promote(local, "run-0", "run-1")
    promote(local, "run-2", "run-3", anchor="best")
    assert going(plan(local, keep=1, keep_entries=2)) == ["run-0", "run-1", "run-4", "run-5"]
    fates = plan(local, keep=1, keep_entries=3)
    assert going(fates) == ["run-0", "run-4", "run-5"]
    assert why(fates, "run-3") == "champion in entry 4 of the log"
    assert why(fates, "best") == "anchor in entry 4 of the log"
    assert going(plan(local, keep=1, keep_entries=99)) == ["run-4", "run-5"]


def test_a_run_that_may_be_running_stays_and_one_that_was_left_goes(local: Place) -> None:
    begin(local, "left", 8 * DAY)
    begin(local, "again", 8 * DAY)
    begin(local, "again", 2 * HOUR, attempt=2)
    put(local, "left/attempts/0001-end.json", {"started": "never", "code": 143})
    fates = plan(local)
    assert going(fates) == ["left"]
    assert why(fates, "left") == "begun over 7 days ago, and never complete"
    assert why(fates, "again") == "begun less than 7 days ago: it may be running"
    assert going(plan(local, leftovers_after_seconds=HOUR)) == ["left", "again"]


def test_an_incomplete_run_that_the_log_names_stays(local: Place) -> None:
    begin(local, "lost", 8 * DAY)
    promote(local, "lost")
    fates = plan(local)
    assert going(fates) == []
    assert why(fates, "lost").endswith("it is not complete: train it again")


def test_what_a_night_may_be_judging_stays(local: Place) -> None:
    complete(local, "judged", HOUR - 60)
    complete(local, "decided", HOUR + 60)
    complete(local, "newest", 0)
    assert going(plan(local, keep=1)) == ["decided"]


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("metrics.json", b"{"),
        ("metrics.json", b"{}"),
        ("metrics.json", b"[]"),
        ("metrics.json", b'{"run_id": "run", "timing": {"total_seconds": 1e400}}'),
        ("metrics.json", b'{"run_id": "run", "timing": {"total_seconds": "1"}}'),
        ("metrics.json", b'{"run_id": "run", "timing": [], "artifacts": []}'),
        ("attempts/0001.json", b'{"config_sha256": "c", "started": "2001-01-01T00:00:00"}'),
        ("attempts/0001.json", b'{"config_sha256": "c", "started": 1}'),
        ("attempts/0001.json", b'{"started": "2001-01-01T00:00:00+00:00"}'),
        ("pruned.json", b"{}"),
        ("pruned.json", b'{"run": "another", "since": "2001-01-01T00:00:00+00:00"}'),
    ],
)
def test_what_is_not_understood_stays(local: Place, path: str, content: bytes) -> None:
    storage.create(local / f"run/{path}", content)
    [fate] = plan(local)
    assert (fate.goes, fate.found.state) == (False, "unknown")
    assert fate.why.startswith("its records can't be understood")
    promote(local, "run")
    assert why(plan(local), "run").startswith("champion in entry 1 of the log; its records can't")


def test_a_run_that_somebody_moved_stays(local: Place) -> None:
    """Whoever gave it another name wants it."""
    complete(local, "precious", 9 * DAY, run_id="old")
    complete(local, "new", DAY)
    fates = plan(local, keep=1)
    assert going(fates) == []
    assert "it was made as 'old'" in why(fates, "precious")


def test_what_is_no_run_is_not_looked_at(local: Place) -> None:
    for path in ("champion/note.json", "nights/a.json", "gates/a.json", "shards/1/a.json"):
        storage.create(local / path, b"{}")
    storage.create(local / "data/train-0001.npz", b"x")
    storage.create(local / "metrics.json", b"{}")
    storage.create(local / "-not a run-/metrics.json", b"{}")
    storage.create(local / "elsewhere/attempts", b"{}")
    storage.create(local / "empty/attempts/0001-end.json", b"{}")
    complete(local, "run", 9 * DAY)
    (local.path / "link").symlink_to("run")
    assert [fate.found.run for fate in plan(local)] == ["run"]
    assert plan(parse(f"{local}/nothing")) == []


def test_a_log_that_cannot_be_understood_names_nobody_knows_what(local: Place) -> None:
    complete(local, "old", 9 * DAY)
    complete(local, "new", DAY)
    storage.create(local / "champion/000001.json", b"{}")
    with pytest.raises(DataError, match="no entry of a champion log"):
        plan(local, keep=1)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"keep": 0}, "--keep must be 1 or more, not 0"),
        ({"keep_entries": 0}, "--keep-entries must be 1 or more, not 0"),
        ({"leftovers_after_seconds": 3599.0}, "--leftovers-after must be 1h or more, not 3599 s"),
    ],
)
def test_rules_that_would_take_what_is_in_use_are_refused(rules: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Rules(**rules)


# --- how they go --------------------------------------------------------------------------------


def test_a_run_goes_whole_and_nothing_else_does(output: Place, command: Command) -> None:
    complete(output, "old", 9 * DAY)
    storage.create(output / "old/tensorboard/0001-0.tfevents", b"events")
    storage.create(output / "old/attempts/deeper/still/record", b"x")
    begin(output, "left", 9 * DAY)
    complete(output, "champion-of-old", 8 * DAY)
    complete(output, "new", DAY)
    complete(output, "old-er", 2 * DAY)
    promote(output, "champion-of-old", "old-er")
    for path in ("nights/old.json", "gates/old.01.json", "shards/0/old.json", "old.json"):
        storage.create(output / path, b"{}")
    before = everything(output)
    shown = command("prune", "--output", output, "--keep", 1)
    assert shown.code == 0, shown.err
    assert "goes   old " in shown.out
    assert "2 of 5 runs go, which published 0.0 MiB: nothing was removed, give --yes" in shown.out
    assert everything(output) == before
    done = command("prune", "--output", output, "--keep", 1, "--yes")
    assert done.code == 0, done.err
    assert "removed old\n" in done.out
    assert done.out.endswith("removed left\nremoved old\n2 of 5 runs were removed\n")
    wanted = {p: data for p, data in before.items() if not p.startswith(("old/", "left/"))}
    assert everything(output) == wanted
    if output.kind == "file":  # elsewhere a folder is what has objects, or a store's own affair
        assert {"old", "left"} & set(storage.names(output)) == set()
    again = command("prune", "--output", output, "--keep", 1, "--yes")
    assert "0 of 3 runs were removed" in again.out


def test_the_table_says_of_each_run_what_it_is_and_why(local: Place, command: Command) -> None:
    complete(local, "champ", 9 * DAY)
    begin(local, "a-longer-name", 9 * DAY)
    promote(local, "champ")
    shown = command("prune", "--output", local).out.splitlines()
    when = f"{NOW - timedelta(days=9):%Y-%m-%d %H:%M}"
    assert shown[0] == (
        f"goes   a-longer-name  incomplete  {when}  -        "
        "begun over 7 days ago, and never complete"
    )
    assert shown[1].startswith(f"stays  champ          complete    {when}  0.0 MiB  champion in")
    assert len(shown) == 3


def test_a_link_in_a_run_goes_and_what_it_leads_to_stays(local: Place, tmp_path: Path) -> None:
    complete(local, "old", 9 * DAY)
    complete(local, "new", DAY)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (local.path / "old" / "link").symlink_to(tmp_path / "precious")
    [fate] = [fate for fate in plan(local, keep=1) if fate.goes]
    assert pruning.remove(local, fate, Rules(keep=1)) is None
    assert storage.names(local) == ["new"]
    assert (tmp_path / "precious" / "file").exists()


def test_a_tombstone_says_who_and_why(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    complete(local, "old", 9 * DAY)
    complete(local, "new", DAY)
    [fate] = [fate for fate in plan(local, keep=1) if fate.goes]
    monkeypatch.setattr(storage, "remove", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pruning.remove(local, fate, Rules(keep=1))
    tombstone = publishing.read_json(local / "old/pruned.json")
    assert (tombstone["run"], tombstone["state"], tombstone["why"]) == ("old", "complete", fate.why)
    assert tombstone["who"] == champions.who()
    assert datetime.fromisoformat(tombstone["time"]) >= NOW


@pytest.mark.parametrize("flags", ["--keep 0", "--keep x", "--leftovers-after 7", "--output a://b"])
def test_wrong_flags_are_one_line_and_remove_nothing(
    local: Place, command: Command, flags: str
) -> None:
    begin(local, "left", 9 * DAY)
    said = command("prune", "--output", local, "--yes", *flags.split())
    assert (said.code, said.out, said.err.count("\n")) == (64, "", 1)
    assert storage.names(local) == ["left"]


def test_pruning_imports_no_tensorflow(local: Place) -> None:
    begin(local, "left", 9 * DAY)
    program = "import sys; from job import cli; assert cli.main(sys.argv[1:]) == 0; "
    program += "assert not {'tensorflow', 'keras', 'h5py', 'asyncio'} & set(sys.modules)"
    flags = ["prune", "--output", str(local), "--yes"]
    subprocess.run([sys.executable, "-c", program, *flags], check=True, capture_output=True)
    assert storage.names(local) == []


# --- a removal that is broken off -----------------------------------------------------------------


def broken_off(output: Place, after: int) -> None:
    """Let the removal of the run `old` be broken off after so many removals."""
    remove, left = storage.remove, [after]

    def failing(place: Place) -> None:
        if not left[0]:
            raise OutputError("no more")
        left[0] -= 1
        remove(place)

    [fate] = [fate for fate in plan(output, keep=1) if fate.found.run == "old"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "remove", failing)
        with pytest.raises(OutputError):
            pruning.remove(output, fate, Rules(keep=1))


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_run_that_was_half_removed_goes_whatever_is_kept_now(
    local: Place, command: Command, after: int
) -> None:
    complete(local, "old", 9 * DAY)
    complete(local, "new", DAY)
    broken_off(local, after)
    shown = command("prune", "--output", local, "--keep", 9)
    assert "its removal was begun, and not ended" in shown.out
    assert command("prune", "--output", local, "--keep", 9, "--yes").code == 0
    assert storage.names(local) == ["new"]


def test_what_is_left_of_a_run_goes_though_it_is_not_understood(local: Place) -> None:
    complete(local, "old", 9 * DAY)
    complete(local, "new", DAY)
    broken_off(local, 1)
    (local.path / "old/attempts/0001.json").write_bytes(b"{")
    [fate] = [fate for fate in plan(local, keep=1) if fate.goes]
    assert pruning.remove(local, fate, Rules(keep=1)) is None
    assert storage.names(local) == ["new"]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_run_that_was_half_removed_and_is_named_now_stays_and_can_be_trained(
    local: Place, command: Command, after: int
) -> None:
    complete(local, "old", 9 * DAY)
    complete(local, "new", DAY)
    broken_off(local, after)
    left = everything(local / "old")
    promote(local, "old")
    shown = command("prune", "--output", local, "--keep", 1)
    assert "its removal was begun, and will be taken back" in shown.out
    done = command("prune", "--output", local, "--keep", 1, "--yes")
    assert "kept old: champion in entry 1 of the log" in done.out
    del left["pruned.json"]
    assert everything(local / "old") == left
    RunFolder(local / "old").check_kept()
    shown = command("prune", "--output", local, "--keep", 1)
    assert ("it is not complete: train it again" in shown.out) == (after == 1)


# --- races ----------------------------------------------------------------------------------------


def meanwhile(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen just before the next tombstone is written."""
    create, waiting = storage.create, [True]

    def created(place: Place, data: bytes) -> None:
        if place.name == "pruned.json" and waiting:
            waiting.clear()
            happens()
        create(place, data)

    monkeypatch.setattr(storage, "create", created)


def test_a_run_that_was_promoted_meanwhile_stays(
    output: Place, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(output, "first", 8 * DAY)
    complete(output, "second", 7 * DAY)
    complete(output, "new", DAY)
    before = everything(output / "second")
    meanwhile(monkeypatch, lambda: promote(output, "second"))
    done = command("prune", "--output", output, "--keep", 1, "--yes")
    assert done.code == 0
    assert "kept second: champion in entry 1 of the log\n1 of 3 runs were removed" in done.out
    assert everything(output / "second") == before
    assert everything(output / "first") == {}


@pytest.mark.parametrize("after", [None, 0, 1])
def test_a_run_that_was_begun_again_meanwhile_stays(
    local: Place, monkeypatch: pytest.MonkeyPatch, after: int | None
) -> None:
    """By a training which looked for the tombstone before it was written."""
    begin(local, "old", 9 * DAY)
    if after is not None:
        broken_off(local, after)
        begin(local, "old", 0, attempt=2)
    fates = plan(local)
    assert going(fates) == ["old"]
    meanwhile(monkeypatch, lambda: begin(local, "old", 0, attempt=2))
    assert pruning.remove(local, fates[0], Rules()) == "begun again meanwhile"
    assert "attempts/0002.json" in everything(local / "old")
    RunFolder(local / "old").check_kept()


def test_two_that_prune_at_once_remove_the_same(
    output: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(output, "old", 9 * DAY)
    complete(output, "new", DAY)
    fates = plan(output, keep=1)
    meanwhile(monkeypatch, lambda: pruning.remove(output, fates[0], Rules(keep=1)))
    assert pruning.remove(output, fates[0], Rules(keep=1)) is None
    assert everything(output / "old") == {}


@pytest.mark.parametrize("after", [0, 1])
def test_what_another_began_to_remove_meanwhile_is_removed(
    local: Place, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    complete(local, "old", 9 * DAY)
    complete(local, "new", DAY)
    fates = plan(local, keep=1)

    def begun() -> None:
        put(local, "old/pruned.json", {"run": "old", "since": started(9 * DAY), "who": "another"})
        for path in ("metrics.json", "model.keras")[:after]:
            storage.remove(local / f"old/{path}")

    meanwhile(monkeypatch, begun)
    assert pruning.remove(local, fates[0], Rules(keep=1)) is None
    assert storage.names(local) == ["new"]


def test_a_claim_at_any_moment_of_a_removal_is_refused_or_keeps_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that goes on has its record; one whose record is taken is told, and ends."""
    changes, refused, reached = 0, [], True
    while reached:
        config = RunConfig(output=str(tmp_path / f"{changes}"), run_id="old")
        local, folder = parse(config.output), RunFolder(config.place)
        then = {"started": started(9 * DAY)}
        assert folder.claim(config, "data", then) == 1
        [fate] = plan(local)
        left = [changes]
        claimed: list[int | None] = []

        def claim(folder: RunFolder = folder, config: RunConfig = config) -> int | None:
            with suppress(ConflictError):
                if folder.finished(config) is None:
                    return folder.claim(config, "data", {"started": started(0)})
            return None

        def counted(
            verb: Callable[..., Any],
            left: list[int] = left,
            claimed: list[int | None] = claimed,
            claim: Callable[[], int | None] = claim,
        ) -> Callable[..., Any]:
            def wrapped(*arguments: Any) -> Any:
                left[0] -= 1
                if left[0] == -1:
                    claimed.append(claim())
                return verb(*arguments)

            return wrapped

        with monkeypatch.context() as patch:
            for name in ("create", "remove", "remove_folder"):
                patch.setattr(storage, name, counted(getattr(storage, name)))
            stayed = pruning.remove(local, fate, Rules())
        reached = bool(claimed)
        if claimed and claimed[0] is not None:
            assert storage.exists(folder.attempt(claimed[0]))
            folder.check_kept()
        else:
            assert stayed is None
            assert storage.names(local) == []
        refused.append(reached and claimed == [None])
        changes += 1
    assert refused[0] is False
    assert any(refused)


def test_a_run_that_is_being_removed_is_not_trained(
    trained: Path, tmp_path: Path, command: Command
) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    output = parse(str(tmp_path / "out"))
    for path in ("metrics.json", *FILES):
        storage.create(output / f"trained/{path}", (trained / path).read_bytes())
    flags = ["--data", metrics["data"]["uri"], "--epochs", 2, "--output", output]
    assert command("train", *flags, "--run-id", "trained").code == 0
    storage.create(output / "trained/pruned.json", b"{}")
    for _ in range(2):
        refused = command("train", *flags, "--run-id", "trained")
        assert refused.code == 73
        assert "trained is being removed, as pruned.json in it says" in refused.err
        assert storage.names(output / "trained/attempts") == []
        storage.remove(output / "trained/metrics.json")


# --- a process that is killed -------------------------------------------------------------------

# Prunes as often as it is asked, each time in a process that kills itself before its n-th change.
KILLER = """
import os, signal, sys
from job import cli, storage
from job.nightly import pruning
from job.storage import gcs, objects, retrying, s3

def dying(verb):
    def counted(*arguments):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return verb(*arguments)
    return counted

print("ready", flush=True)
for line in sys.stdin:
    output, changes = line.split()
    child = os.fork()
    if not child:
        left = [int(changes)]
        os.dup2(2, 1)
        for name in ("create", "remove", "remove_folder"):
            setattr(storage, name, dying(getattr(storage, name)))
        os._exit(cli.main(["prune", "--output", output, "--keep", "1", "--yes"]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@contextmanager
def killer() -> Iterator[Callable[[Place, int], int]]:
    """Give a function that prunes, is killed before so many changes, and returns the exit code."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin
        assert process.stdout
        reader, writer = process.stdout, process.stdin
        assert reader.readline() == "ready\n"

        def prune(output: Place, changes: int) -> int:
            writer.write(f"{output} {changes}\n")
            return int(reader.readline())

        yield prune
        writer.close()


@pytest.mark.parametrize(
    "output",
    ["file", *(pytest.param(scheme, marks=pytest.mark.slow) for scheme in ("s3", "gs"))],
    indirect=True,
)
def test_killed_before_any_change_it_goes_on(output: Place, command: Command) -> None:
    changes, killed = 0, True
    with killer() as prune:
        while killed:
            here = output / f"{changes}"
            complete(here, "old", 9 * DAY)
            complete(here, "new", DAY)
            storage.create(here / "champion/note", b"x")
            kept = {p: data for p, data in everything(here).items() if not p.startswith("old/")}
            code = prune(here, changes)
            killed = code == -9
            assert killed or code == 0
            left = set(everything(here / "old"))
            if killed and changes:
                assert "pruned.json" in left or not left
                with suppress(ConflictError):
                    RunFolder(here / "old").check_kept()
                    assert not left
            if "metrics.json" in left:  # who trusts that finds all that it names
                assert left >= {*FILES, CHECKPOINT, "attempts/0001.json"}
            done = command("prune", "--output", here, "--keep", 1, "--yes")
            assert done.code == 0, done.err
            assert everything(here) == kept  # an empty folder may be left of the last moment
            changes += 1
    # The tombstone comes and goes; metrics, three files, a checkpoint, a record; three folders.
    assert changes == 2 + 1 + 3 + 1 + 1 + 3 + 1

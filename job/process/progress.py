"""What a run says while it works: a few lines for a person, or one JSON object a line."""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from job.errors import OutputError
from job.process.liveness import Liveness

if TYPE_CHECKING:
    from job.process.display import Display

LogFormat = Literal["auto", "text", "json"]


@dataclass(frozen=True)
class Moment:
    """Where a training is."""

    epoch: int
    """The one that is being trained, counted from 1."""
    epochs: int
    step: int
    """Optimizer steps done, of all epochs."""
    steps: int
    loss: float
    """Mean over the steps of this epoch so far."""
    accuracy: float
    """The same, of the training images."""
    batch_size: int
    """Images per step."""


class Follower(Protocol):
    """Who follows a run from aside. It is quick, and raises nothing: the run waits for it."""

    def moved(self, moment: Callable[[], Moment]) -> None:
        """Hear that the training moves, and ask `moment` where it is, if that is of interest."""

    def heard(self, name: str, details: Mapping[str, Any]) -> None:
        """Hear of an event."""


class Progress:
    """Reports events of a run, each in the one format chosen at the start.

    An event has a name and fields; for a person the fields are put into a sentence, for a log
    collector they are a JSON object with time and level. Whoever reports is alive: each event is
    a beat as well, and between them there is `beat`. On a terminal a person sees between events how
    far the training is. What can't be reported stops no run: that is said once, on standard error.
    """

    def __init__(
        self,
        log_format: str = "auto",
        stream: TextIO | None = None,
        liveness: Liveness | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        """Write to `stream` (standard output).

        Args:
            log_format: `text`, `json`, or `auto`: text on a terminal, else JSON.
            stream: standard output if None.
            liveness: touched at each beat.
            quiet: tell of warnings and failures alone.
        """
        self._liveness = liveness or Liveness()
        self._stream = stream or sys.stdout
        self._text = log_format == "text" or (log_format == "auto" and self._stream.isatty())
        self._quiet = quiet
        self._is_terminal = self._text and self._stream.isatty()
        self._display: Display | None = None
        self._drawing = threading.RLock()  # checkpoints are told of by a thread of their own
        self._troubles: set[str] = set()
        self._follower: Follower | None = None

    def followed_by(self, follower: Follower) -> None:
        """Let `follower` hear of all that is reported from now on."""
        self._follower = follower

    def beat(self) -> None:
        """Show that the run moves."""
        try:
            self._liveness.beat()
        except OutputError as error:
            self._trouble("liveness_not_shown", reason=str(error))

    def event(self, name: str, **details: Any) -> None:
        """Report the event `name`; `details` must be JSON-serialisable."""
        self.beat()
        if self._follower is not None:
            self._follower.heard(name, details)
        if self._quiet and name not in _WARNINGS and name != "failed":
            return
        line = self._line(name, details)
        with self._drawing, self._losing_no_run():
            if name == "checkpoint_saved" and self._display is not None:
                self._display.saved()
            if line:
                if self._display is not None:
                    self._display.hide()
                write_line(self._stream, line)

    def moved(self, moment: Callable[[], Moment]) -> None:
        """Show that the training moves, and on a terminal where it is, which `moment` returns."""
        self.beat()
        if self._follower is not None:
            self._follower.moved(moment)
        if not self._is_terminal or self._quiet or os.environ.get("TERM") == "dumb":
            return
        with self._drawing, self._losing_no_run():
            if self._display is None:
                from job.process.display import Display  # noqa: PLC0415  it takes a tenth of a second

                self._display = Display(self._stream)
            self._display.show(moment())

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """Leave nothing on the terminal of what `moved` showed there."""
        try:
            yield
        finally:
            with self._drawing, self._losing_no_run():
                if self._display is not None:
                    self._display.hide()
                    self._display = None

    @contextlib.contextmanager
    def _losing_no_run(self) -> Iterator[None]:
        """Say that the log can't be written, once, in place of raising it."""
        try:
            yield
        except (OSError, ValueError) as error:
            if not isinstance(error, BrokenPipeError):  # a reader leaves on purpose, as `head` does
                self._trouble("log_not_written", reason=reason(error))

    def _line(self, name: str, details: Mapping[str, Any]) -> str:
        if self._text:
            return _SENTENCES[name](details)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        level = "warning" if name in _WARNINGS else "error" if name == "failed" else "info"
        fields = {"time": now, "level": level, "event": name, **details}
        return json.dumps(fields, allow_nan=False)

    def _trouble(self, name: str, **details: Any) -> None:
        if name not in self._troubles:
            self._troubles.add(name)
            with contextlib.suppress(OSError, ValueError):
                write_line(sys.stderr, self._line(name, details))


class Silence(Progress):
    """Says nothing, not even a warning."""

    def event(self, name: str, **details: Any) -> None:
        """Show that the run moves."""
        del name, details
        self.beat()

    def moved(self, moment: Callable[[], Moment]) -> None:
        """Show that the run moves."""
        del moment
        self.beat()


def write_line(stream: TextIO, line: str) -> None:
    """Write `line` to `stream`, whatever the stream can show.

    Raises:
        OSError, ValueError: it can't be written; what is left of it comes before the next line.
    """
    encoding = stream.encoding or "utf-8"  # which may lack signs that a path has
    line = line.encode(encoding, "backslashreplace").decode(encoding)
    print(line, file=stream, flush=True)


def reason(error: Exception) -> str:
    """Return why a line could not be written, in a few words."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def hold_streams() -> None:
    """Open something in place of closed standard streams: the next file would get their numbers.

    TensorFlow, which prints to number 2, would then write into that file. Writing to such a stream
    fails as before.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free is this one
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def drop_unwritten() -> None:
    """Forget what standard streams could not write: Python's end would try again, and exit 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _platform(details: Mapping[str, Any]) -> str:
    lines = [f"platform   {details['platform']}: {details['because']}"]
    lines += [
        f"             --{flag} {_flat(value)}, from {details['sources'][flag]}"
        for flag, value in details["flags"].items()
    ]
    if details["ignored"]:
        lines.append(f"             not read: {', '.join(details['ignored'])}")
    return "\n".join(lines)


def _loaded(details: Mapping[str, Any]) -> str:
    shape = " x ".join(map(str, details["image_shape"]))
    return (
        f"data       {details['uri']}: {details['train_examples']:,} training and "
        f"{details['test_examples']:,} test images, {shape} pixels, {details['classes']} classes"
    )


def _started(details: Mapping[str, Any]) -> str:
    attempt = f", attempt {details['attempt']}" if details["attempt"] > 1 else ""
    return f"run        {details['run']}{attempt}"


def _device_chosen(details: Mapping[str, Any]) -> str:
    return f"device     {', '.join(details['devices'])} ({details['threads']} threads)"


def _compiled(details: Mapping[str, Any]) -> str:
    return (
        f"model      {details['model']}, {details['parameters']:,} parameters, "
        f"compiled in {details['seconds']:.1f} s"
    )


def _epoch(details: Mapping[str, Any]) -> str:
    held_out = ""
    if "validation_loss" in details:
        held_out = (
            f"   held out: {details['validation_loss']:.4f}, {details['validation_accuracy']:.4f}"
        )
    return (
        f"epoch {details['epoch']:>{len(str(details['epochs']))}}/{details['epochs']}"
        f"   loss {details['loss']:.4f}   accuracy {details['accuracy']:.4f}{held_out}"
        f"   {details['images_per_second']:>9,.0f} images/s"
    )


def _resumed(details: Mapping[str, Any]) -> str:
    return f"resumed    after step {details['step']:,}, with {details['threads']} threads as before"


def _mostly_waits(details: Mapping[str, Any]) -> str:
    step, exchange = (1000 * details[name] for name in ("step_seconds", "exchange_seconds"))
    return (
        f"warning    {exchange:.2g} of the {step:.2g} ms of a step pass in exchanges with other "
        "workers: a larger --batch-size, or fewer workers, may be faster"
    )


def _resumed_differently(details: Mapping[str, Any]) -> str:
    changes = ", ".join(
        f"{name} {'unknown' if before is None else _flat(before)} -> {_flat(now)}"
        for name, (before, now) in details["changes"].items()
    )
    return f"warning    resumed with changes: {changes}; the result may differ in its last bits"


def _flat(value: Any) -> str:
    return " + ".join(map(str, value)) if isinstance(value, list) else str(value)


def _threads_differ(details: Mapping[str, Any]) -> str:
    return (
        f"warning    worker {details['worker']} computes with {details['threads']} threads, the "
        f"chief with {details['chief_threads']}: give all workers the same cores, or set "
        "TF_NUM_INTRAOP_THREADS, for results that can be repeated to the bit"
    )


def _retry(details: Mapping[str, Any]) -> str:
    return (
        f"warning    {details['request']}: {details['reason']}; try {details['attempt']} of "
        f"{details['attempts']} in {details['wait_seconds']:.1f} s"
    )


def _times(details: Mapping[str, Any]) -> str:
    """Tell the time of the last attempt from that which all of them trained for."""
    total, train = details["total_seconds"], details["train_seconds"]
    if details["attempts"] == 1:
        return f"{total:.1f} s, {train:.1f} s of them in the training loop"
    mine = details["attempt_train_seconds"]
    share = "" if mine is None else f", {mine:.1f} s of them in the training loop"
    return (
        f"{total:.1f} s for attempt {details['attempts']}{share}; all attempts together trained "
        f"for {train:.1f} s"
    )


def _complete(details: Mapping[str, Any]) -> str:
    low, high = details["accuracy_interval_95"]
    lines = [
        "",
        (
            f"accuracy   {details['accuracy']:.4f} on {details['examples']:,} test images "
            f"(95 % interval {low:.4f} to {high:.4f})"
        ),
        f"loss       {details['loss']:.4f}, calibration error {details['calibration_error']:.4f}",
        f"mistakes   {details['mistakes']:,}{_most_confused(details['most_confused'])}",
        (f"time       {_times(details)}"),
        f"files      {details['run']}/",
        *(f"             {path}" for path in details["files"]),
    ]
    return "\n".join(lines)


def _most_confused(pairs: Sequence[Mapping[str, int]]) -> str:
    """Return what is added to the number of mistakes: which classes are taken for which."""
    told = [f"{each['true']} as {each['predicted']} ({each['examples']:,})" for each in pairs]
    return f", most often {', '.join(told)}" if told else ""


def _already_complete(details: Mapping[str, Any]) -> str:
    return (
        f"run        {details['run']} is complete already; nothing was done\n{_complete(details)}"
    )


def _night_over(details: Mapping[str, Any]) -> str:
    error = details["exit_code"] != 0  # which is told at the end, by its own line
    lines = [f"night      {details['verdict']}" + ("" if error else f": {details['why']}")]
    if details["champion"] is not None:
        days = details["champion_age_seconds"] / 86_400
        stale = "  STALE" if details["stale"] else ""
        lines.append(
            f"champion   {details['champion']}, {details['champion_accuracy']:.2%}, "
            f"for {days:.1f} days{stale}"
        )
    return "\n".join(lines)


def _trial_over(details: Mapping[str, Any]) -> str:
    seed = f", fresh seed {details['fresh_seed']}" if details["fresh_seed"] else ""
    why = f" ({details['why']})" if details["why"] else ""
    accuracy, loss = details["validation_accuracy"], details["validation_loss"]
    came_to = "" if accuracy is None else f", held out: {loss:.4f}, {accuracy:.4f}"
    return (
        f"trial      {details['trial']}{seed}: {details['state']}{why}, {details['epochs']} epochs "
        f"in {details['seconds']:.1f} s{came_to}"
    )


def _study_over(details: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{details[state]} {state}" for state in ("complete", "halted", "failed"))
    lines = [f"study      {details['study']}: {details['trials']} trials, {counts}"]
    if (best := details["best"]) is not None:
        lines.append(
            f"first      trial {best['trial']}, {best['validation_accuracy']:.4f} of the held-out "
            f"images: {_values(best['values'])}"
        )
    return "\n".join(lines)


def _chosen(details: Mapping[str, Any]) -> str:
    head = f"{'trial':>5}  {'was':>6}  {'is now':>6}  {'spread':>6}  {'p':>5}  {'seconds':>7}"
    lines = ["", f"{head}  {'parameters':>10}  mean of {details['seeds']} fresh seeds"]
    for number, each in enumerate(details["finalists"]):
        apart = "worse" if each["is_apart"] else "can't be told apart" if number else "the first"
        lines.append(
            f"{each['trial']:>5}  {each['trial_accuracy']:.4f}  {each['accuracy']:.4f}  "
            f"{each['spread']:.4f}  {each['p']:5.3f}  {each['seconds']:7.1f}  "
            f"{each['parameters']:>10,}  {apart}: {_values(each['values'])}"
        )
    lines += [
        f"{each['trial']:>5}  failed with fresh seed {each['fresh_seed']}: {each['why']}"
        for each in details["failed"]
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"chosen     trial {details['trial']}, the cheapest of those that can't be told apart",
            f"command    {details['command']}",
        ]
    )


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', '-')} {value}" for name, value in values.items())


_WARNINGS = (
    *("checkpoint_passed_by", "checkpoint_failed", "checkpoint_kept"),
    *("nothing_saved_before", "records_missing"),
    *("storage_retry", "other_data", "data_not_compared"),
    *("no_shards", "not_a_shard", "shard_skipped"),
    *("resumed_differently", "threads_differ", "watcher_silent", "mostly_waits"),
    *("unknown_variable", "verdict_not_written", "end_not_recorded", "report_not_written"),
    *("log_not_written", "liveness_not_shown", "not_notified"),
    *("metrics_not_exposed", "not_pushed", "not_logged_to_mlflow", "events_not_written"),
    "progress_not_posted",
    *("shards_gone", "overtaken", "champion_stale", "champion_unknown"),
    *("fetched_incomplete", "drawn_otherwise"),
)
_SENTENCES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "platform": _platform,
    "started": lambda details: f"start      mnist-job {details['version']}",
    "data_loaded": _loaded,
    "attempt_started": _started,
    "device_chosen": _device_chosen,
    "compiled": _compiled,
    "epoch": _epoch,
    "resumed": _resumed,
    "resumed_differently": _resumed_differently,
    "exchange_timed": lambda details: (
        f"exchange   {1000 * details['seconds']:.2g} ms a step among {details['workers']} workers"
    ),
    "mostly_waits": _mostly_waits,
    "stopped_early": lambda details: (
        f"stopped    after epoch {details['epoch']}: no better loss on the held-out images in "
        f"{details['patience']}"
    ),
    "threads_differ": _threads_differ,
    "nothing_saved_before": lambda details: (
        f"warning    no attempt before this one (there were {details['attempts']}) has saved "
        "anything: beginning at step 0"
    ),
    "records_missing": lambda details: (
        f"warning    step {details['step']:,} is saved, but no attempt before this one has its "
        "record: going on from that step"
    ),
    "begins_with": lambda details: f"weights    those of {details['weights']}, to begin with",
    "member_begins": lambda details: f"member     {details['run']}",
    "model_copied": lambda details: f"model      copied to {details['to']}/",
    "members_missing": lambda details: (
        f"ensemble   waits for {', '.join(details['runs'])}: whoever ends last publishes it"
    ),
    "checkpoint_saved": lambda _: "",  # no news to a person
    "checkpoint_passed_by": lambda details: f"warning    {details['reason']}; going further back",
    "checkpoint_kept": lambda details: f"warning    an old checkpoint stays: {details['reason']}",
    "checkpoint_failed": lambda details: f"warning    no checkpoint: {details['reason']}",
    "stopping": lambda _: (
        "stopping   the work is being saved; a second Ctrl-C ends at once, and loses what is not"
    ),
    "worker_done": lambda details: (
        f"worker {details['worker']} is done, and the chief has published"
    ),
    "waiting_for_workers": lambda details: (
        f"waiting    {details['waited_seconds']:.0f} of {details['timeout_seconds']:.0f} s for "
        + "; ".join(details["missing"])
    ),
    "watcher_silent": lambda details: (
        f"warning    this worker's watcher was silent for {details['seconds']:.0f} s: it was told "
        "to go on, and is killed if it doesn't"
    ),
    "storage_retry": _retry,
    "unknown_variable": lambda details: (
        f"warning    the variable {details['variable']} means nothing to this job and was ignored"
        + (f": did you mean {details['nearest']}?" if details["nearest"] else "")
    ),
    "failed": lambda details: f"mnist-job: error: {details['error']} (exit {details['code']})",
    "verdict_not_written": lambda details: f"mnist-job: warning: {details['reason']}",
    "end_not_recorded": lambda details: (
        f"warning    how this attempt ended is not written beside the run: {details['reason']}"
    ),
    "report_written": lambda details: f"report     {details['page']}",
    "report_not_written": lambda details: (
        f"warning    {details['page']} is not written, and mnist-job report makes it later: "
        f"{details['reason']}"
    ),
    "log_not_written": lambda details: (
        f"warning    the log can't be written, the run goes on: {details['reason']}"
    ),
    "liveness_not_shown": lambda details: f"warning    {details['reason']}; the run goes on",
    "other_data": lambda details: (
        f"warning    {details['weights']} were trained on other data than {details['data']} holds"
    ),
    "data_not_compared": lambda details: (
        f"warning    whether the data are still those of the run is not known: {details['reason']}"
    ),
    "night_started": lambda details: (
        f"night      {details['night']}, of {details['files']} files at {details['data']}"
    ),
    "night_over": _night_over,
    "night_over_already": lambda details: (
        f"night      {details['night']} is over already; nothing was done\n{_night_over(details)}"
    ),
    "shards_gone": lambda details: (
        f"warning    nights before had {', '.join(details['names'])}, which are not there any more"
    ),
    "judged": lambda details: (
        f"gate       {'passed' if details['passed'] else 'not passed'}; this test set has decided "
        f"{details['decided_before']} times before"
    ),
    "promoted": lambda details: (
        f"promoted   {details['run']}, entry {details['number']} of the log"
    ),
    "overtaken": lambda _: (
        "warning    another night or a person was faster in the log of champions: deciding anew"
    ),
    "champion_stale": lambda details: (
        f"warning    the champion {details['champion']} is {details['age_seconds'] / 86_400:.1f} "
        "days old, older than --stale-after"
    ),
    "champion_unknown": lambda details: (
        f"warning    which run is champion is not shown: {details['reason']}"
    ),
    "fetched_incomplete": lambda details: (
        f"warning    {details['run']} is not complete: "
        + ("its checkpoint and records come" if details["state"] else "its records come")
        + ", and no model"
    ),
    "drawn_otherwise": lambda details: (
        f"warning    {details['file']} stays as it is: what was drawn of the run there is another"
    ),
    "no_shards": lambda details: (
        f"warning    {details['data']} holds no shard yet: only {details['base']} is used"
    ),
    "not_a_shard": lambda details: (
        f"warning    {details['file']} is ignored: shards are called train-*.npz and test-*.npz"
    ),
    "shard_skipped": lambda details: (
        f"warning    the shard {details['shard']} is left out: {details['reason']}"
    ),
    "notified": lambda details: f"notified   {details['to']}",
    "not_notified": lambda details: (
        f"warning    nobody was told at {details['to']}: {details['reason']}"
    ),
    "metrics_not_exposed": lambda details: (
        f"warning    {details['uri']} is not written, all else is published: {details['reason']}"
    ),
    "events_not_written": lambda details: (
        f"warning    no event file for TensorBoard at {details['uri']}: {details['reason']}"
    ),
    "pushed": lambda details: f"pushed     to {details['to']}, as job {details['job']}",
    "not_pushed": lambda details: (
        f"warning    nothing was pushed to {details['to']}: {details['reason']}"
    ),
    "progress_posted": lambda details: f"posted     how far it is, to {details['to']}",
    "progress_not_posted": lambda details: (
        f"warning    how far it is could not be posted to {details['to']}: {details['reason']}"
    ),
    "logged_to_mlflow": lambda details: (
        f"logged     to {details['to']}, experiment {details['experiment']}, run "
        f"{details['mlflow_run']}"
    ),
    "not_logged_to_mlflow": lambda details: (
        f"warning    MLflow at {details['to']} was not told: {details['reason']}"
    ),
    "trial_started": lambda details: (
        f"trial      {details['trial']}: {_values(details['values'])}"
        + (f", fresh seed {details['fresh_seed']}" if details["fresh_seed"] else "")
    ),
    "rung_decided": lambda details: (
        f"rung       after epoch {details['epoch']}: {'goes on' if details['kept'] else 'halted'}, "
        f"rank {details['rank']} of the {details['seen']} so far, of which {details['places']} may"
    ),
    "trial_over": _trial_over,
    "study_over": _study_over,
    "study_drawn": lambda details: f"drawn      {details['at']}, {details['trials']} trials",
    "chosen": _chosen,
    "complete": _complete,
    "already_complete": _already_complete,
}

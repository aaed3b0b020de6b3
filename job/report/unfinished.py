"""The page of a run that isn't complete: it failed, was stopped, or says nothing any more."""

from collections.abc import Mapping
from typing import Any

from job.errors import (
    ClusterError,
    ConflictError,
    CredentialsError,
    DataError,
    JobError,
    MissingInputError,
    OutputError,
    StoppedError,
    TemporaryError,
    UsageError,
)
from job.process.preemption import EXIT_INTERRUPTED
from job.report import origins, scores
from job.report.material import Attempts, Unfinished
from job.report.origins import dictionary, moment
from job.report.page import Parts, count, render


def page_of(run: Unfinished) -> bytes:
    """Return the page of a run that failed, was stopped, or says nothing."""
    parts, attempts = Parts(), run.attempts
    parts.missing += run.missing
    newest = max([*(record["attempt"] for record in attempts.records), *attempts.ends])
    end = attempts.ends.get(newest)
    record = _newest_record(attempts)
    config = dictionary(record.get("config"))
    kind, status = origins.status(end)
    return render(
        "unfinished.html",
        name=run.place.name,
        kind=kind,
        status=status,
        error=None if end is None else end.get("error"),
        advice=_advice(end),
        command=parts.of("Command", lambda: _command_to_go_on(run, config, record)),
        facts=parts.of("What is known", lambda: _facts_so_far(run, config, record, newest)) or [],
        curves=parts.of("Curves so far", lambda: scores.curves(run.history)),
        attempts=parts.of("Attempts", lambda: _attempts_so_far(attempts, newest)),
        earlier=attempts.earlier,
        config=parts.of("Config", lambda: origins.config(config)) if config else None,
        digest=record.get("config_sha256"),
        missing=parts.missing,
    )


def _newest_record(attempts: Attempts) -> dict[str, Any]:
    """Return the newest record that tells the config, or nothing."""
    told = [record for record in attempts.records if isinstance(record.get("config"), dict)]
    return told[-1] if told else {}


_MEND = (
    "The same run id goes on where it was, with the same config and data; with others it is "
    "refused, so give another --run-id then."
)
_ADVICE = {
    UsageError.exit_code: f"A flag, a URI or a combination is wrong: mend it. {_MEND}",
    DataError.exit_code: f"Data, weights or a checkpoint are bad: mend or replace them. {_MEND}",
    MissingInputError.exit_code: "Something to read isn't there: bring it, and run the same again.",
    ConflictError.exit_code: (
        "What lies there belongs to another config or other data, and nothing was overwritten: "
        "give another --run-id."
    ),
    OutputError.exit_code: (
        "The output can't be written: see to its room and its disk, and run the same again."
    ),
    TemporaryError.exit_code: (
        "Time was up, or a store or another worker was not to be had: run the same again, it goes "
        "on from the last checkpoint."
    ),
    CredentialsError.exit_code: (
        "Credentials are missing, expired or refused: renew them, and run the same again."
    ),
    ClusterError.exit_code: (
        "The machine or the cluster is not what was asked for, or memory ran out: change that, and "
        "run the same again."
    ),
    StoppedError.exit_code: "All work was saved: run the same again, and it goes on.",
    EXIT_INTERRUPTED: "All work was saved: run the same again, and it goes on.",
    JobError.exit_code: (
        "This is a bug in the job: please report it, with what the attempt printed. The same again "
        "goes on from the last checkpoint."
    ),
    0: "Nothing is to be done: its study has what it learned.",
}


def _advice(end: Mapping[str, Any] | None) -> str:
    if end is None:
        return (
            "It is at work, or was ended without a word: by SIGKILL, with its machine, or since "
            "memory ran out (137). If nothing works on it, run the same again: it goes on from the "
            "last checkpoint."
        )
    code = end.get("code")
    unknown = "Run the same again: it goes on from the last checkpoint, if there is one."
    return _ADVICE.get(code, unknown) if isinstance(code, int) else unknown


def _command_to_go_on(
    run: Unfinished, config: Mapping[str, Any], record: Mapping[str, Any]
) -> list[str] | None:
    if not config:
        return None
    above, slash, _ = str(run.place).rstrip("/").rpartition("/")
    output = above.rstrip("/") or slash or "."
    place = {"output": output, "run_id": run.place.name, "strategy": record.get("strategy")}
    return origins.command({**config, **place})


def _facts_so_far(
    run: Unfinished, config: Mapping[str, Any], record: Mapping[str, Any], newest: int
) -> list[tuple[str, str]]:
    facts = [("Attempts", count(newest))]
    if run.step is not None:
        facts.append(("Saved at step", count(run.step)))
    if config:
        epochs = f"{len(run.history):,} of {count(config.get('epochs', 0))}"
        facts += [
            ("Epochs done", epochs),
            ("Model", str(config.get("model"))),
            ("Data", str(config.get("data"))),
        ]
    if "started" in record:
        facts.append(("Last began (UTC)", moment(record["started"])))
        facts.append(("On", origins.machine(record)))
    return facts


def _attempts_so_far(attempts: Attempts, newest: int) -> list[dict[str, Any]]:
    ends = {number: origins.ending(end) for number, end in attempts.ends.items()}
    return origins.attempts(attempts.records, {newest: origins.SILENT} | ends)

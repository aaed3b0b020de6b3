"""Kubeflow's Trainer is told how far a TrainJob is, where it has said in the pod how to tell it.

Its contract is KEP-2779 (feature gate TrainJobStatus): three variables name a URL, the file of the
authority that vouches for it, and the file of a token, which is replaced now and then. What is
posted stands in the TrainJob's status. It knows no failure: that a TrainJob failed, its pods say.
"""

import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from job.errors import UsageError
from job.process import outgoing
from job.process.progress import Moment, Progress

URL = "KUBEFLOW_TRAINER_SERVER_URL"
AUTHORITY = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
TOKEN = "KUBEFLOW_TRAINER_SERVER_TOKEN"  # noqa: S105  the name of a variable, which names a file
APART_SECONDS = 5.0  # as the Trainer asks of its clients, or its API server is overrun
MOST_APART_SECONDS = 60.0  # while nobody answers
LIMIT_SECONDS = 5.0  # for one post, and for the last one to have come there
_MOST_SIGNS = 16_384  # of a token
_LARGEST = 2**31 - 1


class TrainJob:
    """Shows where a training is, by posts from a thread of its own.

    The training only leaves word of where it is, and waits for nothing. What can't be posted is
    told once, as an event, and is tried again with whatever there is to say then.
    """

    def __init__(self, environment: Mapping[str, str], progress: Progress) -> None:
        """Post where `environment` says, and tell `progress` what becomes of it."""
        self._url = environment[URL]
        try:
            self._to = outgoing.shown(self._url)
        except ValueError:  # it is no URL, which the first post tells
            self._to = URL
        self._authority = environment.get(AUTHORITY)
        self._token = environment.get(TOKEN)
        self._progress = progress
        self._succeeded = self._failed = False
        self._failures = 0
        self._metrics: dict[str, float] = {}
        self._part, self._parts = 0, 1  # of an ensemble, member by member
        self._began: tuple[float, float] | None = None  # when, and how much was done then
        self._percentage = 0
        self._word = threading.Condition()
        self._next: dict[str, Any] | None = None
        self._closing = False
        self._thread: threading.Thread | None = None

    def moved(self, moment: Callable[[], Moment]) -> None:
        """Show where the training is, which `moment` returns; at once, without waiting."""
        found = moment()
        done = (self._part + found.step / found.steps) / self._parts
        now = time.monotonic()
        if self._began is None:
            self._began = now, done
        since, before = self._began
        rate = (done - before) / max(now - since, 1e-9)
        self._percentage = min(99, int(100 * done))  # until it is published
        self._metrics |= {
            "currentEpoch": found.epoch,
            "totalEpochs": found.epochs,
            "loss": found.loss,
            "accuracy": found.accuracy,
        }
        self._show(self._percentage, (1 - done) / rate if rate > 0 else None)

    def heard(self, name: str, details: Mapping[str, Any]) -> None:
        """Take what an event says that a moment doesn't."""
        if name == "member_begins":
            self._part, self._parts = details["member"] - 1, details["members"]
        elif name == "epoch" and "validation_loss" in details:
            names = ("validation_loss", "validation_accuracy")
            self._metrics |= {name: details[name] for name in names}

    def over(self, document: Mapping[str, Any] | None) -> None:
        """Show that all is done, with the test's scores of `document`; it waits 5 s at most.

        Raises:
            StoppedError: the job was asked to stop meanwhile.
        """
        if document is not None:
            test = document["test"]
            self._metrics |= {"test_loss": test["loss"], "test_accuracy": test["accuracy"]}
        self._show(100, 0)
        self._close()

    def failed(self) -> None:
        """Show how far it came, and no more when it would be done; it waits 5 s at most.

        Raises:
            StoppedError: the job was asked to stop meanwhile.
        """
        if self._thread is not None:  # else there is nothing to show
            self._show(self._percentage, None)
            self._close()

    def _show(self, percentage: int, remaining_seconds: float | None) -> None:
        status: dict[str, Any] = {
            "progressPercentage": percentage,
            "metrics": [
                {"name": name, "value": f"{value:.6g}"} for name, value in self._metrics.items()
            ],
            "lastUpdatedTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        if remaining_seconds is not None:
            status["estimatedRemainingSeconds"] = min(round(remaining_seconds), _LARGEST)
        with self._word:
            self._next = status
            self._word.notify_all()
        if self._thread is None:
            thread = threading.Thread(target=self._post_all, daemon=True, name="trainjob")
            try:
                thread.start()
            except RuntimeError as error:  # a pod may have so many, and no more
                self._tell_of_failure(str(error))
            else:
                self._thread = thread

    def _close(self) -> None:
        if self._thread is None:
            return
        with self._word:
            self._closing = True
            self._word.notify_all()
        self._thread.join(LIMIT_SECONDS)
        if self._thread.is_alive():
            self._tell_of_failure(f"it took over {LIMIT_SECONDS:g} s")

    def _post_all(self) -> None:
        while True:
            with self._word:
                self._word.wait_for(lambda: self._next is not None or self._closing)
                status, self._next = self._next, None
            if status is None:
                return
            self._post(status)
            pause = min(APART_SECONDS * 2 ** min(self._failures, 9), MOST_APART_SECONDS)
            with self._word:
                self._word.wait_for(lambda: self._closing, pause)

    def _post(self, status: dict[str, Any]) -> None:
        try:
            self._send(json.dumps({"trainerStatus": status}).encode())
        except Exception as error:  # noqa: BLE001  being watched is not what a job is for
            self._failures += 1
            unready = isinstance(error, _UnreadyError | UsageError)
            reason = str(error) if unready else outgoing.why(error, LIMIT_SECONDS)
            self._tell_of_failure(reason)
        else:
            self._failures = 0
            self._tell_of_success()

    def _send(self, body: bytes) -> None:
        outgoing.check(self._url, URL)
        if not self._url.startswith("https://"):
            raise _UnreadyError(f"{URL} is no https:// URL, and a token is for nobody else")
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._bearer()}"}
        try:
            context = ssl.create_default_context(cafile=self._authority or None)
        except (OSError, ValueError) as error:
            why = outgoing.why(error, LIMIT_SECONDS)
            raise _UnreadyError(f"{AUTHORITY} {self._authority} is of no use: {why}") from error
        outgoing.send(self._url, body, headers, LIMIT_SECONDS, context=context)

    def _bearer(self) -> str:
        """Return the token as it is now: Kubernetes replaces it before it expires."""
        if not self._token:
            raise _UnreadyError(f"{TOKEN} is not set")
        try:
            with Path(self._token).open(encoding="ascii") as file:
                token = file.read(_MOST_SIGNS).strip()
        except (OSError, ValueError) as error:
            why = outgoing.why(error, LIMIT_SECONDS)
            raise _UnreadyError(f"{TOKEN} {self._token} cannot be read: {why}") from error
        if not token.isprintable() or not token:
            raise _UnreadyError(f"{TOKEN} {self._token} holds no token")
        return token

    # Once each: an event shows a probe that the run lives, and this isn't the run.

    def _tell_of_success(self) -> None:
        if not self._succeeded:
            self._succeeded = True
            self._progress.event("progress_posted", to=self._to)

    def _tell_of_failure(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            self._progress.event("progress_not_posted", to=self._to, reason=reason)


class _UnreadyError(Exception):
    """What the pod was given is not what the contract says."""

"""An MLflow server is told of a run that is published, where MLFLOW_TRACKING_URI names one.

By its REST API (2.0), so that nothing of MLflow is needed here. A run is looked for by a tag before
it is made, and each number has the time that the run's metrics give it: so a pod that starts again,
or one that was killed meanwhile, goes on with the same run of MLflow and doubles nothing.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit

from job.errors import StoppedError, UsageError, in_one_line
from job.process import outgoing
from job.process.progress import Progress

VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT = "mnist-job"  # where MLFLOW_EXPERIMENT_NAME gives no other
LIMIT_SECONDS = 30.0  # for all requests together
KEY = "mnist_job.key"  # the tag that a run is found by
# What MLflow takes in one request, in names and in values.
MOST_METRICS, MOST_PARAMS, MOST_TAGS = 1_000, 100, 100
_MOST_SIGNS = {"params": 500, "tags": 5_000}
_EXISTS = "RESOURCE_ALREADY_EXISTS"
_MISSING = "RESOURCE_DOES_NOT_EXIST"

# Of each epoch, and of the end: the name there, and where metrics.json has it.
_OF_EPOCHS = {
    "train_loss": "loss",
    "train_accuracy": "accuracy",
    "validation_loss": "validation_loss",
    "validation_accuracy": "validation_accuracy",
    "learning_rate": "learning_rate",
    "images_per_second": "images_per_second",
}
_OF_TEST = {
    "test_accuracy": "accuracy",
    "test_loss": "loss",
    "test_calibration_error": "expected_calibration_error",
}


@dataclass(frozen=True)
class Server:
    """An MLflow server, as the variables that MLflow's own clients read name it."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    experiment: str = EXPERIMENT

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], progress: Progress
    ) -> "Server | None":
        """Return the server that the variables name; None where none is, or none that is reached.

        A URI that isn't http or https, such as a folder, is one warning.
        """
        uri = environment.get(VARIABLE, "").strip()
        if not uri:
            return None
        try:
            outgoing.check(uri, VARIABLE, user=True)
        except UsageError:  # a log of experiments is not what a job is for
            reason = f"{VARIABLE} must be an http:// or https:// URL: others need MLflow itself"
            progress.event("not_logged_to_mlflow", to=VARIABLE, reason=reason)
            return None
        plain = urlsplit(uri)._replace(query="", fragment="").geturl().rstrip("/")
        bare, credentials = outgoing.without_user(plain)
        user, password, token = (
            environment.get(f"MLFLOW_TRACKING_{name}", "")
            for name in ("USERNAME", "PASSWORD", "TOKEN")
        )
        if user and password:  # in the order of MLflow's own clients
            credentials = outgoing.basic(user, password)
        elif token:
            credentials = {"Authorization": f"Bearer {token}"}
        name = environment.get("MLFLOW_EXPERIMENT_NAME", "").strip()
        return cls(bare, credentials, name or EXPERIMENT)

    def log(
        self,
        uri: str,
        document: Mapping[str, Any],
        progress: Progress,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Log the complete run at `uri`. It never fails: what became of it is an event.

        Args:
            uri: of the run's folder.
            document: its metrics.
            progress: told.
            more: further tags.

        Raises:
            StoppedError: the job was asked to stop meanwhile.
        """
        to = outgoing.shown(self.url)
        try:
            record = Record.of(uri, document, more or {})
            run = outgoing.within(LIMIT_SECONDS, lambda: self._log(record))
        except StoppedError:
            raise
        except RefusedError as error:
            progress.event("not_logged_to_mlflow", to=to, reason=str(error))
        except Exception as error:  # noqa: BLE001
            progress.event("not_logged_to_mlflow", to=to, reason=outgoing.why(error, LIMIT_SECONDS))
        else:
            progress.event("logged_to_mlflow", to=to, experiment=self.experiment, mlflow_run=run)

    def _log(self, record: "Record") -> str:
        """Return the id of the MLflow run that now says what `record` does."""
        experiment = self._experiment()
        found = self._found(experiment, record.key)
        if found is not None and found.get("status") == "FINISHED":
            return str(found["run_id"])
        run = str((found or self._made(experiment, record))["run_id"])
        for batch in record.batches():
            self._ask("runs/log-batch", {"run_id": run, **batch})
        end = {"status": "FINISHED", "end_time": record.ended_ms}
        self._ask("runs/update", {"run_id": run, **end})
        return run

    def _experiment(self) -> str:
        """Return the id of the experiment, made if need be."""
        for _ in range(2):  # another may make it meanwhile
            try:
                name = quote(self.experiment, safe="")
                found = self._ask(f"experiments/get-by-name?experiment_name={name}")
                return str(found["experiment"]["experiment_id"])
            except RefusedError as refused:
                if refused.code != _MISSING:
                    raise
            try:
                made = self._ask("experiments/create", {"name": self.experiment})
                return str(made["experiment_id"])
            except RefusedError as refused:
                if refused.code != _EXISTS:
                    raise
        raise RefusedError(_MISSING, "the experiment is there and isn't")

    def _found(self, experiment: str, key: str) -> dict[str, Any] | None:
        """Return what MLflow tells of the run with the key, None if there is none."""
        asked = {
            "experiment_ids": [experiment],
            "filter": f"tags.`{KEY}` = '{key}'",
            "max_results": 1,
        }
        runs = self._ask("runs/search", asked).get("runs") or []
        return dict(runs[0]["info"]) if runs else None

    def _made(self, experiment: str, record: "Record") -> dict[str, Any]:
        asked = {
            "experiment_id": experiment,
            "run_name": record.name,
            "start_time": record.started_ms,
            "tags": _pairs({KEY: record.key}, "tags"),
        }
        return dict(self._ask("runs/create", asked)["run"]["info"])

    def _ask(self, what: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the answer to one request: GET without a body, else POST."""
        url = f"{self.url}/api/2.0/mlflow/{what}"
        headers = {"Content-Type": "application/json", **self.headers}
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        method = "GET" if body is None else "POST"
        try:
            answer = json.loads(outgoing.send(url, data, headers, LIMIT_SECONDS, method) or "{}")
        except HTTPError as error:
            raise RefusedError(_error_code(error), f"the answer was {error.code}") from None
        except ValueError:
            raise RefusedError("", "the answer is not MLflow's") from None
        if not isinstance(answer, dict):
            raise RefusedError("", "the answer is not MLflow's")
        return answer


class RefusedError(Exception):
    """MLflow said no."""

    def __init__(self, code: str, message: str) -> None:
        named = f" ({code})" if code else ""
        super().__init__(f"{message}{named}")
        self.code = code


@dataclass(frozen=True)
class Record:
    """What MLflow is told of a run."""

    name: str
    key: str
    """Sha256 (hex) of where the run lies and what it is: the tag that it is found by."""
    started_ms: int
    ended_ms: int
    params: Mapping[str, Any]
    tags: Mapping[str, Any]
    metrics: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, uri: str, document: Mapping[str, Any], more: Mapping[str, Any]) -> "Record":
        """Return what is told of the complete run at `uri` with the metrics `document`."""
        weights = [
            each["sha256"] for each in document["artifacts"] if each["path"] == "model_weights.h5"
        ]
        told = [uri, document["config_sha256"], *weights]
        environment = document["environment"]
        tags = {
            "mnist_job.uri": uri,
            "mnist_job.weights_sha256": weights[0] if weights else None,
            "mnist_job.config_sha256": document["config_sha256"],
            "mnist_job.data_fingerprint": document["data"]["fingerprint"],
            "mnist_job.version": environment.get("job_version"),
            "mlflow.source.name": "mnist-job",
            "mlflow.source.type": "JOB",
            "mlflow.source.git.commit": environment.get("git_commit"),
            **more,
        }
        model = document["model"]
        params = {**document["config"], "parameters": model["parameters"]}
        history = document["train"]["history"]
        started = int(datetime.fromisoformat(document["started"]).timestamp() * 1000)
        metrics = [*_of_epochs(history, started)]
        ended = max([started, *(metric["timestamp"] for metric in metrics)])
        metrics += _of_the_end(document, ended, len(history))
        return cls(
            name=document["run_id"],
            key=hashlib.sha256(json.dumps(told).encode()).hexdigest(),
            started_ms=started,
            ended_ms=ended,
            params=params,
            tags=tags,
            metrics=tuple(metrics),
        )

    def batches(self) -> Iterator[dict[str, Any]]:
        """Yield bodies for `runs/log-batch`, each within its limits."""
        params, tags = _pairs(self.params, "params"), _pairs(self.tags, "tags")
        yield {"params": params[:MOST_PARAMS], "tags": tags[:MOST_TAGS]}
        metrics = iter(self.metrics)
        while batch := list(islice(metrics, MOST_METRICS)):
            yield {"metrics": batch}


def _of_epochs(history: list[dict[str, Any]], started_ms: int) -> Iterator[dict[str, Any]]:
    """Yield what was measured of each epoch, with the time of its end by the training's clock."""
    seconds = 0.0
    for epoch in history:
        seconds += epoch["seconds"]
        for name, source in _OF_EPOCHS.items():
            if source in epoch:
                time = started_ms + int(seconds * 1000)
                yield _metric(name, epoch[source], time, epoch["epoch"])


def _of_the_end(document: Mapping[str, Any], at_ms: int, epochs: int) -> Iterator[dict[str, Any]]:
    """Yield what was measured once: the scores on the test set, and what the run took."""
    test, timing = document["test"], document["timing"]
    low, high = test["accuracy_interval_95"]
    values = {
        **{name: test[source] for name, source in _OF_TEST.items()},
        "test_accuracy_lower": low,
        "test_accuracy_upper": high,
        **{f"test_recall_{each['label']}": each["recall"] for each in test["per_class"]},
        "train_seconds": timing["train_seconds"],
        "total_seconds": timing["total_seconds"],
        "peak_memory_mib": document["resources"]["peak_memory_mib"],
        "cpu_seconds": document["resources"]["cpu_seconds"],
    }
    for name, value in values.items():
        if value is not None:
            yield _metric(name, value, at_ms, epochs)


def _metric(name: str, value: float, time_ms: int, step: int) -> dict[str, Any]:
    return {"key": name, "value": float(value), "timestamp": time_ms, "step": step}


def _pairs(values: Mapping[str, Any], kind: str) -> list[dict[str, str]]:
    """Return keys and values as MLflow takes them, those without a value left out."""
    most = _MOST_SIGNS[kind]
    return [
        {"key": key, "value": in_one_line(str(value))[:most]}
        for key, value in values.items()
        if value is not None
    ]


def _error_code(error: HTTPError) -> str:
    """Return the word that MLflow gives a refusal, such as RESOURCE_ALREADY_EXISTS."""
    try:
        with error:
            word = json.loads(error.read(65_536))["error_code"]
    except (ValueError, KeyError, TypeError, OSError):
        return ""
    return in_one_line(word)[:60] if isinstance(word, str) else ""

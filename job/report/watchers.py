"""Who is told of a run or a night: a Pushgateway, MLflow, Kubeflow's Trainer, where asked for.

Nothing of any is imported unless it is asked for.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from job.errors import JobError, StoppedError, TemporaryError
from job.process import verdict
from job.process.preemption import EXIT_INTERRUPTED
from job.process.progress import Progress
from job.report import openmetrics
from job.results import publishing
from job.results.publishing import RunFolder
from job.storage import Place

if TYPE_CHECKING:
    from job.report.mlflow import Server
    from job.report.pushgateway import Gateway
    from job.report.trainjob import TrainJob

_TO_BE_CONTINUED = (0, StoppedError.exit_code, EXIT_INTERRUPTED)


@dataclass(frozen=True)
class Watchers:
    """Who is told; nobody, unless somebody was named."""

    progress: Progress
    gateway: "Gateway | None" = None
    server: "Server | None" = None
    trainjob: "TrainJob | None" = None

    @classmethod
    def named(
        cls,
        pushgateway: str | None,
        job: str | None,
        environment: Mapping[str, str],
        progress: Progress,
    ) -> "Watchers":
        """Return those that flag and environment name.

        Args:
            pushgateway: as the flag has it; None for none.
            job: the Job of Kubernetes that this is, if it is one.
            environment: names an MLflow server, as MLflow's own clients read it, and where
                Kubeflow's Trainer listens, as that says it.
            progress: told of what isn't there, and later of what became of each telling; the
                Trainer hears of all that it reports.

        Raises:
            UsageError: the flag gives no URL.
        """
        gateway = server = None
        if pushgateway is not None:
            from job.report.pushgateway import Gateway  # noqa: PLC0415

            gateway = Gateway.of(pushgateway, job)
            if gateway is None:
                progress.event("not_pushed", to=pushgateway, reason="there is no such file")
        if environment.get("MLFLOW_TRACKING_URI"):
            from job.report.mlflow import Server  # noqa: PLC0415

            server = Server.from_environment(environment, progress)
        trainjob = None
        if environment.get("KUBEFLOW_TRAINER_SERVER_URL"):
            from job.report.trainjob import TrainJob  # noqa: PLC0415

            trainjob = TrainJob(environment, progress)
            progress.followed_by(trainjob)
        return cls(progress, gateway, server, trainjob)

    def run_over(self, place: Place, document: dict[str, Any]) -> None:
        """Tell of the complete run at `place`, with its metrics."""
        if self.gateway is not None:
            self._push(0, openmetrics.of_run(document))
        if self.server is not None:
            self.server.log(str(place), document, self.progress)
        if self.trainjob is not None:
            self.trainjob.over(document)

    def night_over(
        self, output: Place, night: str, record: dict[str, Any] | None, code: int
    ) -> None:
        """Tell of a night that ended with the exit code `code`.

        Args:
            output: that it is of.
            night: its id.
            record: that it left; None if it left none, since it isn't over.
            code: of the command, 0 or not.
        """
        told: dict[str, Any] = {"night": night} if record is None else record
        document = self._metrics_of(output, told)
        if self.gateway is not None:
            trained = [] if document is None else openmetrics.of_run(document)
            self._push(code, [*openmetrics.of_night(told), *trained])
        if self.server is not None and document is not None:
            tags = {"mnist_job.night": night, "mnist_job.verdict": told.get("verdict")}
            uri = str(output / str(told["run"]))
            self.server.log(uri, document, self.progress, tags)
        if self.trainjob is not None:
            if code == 0:
                self.trainjob.over(document)
            elif code != TemporaryError.exit_code:
                self.trainjob.failed()

    def failed(self, code: int) -> None:
        """Tell that a run ended with the exit code `code`, unless it is to be continued."""
        if code not in _TO_BE_CONTINUED:
            self._push(code, [])

    def telling_failures(self) -> AbstractContextManager[None]:
        """Tell of whatever ends this block as an error."""
        return _telling_failures(self)

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Show whoever follows the training how far it came, if this block ends as an error.

        Not of what is to be continued: after a SIGTERM, which a store that doesn't answer makes a
        75, there is little time, and the next pod goes on.
        """
        try:
            yield
        except (StoppedError, TemporaryError):
            raise
        except Exception:
            if self.trainjob is not None:
                self.trainjob.failed()
            raise

    def _push(self, code: int, gauges: list[openmetrics.Gauge]) -> None:
        if self.gateway is not None:
            self.gateway.push([*openmetrics.of_end(code, time.time()), *gauges], self.progress)

    @property
    def _reads_metrics(self) -> bool:
        return any((self.gateway, self.server, self.trainjob))

    def _metrics_of(self, output: Place, record: dict[str, Any]) -> dict[str, Any] | None:
        """Return the metrics of the run that a night trained, None where they can't be read."""
        run = record.get("run")
        if not isinstance(run, str) or not self._reads_metrics:
            return None
        try:
            return publishing.read_json(RunFolder(output / run).metrics)
        except StoppedError:
            raise
        except JobError:
            return None


@contextlib.contextmanager
def _telling_failures(watchers: Watchers) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        watchers.failed(verdict.of_error(error)["code"])
        raise

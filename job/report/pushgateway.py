"""A Prometheus Pushgateway is told how a command ended, since a batch job is gone before a scrape.

As practices for batch jobs have it: one group for each job, named by `job` and without `instance`;
what is pushed is added to it (POST), so a failure, which knows little, leaves what the last success
said, and the time of that is pushed by a success alone.

The URL may hold a password, or be a secret by itself: none of it but scheme and host is shown.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from job.errors import StoppedError, UsageError
from job.process import outgoing
from job.process.progress import Progress
from job.report import openmetrics
from job.report.openmetrics import Gauges

FLAG = "--pushgateway"
LIMIT_SECONDS = 10.0  # for all of it: the name, the connection, and however slow an answer
JOB = "mnist-job"  # the group of a command that no Job of Kubernetes has started
# What a CronJob adds to the names of its Jobs: minutes since 1970.
_OF_A_NIGHT = re.compile(r"-[0-9]{8,10}\Z")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True)
class Gateway:
    """Where to push, and as what group."""

    url: str = field(repr=False)
    """Up to the `/metrics/job/...` that names the group; user and password may stand in it."""
    job: str
    labels: tuple[tuple[str, str], ...] = ()
    """Further labels of the group."""

    @classmethod
    def of(cls, given: str, job: str | None, flag: str = FLAG) -> "Gateway | None":
        """Return the gateway that the flag gives, by a URL or in a file that holds one.

        Args:
            given: `https://gateway.example`, or with the group that it is to be, as the gateway's
                own paths have it: `https://gateway.example/metrics/job/NAME/LABEL/VALUE`.
            job: the Job of Kubernetes that this is; its CronJob names the group, if it is of one.
            flag: named in messages.

        Returns:
            None where the file isn't there: a Secret may be left out.

        Raises:
            UsageError: it is neither, or the file can't be read; or the group has no such form.
        """
        url = outgoing.url_of(given, flag, user=True)
        if url is None:
            return None
        parts = urlsplit(url)
        path, grouped, group = parts.path.partition("/metrics/job/")
        if parts.query or parts.fragment:
            raise UsageError(f"{flag} must have no '?' and no '#': {_FORM}")
        base = parts._replace(path=path.rstrip("/")).geturl()
        if not grouped:
            return cls(base, _OF_A_NIGHT.sub("", job or "") or JOB)
        name, *rest = map(unquote, group.rstrip("/").split("/"))
        labels = tuple(zip(rest[::2], rest[1::2], strict=False))
        if not name or len(rest) % 2 or not all(_LABEL.fullmatch(label) for label, _ in labels):
            raise UsageError(f"{flag} names a group in a form that no gateway has: {_FORM}")
        return cls(base, name, labels)

    def push(self, gauges: Gauges, progress: Progress) -> None:
        """Add `gauges` to the group. It never fails: what became of it is an event.

        Raises:
            StoppedError: the job was asked to stop meanwhile.
        """
        to = outgoing.shown(self.url)
        try:
            outgoing.within(LIMIT_SECONDS, lambda: self._push(gauges))
        except StoppedError:
            raise
        except Exception as error:  # noqa: BLE001  being watched is not what a job is for
            progress.event("not_pushed", to=to, reason=outgoing.why(error, LIMIT_SECONDS))
        else:
            progress.event("pushed", to=to, job=self.job)

    def _push(self, gauges: Gauges) -> None:
        from prometheus_client import pushadd_to_gateway  # noqa: PLC0415

        url, credentials = outgoing.without_user(self.url)

        def handler(
            url: str,
            method: str,
            timeout: float | None,
            headers: list[tuple[str, str]],
            data: bytes,
        ) -> Callable[[], None]:
            del timeout  # prometheus_client's own handler would follow redirects, credentials too

            def push() -> None:
                outgoing.send(url, data, {**dict(headers), **credentials}, LIMIT_SECONDS, method)

            return push

        pushadd_to_gateway(
            url,
            self.job,
            openmetrics.Collected(gauges),
            grouping_key=dict(self.labels),
            handler=handler,
        )


_FORM = "give https://host, or https://host/metrics/job/NAME/LABEL/VALUE with the group of your own"

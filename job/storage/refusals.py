"""How a request to a store failed -> the error of this job that says so, with its exit code."""

from job.errors import (
    ClusterError,
    CredentialsError,
    JobError,
    MissingInputError,
    OutputError,
    TemporaryError,
    UsageError,
)
from job.storage.connection import StoreError
from job.storage.place import Place
from job.storage.retrying import ATTEMPTS

_CHAINS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the pod's role",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, gcloud's login, or workload identity",
}
_ENDPOINTS = {"s3": "AWS_ENDPOINT_URL and AWS_REGION", "gs": "STORAGE_EMULATOR_HOST"}


def explained(error: StoreError, place: Place, doing: str) -> JobError:
    """Return what to raise for `error`.

    Args:
        error: what became of the request.
        place: what it was about.
        doing: what was tried: `reading`, `looking for`, `listing`, `writing` or `removing`.
    """
    what = f"{doing} {place} failed ({error.detail})"
    if error.kind == "refused":
        return CredentialsError(
            f"{what}: check the credentials ({_CHAINS[place.kind]}), their expiry and what they "
            "allow; for a public place give --anonymous"
        )
    if error.kind == "absent":
        return MissingInputError(f"{place} does not exist: check the bucket and the key")
    if error.kind == "no bucket":
        # An output in a bucket that isn't there is a flag to correct; an input is missing.
        to_blame = UsageError if doing == "writing" else MissingInputError
        return to_blame(
            f"{place}: there is no bucket {place.bucket!r}; create it, or correct the URI"
        )
    if error.kind in {"passing", "busy"}:
        return TemporaryError(
            f"{what} {ATTEMPTS} times: try again later; if the object is large or the way to the "
            "store slow, give more --storage-timeout"
        )
    if error.kind in {"setup", "unable"}:
        return ClusterError(
            f"{what}: check {_ENDPOINTS[place.kind]} and the certificates, and that the store has "
            "what job/storage/README.md asks of one"
        )
    return OutputError(f"{what}: the store did not accept the request; check the URI")

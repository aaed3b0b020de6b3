"""Everything that can go wrong, and the exit code that says so.

    JobError                   70  a bug in the job itself
    |-- UsageError             64  a flag, a URI or a combination of them is wrong
    |-- DataError              65  data set, weights, image or checkpoint is bad
    |-- MissingInputError      66  an input does not exist or may not be read
    |-- ConflictError          73  the output exists and belongs to another config
    |-- OutputError            74  I/O error at the output
    |-- TemporaryError         75  store or peer unavailable: try again
    |-- CredentialsError       77  credentials missing, expired or refused
    |-- ClusterError           78  environment or configuration of the cluster is wrong
    `-- StoppedError          143  stopped by SIGTERM, all work saved

The codes are those of BSD's sysexits.h, so that a Kubernetes podFailurePolicy can tell a run that
will never succeed (64, 65, 66, 73, 78) from one that is worth another try. 42 is TensorFlow's own.

A message is one line that says what is wrong, where, which value was found and what to do.
"""


class JobError(Exception):
    """Root of the tree: anything the job can explain in one line."""

    exit_code: int = 70

    def __init__(self, message: str = "", *, exit_code: int | None = None) -> None:
        """Say what happened; `exit_code` is given where the process ends with another's code."""
        super().__init__(message)
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        """Return the message folded into one printable line: it may quote foreign files."""
        return in_one_line(super().__str__())


class UsageError(JobError):
    """A flag, a URI or a combination of them is wrong."""

    exit_code = 64


class DataError(JobError):
    """A data set, weights file, image or checkpoint is bad."""

    exit_code = 65


class MissingInputError(JobError):
    """An input does not exist or may not be read."""

    exit_code = 66


class ConflictError(JobError):
    """The output exists and belongs to another config."""

    exit_code = 73


class OutputError(JobError):
    """Writing to the output failed."""

    exit_code = 74


class TemporaryError(JobError):
    """A store or a peer is unavailable; the same command may succeed later."""

    exit_code = 75


class CredentialsError(JobError):
    """Credentials are missing, expired or refused."""

    exit_code = 77


class StoppedError(JobError):
    """The job was asked to stop and has saved its work; the same command goes on with it."""

    exit_code = 143  # 128 + SIGTERM, as shells have it


class ClusterError(JobError):
    """The environment or the configuration of the cluster is wrong, or its memory too small."""

    exit_code = 78


def in_one_line(text: str) -> str:
    """Return `text` folded into one printable line."""
    line = " ".join(text.split())
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)

"""`python -m job` is `mnist-job`."""

from job.cli import entry_point

if __name__ == "__main__":
    entry_point()

"""mnist-job: train, score and publish a digit classifier, as a job that nobody has to watch."""

__version__ = "0.1.0"

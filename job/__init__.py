"""mnist-job: train, score and publish a digit classifier, as a job that nobody has to watch.

Begin with `run`, one run from config to published. `README.md` beside this tells what is in which
wing, from the command line down to the bytes, and all flags.
"""

__version__ = "0.1.0"

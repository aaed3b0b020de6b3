"""Which platform's contract we run under, as defaults for flags: below flags and variables.

`contract` is what each platform is described by: what tells that we are on it, and which variable
or file stands for which flag. `sagemaker` and `vertex` are such descriptions, and `choosing` has
the table of them and finds the one that holds here.

README.md tells users how to start the job on each.
"""

from job.platforms.choosing import NAMES, failure_file, find
from job.platforms.contract import Default, Found, Surroundings

__all__ = ["NAMES", "Default", "Found", "Surroundings", "failure_file", "find"]

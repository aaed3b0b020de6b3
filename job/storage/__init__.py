"""Bytes in, bytes out: the one seam between the job and wherever its files lie.

`parse` makes a `Place` of a text, at the door (`place`); whole objects then go in and out as bytes,
by the `verbs`. The two that matter are `read`, for an object of bounded size, and `create`, for one
that is never overwritten. `create` may be repeated: finding its own bytes already there is success,
which is what makes a restarted pod harmless. `backend` says what each verb promises.

Inside, `files` carries them out on this machine and `objects` in an object store, over a
`connection` of `s3` or `gcs` that says what its failures mean; `retrying` waits for a store, and
asks it again.

README.md tells users of credentials, permissions, and what a store must have.
"""

from job.storage.backend import MEBIBYTE
from job.storage.place import Place, parse
from job.storage.verbs import (
    Settings,
    configure,
    create,
    exists,
    folders,
    hurry,
    is_folder,
    mapped,
    names,
    read,
    remove,
    remove_folder,
    written,
)

__all__ = [
    "MEBIBYTE",
    "Place",
    "Settings",
    "configure",
    "create",
    "exists",
    "folders",
    "hurry",
    "is_folder",
    "mapped",
    "names",
    "parse",
    "read",
    "remove",
    "remove_folder",
    "written",
]

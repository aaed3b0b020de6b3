"""What surrounds the work of a process, whatever the work is.

`runtime` prepares threads, imports and clocks; `preemption` turns signals and time limits into a
stop that loses nothing; `progress` says what happens, to people or as JSON, and `display` draws on
a terminal how far it is; `liveness` shows that something happens at all; `memory` explains that it
ran out; `verdict` tells Kubernetes how it ended; `outgoing` asks servers that are no storage.
"""

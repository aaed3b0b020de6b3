"""Who trains together, and what becomes of the others when one is missing, frozen or lost.

`cluster` reads what Kubernetes tells. `supervision` is the process that watches over a worker: it
meets the others by `membership`, and the worker shows it by `watchdog` that it moves. The workers
themselves talk over `collectives`, which alone imports TensorFlow.

README.md tells what happens when.
"""

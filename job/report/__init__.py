"""What people and dashboards look at: pages, pictures, event files and metrics of a run.

For machines: `openmetrics` says what a run or a night came to as Prometheus reads it, `watchers`
tells a `pushgateway` and a server of `mlflow` when one is over, and `tensorboard` writes event
files, with pictures by `summary_images`; `logdir` brings those to where TensorBoard reads them.

All of it is made from what a run has published, after that: nothing here can spoil a run, and
`mnist-job report` makes it again. Nothing heavy is loaded before it is used.
"""

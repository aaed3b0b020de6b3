"""What people and dashboards look at: pages, pictures, event files and metrics of a run.

For machines: `openmetrics` says what a run or a night came to as Prometheus reads it, `watchers`
tells a `pushgateway` and a server of `mlflow` when one is over, and Kubeflow's Trainer how far a
`trainjob` is, and `tensorboard` writes event files, with pictures by `summary_images`; `logdir`
brings those to where TensorBoard reads them.

But for `trainjob` all of it is made from what a run has published, after that: nothing here can
spoil a run, and `mnist-job report` makes it again. Nothing heavy is loaded before it is used, and
TensorFlow never.

A page is one HTML file. `runs` leaves the pages of runs where they belong, and `nights` those of
nights, which it makes as well. `material` gathers what the page of a run is made of, and says what
is missing; of that `complete` and `unfinished` make it. Its parts come from `scores` (curves,
confusion, classes, reliability, times), `galleries` (images with what was said of them),
`mislabelled` (labels of MNIST that are known to be wrong) and `origins` (config, command, attempts,
machines). Any page uses `page` (templates to bytes, numbers to words, what is done where a part
can't be had), `figures` (numbers to SVG in the page's colours) and `sprites` (images to PNG); its
look is in the folder of templates, base and style first.
"""

"""What comes of a training: scores, files that others open, and the run's folder.

`publishing` holds a run's folder and the order that its files appear in, `metrics.json` last, and
`metrics` says what stands in that; `provenance` tells what made it. `weights` makes files of a
model and back, `evaluation` lets a model look at images, and `scores` says how well it did;
`predictions` keeps what it said of each, `answers` shows those that somebody asks for, `hdf5` reads
the numbers of a weights file, and `statistics` has intervals and tests. The last five need no
TensorFlow. `inference` serves `evaluate` and `predict` from what was published, `serving` makes of
a model what TensorFlow Serving takes, and `handover` copies files to where a platform looks.
"""

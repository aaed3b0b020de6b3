"""Tuning: a study of trials over a declared space, chosen on held-out images, and no controller.

`space` is what is varied, and `sampling` a point of it for each trial: a pure function of the
study's seed and the trial's number. `study` is what all trials agree on and where their results
lie, each of them an object that is created once. `trial` runs one, and asks `halving` after some
epochs whether it is worth going on. `tuner` runs trials one after the other, each in a process of
its own; on Kubernetes the pods of an Indexed Job run them, and know of each other by those objects
alone. `finals` lets the best run again with fresh seeds, and `picture` draws a study.
"""

"""From a config to trained weights.

`train` is the way through: it takes a model of `model`, on the devices that `strategy` chose, and
trains it by the compiled steps of `loop`, which `feed` brings the examples to and `augmentation`
moves them in; `layers` see to it that replicas compute what one device would, `chance` that they
draw it, and `convolution` is what is fast on a CPU. `checkpoint` keeps all of a run's state in one
verified file.

All but `checkpoint` import TensorFlow. README.md tells what is exact, and where.
"""

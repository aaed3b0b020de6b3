"""Points: those of Sobol's sequence, shifted, and a function of seed and number alone."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import qmc

from job.tuning import sampling


def test_points_are_sobols_shifted_by_one_of_the_studys_own():
    sobol = qmc.Sobol(5, scramble=False).random(64)[1:]  # without the one of all zeros
    points = np.array([sampling.point(7, trial, 5) for trial in range(63)])
    shifts = (points - sobol) % 1.0
    assert np.allclose(shifts, shifts[0])
    assert np.all((points >= 0) & (points < 1))
    # In any order: a pod has no other to ask.
    assert sampling.point(7, 62, 5) == tuple(points[62])
    assert not np.allclose(shifts[0], np.subtract(sampling.point(8, 0, 5), sobol[0]) % 1.0)


SETTLED = """
from job.process import runtime
runtime.prepare_tensorflow(), runtime.limit_threads(1)
from job.tuning import sampling
sampling.point(0, 3, 2)
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)  # raises once devices are settled
print(len(tf.config.list_logical_devices("CPU")))
"""


@pytest.mark.slow
def test_a_point_leaves_the_devices_to_the_training():
    ended = subprocess.run(
        [sys.executable, "-c", SETTLED], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "2\n"

"""The file of what a model said of each test image, and what is told of a spoilt one."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors import numpy as safetensors

from job.errors import DataError, MissingInputError
from job.results.predictions import Predictions
from job.results.publishing import RunFolder
from job.storage import parse

FINITE = st.floats(-(2.0**99), 2.0**99, width=32)
SHAPES = st.tuples(st.integers(1, 20), st.integers(2, 12))


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],  # on a machine with other things to do
)
@given(logits=SHAPES.flatmap(lambda shape: arrays.arrays(np.float32, shape, elements=FINITE)))
def test_what_was_written_is_read(tmp_path_factory, logits):
    folder = RunFolder(parse(str(tmp_path_factory.mktemp("run"))))
    labels = np.arange(len(logits), dtype=np.int32) % logits.shape[1]
    written = Predictions(logits, labels).to_bytes()
    assert written == Predictions(logits.copy(), labels.copy()).to_bytes()
    Path(str(folder.predictions)).write_bytes(written)
    found = Predictions.read(folder)
    assert np.array_equal(found.logits, logits)
    assert np.array_equal(found.labels, labels)
    assert np.allclose(found.probabilities.sum(axis=1), 1)
    assert np.array_equal(found.predicted, found.logits.argmax(axis=1))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no predictions"),
        (b"\xff" * 100, "holds no predictions"),
        (safetensors.save({"logits": np.zeros((2, 3), np.float32)}), "labels"),
        (
            Predictions(np.zeros((2, 3), np.float32), np.zeros(3, np.int32)).to_bytes(),
            r"logits of shape \(2, 3\) for labels of shape \(3,\)",
        ),
        (
            Predictions(np.zeros((2, 3)), np.zeros(2, np.int32)).to_bytes(),  # float64
            "logits of shape",
        ),
        (Predictions(np.zeros((0, 3), np.float32), np.zeros(0, np.int32)).to_bytes(), "0 labels"),
        (
            Predictions(np.zeros((1, 3), np.float32), np.full(1, -1, np.int32)).to_bytes(),
            "not all of its 3 classes",
        ),
        (
            Predictions(np.zeros((1, 3), np.float32), np.full(1, 3, np.int32)).to_bytes(),
            "not all of its 3 classes",
        ),
        (
            Predictions(np.full((1, 3), np.nan, np.float32), np.zeros(1, np.int32)).to_bytes(),
            "not finite",
        ),
    ],
)
def test_what_is_no_file_of_predictions_is_refused(tmp_path, content, said):
    (tmp_path / "predictions.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=said):
        Predictions.read(RunFolder(parse(str(tmp_path))))


def test_a_file_that_the_metrics_do_not_mean_is_refused(tmp_path):
    with pytest.raises(MissingInputError):
        Predictions.read(RunFolder(parse(str(tmp_path))))
    mine = Predictions(np.zeros((2, 3), np.float32), np.zeros(2, np.int32)).to_bytes()
    (tmp_path / "predictions.safetensors").write_bytes(mine)
    other = hashlib.sha256(b"other").hexdigest()
    named = {"path": "predictions.safetensors", "size": len(mine), "sha256": other}
    (tmp_path / "metrics.json").write_text(json.dumps({"artifacts": [named]}))
    with pytest.raises(DataError, match="is damaged"):
        Predictions.read(RunFolder(parse(str(tmp_path))))

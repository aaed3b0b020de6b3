"""A published model -> what TensorFlow Serving takes, the same bytes whenever it is made.

    serving/1/saved_model.pb, fingerprint.pb
    serving/1/variables/variables.index, variables.data-00000-of-00001

`serving_default` takes `pixels`, float32 from 0 to 1, shape (examples, *image_shape), as
model.keras does; it gives `probabilities`, float32, shape (examples, classes), and `class`, int64,
shape (examples,). The number is always 1: a run is one model for ever and has no second version.

What TensorFlow saves differs from process to process: functions are numbered by all that the
process traced before, maps have no order, and the fingerprint holds a random number. So that a run
that was resumed, or raced by a twin, publishes the same bytes, that is made anew here.
"""

import hashlib
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2, node_def_pb2
from tensorflow.core.protobuf import (
    fingerprint_pb2,
    saved_model_pb2,
    saved_object_graph_pb2,
)

from job.errors import JobError

VERSION = 1
FOLDER = f"serving/{VERSION}"
"""In the folder of a run; what lies above the number is what TensorFlow Serving is given."""
SIGNATURE = "serving_default"
TOLERANCE = 1e-5  # of a probability: another kernel sums in another order, no more
CHECKED = 100  # test images that are compared
_NUMBERED = re.compile(r"(__inference_.*)_([0-9]+)")  # a function, by name and when it was traced


def to_saved_model(model: keras.Model) -> dict[str, bytes]:
    """Return `model`, which gives probabilities, as the files of `FOLDER`, by their path in it.

    `saved_model.pb` comes last: who sees it sees the others.
    """
    exported = tf.Module()
    exported.weights = [weight.value for weight in model.weights]
    shape, classes = (None, *model.input_shape[1:]), model.output_shape[-1]

    def serve(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = tf.ensure_shape(model(pixels, training=False), (None, classes))
        return {"probabilities": probabilities, "class": tf.argmax(probabilities, axis=1)}

    takes = [tf.TensorSpec(shape, tf.float32, name="pixels")]
    exported.serve = tf.function(serve, input_signature=takes, autograph=False)
    with tempfile.TemporaryDirectory(prefix="mnist-job-") as folder:
        tf.saved_model.save(exported, folder, signatures={SIGNATURE: exported.serve})
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    graph = files.pop("saved_model.pb")
    fingerprint = files.pop("fingerprint.pb")
    files = dict(sorted(files.items()))
    graph = _numbered_anew(graph)
    return {**files, "fingerprint.pb": _of_content(fingerprint, graph), "saved_model.pb": graph}


def check(
    files: dict[str, bytes],
    pixels: npt.NDArray[np.float32],
    probabilities: npt.NDArray[np.floating],
) -> None:
    """Load `files`, from `to_saved_model`, as plain TensorFlow does, and compare what they give.

    Args:
        files: by their path.
        pixels: from 0 to 1, shape (examples, *image_shape).
        probabilities: that were published for them, shape (examples, classes).

    Raises:
        JobError: they give others, which nobody may be served.
    """
    with tempfile.TemporaryDirectory(prefix="mnist-job-") as folder:
        for path, content in files.items():
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).write_bytes(content)
        served = tf.saved_model.load(folder).signatures[SIGNATURE](pixels=tf.constant(pixels))
    apart = np.abs(served["probabilities"].numpy() - probabilities).max()
    same = np.array_equal(served["class"], served["probabilities"].numpy().argmax(axis=1))
    if not apart <= TOLERANCE or not same:  # NaN is no match either
        raise JobError(
            f"{FOLDER} gives other probabilities than the model itself, by up to {apart:.2g}: it "
            "was not published; leave --export out, and report this"
        )


def _numbered_anew(content: bytes) -> bytes:
    """Return a saved_model.pb with functions that are numbered by name alone, in that order."""
    saved = saved_model_pb2.SavedModel.FromString(content)
    for graph in saved.meta_graphs:
        functions = graph.graph_def.library.function
        names = _new_names([function.signature.name for function in functions])
        _call(graph.graph_def.node, names)
        for function in functions:
            function.signature.name = names[function.signature.name]
            _call(function.node_def, names)
            for taken in function.arg_attr.values():
                given = taken.attr.get("_user_specified_name")
                if given is not None and given.s.isdigit():  # another number of the process
                    del taken.attr["_user_specified_name"]
        functions.sort(key=lambda function: function.signature.name)
        _rename_objects(graph.object_graph_def, names)
    return bytes(saved.SerializeToString(deterministic=True))


def _rename_objects(
    objects: saved_object_graph_pb2.SavedObjectGraph, names: dict[str, str]
) -> None:
    """Let the objects that `tf.saved_model.load` makes have their functions by the new names."""
    for node in objects.nodes:
        called = node.function.concrete_functions
        if called:
            called[:] = [names[name] for name in called]
        if node.HasField("bare_concrete_function"):
            bare = node.bare_concrete_function
            bare.concrete_function_name = names[bare.concrete_function_name]
    functions = objects.concrete_functions
    before = {name: function.SerializeToString() for name, function in functions.items()}
    functions.clear()
    for name, function in before.items():
        functions[names[name]].ParseFromString(function)


def _new_names(names: list[str]) -> dict[str, str]:
    """Return the new name of each function: its own, and its place among those of that name."""
    found = [(name, _NUMBERED.fullmatch(name)) for name in names]
    order = sorted((match[1], int(match[2]), name) for name, match in found if match)
    firsts = [each[0] for each in order]
    new = {name: f"{own}_{n - firsts.index(own)}" for n, (own, _, name) in enumerate(order)}
    return {name: name for name in names} | new


def _call(nodes: Iterable[node_def_pb2.NodeDef], names: dict[str, str]) -> None:
    """Let `nodes` call functions by their new names, and know nothing of this machine."""
    for node in nodes:
        node.attr.pop("config_proto", None)  # its devices and threads
        for value in node.attr.values():
            for called in _called(value):
                called.name = names.get(called.name, called.name)


def _called(value: attr_value_pb2.AttrValue) -> list[attr_value_pb2.NameAttrList]:
    return [value.func] if value.HasField("func") else list(value.list.func)


def _of_content(fingerprint: bytes, graph: bytes) -> bytes:
    """Return a fingerprint.pb whose random number, and digest of other bytes, are of `graph`."""
    made = fingerprint_pb2.FingerprintDef.FromString(fingerprint)
    digest = hashlib.sha256(graph).digest()
    made.saved_model_checksum = int.from_bytes(digest[:8], "big")
    made.uuid = str(int.from_bytes(digest[8:24], "big"))
    return bytes(made.SerializeToString(deterministic=True))

"""`metrics.prom`: read by the parsers of both formats, the same each time, whatever metrics say."""

import copy
import io
import json
import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_read
from prometheus_client.parser import text_string_to_metric_families as prometheus_read
from samples import NIGHT, RUN

from job import storage
from job.errors import OutputError, StoppedError
from job.process.progress import Progress
from job.report import openmetrics
from job.storage import parse


def values(content: bytes, read=openmetrics_read) -> dict[tuple, float]:
    """Return all samples of a text, by name without prefix and labels."""
    return {
        (sample.name.removeprefix("mnist_job_"), *sorted(sample.labels.items())): sample.value
        for family in read(content.decode())
        for sample in family.samples
    }


def families(content: bytes) -> dict:
    return {family.name: family for family in openmetrics_read(content.decode())}


def test_of_a_run_all_is_said_in_base_units():
    found = values(openmetrics.text(openmetrics.of_run(RUN)))
    assert found["test_accuracy_ratio",] == 0.9862
    assert found["test_accuracy_bound_ratio", ("bound", "lower")] == 0.98371
    assert found["test_accuracy_bound_ratio", ("bound", "upper")] == 0.98831
    assert found["test_loss_nats",] == 0.0512
    assert found["test_calibration_error_ratio",] == 0.0034
    assert found["train_images_per_second",] == 91_234.5
    assert found["run_peak_memory_bytes",] == 612.5 * 1024 * 1024
    assert found["run_cpu_seconds",] == 17.5
    assert found["run_duration_seconds",] == 11
    stages = {key[1][1]: value for key, value in found.items() if key[0].startswith("stage")}
    assert stages == {
        "import": 2, "load": 0.5, "compile": 1, "train": 6, "evaluate": 0.25, "publish": 0.125
    }  # fmt: skip
    # 02:30:10.5 and all that came after the import
    assert found["last_success_timestamp_seconds",] == 1_795_314_610.5 + 7.875
    [info] = [key for key in found if key[0] == "run_info"]
    assert dict(info[1:]) == {
        "run_id": "r1", "model": "mlp", "config_sha256": "c" * 64, "data_fingerprint": "d" * 64,
        "weights_sha256": "a" * 64, "job_version": "0.1.0", "python": "3.11.7",
    }  # fmt: skip


def test_of_a_night_its_verdict_is_one_of_all_there_are(schema_of_nights):
    content = openmetrics.text(openmetrics.of_night(NIGHT))
    found = values(content)
    verdicts = {key[1][1]: value for key, value in found.items() if key[0] == "night_verdict"}
    assert set(verdicts) == set(schema_of_nights["properties"]["verdict"]["enum"])
    assert [name for name, value in verdicts.items() if value] == ["refused"]
    assert found["night_duration_seconds",] == 90
    assert found["champion_accuracy_ratio",] == 0.985
    assert found["champion_since_timestamp_seconds",] == 1_795_314_690 - 172_800
    assert (found["champion_stale",], found["champion_held",]) == (1, 0)
    assert (found["exit_code",], found["last_success_timestamp_seconds",]) == (0, 1_795_314_690)
    assert content.endswith(b"# EOF\n")


@pytest.fixture
def schema_of_nights():
    from conftest import schema

    return schema("night").schema


def test_a_night_that_failed_is_no_success_and_may_have_no_champion():
    failed = {**NIGHT, "verdict": "bad_data", "exit_code": 65, "champion": None}
    found = values(openmetrics.text(openmetrics.of_night(failed)))
    assert found["exit_code",] == 65
    assert found["last_completion_timestamp_seconds",] == 1_795_314_690
    assert not any(key[0].startswith(("champion", "last_success")) for key in found)


@pytest.mark.parametrize("document", [RUN, NIGHT])
def test_both_parsers_read_the_same(document):
    gauges = openmetrics.of_run(document) if document is RUN else openmetrics.of_night(document)
    content = openmetrics.text(gauges)
    assert values(content) == values(content, prometheus_read)
    for name, family in families(content).items():
        # What node_exporter's collector, which reads the older format, refuses.
        assert family.type == "gauge"
        assert family.documentation
        assert not name.endswith("_total")  # which is for counters
        if family.unit:
            assert name.endswith(f"_{family.unit}")


def test_the_same_document_is_the_same_bytes():
    again = json.loads(json.dumps(RUN))
    again["environment"] = dict(reversed(again["environment"].items()))
    one, other = (openmetrics.text(openmetrics.of_run(each)) for each in (RUN, again))
    assert one == other


def test_what_is_pushed_first_counts():
    gauges = [*openmetrics.of_end(0, 1e9), *openmetrics.of_run(RUN)]
    assert values(openmetrics.text(gauges))["last_success_timestamp_seconds",] == 1e9


def test_every_metric_is_one_that_is_written():
    gauges = [*openmetrics.of_run(RUN), *openmetrics.of_night(NIGHT)]
    assert {gauge.name for gauge in gauges} == set(openmetrics.METRICS)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


LEFT_OUT = object()


def paths(document, above=()) -> list[tuple]:
    """Return where each member of a document lies, those of its parts too."""
    found = []
    for name, value in document.items():
        found.append((*above, name))
        if isinstance(value, dict):
            found += paths(value, (*above, name))
    return found


def spoilt(document):
    """Return documents with some members made anything, or left out."""
    changes = st.tuples(st.sampled_from(paths(document)), ANYTHING | st.just(LEFT_OUT))

    def changed(chosen):
        found = copy.deepcopy(document)
        for (*above, name), value in chosen:
            part = found
            for each in above:
                part = part.get(each) if isinstance(part, dict) else None
            if not isinstance(part, dict):
                continue
            if value is LEFT_OUT:
                part.pop(name, None)
            else:
                part[name] = value
        return found

    return st.lists(changes, min_size=1, max_size=4).map(changed)


@given(spoilt(RUN), spoilt(NIGHT))
def test_foreign_metrics_give_text_that_parses(run, night):
    for gauges in (openmetrics.of_run(run), openmetrics.of_night(night)):
        found = values(openmetrics.text(gauges))
        assert all(math.isfinite(value) for value in found.values())


HOSTILE = st.text(st.characters() | st.sampled_from('"\\\n\r\t{},= #\x00\x85\u2028\ud800'))


@given(HOSTILE, HOSTILE)
def test_hostile_labels_stay_labels(run_id, model):
    content = openmetrics.text(
        openmetrics.of_run({**RUN, "run_id": run_id, "model": {"name": model}})
    )
    for read in (openmetrics_read, prometheus_read):
        found = values(content, read)
        [info] = [dict(key[1:]) for key in found if key[0] == "run_info"]
        for label, given_text in (("run_id", run_id), ("model", model)):
            assert info.get(label, "").isprintable()
            assert len(info.get(label, "")) <= 256
            if given_text.isprintable() and "  " not in given_text and len(given_text) < 256:
                assert info.get(label, "") == given_text.strip()
        assert len(found) == len(values(openmetrics.text(openmetrics.of_run(RUN))))
    assert content.decode().isascii() or content.decode()  # UTF-8, as the format demands


def test_names_keep_to_the_rules():
    signs = set(string.ascii_lowercase + "_")
    for name, (unit, told) in openmetrics.METRICS.items():
        assert set(name) <= signs
        assert told.endswith(".")
        assert not unit or name.endswith(f"_{unit}")
        for word in ("minutes", "_mib", "percent", "milliseconds"):
            assert word not in name


# --- written ------------------------------------------------------------------------------------


def test_it_is_written_once_and_stays(tmp_path):
    stream, place = io.StringIO(), parse(str(tmp_path / "r" / "metrics.prom"))
    openmetrics.write(place, openmetrics.of_run(RUN), Progress("json", stream))
    first = place.path.read_bytes()
    assert first == openmetrics.text(openmetrics.of_run(RUN))
    openmetrics.write(place, openmetrics.of_end(0, 1.0), Progress("json", stream))
    assert place.path.read_bytes() == first
    assert stream.getvalue() == ""


def test_a_failure_is_one_warning(tmp_path):
    (tmp_path / "r").write_text("a file where the folder would be")
    stream, place = io.StringIO(), parse(str(tmp_path / "r" / "metrics.prom"))
    openmetrics.write(place, openmetrics.of_run(RUN), Progress("json", stream))
    [event] = map(json.loads, stream.getvalue().splitlines())
    assert (event["event"], event["level"]) == ("metrics_not_exposed", "warning")
    assert event["uri"] == str(place)


@pytest.mark.parametrize("error", [OutputError("no room"), StoppedError("stop")])
def test_a_stop_is_no_failure(tmp_path, monkeypatch, error):
    def create(*_):
        raise error

    monkeypatch.setattr(storage, "create", create)
    place = parse(str(tmp_path / "metrics.prom"))
    if isinstance(error, StoppedError):
        with pytest.raises(StoppedError):
            openmetrics.write(place, [], Progress("json", io.StringIO()))
    else:
        openmetrics.write(place, [], Progress("json", io.StringIO()))


def test_a_run_in_a_store_has_it_too(place):
    openmetrics.write(place / "metrics.prom", openmetrics.of_run(RUN), Progress("json"))
    content = storage.read(place / "metrics.prom", 1 << 20)
    assert values(content)["test_images",] == 10_000

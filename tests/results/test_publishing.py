"""A run is begun by one config, published once, and complete when `metrics.json` says so."""

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from job import storage
from job.config import RunConfig
from job.errors import (
    ConflictError,
    DataError,
    JobError,
    MissingInputError,
    OutputError,
    TemporaryError,
)
from job.results import publishing
from job.results.publishing import Artifact, RunFolder
from job.storage import Place, parse
from job.workers.cluster import Cluster

FINGERPRINT = "ab" * 32
CLUSTER = Cluster(job="mnist", pod="mnist-x7")
FILES = {"model_weights.h5": b"weights", "model.keras": b"archive"}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(output=str(tmp_path / "out"), run_id="r1", epochs=10, seed=0)


def folder_of(config: RunConfig) -> Path:
    return config.place.path


def claim(config: RunConfig, fingerprint: str, cluster: Cluster, started: str) -> int:
    facts = {"started": started, **cluster.names}
    number: int = RunFolder(config.place).claim(config, fingerprint, facts)
    return number


def finished(config: RunConfig) -> dict[str, Any] | None:
    return RunFolder(config.place).finished(config)


def complete(config: RunConfig, document: dict[str, Any]) -> dict[str, Any]:
    return RunFolder(config.place).complete(config, document)


def publish(config: RunConfig, files: dict[str, bytes]) -> tuple[Artifact, ...]:
    return RunFolder(config.place).publish({config.place / name: files[name] for name in files})


def read(weights: str, limit_bytes: int) -> bytes:
    return publishing.read_artifact(parse(weights), limit_bytes)[0]


def metrics(config: RunConfig, files: dict[str, bytes] = FILES, **more: Any) -> dict[str, Any]:
    artifacts = [asdict(publishing.describe(path, data)) for path, data in files.items()]
    return {
        "status": "complete",
        "config_sha256": config.digest,
        "config": config.identity,
        "test": {},
        "timing": {},
        "artifacts": artifacts,
        **more,
    }


def put_metrics(config: RunConfig, content: bytes) -> Path:
    path = folder_of(config) / "metrics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- attempts -------------------------------------------------------------------------------


def test_attempts_count_from_one(config: RunConfig) -> None:
    numbers = [claim(config, FINGERPRINT, CLUSTER, f"10:0{n}") for n in range(3)]
    assert numbers == [1, 2, 3]
    attempts = folder_of(config) / "attempts"
    assert sorted(path.name for path in attempts.iterdir()) == [
        "0001.json",
        "0002.json",
        "0003.json",
    ]
    assert json.loads((attempts / "0002.json").read_bytes()) == {
        "attempt": 2,
        "started": "10:01",
        "config_sha256": config.digest,
        "config": config.identity,
        "data_fingerprint": FINGERPRINT,
        "job": "mnist",
        "pod": "mnist-x7",
        "node": None,
        "image": None,
    }


def test_an_attempt_is_told_of_those_before_it(config: RunConfig) -> None:
    folder = RunFolder(config.place)
    for number in range(1, 4):
        facts = {"started": f"10:0{number}", "cores": number}
        assert folder.claim(config, FINGERPRINT, facts) == number
        assert [(one["attempt"], one["cores"]) for one in folder.records_before(number)] == [
            (each, each) for each in range(1, number)
        ]


def test_of_many_attempts_the_newest_are_told(config: RunConfig, monkeypatch) -> None:
    monkeypatch.setattr(publishing, "_MAX_RECORDS", 3)
    for minute in range(5):
        claim(config, FINGERPRINT, CLUSTER, f"10:0{minute}")
    records = RunFolder(config.place).records_before(6)
    assert [record["attempt"] for record in records] == [4, 5]


def test_a_record_that_is_gone_or_damaged_ends_no_run(config: RunConfig) -> None:
    for minute in range(6):
        claim(config, FINGERPRINT, CLUSTER, f"10:0{minute}")
    (folder_of(config) / "attempts" / "0003.json").unlink()
    (folder_of(config) / "attempts" / "0004.json").write_bytes(b"{")
    assert claim(config, FINGERPRINT, CLUSTER, "11:00") == 7
    records = RunFolder(config.place).records_before(7)
    assert [record["attempt"] for record in records] == [1, 2, 5, 6]


@pytest.mark.parametrize("before", [1, 2, 3, 7, 8, 9, 100, 1000])
def test_the_next_attempt_is_found_in_a_few_looks(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    claim(config, "data", Cluster(), "then")
    for number in range(2, before + 1):
        (folder_of(config) / "attempts" / f"{number:04}.json").write_text("{}")
    looks, exists = [], storage.exists
    monkeypatch.setattr(storage, "exists", lambda uri: looks.append(uri) or exists(uri))
    assert claim(config, "data", Cluster(), "now") == before + 1
    assert len(looks) <= 2 * before.bit_length() + 1


def test_racing_attempts_have_numbers_without_gaps(config: RunConfig) -> None:
    with ThreadPoolExecutor(4) as pool:
        pods = [Cluster(pod=str(number)) for number in range(12)]
        claimed = pool.map(lambda pod: claim(config, "data", pod, "now"), pods)
        assert sorted(claimed) == list(range(1, 13))


def test_another_pod_on_another_device_goes_on_with_the_run(config: RunConfig) -> None:
    assert claim(config, FINGERPRINT, CLUSTER, "10:00") == 1
    moved = replace(config, strategy="cpu")
    assert claim(moved, FINGERPRINT, Cluster(pod="mnist-y8"), "10:00") == 2


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("epochs", 3, "epochs 10 there, 3 here"),
        ("seed", 9, "seed 0 there, 9 here"),
        ("augment", "shift", "augment 'none' there, 'shift' here"),
        ("data", "other.npz", "data 'mnist' there, 'other.npz' here"),
    ],
)
def test_a_run_belongs_to_the_config_that_began_it(
    config: RunConfig, field: str, value: Any, said: str
) -> None:
    claim(config, FINGERPRINT, CLUSTER, "10:00")
    with pytest.raises(ConflictError) as caught:
        claim(replace(config, **{field: value}), FINGERPRINT, CLUSTER, "10:01")
    assert said in str(caught.value)
    assert "--run-id" in str(caught.value)
    assert len(list((folder_of(config) / "attempts").iterdir())) == 1


def test_a_run_belongs_to_the_data_that_it_began_with(config: RunConfig) -> None:
    claim(config, FINGERPRINT, CLUSTER, "10:00")
    with pytest.raises(ConflictError, match="begun with other data at mnist"):
        claim(config, "cd" * 32, CLUSTER, "10:01")
    assert len(list((folder_of(config) / "attempts").iterdir())) == 1


def test_other_runs_are_other_runs(config: RunConfig) -> None:
    claim(config, FINGERPRINT, CLUSTER, "10:00")
    other = replace(config, run_id="r2", epochs=3)
    assert claim(other, "cd" * 32, CLUSTER, "10:00") == 1


def test_too_many_attempts_are_a_conflict(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_MAX_ATTEMPTS", 2)
    for number in (1, 2):
        claim(config, FINGERPRINT, CLUSTER, f"10:0{number}")
    with pytest.raises(ConflictError, match="begun 2 times"):
        claim(config, FINGERPRINT, CLUSTER, "10:03")


def test_a_store_where_everything_exists_is_not_searched_for_ever(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(config, FINGERPRINT, CLUSTER, "10:00")
    looks = iter(range(60))
    monkeypatch.setattr(storage, "exists", lambda _: next(looks) >= 0)
    with pytest.raises(ConflictError, match="begun 9,999 times"):
        claim(config, FINGERPRINT, CLUSTER, "10:01")


def test_a_damaged_attempt_is_not_passed_over(config: RunConfig) -> None:
    claim(config, FINGERPRINT, CLUSTER, "10:00")
    (folder_of(config) / "attempts" / "0001.json").write_bytes(b'{"attempt": 1, "con')
    with pytest.raises(DataError, match=r"/attempts/0001\.json is not the JSON"):
        claim(config, FINGERPRINT, CLUSTER, "10:01")


def test_an_output_that_cannot_be_written_is_found_out_first(config: RunConfig) -> None:
    Path(config.output).write_bytes(b"a file")
    with pytest.raises(OutputError):
        claim(config, FINGERPRINT, CLUSTER, "10:00")


def test_a_run_that_is_being_removed_is_not_begun(config: RunConfig) -> None:
    put_metrics(config, b"{}")
    storage.create(RunFolder(config.place).tombstone, b"{}")
    with pytest.raises(ConflictError, match=r"r1 is being removed, as pruned\.json in it says"):
        finished(config)


def test_a_removal_that_was_faster_than_the_claim_is_seen(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, create = RunFolder(config.place), storage.create
    assert finished(config) is None

    def meanwhile(place: Place, data: bytes) -> None:
        create(folder.tombstone, b"{}")
        create(place, data)

    monkeypatch.setattr(storage, "create", meanwhile)
    with pytest.raises(ConflictError, match="is being removed"):
        claim(config, FINGERPRINT, CLUSTER, "10:00")


# --- a finished run -------------------------------------------------------------------------


def test_a_run_not_begun_and_one_not_complete_are_not_finished(config: RunConfig) -> None:
    assert finished(config) is None
    claim(config, FINGERPRINT, CLUSTER, "10:00")
    publish(config, FILES)
    assert finished(config) is None


def test_a_complete_run_is_finished(config: RunConfig) -> None:
    document = metrics(config)
    publish(config, FILES)
    complete(config, document)
    assert finished(config) == document
    assert finished(replace(config, strategy="gpu")) == document


@pytest.mark.parametrize("name", FILES)
def test_a_run_without_what_its_metrics_name_is_not_complete(config: RunConfig, name: str) -> None:
    """Nor is it begun anew: somebody must say what is to be."""
    publish(config, FILES)
    complete(config, metrics(config))
    (folder_of(config) / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is not there, but metrics\.json names it"):
        finished(config)


def test_a_run_in_a_store_without_its_weights_is_not_complete(place: Place) -> None:
    config = RunConfig(output=str(place), run_id="r1")
    names = {config.place / name: FILES[name] for name in FILES}
    RunFolder(config.place).publish(names)
    complete(config, metrics(config))
    assert finished(config) == metrics(config)
    storage.remove(RunFolder(config.place).weights)
    with pytest.raises(DataError, match=r"model_weights\.h5 is not there"):
        finished(config)


@pytest.mark.parametrize("named", [[], None, {}, "model_weights.h5", [7], [{}], [{"path": 7}]])
def test_metrics_that_name_no_artifact_are_bad_data(config: RunConfig, named: Any) -> None:
    put_metrics(config, publishing.to_json(metrics(config) | {"artifacts": named}))
    with pytest.raises(DataError, match="lacks artifacts"):
        finished(config)


@pytest.mark.parametrize("part", ["test", "timing", "artifacts"])
def test_metrics_without_their_main_parts_are_bad_data(config: RunConfig, part: str) -> None:
    document = metrics(config)
    del document[part]
    put_metrics(config, publishing.to_json(document))
    with pytest.raises(DataError, match=f"lacks {part}"):
        finished(config)


def test_a_run_completed_with_another_config_is_a_conflict(config: RunConfig) -> None:
    complete(config, metrics(config))
    with pytest.raises(ConflictError, match="epochs 10 there, 3 here"):
        finished(replace(config, epochs=3))


BAD_JSON = {
    "nothing": b"",
    "torn": b'{"status": "comple',
    "text": b"not json",
    "binary": b"\xff\xfe\x00\x01",
    "nested": b"[" * 100_000,
    "digits": b"[" + b"1" * 10_000 + b"]",
    "list": b"[]",
    "string": b'"complete"',
    "null": b"null",
    "number": b"1",
}


@pytest.mark.parametrize("content", BAD_JSON.values(), ids=BAD_JSON)
def test_metrics_that_cannot_be_understood_are_bad_data(config: RunConfig, content: bytes) -> None:
    path = put_metrics(config, content)
    with pytest.raises(DataError, match=r"metrics\.json") as caught:
        finished(config)
    assert len(str(caught.value)) < 400
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "document",
    [{}, {"config_sha256": None}, {"config_sha256": "x", "config": 7}, {"config": {"epochs": 10}}],
    ids=json.dumps,
)
def test_metrics_of_who_knows_whom_are_a_conflict(
    config: RunConfig, document: dict[str, Any]
) -> None:
    put_metrics(config, json.dumps(document).encode())
    with pytest.raises(ConflictError, match="belongs to a run with another config"):
        finished(config)


def read_at_first(monkeypatch: pytest.MonkeyPatch, place: Place, content: bytes) -> list[Place]:
    """Let the first reading of `place` give `content`, and return what is read from now on."""
    read, seen = storage.read, []

    def odd(found: Place, limit_bytes: int) -> bytes:
        seen.append(found)
        data = read(found, limit_bytes)
        return content if found == place and seen.count(place) == 1 else data

    monkeypatch.setattr(storage, "read", odd)
    return seen


@pytest.mark.parametrize("content", [b"<html>log in</html>", b"[]"], ids=["page", "list"])
def test_one_odd_answer_is_not_the_last_word_on_metrics(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    publish(config, FILES)
    complete(config, metrics(config))
    seen = read_at_first(monkeypatch, RunFolder(config.place).metrics, content)
    assert finished(config) == metrics(config)
    assert len(seen) == 2


def test_one_odd_answer_is_not_the_last_word_on_an_attempt(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(config, FINGERPRINT, CLUSTER, "10:00")
    read_at_first(monkeypatch, RunFolder(config.place).attempt(1), b"<html>log in</html>")
    assert claim(config, FINGERPRINT, CLUSTER, "10:01") == 2


def test_metrics_too_large_are_bad_data(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(config, FILES)
    complete(config, metrics(config))
    monkeypatch.setattr(publishing, "MAX_JSON_BYTES", 100)
    with pytest.raises(DataError, match=r"metrics\.json has more than"):
        finished(config)


def refuse_reading(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    original = Path.open

    def wrapper(found: Path, *arguments: Any, **more: Any) -> Any:
        if found == path:
            raise PermissionError(13, "Permission denied", str(found))
        return original(found, *arguments, **more)

    monkeypatch.setattr(Path, "open", wrapper)


def test_metrics_that_may_not_be_read_are_not_taken_for_absent(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "I can't see" is not "there is nothing": a finished run would be trained again."""
    complete(config, metrics(config))
    refuse_reading(monkeypatch, folder_of(config) / "metrics.json")
    with pytest.raises(JobError, match=r"metrics\.json"):
        finished(config)


@pytest.mark.parametrize("kind", ["folder", "dangling link"])
def test_something_else_in_the_place_of_metrics_is_not_taken_for_absent(
    config: RunConfig, kind: str
) -> None:
    """It could not be published there either: say so before hours of training, not after."""
    path = put_metrics(config, b"")
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(JobError, match=r"metrics\.json"):
        finished(config)


# --- artifacts ------------------------------------------------------------------------------


def test_publishing_writes_the_files_and_describes_them(config: RunConfig) -> None:
    artifacts = publish(config, FILES)
    assert artifacts == tuple(
        Artifact(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in FILES.items()
    )
    assert {path.name: path.read_bytes() for path in folder_of(config).iterdir()} == FILES


def test_publishing_the_same_twice_is_fine(config: RunConfig) -> None:
    first = publish(config, FILES)
    assert publish(config, FILES) == first


def test_publishing_something_else_is_a_conflict(config: RunConfig) -> None:
    publish(config, FILES)
    with pytest.raises(ConflictError, match=r"model\.keras already exists"):
        publish(config, FILES | {"model.keras": b"ARCHIVE"})
    assert (folder_of(config) / "model.keras").read_bytes() == FILES["model.keras"]


def test_completing_returns_what_was_written(config: RunConfig) -> None:
    document = metrics(config, note="é")
    assert complete(config, document) == document
    assert json.loads((folder_of(config) / "metrics.json").read_bytes()) == document


def test_the_word_of_a_faster_twin_stands(config: RunConfig) -> None:
    faster = complete(config, metrics(config, seconds=1.0))
    before = (folder_of(config) / "metrics.json").read_bytes()
    assert complete(config, metrics(config, seconds=2.0)) == faster
    assert (folder_of(config) / "metrics.json").read_bytes() == before


def test_a_twin_with_other_artifacts_is_a_conflict(config: RunConfig) -> None:
    complete(config, metrics(config))
    with pytest.raises(ConflictError, match=r"metrics\.json already exists"):
        complete(config, metrics(config, FILES | {"model.keras": b"ARCHIVE"}))


def test_completing_a_run_of_another_config_is_a_conflict(config: RunConfig) -> None:
    complete(config, metrics(config))
    other = replace(config, seed=9)
    with pytest.raises(ConflictError, match="seed 0 there, 9 here"):
        complete(other, metrics(other))


def test_a_damaged_twin_is_not_overwritten(config: RunConfig) -> None:
    path = put_metrics(config, b"{")
    with pytest.raises(DataError):
        complete(config, metrics(config))
    assert path.read_bytes() == b"{"


# --- reading what was published -------------------------------------------------------------


@pytest.fixture
def weights(config: RunConfig) -> Path:
    """The weights file of a complete run."""
    publish(config, FILES)
    complete(config, metrics(config))
    return folder_of(config) / "model_weights.h5"


def test_weights_are_found_in_the_folder_of_a_run(config: RunConfig, weights: Path) -> None:
    folder = str(config.place)
    for text in (folder, f"{folder}/", str(weights)):
        assert publishing.weights_of(parse(text)).path == weights
    as_uri = parse(config.place.path.as_uri())
    assert str(publishing.weights_of(as_uri)) == weights.as_uri()
    assert publishing.weights_of(parse("nowhere.h5")) == parse("nowhere.h5")


def test_an_artifact_as_published_is_returned(weights: Path) -> None:
    assert read(str(weights), 100) == b"weights"
    assert read(weights.as_uri(), 100) == b"weights"


def change(path: Path) -> None:
    path.write_bytes(b"Weights")


@pytest.mark.parametrize("as_uri", [str, Path.as_uri], ids=["path", "file"])
def test_an_artifact_that_was_changed_is_refused(weights: Path, as_uri: Any) -> None:
    change(weights)
    with pytest.raises(DataError, match=r"model_weights\.h5 is damaged"):
        read(as_uri(weights), 100)


def test_one_odd_answer_is_not_the_last_word_on_an_artifact(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = read_at_first(monkeypatch, parse(str(weights)), b"Weights")
    assert read(str(weights), 100) == b"weights"
    assert len(seen) == 3  # metrics once


def test_an_artifact_from_a_store_that_differs_may_pass(place: Place) -> None:
    """What lies there was written whole; so a proxy or a cache on the way has changed it."""
    config = RunConfig(output=str(place), run_id="r1")
    storage.create(RunFolder(config.place).weights, b"Weights")
    complete(config, metrics(config))
    with pytest.raises(TemporaryError, match=r"model_weights\.h5 is damaged.*try again"):
        publishing.read_artifact(RunFolder(config.place).weights, 100)


def test_an_artifact_named_in_other_words_is_checked_as_well(weights: Path) -> None:
    change(weights)
    other_words = weights.as_uri().replace("model_weights", "model%5Fweights")
    assert storage.read(parse(other_words), 100) == b"Weights"
    with pytest.raises(DataError, match="is damaged"):
        read(other_words, 100)


def test_an_artifact_is_not_passed_for_checked_when_metrics_may_not_be_read(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_reading(monkeypatch, weights.parent / "metrics.json")
    with pytest.raises(JobError, match=r"metrics\.json"):
        read(str(weights), 100)


def test_a_file_without_metrics_beside_it_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "weights.h5"
    path.write_bytes(b"weights")
    assert read(str(path), 100) == b"weights"


def test_a_relative_name_is_checked_too(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(weights.parent)
    assert read("model_weights.h5", 100) == b"weights"
    change(weights)
    with pytest.raises(DataError, match="is damaged"):
        read("model_weights.h5", 100)


@pytest.mark.parametrize("ending", ["/", "%2F"])
def test_metrics_are_found_beside_a_name_that_ends_in_a_slash(weights: Path, ending: str) -> None:
    change(weights)
    with pytest.raises(DataError, match="is damaged"):
        read(f"{weights.as_uri()}{ending}", 100)


def test_a_missing_or_larger_artifact_is_refused(weights: Path) -> None:
    with pytest.raises(DataError):
        read(str(weights), 3)
    weights.unlink()
    with pytest.raises(MissingInputError):
        read(str(weights), 100)


@pytest.mark.parametrize(
    "foreign",
    [
        {},
        {"accuracy": 0.9},
        {"artifacts": []},
        {"artifacts": {}},
        {"artifacts": {"model_weights.h5": "abc"}},
        {"artifacts": "model_weights.h5"},
        {"artifacts": ["model_weights.h5", 7, None, []]},
        {"artifacts": [{}]},
        {"artifacts": [{"path": "other.h5", "sha256": "abc"}]},
        {"artifacts": [{"path": ["model_weights.h5"]}]},
        {"artifacts": None},
        {"artifacts": 7},
        {"artifacts": True},
    ],
    ids=json.dumps,
)
def test_foreign_metrics_say_nothing_about_the_file(weights: Path, foreign: Any) -> None:
    (weights.parent / "metrics.json").write_text(json.dumps(foreign))
    assert read(str(weights), 100) == b"weights"


@pytest.mark.parametrize("content", BAD_JSON.values(), ids=BAD_JSON)
def test_metrics_beside_it_that_cannot_be_understood_are_bad_data(
    weights: Path, content: bytes
) -> None:
    (weights.parent / "metrics.json").write_bytes(content)
    with pytest.raises(DataError, match=r"metrics\.json"):
        read(str(weights), 100)


@pytest.mark.parametrize("sha256", [None, "", 7, [], "00" * 32])
def test_an_artifact_with_another_sha256_than_its_own_is_refused(
    weights: Path, sha256: Any
) -> None:
    named = {"artifacts": [{"path": "model_weights.h5", "sha256": sha256}]}
    (weights.parent / "metrics.json").write_text(json.dumps(named))
    with pytest.raises(DataError, match="is damaged"):
        read(str(weights), 100)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_not_written(config: RunConfig, number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        publishing.to_json({"loss": {"deep": [number]}})
    with pytest.raises(ValueError, match="JSON"):
        complete(config, metrics(config, loss=number))
    assert finished(config) is None


def test_json_is_the_same_bytes_for_the_same_facts_and_ends_its_line() -> None:
    document = {"b": 1, "a": ["é", None, 0.1]}
    assert publishing.to_json(document) == publishing.to_json(dict(document))
    assert publishing.to_json(document).endswith(b"}\n")
    assert json.loads(publishing.to_json(document)) == document

"""A config that exists is valid; one that is not names the flag and the value that are wrong."""

import hashlib
import math
import re
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job import config
from job.config import (
    EMBEDDED,
    RESERVED_RUN_IDS,
    DataSource,
    RunConfig,
    check_run_id,
    fresh_run_id,
    parse_data,
)
from job.errors import UsageError
from job.storage import parse

CONFIG = RunConfig(run_id="r1", epochs=10, seed=0)
FIELDS = [field.name for field in fields(RunConfig) if field.init]
NOT_IDENTITY = {
    *("output", "run_id", "only", "strategy", "require_gpu"),
    *("checkpoint_seconds", "time_limit", "peer_timeout", "tensorboard", "report"),
    "tensorboard_dir",
}

# A legal value of each field that differs from the default.
OTHER: dict[str, Any] = {
    "output": "elsewhere",
    "run_id": "r2",
    "data": "other.npz",
    "base": "mnist",
    "only": (("mnist", "0" * 64),),
    "model": "cnn",
    "strategy": "cpu",
    "require_gpu": True,
    "peer_timeout": 99.0,
    "checkpoint_seconds": 7.5,
    "time_limit": 3_600.0,
    "precision": "mixed_bfloat16",
    "seed": 99,
    "epochs": 77,
    "batch_size": 7,
    "learning_rate": 0.0123,
    "schedule": "cosine",
    "weight_decay": 0.0456,
    "label_smoothing": 0.789,
    "augment": "shift",
    "augment_strength": 0.5,
    "dropout": 0.1,
    "validation": 0.2,
    "validation_seed": 3,
    "early_stopping": 4,
    "init_weights": "model_weights.h5",
    "exchange": "bfloat16",
    "ensemble": 3,
    "export": "savedmodel",
    "tensorboard": True,
    "tensorboard_dir": "logs",
    "report": True,
}
# What a field is about, without which it is refused.
WITH: dict[str, dict[str, Any]] = {
    "augment_strength": {"augment": "affine"},
    "validation_seed": {"validation": 0.1},
    "early_stopping": {"validation": 0.1},
}

WRONG: list[tuple[str, Any]] = [
    *[("epochs", value) for value in (0, -1, 10_001, 2**63, 1.0, 1.5, True, "3", None, math.nan)],
    *[("batch_size", value) for value in (0, -64, 65_537, 64.0, True, False, "64", None)],
    *[("seed", value) for value in (-1, 2**31, -(2**31), 0.0, True, False, "0", None, math.inf)],
    *[("learning_rate", value) for value in (0.0, -1e-9, 10.001, 1e300)],
    *[("learning_rate", value) for value in (math.nan, math.inf, -math.inf)],
    *[("weight_decay", value) for value in (-1e-9, 10.001, math.nan, math.inf, -math.inf)],
    *[("label_smoothing", value) for value in (-1e-9, 0.9001, 1.0, math.nan, math.inf, -math.inf)],
    *[("checkpoint_seconds", value) for value in (-1e-9, 86_400.1, math.nan, math.inf)],
    *[("time_limit", value) for value in (0.0, 0.99, -5.0, 1e7 + 1, math.nan, math.inf)],
    *[("peer_timeout", value) for value in (0.0, -1.0, 86_401, math.nan, math.inf)],
    *[("require_gpu", value) for value in ("", "yes", None, 1)],
    *[("tensorboard", value) for value in ("", "yes", "no", 1)],
    *[("model", value) for value in ("", "MLP", "mlp ", "resnet", None, 1)],
    *[("strategy", value) for value in ("", "tpu", "GPU", "cpu,gpu", None, True)],
    *[("exchange", value) for value in ("", "float16", "mixed_bfloat16", None)],
    *[("precision", value) for value in ("", "float16", "float64", "bfloat16", None)],
    *[("schedule", value) for value in ("", "step", "Cosine", None, 0)],
    *[("dropout", value) for value in (-1e-9, 0.9001, 1.0, math.nan, math.inf)],
    *[("validation", value) for value in (-1e-9, 0.9001, 1.0, math.nan, math.inf)],
    *[("validation_seed", value) for value in (-1, 2**31, 0.5, True, None)],
    *[("early_stopping", value) for value in (0, -1, 10_001, 1.0, True, "3")],
    *[("augment_strength", value) for value in (-1e-9, 3.1, math.nan, math.inf)],
    *[("augment", value) for value in ("", "flip", "True", None, True, False)],
    *[("export", value) for value in ("", "SavedModel", "onnx", True)],
    *[("ensemble", value) for value in (-1, 0, 1, 51, 2.0, True, "2")],
]
WRONG_TYPE_OF_REAL: list[tuple[str, Any]] = [
    (field, value)
    for field in ("learning_rate", "weight_decay", "label_smoothing", "dropout", "validation")
    for value in ("0.1", "", None, True, False, [0.1], 1j, 10**400)
]
BOUNDARIES: list[tuple[str, Any]] = [
    ("epochs", 1),
    ("epochs", 10_000),
    ("batch_size", 1),
    ("batch_size", 65_536),
    ("seed", 0),
    ("seed", 2**31 - 1),
    ("ensemble", 2),
    ("ensemble", 50),
    ("learning_rate", 1e-12),
    ("learning_rate", 10.0),
    ("weight_decay", 0.0),
    ("weight_decay", 10.0),
    ("label_smoothing", 0.0),
    ("label_smoothing", 0.9),
    ("peer_timeout", 1.0),
    ("peer_timeout", 86_400.0),
    ("checkpoint_seconds", 0.0),
    ("checkpoint_seconds", 86_400.0),
    ("time_limit", None),
    ("time_limit", 1.0),
    ("time_limit", 1e7),
    ("dropout", 0.9),
    ("validation", 0.9),
    ("early_stopping", 1),
    ("augment_strength", 0.0),
    ("augment_strength", 3.0),
]

BAD_RUN_IDS = [
    *("", " ", ".", "..", "...", "-", "_", "-a", "a-", ".a", "a.", "_a", "a_", "a b", " a", "a "),
    *("a/b", "/a", "a/", "a\\b", "../a", "a/../b", "a\n", "\na", "a\0b", "a:b", "a%2fb", "~"),
    *(
        "é",
        "\uff41",
        "\u0661",
        "a\u200bb",
        "*",
        "a?",
        "a#b",
        "a@b",
        "s3://b/k",
        "x" * 64,
        "x" * 100_000,
    ),
    *RESERVED_RUN_IDS,
]
GOOD_RUN_IDS = ["a", "0", "A-1", "a..b", "a.b_c-d", "x" * 63, "mnist-nightly-29384710", "Champion"]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda value: repr(value)[:20])
def test_a_wrong_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        replace(CONFIG, **WITH.get(field, {}) | {field: value})
    assert str(caught.value).startswith(f"--{field.replace('_', '-')} must be ")
    assert str(caught.value).endswith(f"not {value!r}")


@pytest.mark.parametrize(("field", "value"), WRONG_TYPE_OF_REAL, ids=lambda value: repr(value)[:20])
def test_a_value_that_is_no_real_number_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^--{field.replace('_', '-')} must be "):
        replace(CONFIG, **{field: value})


@pytest.mark.parametrize(("field", "value"), BOUNDARIES)
def test_boundaries_are_accepted(field: str, value: Any) -> None:
    made = replace(CONFIG, **WITH.get(field, {}) | {field: value})
    assert getattr(made, field) == value


@pytest.mark.parametrize("field", FIELDS)
def test_other_legal_values_are_accepted(field: str) -> None:
    changed = replace(CONFIG, **WITH.get(field, {}) | {field: OTHER[field]})
    assert getattr(changed, field) == OTHER[field] != getattr(CONFIG, field)


@pytest.mark.parametrize(
    ("field", "flag"),
    [
        *[("output", "--output"), ("data", "--data"), ("base", "--base")],
        ("init_weights", "--init-weights"),
    ],
    ids=["output", "data", "base", "init_weights"],
)
@pytest.mark.parametrize("uri", ["", " ", "s3://user:s3cr3t@b/k", "a::b", "a\nb", "file://h/x"])
def test_a_wrong_uri_is_refused_by_name_without_echo(field: str, flag: str, uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        replace(CONFIG, **{field: uri})
    assert str(caught.value).startswith(f"{flag} ")
    assert "s3cr3t" not in str(caught.value)


def test_a_gpu_is_not_required_of_a_cpu() -> None:
    with pytest.raises(UsageError, match="--require-gpu and --strategy cpu"):
        replace(CONFIG, strategy="cpu", require_gpu=True)


def test_what_names_the_data_set_is_parsed_at_the_door() -> None:
    assert replace(CONFIG, data="folder").source == DataSource(parse("folder"))
    given = replace(CONFIG, data="folder", base="mnist", only=(("mnist", "0"),))
    assert given.source == DataSource(parse("folder"), EMBEDDED, (("mnist", "0"),))


def test_the_embedded_data_set_needs_no_uri() -> None:
    assert parse_data("mnist") == EMBEDDED
    assert str(parse_data("mnist")) == "mnist"
    assert parse_data("./mnist") != EMBEDDED
    assert str(parse_data("some/where.npz")) == "some/where.npz"


@pytest.mark.parametrize("run_id", BAD_RUN_IDS, ids=lambda run_id: ascii(run_id)[:20])
def test_a_bad_run_id_is_refused(run_id: str) -> None:
    with pytest.raises(UsageError, match=r"^--run-id ") as caught:
        replace(CONFIG, run_id=run_id)
    assert repr(run_id[:80]) in str(caught.value) or not run_id.isascii()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("run_id", GOOD_RUN_IDS)
def test_a_good_run_id_is_accepted(run_id: str) -> None:
    assert check_run_id(run_id) == run_id
    assert replace(CONFIG, output="out", run_id=run_id).place == parse(f"out/{run_id}")


@settings(max_examples=100, deadline=None)
@given(st.text() | st.from_regex(r"[A-Za-z0-9._/-]{1,70}"))
def test_an_accepted_run_id_is_one_harmless_path_segment(run_id: str) -> None:
    try:
        accepted = check_run_id(run_id)
    except UsageError:
        return
    assert accepted == run_id
    assert set(accepted) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
    assert accepted not in {".", "..", "champion"}
    assert 1 <= len(accepted) <= 63
    assert accepted[0].isalnum()
    assert accepted[-1].isalnum()


def test_a_fresh_run_id_is_legal_readable_and_new() -> None:
    made = [fresh_run_id("mlp") for _ in range(4)]
    assert [check_run_id(run_id) for run_id in made] == made
    assert all(re.fullmatch(r"mlp-\d{8}-\d{6}-[0-9a-f]{4}", run_id) for run_id in made)
    assert len(set(made)) > 1  # all four alike: once in 10^14, were it a second apart or not


def test_identity_is_everything_but_place_and_device() -> None:
    later = {
        "base",
        "dropout",
        "validation",
        "init_weights",
        "exchange",
        "ensemble",
        "export",
        *WITH,
    }  # where they are given
    assert set(CONFIG.identity) == set(FIELDS) - NOT_IDENTITY - later
    assert replace(CONFIG, base="mnist").identity == CONFIG.identity | {"base": "mnist"}
    assert CONFIG.identity.items() <= asdict(CONFIG).items()


@pytest.mark.parametrize("field", FIELDS)
def test_the_digest_changes_with_what_is_trained_and_with_nothing_else(field: str) -> None:
    before = replace(CONFIG, **WITH.get(field, {}))
    changed = replace(before, **{field: OTHER[field]})
    assert (changed.digest == before.digest) == (field in NOT_IDENTITY)


@pytest.mark.parametrize("field", WITH)
def test_what_is_about_another_flag_is_refused_without_it(field: str) -> None:
    with pytest.raises(UsageError, match=f"^--{field.replace('_', '-')} is "):
        replace(CONFIG, **{field: OTHER[field]})


@pytest.mark.parametrize("preset", config.PRESETS)
def test_presets_are_legal_and_all_reach_the_identity(preset: config.Preset) -> None:
    fields_of_it = config.PRESETS[preset]
    made = RunConfig(run_id="r", **fields_of_it)
    assert {name: made.identity.get(name, 0.0) for name in fields_of_it} == fields_of_it
    assert get_args(config.Preset) == tuple(config.PRESETS)


@pytest.mark.parametrize(
    ("validation", "batch_size", "examples", "said"),
    [
        (0.0, 11, 10, "--batch-size 11 is more than the 10 training examples of mnist: "),
        (0.5, 6, 10, "the 5 training examples of mnist, without the 5 held out: "),
        (0.01, 1, 10, "--validation 0.01 of 10 training examples is none: give at least 0.1"),
    ],
)
def test_examples_must_be_enough(validation, batch_size, examples, said) -> None:
    made = replace(CONFIG, validation=validation, batch_size=batch_size)
    with pytest.raises(UsageError, match=re.escape(said)):
        made.check_examples(examples)
    replace(CONFIG, validation=0.5, batch_size=5).check_examples(10)


def test_the_digest_is_pinned() -> None:
    """Runs already begun know it by this text: a change here orphans them, and should mean to."""
    config = RunConfig(
        output="anywhere",
        run_id="any",
        strategy="gpu",
        data="mnist",
        model="mlp",
        precision="float32",
        seed=7,
        epochs=3,
        batch_size=128,
        learning_rate=0.001,
        schedule="cosine",
        weight_decay=0.5,
        label_smoothing=0.05,
        augment="shift",
    )
    canonical = (
        b'{"augment":"shift","batch_size":128,"data":"mnist","epochs":3,"label_smoothing":0.05,'
        b'"learning_rate":0.001,"model":"mlp","precision":"float32","schedule":"cosine","seed":7,'
        b'"weight_decay":0.5}'
    )
    assert config.digest == hashlib.sha256(canonical).hexdigest()


@pytest.mark.parametrize(
    ("field", "one", "same"),
    [("learning_rate", 1.0, 1), ("label_smoothing", 0.0, 0), ("label_smoothing", 0.0, -0.0)],
)
def test_equal_configs_have_equal_digests(field: str, one: float, same: float) -> None:
    first, second = replace(CONFIG, **{field: one}), replace(CONFIG, **{field: same})
    assert first == second
    assert first.digest == second.digest


def test_a_config_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        CONFIG.epochs = 2  # type: ignore[misc]


def test_a_batch_may_be_all_examples_but_not_more() -> None:
    config = replace(CONFIG, batch_size=1_234)
    config.check_examples(1_234)
    with pytest.raises(UsageError, match=r"--batch-size 1,234 .*the 1,233 training examples"):
        config.check_examples(1_233)


def test_no_difference_is_said_in_no_words() -> None:
    assert CONFIG.difference(replace(CONFIG, output="x", run_id="y", strategy="cpu").identity) == ""


@pytest.mark.parametrize("field", sorted(set(FIELDS) - NOT_IDENTITY))
def test_a_difference_is_named_with_both_values(field: str) -> None:
    mine = replace(CONFIG, **WITH.get(field, {}))
    theirs = replace(mine, **{field: OTHER[field]}).identity
    assert mine.difference(theirs) == (
        f"{field} {OTHER[field]!r} there, {getattr(mine, field)!r} here"
    )


def test_several_differences_are_all_named() -> None:
    said = CONFIG.difference(replace(CONFIG, epochs=3, seed=9).identity)
    assert "epochs 3 there, 10 here" in said
    assert "seed 9 there, 0 here" in said


def test_a_field_that_only_this_config_has_is_named() -> None:
    theirs = {name: value for name, value in CONFIG.identity.items() if name != "augment"}
    assert CONFIG.difference(theirs) == "augment None there, 'none' here"


def test_a_field_that_only_the_other_config_has_is_named() -> None:
    """Another version of the job may know flags that this one doesn't: say which."""
    assert "dropout" in CONFIG.difference(CONFIG.identity | {"dropout": 0.5})


def test_event_files_that_are_kept_elsewhere_are_those_of_one_run(tmp_path: Path) -> None:
    """Not of another of its id, which would find its curves drawn; the same run finds its own."""
    one = {"run_id": "r", "tensorboard_dir": "gs://bucket/logs", "output": str(tmp_path)}
    config = RunConfig(**one)
    assert re.fullmatch(r"gs://bucket/logs/r-[0-9a-f]{8}", str(config.events))
    for other in ({"output": "gs://bucket/runs"}, {"epochs": 3}, {"seed": 1}, {"run_id": "s"}):
        assert RunConfig(**one | other).events != config.events
    for same in ({"output": f"file://{tmp_path}"}, {"time_limit": 60}, {"strategy": "cpu"}):
        assert RunConfig(**one | same).events == config.events
    assert RunConfig(run_id="r").events is None

"""What the guard lets pass and what it refuses, measured on MNIST."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, Finished

from job.config import EMBEDDED, DataSource
from job.data import card, shards, source
from job.data.card import Card
from job.data.source import Dataset
from job.errors import DataError, UsageError
from job.nightly import guard
from job.storage import parse


@pytest.fixture(scope="module")
def reference(mnist: Dataset) -> Card:
    return Card.of(mnist.x_train, mnist.y_train, 10)


@pytest.fixture(scope="module")
def parts(mnist: Dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return features and labels of MNIST's images to train on, and of those to test with."""
    pieces = [card.features(mnist.x_train[start:][:5000]) for start in range(0, 60_000, 5000)]
    train, test = np.concatenate(pieces), card.features(mnist.x_test)
    return [(train, mnist.y_train), (test, mnist.y_test)]


def wrong(*arguments: Any) -> list[guard.Finding]:
    """Return what of `guard.drift` does not pass."""
    return [finding for finding in guard.drift(*arguments) if not finding.passed]


def drift(images: np.ndarray, labels: np.ndarray, reference: Card) -> list[guard.Finding]:
    return wrong("train-x.npz", Card.of(images, labels, 10), reference)


def passes(features: np.ndarray, labels: np.ndarray, reference: Card) -> bool:
    return wrong("s", Card.of_features(features, labels, 10), reference) == []


# --- drift --------------------------------------------------------------------------------------


def test_halves_of_the_test_set_pass_though_they_differ(mnist: Dataset, reference: Card) -> None:
    """The first half was written by clerks, the second by pupils."""
    for half in (slice(0, 5000), slice(5000, 10_000)):
        assert drift(mnist.x_test[half], mnist.y_test[half], reference) == []


def test_other_writers_pass_however_many_images_they_write(
    parts: list[tuple[np.ndarray, np.ndarray]], reference: Card
) -> None:
    """A floor below which nothing is drift: chance has no part in a hundred thousand images."""
    features, labels = parts[1]
    for half in (slice(0, 5000), slice(5000, 10_000)):
        assert passes(np.tile(features[half], (20, 1)), np.tile(labels[half], 20), reference)


@pytest.mark.parametrize("size", [100, 200, 500, 1_000, 3_000, 10_000])
def test_shards_in_the_order_of_the_files_pass(
    parts: list[tuple[np.ndarray, np.ndarray]], reference: Card, size: int
) -> None:
    """In which one hand follows the other, so that a shard is of a few writers."""
    for features, labels in parts:
        for start in range(0, len(labels) - size + 1, size):
            part = slice(start, start + size)
            assert passes(features[part], labels[part], reference), start


@pytest.mark.parametrize("size", [1, 2, 5, 20, 200, 1_000, 10_000])
def test_random_shards_pass(
    parts: list[tuple[np.ndarray, np.ndarray]], reference: Card, size: int
) -> None:
    generator = np.random.default_rng(size)
    features, labels = parts[0]
    refused = 0
    for _ in range(500):
        rows = generator.choice(len(labels), size, replace=False)
        refused += not passes(features[rows], labels[rows], reference)
    assert refused <= 2 * (size < 1_000)  # four deviations of ten labels: once or twice by chance


@pytest.mark.parametrize("size", [200, 1_000, 10_000])
@pytest.mark.parametrize("change", ["inverted", "brighter", "darker", "faint"])
def test_other_pixels_are_refused(mnist: Dataset, reference: Card, size: int, change: str) -> None:
    images, labels = mnist.x_test[-size:], mnist.y_test[-size:]
    levels = images.astype(np.int64)
    changed = {
        "inverted": 255 - levels,
        "brighter": np.minimum(255, levels + 64),
        "darker": np.maximum(0, levels - 128),
        "faint": levels // 2,
    }[change].astype(np.uint8)
    found = drift(changed, labels, reference)
    assert {finding.what for finding in found} & {"pixel_mean", "pixel_deviation"}
    assert all(finding.value > finding.bound for finding in found)
    assert all(finding.sentence.startswith("train-x.npz: ") for finding in found)


@pytest.mark.parametrize("size", [250, 1_000, 10_000])
@pytest.mark.parametrize("missing", range(10))
def test_a_missing_digit_is_refused(
    mnist: Dataset, reference: Card, size: int, missing: int
) -> None:
    kept = np.flatnonzero(mnist.y_test[-size:] != missing) + 10_000 - size
    [finding] = drift(mnist.x_test[kept], mnist.y_test[kept], reference)
    assert finding.what == "labels"
    assert f"the label {missing} is that of 0.0000" in finding.sentence


def test_one_digit_only_is_refused(mnist: Dataset, reference: Card) -> None:
    kept = np.flatnonzero(mnist.y_test == 4)[:30]
    [finding] = drift(mnist.x_test[kept], mnist.y_test[kept], reference)
    assert finding.what == "labels"


def test_a_label_of_another_digit_is_seen_in_the_pixels(mnist: Dataset, reference: Card) -> None:
    labels = mnist.y_test.copy()
    labels[mnist.y_test == 1], labels[mnist.y_test == 0] = 0, 1
    assert {finding.what for finding in drift(mnist.x_test, labels, reference)} == {
        "pixel_mean",
        "pixel_deviation",
    }


def test_labels_that_only_one_of_both_has() -> None:
    images = np.random.default_rng(1).integers(0, 256, (400, 4, 4)).astype(np.uint8)
    few = Card.of(images, np.arange(400) % 2, 2)
    more = Card.of(images, np.arange(400) % 4, 4)
    [finding] = wrong("s", more, few)
    assert (finding.what, round(finding.value, 2)) == ("labels", 0.25)
    [finding] = wrong("s", few, more)
    assert (finding.what, round(finding.value, 2)) == ("labels", 0.25)


def test_images_all_alike_are_no_measure() -> None:
    grey = Card.of(np.full((100, 4, 4), 100, np.uint8), np.arange(100) % 2, 2)
    nearly = Card.of(np.full((100, 4, 4), 101, np.uint8), np.arange(100) % 2, 2)
    other = Card.of(np.full((100, 4, 4), 110, np.uint8), np.arange(100) % 2, 2)
    assert wrong("s", nearly, grey) == []
    assert [finding.what for finding in wrong("s", other, grey)] == ["pixel_mean"]


def test_bounds_are_the_callers(mnist: Dataset, reference: Card) -> None:
    ours = Card.of(mnist.x_test, mnist.y_test, 10)
    tight = guard.Bounds(labels=1e-9, pixels=1e-9, deviations=0)
    assert [finding.what for finding in wrong("s", ours, reference, tight)] == [
        "labels",
        "pixel_mean",
        "pixel_deviation",
    ]


# --- the champion's accuracy --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correct", "examples", "refused"),
    [
        (981, 1000, False),
        (881, 1000, False),  # 0.1 lower
        (879, 1000, True),
        (0, 1, False),  # of one image nobody knows
        (1, 3, False),
        (0, 3, True),
        (10, 20, True),
        (17, 20, False),
        (1000, 1000, False),
    ],
)
def test_an_accuracy_much_below_the_champions_is_refused(
    correct: int, examples: int, refused: bool
) -> None:
    found = guard.agreement("train-x.npz", correct, examples, 0.98)
    assert found.passed is not refused
    assert f"train-x.npz: the champion agrees with {correct:,} of {examples:,}" in found.sentence
    assert "0.9800" in found.sentence


# --- leaks --------------------------------------------------------------------------------------


def test_mnist_has_no_leak(mnist: Dataset) -> None:
    assert guard.leaks(mnist) == []


@pytest.fixture
def leaking(mnist: Dataset, tmp_path: Path) -> Dataset:
    """Return MNIST and two shards that hold test images, and one with test images of its own."""
    mine = {"x_train": mnist.x_test[:45], "y_train": mnist.y_test[:45]}
    np.savez(tmp_path / "train-leak.npz", **mine)
    new = 255 - mnist.x_test[100:120]
    np.savez(tmp_path / "test-new.npz", x_test=new, y_test=mnist.y_test[100:120])
    both = {"x_train": np.repeat(new, 2, axis=0), "y_train": np.repeat(mnist.y_test[100:120], 2)}
    np.savez(tmp_path / "train-new.npz", **both)
    return source.load(DataSource(parse(str(tmp_path)), EMBEDDED))


def test_leaks_are_found_with_shard_and_digest(leaking: Dataset, mnist: Dataset) -> None:
    """Of those that are trained on: what is held out harms nobody."""
    found = {finding.shard: finding for finding in guard.leaks(leaking)}
    for name, images, where in (
        ("train-leak.npz", mnist.x_test[:45], guard.BASE),
        ("train-new.npz", 255 - mnist.x_test[100:120], "test-new.npz"),
    ):
        digests = shards.digests(images)
        trained = {
            d.hex() for d, out in zip(digests, shards.held_out(digests), strict=True) if not out
        }
        assert set(found[name].digests) == trained
        assert found[name].value == len(trained) < len(images)
        assert f"test images of {where}" in found[name].sentence
        assert found[name].digests[0] in found[name].sentence
    assert len(found) == 2


def test_allowed_leaks_pass_one_by_one(leaking: Dataset) -> None:
    digests = [digest for finding in guard.leaks(leaking) for digest in finding.digests]
    assert guard.leaks(leaking, digests) == []
    [one] = guard.leaks(leaking, digests[1:])
    assert one.digests == (digests[0],)


def test_a_leak_in_a_set_in_one_piece(mnist: Dataset) -> None:
    leaked = replace(mnist, x_test=np.concatenate([mnist.x_test[:9], mnist.x_train[-1:]]))
    [finding] = guard.leaks(leaked)
    assert (finding.shard, finding.value) == (guard.BASE, 1)


@pytest.mark.parametrize("text", ["", "abc", "A" * 32, "g" * 32, "0" * 33])
def test_a_digest_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--leak-allow"):
        guard.allowed_leaks(["0" * 32, text])


# --- all together -------------------------------------------------------------------------------


def test_check_measures_all_and_refuses_what_nobody_accepted(
    leaking: Dataset, reference: Card
) -> None:
    names = ["train-leak.npz", "train-new.npz"]
    answers = {len(leaking.shard(name)[1]): leaking.shard(name)[1] for name in names}
    checked = guard.check(
        leaking,
        [guard.BASE, *names],
        reference,
        classify=lambda images: (
            answers[len(images)] if len(images) < 50 else leaking.base_examples[1]
        ),
        accuracy=0.98,
    )
    measures = ["labels", "pixel_mean", "pixel_deviation", "accuracy"]
    assert [finding.what for finding in checked.measured] == [*measures * 3, "leak", "leak"]
    wrong = {(finding.shard, finding.what) for finding in checked.refusals()}
    assert wrong == {
        ("train-leak.npz", "leak"),
        ("train-new.npz", "leak"),
        ("train-new.npz", "pixel_mean"),
    }
    accepted = {(f.shard, f.what) for f in checked.refusals(["train-new.npz"])}
    assert accepted == {("train-leak.npz", "leak"), ("train-new.npz", "leak")}
    with pytest.raises(DataError, match=r"train-new.npz: .*; train-leak.npz: "):
        guard.refuse(checked.refusals())
    guard.refuse([])


def test_mixed_up_labels_are_found_by_the_champion_alone(mnist: Dataset, tmp_path: Path) -> None:
    images, labels = mnist.x_test[:1000] ^ 1, mnist.y_test[:1000].copy()
    labels[::3] = np.roll(labels[::3], 1)  # a third have the label of another image
    np.savez(tmp_path / "train-a.npz", x_train=images, y_train=labels)
    dataset = source.load(DataSource(parse(str(tmp_path)), EMBEDDED))
    truth = dict(zip(shards.digests(images), mnist.y_test[:1000].tolist(), strict=True))

    def classify(seen: np.ndarray) -> np.ndarray:
        return np.array([truth[digest] for digest in shards.digests(seen)])

    reference = Card.of(*dataset.base_examples, 10)
    checked = guard.check(dataset, ["train-a.npz"], reference, classify=classify, accuracy=0.98)
    assert [finding.what for finding in checked.refusals()] == ["accuracy"]
    alone = guard.check(dataset, ["train-a.npz"], reference)
    assert alone.refusals() == []


# --- the command --------------------------------------------------------------------------------


def put(folder: Path, name: str, images: np.ndarray, labels: np.ndarray) -> None:
    kind = name.partition("-")[0]
    np.savez(folder / name, **{f"x_{kind}": images, f"y_{kind}": labels})


def test_good_data_are_shown_and_pass(
    command: Callable[..., Finished], mnist: Dataset, small_mnist: str, tmp_path: Path
) -> None:
    put(tmp_path, "train-a.npz", mnist.x_test[:700] ^ 1, mnist.y_test[:700])
    put(tmp_path, "test-a.npz", mnist.x_test[700:] ^ 1, mnist.y_test[700:])
    done = command("data", "check", tmp_path, "--base", small_mnist)
    assert done.code == 0, done.err
    assert done.err == ""
    head, base, train, test = done.out.splitlines()
    assert head.split() == [
        "shard",
        "examples",
        "held",
        "out",
        "labels",
        *(["pixel", "mean", "pixel", "deviation", "leaks"]),
    ]
    assert base.split()[:3] == [guard.BASE, "2,000", "0"]
    assert train.split()[:2] == ["train-a.npz", "700"]
    assert 40 < int(train.split()[2]) < 100
    assert test.split()[:3] == ["test-a.npz", "9,300", "0"]
    assert "!" not in done.out


def test_bad_data_are_shown_and_refused(
    command: Callable[..., Finished], mnist: Dataset, small_mnist: str, tmp_path: Path
) -> None:
    put(tmp_path, "train-a.npz", 255 - mnist.x_train[:700], mnist.y_train[:700])
    put(tmp_path, "train-b.npz", mnist.x_test[:20], mnist.y_test[:20])
    (tmp_path / "train-c.npz").write_bytes(b"PK half")
    words = ["data", "check", tmp_path, "--base", small_mnist]
    refused = command(*words)
    assert (refused.code, refused.out) == (65, "")
    assert "train-c.npz" in refused.err
    words += ["--skip-bad-shards"]
    refused = command(*words)
    assert refused.code == 65
    assert "the shard train-c.npz is left out" in refused.err
    assert refused.out.count("!") == 2
    [told] = [line for line in refused.err.splitlines() if "error" in line]
    assert "train-a.npz: the pixel mean" in told
    assert "train-b.npz: " in told
    digests = {word.strip("(),") for word in told.split() if len(word.strip("(),")) == 32}
    assert len(digests) == 3  # the first of them
    assert command(*words, "--accept-drift", "train-a.npz").code == 65
    dataset = source.load(DataSource(parse(str(tmp_path)), parse(small_mnist)), skip_bad=True)
    [leak] = guard.leaks(dataset)
    allow = [word for digest in leak.digests for word in ("--leak-allow", digest)]
    assert command(*words, *allow).code == 65
    assert command(*words, *allow, "--accept-drift", "train-a.npz").code == 0


def test_with_an_output_its_champion_and_the_data_of_that_are_the_measure(
    command: Callable[..., Finished],
    mnist: Dataset,
    small_mnist: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from job.nightly import champions, contest

    inverted = 255 - mnist.x_train[:2000]
    model = champions.Model("r", "mlp", "0" * 64, "0" * 64, "0" * 64, 9, 10)
    known = Card.of(inverted, mnist.y_train[:2000], 10).document()
    output = tmp_path / "output"
    champions.Log(parse(str(output))).append(champions.first(model, why="a test", card=known))
    data = tmp_path / "data"
    data.mkdir()
    put(data, "train-a.npz", 255 - mnist.x_test[:700], mnist.y_test[:700])
    words = ["data", "check", data, "--base", small_mnist, "--output", output]
    assert command(*words).code == 66  # whose run isn't there

    def classes(images: np.ndarray) -> np.ndarray:
        return np.zeros(len(images), np.int64)

    named = SimpleNamespace(model=model, classes=classes)
    monkeypatch.setattr(contest.Contender, "of", lambda *_: named)
    refused = command(*words)
    assert refused.code == 65
    assert f"{guard.BASE}: the pixel mean" in refused.err
    assert "train-a.npz: the pixel" not in refused.err
    assert "train-a.npz: the champion agrees with" in refused.err
    assert command(*words[:-2]).code == 65
    empty = command(*words[:-1], tmp_path / "no champion yet")
    assert "train-a.npz: the pixel mean" in empty.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["data", "check"], 64, "URI"),
        (["data", "check", "http://x/y"], 64, "URI"),
        (["data", "check", "nowhere"], 66, "nowhere"),
        (["data", "check", "mnist", "--base", "mnist"], 64, "--base"),
        (["data", "check", "mnist", "--leak-allow", "x"], 64, "--leak-allow"),
        (["data"], 64, "Missing command"),
    ],
)
def test_bad_use_of_data_check(
    command: Callable[..., Finished], words: list[str], code: int, said: str
) -> None:
    failed = command(*words)
    assert failed.code == code
    assert said in failed.err + failed.out


def test_data_check_imports_no_tensorflow() -> None:
    program = (
        "import sys; from job.cli import main; code = main(['data', 'check', 'mnist']); "
        "print(code, *sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert ended.stdout.splitlines()[-1] == "0"

"""What may be varied, how it is written, and which value lies where."""

import pytest

from job.errors import UsageError
from job.tuning.space import Dimension, Space, lines

HERE = [
    "learning-rate=0.001..0.1:log",
    "batch-size=16..64",
    "dropout=0.0,0.25",
    "augment=none,affine",
]


def test_a_space_is_written_as_it_is_read():
    space = Space.parse([" --learning-rate=1e-3..1e-1:log", "batch_size=16..64", *HERE[2:]])
    assert space.texts == HERE
    assert Space.parse(space.texts) == space
    assert space.names == ("learning_rate", "batch_size", "dropout", "augment")


@pytest.mark.parametrize(
    ("share", "values"),
    [
        (0.0, (0.001, 16, 0.0, "none")),
        (0.5, (0.01, 40, 0.25, "affine")),
        (1 - 2**-53, (0.1, 64, 0.25, "affine")),
    ],
)
def test_a_point_has_its_values(share, values):
    space = Space.parse(HERE)
    assert tuple(space.at([share] * 4).values()) == values


@pytest.mark.parametrize("scale", ["", ":log"])
def test_each_whole_number_of_a_range_comes_up_and_no_other(scale):
    [dimension] = Space.parse([f"epochs=1..4{scale}"]).dimensions
    found = [dimension.at(step / 1000) for step in range(1000)]
    assert set(found) == {1, 2, 3, 4}
    if not scale:
        assert [found.count(each) for each in (1, 2, 3, 4)] == [250] * 4


def test_real_values_are_short_and_stay_in_their_range():
    [dimension] = Space.parse(["weight-decay=0.000123446..0.999946:log"]).dimensions
    values = [dimension.at(step / 1000) for step in range(1000)]
    # Rounding must not lead out.
    assert values[0] == 0.000123446
    assert dimension.at(1 - 2**-53) == 0.9999
    assert all(value == float(f"{value:.4g}") for value in values[1:])


def test_where_a_value_lies_on_an_axis():
    log, plain, listed = (
        Space.parse([text]).dimensions[0]
        for text in ("learning-rate=0.001..0.1:log", "dropout=0..0.5", "schedule=linear,cosine")
    )
    assert log.share(0.01) == pytest.approx(0.5)
    assert plain.share(0.125) == 0.25
    assert [listed.share("linear"), listed.share("cosine")] == [0.25, 0.75]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dropout", "NAME=LOW..HIGH"),
        ("dropout=", "NAME=LOW..HIGH"),
        ("seed=0..9", "not of 'seed'"),  # luck is nothing to tune
        ("validation=0.1,0.2", "not of 'validation'"),
        ("data=a,b", "not of 'data'"),
        ("dropout=0..x", "'x'"),
        ("dropout=0..nan", "'nan'"),
        ("dropout=0,inf", "'inf'"),
        ("batch-size=16..32.5", "whole numbers, not '32.5'"),
        ("dropout=0.5..0", "lower end first"),
        ("dropout=0.5..0.5", "lower end first"),
        ("dropout=0..0.5:log", "above 0"),
        ("model=cnn..mlp", "no range"),
        ("batch-size=16,16", "twice"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, said):
    with pytest.raises(UsageError, match="--vary") as caught:
        Space.parse([text])
    assert said in str(caught.value)


def test_a_name_is_varied_once():
    with pytest.raises(UsageError, match="dropout is given twice"):
        Space.parse(["dropout=0..1", "dropout=0,0.5"])


def test_a_file_has_one_a_line_and_comments():
    assert lines("# ours\n\ndropout=0..0.5  # not more\nmodel=mlp,cnn\n") == [
        "dropout=0..0.5",
        "model=mlp,cnn",
    ]


def test_a_dimension_of_one_value_is_allowed():
    assert Dimension("model", ("cnn",)).at(0.99) == "cnn"

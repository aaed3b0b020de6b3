"""Rows of what metrics say: confusion, classes and times."""

import numpy as np
import pytest

from job.report import scores
from job.results.statistics import wilson_interval


def test_confusion_of_few_classes_is_a_table_and_of_many_a_drawing():
    few, many = (scores.confusion({"confusion": np.ones((n, n), int)}) for n in (20, 21))
    assert few.rows is not None
    assert few.drawing is None
    assert many.rows is None
    assert "<svg" in str(many.drawing)
    assert (few.mistakes, few.worst) == (380, 1)
    assert len(few.pairs) == scores.MOST_PAIRS


@pytest.mark.parametrize("odd", [[[1]], [[1, 2]], [[1, 2], [3]], 7, [], [["a", "b"], ["c", "d"]]])
def test_what_is_no_confusion_matrix_is_refused(odd):
    with pytest.raises((ValueError, TypeError)):
        scores.confusion({"confusion": odd})


def test_classes_have_their_shares_and_intervals_and_none_without_examples():
    confusion = [[8, 2, 0], [0, 10, 0], [0, 0, 0]]
    found = scores.classes({"confusion": confusion})
    first, second, third = found.rows
    assert first["recall"] == (0.8, *wilson_interval(8, 10))
    assert second["precision"] == (10 / 12, *wilson_interval(10, 12))
    assert (third["support"], third["recall"], third["precision"]) == (0, None, None)
    assert found.left_out == 0


def test_of_many_classes_the_worst_have_a_row():
    confusion = np.diag(np.full(150, 10))
    confusion[7, 8] = 30
    found = scores.classes({"confusion": confusion})
    assert len(found.rows) == 100
    assert found.left_out == 50
    assert found.rows[0]["label"] == 7
    assert found.drawing is None


def test_times_add_up_to_the_whole():
    timing = {
        "import_seconds": 2.0, "load_seconds": 0.5, "compile_seconds": 1.0, "train_seconds": 30.0,
        "attempt_train_seconds": 3.0, "evaluate_seconds": 0.25, "publish_seconds": 0.25,
        "total_seconds": 8.0,
    }  # fmt: skip
    rows = scores.times(timing)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert [row["time"] for row in rows] == [
        "2.0 s", "0.5 s", "1.0 s", "3.0 s", "0.25 s", "0.25 s", "1.0 s",
    ]  # fmt: skip
    assert rows[3]["percent"] == "38 %"
    del timing["attempt_train_seconds"]  # as of before this was told apart
    rows = scores.times(timing)
    assert sum(row["share"] for row in rows) == pytest.approx(1)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), 10**400, "x", None])
def test_what_is_no_time_is_refused_before_a_page_has_it(odd):
    timing = dict.fromkeys((name for name, _ in scores._STAGES), 1.0) | {"train_seconds": 1.0}
    with pytest.raises((ValueError, TypeError, ArithmeticError)):
        scores.times(timing | {"total_seconds": 9.0, "load_seconds": odd})


def test_of_no_epoch_there_are_no_curves():
    assert scores.curves([]) is None

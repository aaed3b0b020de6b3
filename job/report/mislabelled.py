"""The images of MNIST's test set whose labels are known to be wrong, or at least doubtful.

From C. G. Northcutt, A. Athalye and J. Mueller, "Pervasive label errors in test sets destabilize
machine learning benchmarks", NeurIPS 2021, Datasets and Benchmarks (arXiv:2103.14749), who asked
five people about each of 100 suspects. Their answers: https://github.com/cleanlab/label-errors,
mturk/mnist_mturk.json at 5457895. As the paper counts, a label is wrong where fewer than three of
the five agreed with it: these 15 images.
"""

TEST_FINGERPRINT = "f8ec4b6400c5a70c6abbff7a59fec6b198fa019e95833090a9e421662709ef3b"
"""`Dataset.test_fingerprint` of MNIST, whose indices these are and of no other set."""

LABEL_ERRORS: dict[int, int | None] = {
    947: 9,
    1621: 6,
    1901: 4,
    2130: None,
    2462: 0,
    2597: 3,
    2654: None,
    3520: None,
    3558: 0,
    5937: 3,
    6651: 6,
    6783: 6,
    8527: None,
    9679: None,
    9729: 6,
}
"""Index of the image, and what three or more of the five saw; None where they saw no one digit."""


def doubt(index: int, test_fingerprint: str) -> str:
    """Return what is known against the label of a test image; nothing is, but of MNIST's."""
    if test_fingerprint != TEST_FINGERPRINT or index not in LABEL_ERRORS:
        return ""
    seen = LABEL_ERRORS[index]
    return "Label doubtful." if seen is None else f"Label wrong: people see {seen}."

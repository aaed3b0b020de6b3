"""The gate: each rule at its very edge, its figures against scipy and statsmodels."""

import json
import math
import time

import numpy as np
import pytest
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests

from job.errors import JobError, UsageError
from job.nightly import gate
from job.nightly.gate import Rules
from job.results import publishing

CLASSES = 10
LABELS = np.arange(1000, dtype=np.int32) % CLASSES


def predicted(*wrong: int) -> np.ndarray:
    """Return predictions for LABELS that are wrong for these images."""
    result = LABELS.copy()
    result[list(wrong)] = (LABELS[list(wrong)] + 1) % CLASSES
    return result


def differing(lost: int, won: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a challenger that lost and won so many images, and the other model.

    Spread over the classes, so that no class stands out.
    """
    return predicted(*range(lost)), predicted(*range(500, 500 + won))


def judge(challenger, champion=None, anchor=None, labels=LABELS, **rules) -> gate.Verdict:
    return gate.judge(labels, challenger, champion, anchor, Rules(**rules), CLASSES)


# --- the figures ------------------------------------------------------------------------------


def test_exact_mcnemar_agrees_with_scipy_on_1_000_random_tables():
    draw = np.random.default_rng(1)
    for _ in range(1000):
        tosses = int(10 ** draw.uniform(0, 3.7))
        lost = int(draw.binomial(tosses, draw.uniform(0.3, 0.7)))
        paired = gate.Paired(lost=lost, won=tosses - lost)
        for mine, count in ((paired.p_loss, lost), (paired.p_win, tosses - lost)):
            theirs = binomtest(count, tosses, 0.5, alternative="greater").pvalue
            assert mine == pytest.approx(theirs, rel=1e-9), (lost, tosses)


def test_nothing_that_differs_is_no_loss():
    assert gate.Paired(lost=0, won=0).p_loss == 1.0


def test_holm_agrees_with_statsmodels_on_1_000_random_tables(monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # which it calls each time: 0.1 s with TensorFlow
    draw = np.random.default_rng(2)
    for _ in range(1000):
        p_values = draw.uniform(size=draw.integers(1, 20)) ** draw.uniform(1, 8)
        p_values = np.round(p_values, 3)  # so that there are equal ones
        refused, theirs, *_ = multipletests(p_values, alpha=0.05, method="holm")
        mine = gate.holm(p_values.tolist())
        assert mine == pytest.approx(theirs.tolist(), rel=1e-12)
        assert [p <= 0.05 for p in mine] == refused.tolist()


def test_thousands_of_images_that_differ_are_judged_at_once():
    """With `math.comb` anew for each term it takes a minute."""
    draw = np.random.default_rng(4)
    labels = draw.integers(0, CLASSES, 100_000)
    models = [
        np.where(draw.uniform(size=len(labels)) < 0.1, (labels + 1) % CLASSES, labels)
        for _ in range(3)
    ]
    began = time.perf_counter()
    verdict = gate.judge(labels, *models, Rules(minimum=0.5), CLASSES)
    assert time.perf_counter() - began < 10
    paired = verdict.document["rules"]["champion"]
    assert paired["lost"] + paired["won"] > 15_000


# --- the rules --------------------------------------------------------------------------------


def test_the_first_model_needs_only_the_minimum():
    verdict = judge(predicted(*range(100)))
    assert (verdict.passed, verdict.promotes) == (True, True)
    assert verdict.why == "900 of 1,000 images right; no champion to compare with"
    rules = verdict.document["rules"]
    assert [name for name, rule in rules.items() if rule is not None] == ["minimum"]
    assert verdict.document["scores"]["champion"] is None


def test_an_accuracy_below_the_minimum_is_refused():
    verdict = judge(predicted(*range(101)))
    assert not verdict.passed
    assert verdict.why == "accuracy 0.8990 is below the 0.9 asked for"
    assert judge(predicted(*range(101)), minimum=0.899).passed


def test_a_significant_loss_against_the_champion_is_refused_and_a_lesser_one_is_not():
    challenger, champion = differing(59, 41)  # P(heads >= 59 of 100) = 0.0443
    verdict = judge(challenger, champion)
    assert (verdict.passed, verdict.promotes) == (False, False)
    assert verdict.why == (
        "significantly worse than the champion: 59 images lost, 41 won, p = 0.044; "
        "a net loss of 18 against the champion would have been caught"
    )
    challenger, champion = differing(58, 42)  # 0.0666
    assert judge(challenger, champion).passed
    assert not judge(challenger, champion, alpha=0.07).passed


def test_winning_is_no_loss():
    challenger, champion = differing(41, 59)
    assert judge(challenger, champion).passed


def test_a_significant_loss_against_the_anchor_alone_is_refused():
    """This is what keeps sixty small losses from adding up."""
    challenger = predicted(*range(20))
    champion, anchor = predicted(*range(10, 25)), predicted()
    without = judge(challenger, champion)
    assert without.passed
    verdict = judge(challenger, champion, anchor)
    assert not verdict.passed
    assert verdict.why == (
        "significantly worse than the anchor: 20 images lost, 0 won, p = 9.5e-07; a net loss of 9 "
        "against the champion or of 10 against the anchor would have been caught"
    )


def test_a_class_that_is_significantly_worse_is_refused_though_the_sum_is_not():
    threes = [index for index in range(1000) if LABELS[index] == 3]
    others = [index for index in range(1000) if LABELS[index] != 3]
    challenger, champion = predicted(*threes[:8]), predicted(*others[:8])
    verdict = judge(challenger, champion)  # 0.5 ** 8 * 10 = 0.039
    assert not verdict.passed
    assert verdict.why.startswith(
        "class 3 significantly worse than the champion has it: 8 images lost, 0 won, p = 0.0039 "
        "(0.039 by Holm); a net loss"
    )
    assert verdict.document["rules"]["champion"]["passed"]
    challenger, champion = predicted(*threes[:7]), predicted(*others[:7])
    verdict = judge(challenger, champion)  # 0.0078 alone, but 0.078 as the worst of ten
    assert verdict.passed
    [three] = [
        each for each in verdict.document["rules"]["classes"]["classes"] if each["label"] == 3
    ]
    assert three == {
        "label": 3,
        "examples": 100,
        "lost": 7,
        "won": 0,
        "net_loss": 7,
        "p": 0.5**7,
        "p_holm": 10 * 0.5**7,
    }


def test_a_class_that_is_better_makes_no_class_worse():
    threes = [index for index in range(1000) if LABELS[index] == 3]
    assert judge(predicted(), predicted(*threes[:50])).passed


def test_a_class_without_images_is_not_worse():
    labels = np.zeros(4, np.int32)
    verdict = judge(labels, labels, labels, labels)
    assert verdict.passed
    assert verdict.document["rules"]["classes"]["classes"][9]["examples"] == 0


def test_better_asks_for_a_significant_win():
    challenger, champion = differing(42, 58)
    assert judge(challenger, champion).passed
    verdict = judge(challenger, champion, promote="better")
    assert not verdict.passed
    assert verdict.why.startswith(
        "not significantly better than the champion: 42 images lost, 58 won, p = 0.067;"
    )
    challenger, champion = differing(41, 59)
    verdict = judge(challenger, champion, promote="better")
    assert (verdict.passed, verdict.promotes) == (True, True)
    assert "significantly better than the champion: 41 images lost, 59 won" in verdict.why
    assert judge(predicted(), promote="better").passed  # nobody to be better than


def test_manual_judges_and_leaves_the_promotion_to_people():
    verdict = judge(predicted(), predicted(), promote="manual")
    assert (verdict.passed, verdict.promotes) == (True, False)
    challenger, champion = differing(59, 41)
    assert not judge(challenger, champion, promote="manual").passed


def test_every_broken_rule_is_named():
    verdict = judge(predicted(*range(300)), predicted(), predicted())
    for words in ("than the champion:", "than the anchor:", "class 0", "class 9", "below the 0.9"):
        assert words in verdict.why


def test_what_passes_says_what_would_have_been_caught():
    challenger, champion = differing(50, 50)
    verdict = judge(challenger, champion, champion)
    assert verdict.why == (
        "950 of 1,000 images right; no significant loss against the champion: 50 images lost, "
        "50 won, p = 0.54; no significant loss against the anchor: 50 images lost, 50 won, "
        "p = 0.54; a net loss of 18 against the champion or of 18 against the anchor would have "
        "been caught"
    )


def test_the_document_is_json_and_has_every_number():
    challenger, champion = differing(59, 41)
    verdict = judge(challenger, champion, predicted())
    document = json.loads(publishing.to_json(verdict.document))
    assert document == verdict.document
    assert {name: document[name] for name in ("passed", "why", "promote", "examples")} == {
        "passed": False,
        "why": verdict.why,
        "promote": "no-worse",
        "examples": 1000,
    }
    assert document["rules"]["champion"] == {
        "passed": False,
        "lost": 59,
        "won": 41,
        "net_loss": 18,
        "p": pytest.approx(0.0443, abs=1e-4),
        "alpha": 0.05,
        "caught_net_loss": 18,
    }
    by_class = document["rules"]["classes"]["classes"]
    assert [each["lost"] for each in by_class] == [6] * 9 + [5]
    assert [each["won"] for each in by_class] == [5] + [4] * 9
    assert document["rules"]["minimum"] == {"passed": True, "accuracy": 0.941, "minimum": 0.9}
    assert document["rules"]["better"] is None
    assert document["scores"]["challenger"]["correct"] == 941
    low, high = document["scores"]["challenger"]["accuracy_interval_95"]
    assert low < document["scores"]["challenger"]["accuracy"] == 0.941 < high
    assert document["scores"]["anchor"]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"alpha": 0.0}, "--gate-alpha must be above 0"),
        ({"alpha": 0.51}, "--gate-alpha"),
        ({"alpha": math.nan}, "--gate-alpha"),
        ({"minimum": -0.1}, "--gate-minimum must be 0 to 1, not -0.1"),
        ({"minimum": 1.1}, "--gate-minimum"),
        ({"minimum": math.nan}, "--gate-minimum"),
        ({"promote": "always"}, "--promote must be no-worse, better, manual, not 'always'"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules, words):
    with pytest.raises(UsageError, match=words):
        Rules(**rules)


@pytest.mark.parametrize("edge", [{"alpha": 0.5}, {"minimum": 0.0}, {"minimum": 1.0}])
def test_rules_at_the_edge_are_fine(edge):
    assert judge(predicted(), predicted(), **edge).passed


def test_predictions_of_other_images_are_a_bug():
    with pytest.raises(JobError, match="as many predictions as labels"):
        judge(predicted()[:1], predicted())  # NumPy would compare one with all
    with pytest.raises(JobError, match="as many predictions as labels"):
        judge(LABELS[:0], labels=LABELS[:0])

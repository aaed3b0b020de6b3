"""A study is one thing: created once, and refused to whoever means another."""

import json
import re

import pytest
from studies import make_study

from job.config import check_run_id
from job.errors import ClusterError, ConflictError, DataError, UsageError
from job.storage import Place
from job.tuning.study import FOLDER, Study

DATA, CODE = "d" * 64, {"git_commit": "c"}


def opened(study: Study, **given) -> Study:
    return Study.opened(study.output, study.name, {}, given)


def test_a_study_is_written_once_and_found_again(tmp_path):
    study = make_study(tmp_path, epochs=30, objective="loss", first_rung=2)
    study.check()  # nothing there is nothing to differ from
    study.begin(DATA, CODE)
    written = (tmp_path / FOLDER / "s" / "study.json").read_bytes()
    study.begin(DATA, CODE)
    study.check()
    assert opened(study) == study
    assert (tmp_path / FOLDER / "s" / "study.json").read_bytes() == written
    assert json.loads(written)["rungs"] == [2, 6, 18]


@pytest.mark.parametrize(
    ("texts", "changes", "told"),
    [
        (["dropout=0..0.5"], {}, "space"),
        ([], {"epochs": 8}, "epochs 9 there, 8 here"),
        ([], {"seed": 1}, "seed 0 there, 1 here"),
        ([], {"reduction": 4}, "reduction 3 there, 4 here"),
        ([], {"objective": "loss"}, "objective 'accuracy' there"),
        ([], {"validation_seed": 5}, "validation_seed 0 there, 5 here"),
    ],
)
def test_another_study_of_the_name_is_a_conflict(tmp_path, texts, changes, told):
    make_study(tmp_path).begin(DATA, CODE)
    other = make_study(tmp_path, *texts, **changes)
    for refused in (other.check, lambda: other.begin(DATA, CODE)):
        with pytest.raises(ConflictError, match="another study") as caught:
            refused()
        assert told in str(caught.value)


def test_other_data_are_a_conflict_and_other_code_is_the_wrong_cluster(tmp_path):
    study = make_study(tmp_path)
    study.begin(DATA, CODE)
    with pytest.raises(ConflictError, match="other data"):
        study.begin("e" * 64, CODE)
    with pytest.raises(ClusterError, match="git_commit 'c' there, 'x' here"):
        study.begin(DATA, {"git_commit": "x"})


def test_a_study_is_opened_by_its_name_alone_and_what_is_given_must_agree(tmp_path):
    study = make_study(tmp_path, epochs=4)
    with pytest.raises(UsageError, match=r"no study at .*--vary"):
        opened(study)
    study.begin(DATA, CODE)
    opened(study, epochs=4, reduction=3).check()
    for given in ({"epochs": 5}, {"reduction": 2}):
        with pytest.raises(ConflictError, match="another study"):
            opened(study, **given).check()


@pytest.mark.parametrize("spoilt", ["{}", '{"space": 3}', '["dropout=0..1"]'])
def test_a_study_that_is_none_is_bad_data(tmp_path, spoilt):
    place = tmp_path / FOLDER / "s" / "study.json"
    place.parent.mkdir(parents=True)
    place.write_text(spoilt)
    with pytest.raises(DataError, match=re.escape(str(place))):
        Study.opened(str(tmp_path), "s", {}, {})


@pytest.mark.parametrize(
    ("texts", "changes", "said"),
    [
        (["learning-rate=1..20"], {}, "--learning-rate must be"),  # its far end
        (["dropout=0.5,0.95"], {}, "--dropout must be"),
        (["model=mlp,resnet"], {}, "--model must be one of"),
        (["augment-strength=0.5..1"], {}, "is of --augment affine"),
        (["augment-strength=0.5..1"], {"augment": "shift"}, "is of --augment affine"),
        (["epochs=2..9"], {}, "--reduction 1"),
        ([], {"validation": 0.0}, "--validation"),
        ([], {"objective": "speed"}, "--objective"),
        ([], {"reduction": 0}, "--reduction must be"),
        ([], {"first_rung": 0}, "--first-rung must be"),
        ([], {"batch_size": 0}, "--batch-size must be"),
        ([], {"name": "../x"}, "--study must be"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_the_door(tmp_path, texts, changes, said):
    with pytest.raises(UsageError) as caught:
        make_study(tmp_path, *texts, **changes)
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_strength_is_of_the_augmentation_that_is_taken(tmp_path):
    study = make_study(tmp_path, "augment=none,affine", "augment-strength=0.5..1")
    assert study.config(0, {"augment": "affine", "augment_strength": 0.7}).augment_strength == 0.7
    assert study.config(0, {"augment": "none", "augment_strength": 0.7}).augment_strength is None
    fixed = make_study(tmp_path, "augment=none,affine", augment_strength=0.6)
    assert fixed.config(0, {"augment": "affine"}).augment_strength == 0.6
    assert fixed.config(0, {"augment": "none"}).augment_strength is None


def test_trials_share_a_seed_and_finals_have_others(tmp_path):
    study = make_study(tmp_path, seed=5)
    configs = [study.config(3, {"dropout": 0.1}, fresh_seed) for fresh_seed in range(3)]
    assert [config.seed for config in configs] == [5, 6, 7]
    assert len({config.place for config in configs}) == 3
    assert configs[0].place == study.run(3)
    assert configs[1].place == study.run(3, 1)
    assert study.config(4, {"dropout": 0.1}).digest == configs[0].digest


def test_rungs_end_before_the_last_epoch(tmp_path):
    assert make_study(tmp_path, epochs=27).rungs == (1, 3, 9)
    assert make_study(tmp_path, epochs=1).rungs == ()
    assert make_study(tmp_path, reduction=1).rungs == ()


def test_the_objective_ranks_and_the_other_figure_breaks_ties(tmp_path):
    def result(trial, accuracy, loss, state="complete"):
        figures = {"validation_accuracy": accuracy, "validation_loss": loss}
        return {"trial": trial, "state": state, **figures}

    results = [
        result(0, 0.8, 0.1), result(1, 0.9, 0.5), result(2, 0.9, 0.4), result(3, 0.9, 0.4),
        result(4, 1.0, 0.0, "halted"),
    ]  # fmt: skip
    for objective, order in (("accuracy", [2, 3, 1, 0]), ("loss", [0, 2, 3, 1])):
        ranked = make_study(tmp_path, objective=objective).ranked(reversed(results))
        assert [each["trial"] for each in ranked] == order


def test_no_run_lies_where_studies_do(tmp_path):
    with pytest.raises(UsageError, match="reserved"):
        check_run_id(FOLDER)
    assert make_study(tmp_path).place == Place.of(tmp_path) / FOLDER / "s"

"""The log of champions: what each act makes of it, and who wins when two write at once."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.errors import ConflictError, DataError, MissingInputError, UsageError
from job.nightly import champions, history
from job.nightly.champions import Entry, Log, Model
from job.storage import Place, parse


def model(name: str, correct: int = 90, test: str = "t1") -> Model:
    return Model(
        run=f"run-{name}",
        architecture="mlp",
        weights_sha256=f"w-{name}",
        data_fingerprint=f"d-{name}",
        test_fingerprint=test,
        test_correct=correct,
        test_examples=100,
    )


def chain(*models: Model) -> list[Entry]:
    """Return a log in which each of `models` was promoted by a night after the one before."""
    entries: list[Entry] = []
    for each in models:
        former = entries[-1] if entries else None
        anchor = None if former is None else former.anchor
        facts = {"night": f"n-{each.run}", "why": "better", "card": {"of": each.run}}
        entries.append(champions.promotion(former, each, anchor, **facts))
    return entries


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(Place.of(tmp_path))


def test_what_was_appended_is_read_as_it_was(log):
    for entry in chain(model("a"), model("b", 95)):
        log.append(entry)
    assert log.entries() == chain_times(log, chain(model("a"), model("b", 95)))
    assert log.newest().number == 2
    assert log.newest().before == "run-a"


def chain_times(log: Log, entries: list[Entry]) -> list[Entry]:
    """Return `entries` with the times that the log has."""
    return [
        replace(entry, time=kept.time, since=kept.since)
        for entry, kept in zip(entries, log.entries(), strict=True)
    ]


def test_an_entry_says_first_what_people_look_for(log):
    for entry in chain(model("a"), model("b")):
        log.append(entry)
    document = json.loads(Path(log.place(2).key).read_bytes())
    assert list(document)[:5] == ["schema_version", "number", "act", "from", "to"]
    assert (document["from"], document["to"]) == ("run-a", "run-b")
    assert document["who"]["process"] > 0


def test_no_champion_is_said(log):
    assert log.newest() is None
    assert log.entries() == []
    with pytest.raises(MissingInputError, match="no model was ever promoted"):
        log.needed()


def test_foreign_names_are_no_entries(log, tmp_path):
    log.append(chain(model("a"))[0])
    for name in ("notes.json", "0000002.json", "000002.json.tmp", "00002.json"):
        (tmp_path / "champion" / name).write_text("{}")
    assert log.newest().number == 1


@pytest.mark.parametrize("broken", ["{}", '{"number": 1}', "[]", "x", '{"number": true}'])
def test_a_damaged_entry_is_an_error_and_never_no_champion(log, tmp_path, broken):
    (tmp_path / "champion").mkdir()
    (tmp_path / "champion/000001.json").write_text(broken)
    with pytest.raises(DataError, match=r"000001\.json"):
        log.newest()


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (("number",), 2),
        (("act",), "crown"),
        (("since",), "yesterday"),
        (("champion", "run"), "../elsewhere"),
        (("champion", "test_examples"), 0),
        (("champion", "test_correct"), 101),
        (("champion", "weights_sha256"), None),
        (("anchor", "surplus"), 1),
    ],
)
def test_an_entry_is_checked(log, tmp_path, part, value):
    log.append(chain(model("a"))[0])
    path = tmp_path / "champion/000001.json"
    document = json.loads(path.read_bytes())
    inner = document
    for name in part[:-1]:
        inner = inner[name]
    inner[part[-1]] = value
    path.chmod(0o644)
    path.unlink()
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="no entry of a champion log"):
        log.newest()


def test_of_two_that_append_the_same_number_one_wins(log):
    first, second = chain(model("a"))[0], chain(model("b"))[0]
    log.append(first)
    log.append(first)  # a lost reply, and the same writer again
    with pytest.raises(champions.OvertakenError):
        log.append(second)
    assert log.newest().champion.run == "run-a"


def test_no_entry_names_a_run_that_is_being_removed(log, tmp_path):
    (tmp_path / "run-a").mkdir()
    (tmp_path / "run-a/pruned.json").write_text("{}")
    with pytest.raises(ConflictError, match="is being removed"):
        log.append(chain(model("a"))[0])
    assert log.newest() is None


def test_racing_writers_make_one_log(log):
    log.append(chain(model("start"))[0])

    def promote(name: str) -> int:
        lost = 0
        while True:
            former = log.newest()
            entry = champions.promotion(former, model(name), former.anchor, why=name)
            try:
                log.append(entry)
            except champions.OvertakenError:
                lost += 1
            else:
                return lost

    with ThreadPoolExecutor(8) as pool:
        lost = sum(pool.map(promote, [f"m{index}" for index in range(24)]))
    entries = log.entries()
    assert [entry.number for entry in entries] == list(range(1, 26))
    assert {entry.champion.run for entry in entries[1:]} == {f"run-m{n}" for n in range(24)}
    for before, entry in itertools.pairwise(entries):
        assert entry.before == before.champion.run
    assert 0 <= lost <= 24 * 24


def test_the_anchor_is_the_best_ever_on_this_test_set():
    entries = chain(model("a", 90), model("b", 95), model("c", 93), model("d", 95))
    assert [entry.anchor.run for entry in entries] == ["run-a", "run-b", "run-b", "run-b"]


def test_another_test_set_has_another_anchor():
    old = chain(model("a", 99))[0]
    entry = champions.promotion(old, model("b", 80, test="t2"), old.anchor, why="new test set")
    assert entry.anchor.run == "run-b"


def test_rollback_brings_the_champion_before_back_and_bars_the_present_one():
    entries = chain(model("a", 90), model("b", 95), model("c", 99))
    entry = champions.rollback(entries, None, "c fails in the field")
    assert (entry.act, entry.number, entry.before) == ("rollback", 4, "run-c")
    assert entry.champion.run == "run-b"
    assert entry.card == {"of": "run-b"}
    assert entry.anchor.run == "run-b"  # c, which was the best, counts no more
    assert entry.bars("w-c", "other").run == "run-c"
    assert entry.bars("other", "d-c").why == "c fails in the field"
    assert entry.bars("w-b", "d-b") is None


def test_rollback_to_an_entry_bars_all_that_came_after_it():
    entries = chain(model("a"), model("b"), model("c"))
    entry = champions.rollback(entries, 1, "why")
    assert entry.champion.run == "run-a"
    assert [bar.run for bar in entry.barred] == ["run-b", "run-c"]


def test_a_second_rollback_goes_further_back():
    entries = chain(model("a"), model("b"), model("c"))
    entries.append(champions.rollback(entries, None, "c"))
    entry = champions.rollback(entries, None, "b as well")
    assert entry.champion.run == "run-a"
    assert {bar.run for bar in entry.barred} == {"run-b", "run-c"}


def test_rollback_forward_lifts_the_bar():
    entries = chain(model("a"), model("b"))
    entries.append(champions.rollback(entries, None, "b fails"))
    entry = champions.rollback(entries, 2, "b was not to blame")
    assert entry.champion.run == "run-b"
    assert entry.bars("w-b", "d-b") is None


def test_rollback_forward_bars_nothing_that_is_older():
    entries = chain(model("a", 95), model("b", 94))
    entries.append(champions.rollback(entries, None, "b fails"))
    entries.append(champions.holding(entries[-1], "see"))
    entries.append(champions.rollback(entries, 2, "b was not to blame"))
    assert entries[-1].barred == ()
    assert entries[-1].anchor.run == "run-a"
    entry = champions.rollback(entries, None, "b was to blame after all")
    assert entry.champion.run == "run-a"
    assert [bar.run for bar in entry.barred] == ["run-b"]


def test_rollback_bars_an_older_one_that_a_person_had_promoted_again():
    entries = chain(model("a"), model("b"))
    entries.append(champions.promotion_by_hand(entries[-1], model("a"), "it was better"))
    entry = champions.rollback(entries, None, "it was not")
    assert entry.champion.run == "run-b"
    assert [bar.run for bar in entry.barred] == ["run-a"]


def test_rollback_keeps_an_anchor_that_was_scored_anew_on_another_test_set():
    entries = chain(model("a", 98))
    again = model("a", 97, test="t2")
    entries.append(champions.promotion(entries[-1], model("b", 96, test="t2"), again, why="n"))
    entries.append(champions.promotion(entries[-1], model("c", 96, test="t2"), again, why="n"))
    entry = champions.rollback(entries, None, "c fails")
    assert (entry.champion.run, entry.anchor) == ("run-b", again)


@pytest.mark.parametrize(
    ("names", "to", "message"),
    [
        ("a", None, "no champion before"),
        ("ab", 7, "no entry"),
        ("ab", 0, "no entry"),
        ("ab", 2, "alre"),
    ],
)
def test_rollbacks_that_mean_nothing_are_refused(names, to, message):
    with pytest.raises(UsageError, match=message):
        champions.rollback(chain(*(model(name) for name in names)), to, "why")


def test_hold_and_unhold_keep_the_champion():
    (entry,) = chain(model("a"))
    held = champions.holding(entry, "audit")
    assert (held.held, held.champion, held.since) == ("audit", entry.champion, entry.since)
    with pytest.raises(UsageError, match="held already"):
        champions.holding(held, "again")
    free = champions.releasing(held, "done")
    assert free.held is None
    assert free.number == 3
    with pytest.raises(UsageError, match="not held"):
        champions.releasing(free, "again")


def test_a_person_promotes_what_was_barred_but_not_while_held():
    entries = chain(model("a"), model("b"))
    entries.append(champions.rollback(entries, None, "b fails"))
    held = champions.holding(entries[-1], "audit")
    with pytest.raises(UsageError, match="promotions are held"):
        champions.promotion_by_hand(held, model("b"), "b is fine")
    entry = champions.promotion_by_hand(entries[-1], model("b"), "b is fine")
    assert entry.champion.run == "run-b"
    assert entry.barred == ()
    assert entry.night is None
    with pytest.raises(UsageError, match="already"):
        champions.promotion_by_hand(entry, model("b"), "b is fine")


def test_the_age_is_that_of_the_champion_and_not_of_the_last_entry():
    (entry,) = chain(model("a"))
    old = replace(entry, since=(datetime.now(UTC) - timedelta(days=8)).isoformat())
    held = champions.holding(old, "audit")
    assert held.age_seconds(datetime.now(UTC)) == pytest.approx(8 * 86_400, abs=60)


def test_a_person_reads_the_log():
    entries = chain(model("a", 90), model("b", 95))
    entries.append(champions.rollback(entries, None, "b fails"))
    entries.append(champions.holding(entries[-1], "audit"))
    text = history.table(entries)
    assert "champion   run-a, 90.00% of 100 test images" in text
    assert "held       audit" in text
    assert "barred     run-b: b fails" in text
    assert text.index("hold") < text.index("     1  ")


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["promote", "rollback", "hold", "unhold", "hand"]), st.integers(0, 5)
    ),
    max_size=12,
)


@given(ACTS)
def test_whatever_people_and_nights_do_the_state_stays_sound(acts):
    entries = chain(model("0", 50))
    for act, which in acts:
        newest = entries[-1]
        try:
            if act == "rollback":
                new = champions.rollback(entries, which or None, "r")
            elif act == "hold":
                new = champions.holding(newest, "h")
            elif act == "unhold":
                new = champions.releasing(newest, "u")
            elif act == "hand":
                new = champions.promotion_by_hand(newest, model(str(which), 50 + which), "p")
            else:
                challenger = model(str(which), 50 + which)
                if newest.held or newest.bars(challenger.weights_sha256, "") is not None:
                    continue
                new = champions.promotion(newest, challenger, newest.anchor, why="n")
        except UsageError:
            continue
        assert new.number == newest.number + 1
        assert new.before == newest.champion.run
        assert new.bars(new.champion.weights_sha256, "") is None
        assert new.bars(new.anchor.weights_sha256, "") is None
        assert new.anchor.test_correct >= new.champion.test_correct
        entries.append(new)


def test_run_of_a_person_is_checked(tmp_path):
    with pytest.raises(UsageError, match="--run-id"):
        champions.published(parse(str(tmp_path)), "../x")
    with pytest.raises(MissingInputError, match="no complete run"):
        champions.published(parse(str(tmp_path)), "mlp-1")

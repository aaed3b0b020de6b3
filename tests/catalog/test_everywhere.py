"""The commands that look, by URI, on every kind of storage; as somebody would type them."""

import json
from datetime import UTC, datetime, timedelta

import fake_runs
from pages import Page

from job import storage


def test_runs_are_listed_compared_fetched_and_shown_by_uri(command, anywhere, tmp_path):
    fake_runs.complete(anywhere, "a", fake_runs.predictions(range(9)))
    fake_runs.complete(anywhere, "b", fake_runs.predictions(range(8, 12)), seed=1)
    fake_runs.attempt(anywhere, "going", began=datetime.now(UTC))
    fake_runs.attempt(anywhere, "killed", began=datetime.now(UTC) - timedelta(days=1))
    fake_runs.champion(anywhere, "b")

    listed = json.loads(command("runs", "--output", anywhere, "--json", "--sort", "run").out)
    assert {run["run"]: run["status"] for run in listed} == {
        "a": "complete",
        "b": "complete",
        "going": "running?",
        "killed": "silent",
    }
    assert [run["run"] for run in listed if run["champion"]] == ["b"]

    compared = command("compare", f"{anywhere}/a", "champion", "--output", anywhere, "--json")
    paired = json.loads(compared.out)["paired"]
    assert (paired["only_a_right"], paired["only_b_right"], paired["both_wrong"]) == (3, 8, 1)

    home = tmp_path / "home"
    assert command("fetch", "champion", home, "--output", anywhere).code == 0
    fetched = home / "b" / "model_weights.h5"
    assert fetched.read_bytes() == storage.read(anywhere / "b/model_weights.h5", 1000)
    assert command("fetch", f"{anywhere}/going", home).code == 0
    assert command("fetch", f"{anywhere}/nothing", home).code == 66

    shown = command("predict", "--weights", f"{anywhere}/a", "--only", "mistakes", "--json")
    assert [each["image"] for each in json.loads(shown.out)] == list(range(9))


def test_an_output_is_drawn_by_uri(command, anywhere):
    assert command("report", anywhere).code == 66
    fake_runs.complete(anywhere, "a")
    fake_runs.champion(anywhere, "a")
    first, again = (command("report", anywhere) for _ in range(2))
    assert first.out == f"written to {anywhere}/index.html\n", first.err
    assert again.out == f"written to {anywhere}/index.html, in place of an older page\n"
    assert command("report", "--output", anywhere).code == 0
    page = Page(storage.read(anywhere / "index.html", 1_000_000))
    assert page.headings == {"champions", "runs"}
    refused = command("report", anywhere, "--data", "mnist")
    assert refused.code == 64
    assert "--data is for a run or a night" in refused.err

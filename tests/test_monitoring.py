"""Alerts and dashboard of `k8s/components/monitoring`: of metrics that there are, and they fire.

What they say is parsed by a parser of PromQL's; where promtool is (`scripts/prometheus` brings
Debian's), it checks the rules, and lets days go by in them.
"""

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import debian
import promql_parser
import pytest
import yaml
from conftest import REPOSITORY
from samples import NIGHT, RUN

from job.report import openmetrics

FOLDER = REPOSITORY / "k8s" / "components" / "monitoring"
RULE = yaml.safe_load((FOLDER / "rule.yaml").read_text())
BOARD = json.loads((FOLDER / "dashboard.json").read_text())
ALERTS = {rule["alert"]: rule for group in RULE["spec"]["groups"] for rule in group["rules"]}
NAMES = {openmetrics.PREFIX + name for name in openmetrics.METRICS}
STEP_MINUTES = 5  # of promtool's series: what is older than that Prometheus takes for gone
HOUR = 60 // STEP_MINUTES  # in steps


def expressions() -> Iterator[tuple[str, str]]:
    """Yield what each alert and each panel asks, with its name."""
    for name, rule in ALERTS.items():
        yield name, rule["expr"]
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]


def selectors(node: Any) -> Iterator[Any]:
    """Yield every choice of series in a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("lhs", "rhs", "expr", "args", "vs", "vector_selector", "param"):
        part = getattr(node, name, None)
        for each in part if isinstance(part, list) else [part]:
            if each is not None and not isinstance(each, str):
                yield from selectors(each)


@pytest.mark.parametrize(("name", "expression"), list(expressions()))
def test_every_metric_that_is_asked_for_is_one_that_the_job_writes(name, expression):
    found = list(selectors(promql_parser.parse(expression)))
    assert found, name
    named = set(re.findall(r"mnist_job_\w+", expression))
    assert {each.name for each in found} == named  # none escaped the walk
    assert named <= NAMES


def test_the_verdicts_that_are_asked_for_are_those_there_are():
    asked = re.findall(r'verdict="(\w+)"', json.dumps(BOARD).replace('\\"', '"') + str(ALERTS))
    assert set(asked) <= set(openmetrics.VERDICTS)
    assert asked


def test_alerts_say_what_to_do():
    assert set(ALERTS) == set(
        re.findall(r"^\| `(\w+)` \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    )
    for rule in ALERTS.values():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert {"summary", "description"} == set(rule["annotations"])
        assert "for" in rule


def test_an_operator_would_take_the_rule():
    """Fields of monitoring.coreos.com/v1, which no schema here has: promtool knows the groups."""
    assert set(RULE) == {"apiVersion", "kind", "metadata", "spec"}
    assert (RULE["apiVersion"], RULE["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert set(RULE["spec"]) == {"groups"}
    allowed = {"alert", "expr", "for", "keep_firing_for", "labels", "annotations"}
    assert all(set(rule) <= allowed for rule in ALERTS.values())


# --- the dashboard --------------------------------------------------------------------------------


def test_panels_lie_beside_each_other_and_have_names():
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = set(
            itertools.product(
                range(place["x"], place["x"] + place["w"]),
                range(place["y"], place["y"] + place["h"]),
            )
        )
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"]
        assert panel["description"]
    identities = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(identities)) == len(identities)


def test_every_panel_asks_the_source_and_the_job_that_were_chosen():
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert [each["name"] for each in BOARD["templating"]["list"]] == ["datasource", "job"]
    for panel in BOARD["panels"]:
        assert panel["datasource"] == source
        for target in panel["targets"]:
            assert target["datasource"] == source
            assert 'job=~"$job"' in target["expr"]


def test_the_dashboard_shows_what_runs_and_nights_come_to():
    shown = set(re.findall(r"mnist_job_(\w+)", json.dumps(BOARD)))
    assert shown >= {
        "test_accuracy_ratio", "test_accuracy_bound_ratio", "champion_accuracy_ratio",
        "champion_since_timestamp_seconds", "night_verdict", "stage_duration_seconds",
        "train_images_per_second", "last_success_timestamp_seconds", "run_peak_memory_bytes",
    }  # fmt: skip


# --- with promtool ------------------------------------------------------------------------------


@pytest.fixture
def promtool() -> str:
    return debian.program("promtool")


def run(program: str, *words: object, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [program, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


def rules_in(folder: Path) -> Path:
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump(RULE["spec"]))
    return path


@pytest.mark.checks
def test_promtool_accepts_the_rules(promtool, tmp_path):
    ended = run(promtool, "check", "rules", "--lint-fatal", rules_in(tmp_path))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{len(ALERTS)} rules found" in ended.stdout


@pytest.mark.checks
def test_promtool_accepts_what_is_written(promtool):
    """The parser of Prometheus' own text format, which node_exporter's collector has too."""
    for gauges in (openmetrics.of_run(RUN), openmetrics.of_night(NIGHT)):
        text = openmetrics.text(gauges).decode()
        ended = run(promtool, "check", "metrics", input=text)
        assert ended.returncode in {0, 3}, ended.stderr  # 3: it would have other names
        assert ended.stderr == "", ended.stderr


def series(name: str, values: str, labels: str = "", job: str = "mnist-nightly") -> dict[str, str]:
    return {"series": f'mnist_job_{name}{{job="{job}"{labels}}}', "values": values}


SUCCESS = series("last_success_timestamp_seconds", "0x900")
NIGHT_LABEL, REFUSED = ',night="n"', ',verdict="refused"'

# Name of the alert, series in steps, and whether it fires after so many of them.
TRIALS: list[tuple[str, list[dict[str, str]], dict[int, bool]]] = [
    (
        "MnistJobNoSuccess",
        [series("night_info", "1x900", NIGHT_LABEL), SUCCESS],
        {35 * HOUR: False, 36 * HOUR + 3: True},
    ),
    ("MnistJobNoSuccess", [SUCCESS], {60 * HOUR: False}),  # a training that is not to come again
    (
        "MnistJobNoSuccess",  # of two jobs the other's night is not this one's
        [series("night_info", "1x900", NIGHT_LABEL, job="other"), SUCCESS],
        {60 * HOUR: False},
    ),
    (
        "MnistJobFailed",  # fails, is tried again within the hour, succeeds; then fails for good
        [series("exit_code", f"0x2 75x4 0x{3 * HOUR} 65x100")],
        {5: False, 2 * HOUR: False, 4 * HOUR: False, 5 * HOUR: True},
    ),
    (
        "MnistJobChampionStale",
        [series("champion_stale", f"0x{24 * HOUR} 1x100")],
        {23 * HOUR: False, 25 * HOUR: True},
    ),
    (
        "MnistJobRefusals",  # two nights, then a promotion; then three
        [series("night_verdict", f"1x{48 * HOUR} 0x{24 * HOUR} 1x900", REFUSED)],
        {47 * HOUR: False, 60 * HOUR: False, 120 * HOUR: False, 124 * HOUR: True},
    ),
    (
        "MnistJobRefusals",  # other verdicts are no refusals
        [series("night_verdict", "1x900", ',verdict="unchanged"')],
        {60 * HOUR: False},
    ),
]


@pytest.mark.checks
@pytest.mark.parametrize(("alert", "given", "expected"), TRIALS)
def test_alerts_fire_when_they_should_and_only_then(promtool, tmp_path, alert, given, expected):
    rules_in(tmp_path)
    tests = []
    for steps, fires in expected.items():
        tests.append(
            {
                "interval": f"{STEP_MINUTES}m",
                "input_series": given,
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                        "eval_time": f"{steps * STEP_MINUTES}m",
                        "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                    }
                ],
            }
        )
    unit = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": f"{STEP_MINUTES}m",
        "tests": tests,
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(unit))
    ended = run(promtool, "test", "rules", "test.yaml", cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr

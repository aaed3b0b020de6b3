"""The page of a night: champion against challenger, first of all the images they disagree on.

It is made of the night's record and the verdict of the gate that this names, both of which may be
anybody's files, and of the test images where they can be had.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from job import storage
from job.data import source
from job.data.source import Dataset
from job.errors import DataError
from job.process import runtime
from job.process.progress import Progress
from job.report import mislabelled, origins
from job.report.galleries import Tile, Wall
from job.report.origins import dictionary, moment
from job.report.page import (
    Parts,
    count,
    digits_of,
    only_a_warning,
    percent,
    place_it,
    render,
    short,
    size,
)
from job.results import publishing
from job.storage import Place

MOST_FILES = 200
_RECORD = re.compile(r"((?:.*/)?)nights/([^/]+)\.json", re.DOTALL)
MOST_CLASSES = 30
_PLAIN = "{:.2g}"
# Of each verdict the kind for `style.css`, and words.
VERDICTS = {
    "promoted": ("good", "promoted: the challenger is champion"),
    "refused": ("waiting", "refused: the champion stays"),
    "awaiting": ("waiting", "passed: a person is to promote it"),
    "held": ("waiting", "passed, but promotions are held"),
    "unchanged": ("good", "nothing new: the champion stays"),
    "barred": ("waiting", "barred: rolled back once, and only a person may promote it"),
    "bad_data": ("bad", "data refused"),
    "failed": ("bad", "failed: a flag doesn't fit the data"),
}
_ADVICE = {
    "held": "mnist-job unhold lets nights promote again.",
    "bad_data": (
        "Mend or remove the files that are named. --skip-bad-shards leaves such files out; "
        "--accept-drift and --leak-allow take single ones as they are."
    ),
}
_RULES = {"alpha": 0.05, "minimum": 0.9, "promote": "no-worse"}  # by default
_TWO = ("champion", "challenger")
_MODELS = ("challenger", "champion", "anchor")


def leave(
    page: Place,
    output: Place,
    record: Mapping[str, Any],
    dataset: Dataset | None,
    progress: Progress,
) -> None:
    """Write the page of a night that is over to `page`, unless one is there.

    Args:
        page: where it goes.
        output: where the night's records and runs are.
        record: of the night.
        dataset: the night's, where it is loaded; None to load it if it is needed.
        progress: told if the page can't be written.
    """
    with only_a_warning(page, progress):
        watch = runtime.Stopwatch()
        if storage.exists(page):
            return
        storage.create(page, page_of(output, record, dataset))
        progress.event("report_written", page=str(page), seconds=watch.lap())


def is_record(text: str) -> bool:
    """Tell whether `text` names the record of a night, as `<output>/nights/<night>.json`."""
    return _RECORD.fullmatch(text) is not None


def draw(record: Place, data: Place | None, to: Place | None) -> str:
    """Draw the night with the record at `record`; return in a line where the page is.

    Args:
        record: a place that `is_record` says yes to.
        data: where its data lie now; None for where they lay.
        to: where to write it; None to choose, see `place_it`.

    Raises:
        MissingInputError: there is none.
        DataError: it is no JSON.
        ConflictError: something else lies where the page is to go.
        JobError: the page can't be written.
    """
    found = _RECORD.fullmatch(str(record))
    assert found is not None
    output = storage.parse(found[1] or ".")
    document = publishing.read_json(record)
    page = page_of(output, document, data=data)
    return place_it(page, record.beside(f"{found[2]}.html"), to, found[2])


def page_of(
    output: Place,
    record: Mapping[str, Any],
    dataset: Dataset | None = None,
    data: Place | None = None,
) -> bytes:
    """Return the page of the night with this record.

    Args:
        output: where the night's records and runs are.
        record: of the night.
        dataset: the night's, where it is loaded.
        data: where its data lie now; None for where they lay.
    """
    parts, wall = Parts(), Wall()
    gate = dictionary(record.get("gate"))
    whole = parts.of("Images they disagree on", lambda: _whole(output, gate)) if gate else None
    told = dictionary(dictionary(whole).get("disagreements"))
    rows = told.get("images") or []
    if rows and dataset is None:
        dataset = parts.of("Pictures", lambda: _test_images(record, data))
    config = dictionary(record.get("config"))
    verdict = str(record.get("verdict"))
    kind, status = VERDICTS.get(verdict, ("", verdict))
    files = _files(record, parts)
    return render(
        "night.html",
        name=str(record.get("night")),
        kind=kind,
        status=status,
        why=str(record.get("why")),
        advice=_ADVICE.get(verdict),
        facts=parts.of("What is known", lambda: _facts(record)) or [],
        differ=parts.of("Images they disagree on", lambda: _differ(told, gate, dataset, wall)),
        sheet=parts.of("Pictures", wall.sheet),
        results=parts.of("Results", lambda: _results(gate)) if gate else None,
        newest=bool(gate.get("newest")),
        rules=parts.of("Rules of the gate", lambda: _rules(gate)) if gate else None,
        findings=parts.of("Findings", lambda: _findings(record)),
        data_facts=parts.of("Data", lambda: _data_facts(record)) or [],
        files=files[:MOST_FILES],
        files_in_all=len(files),
        command=parts.of("Command", lambda: _command(config, gate)),
        config=parts.of("Config", lambda: origins.config(config)) if config else None,
        digest=record.get("config_sha256"),
        missing=parts.missing,
    )


def _whole(output: Place, gate: Mapping[str, Any]) -> dict[str, Any]:
    """Return the verdict that the record tells of, with the images, which the record leaves out."""
    path = str(gate["path"])
    folder, slash, name = path.partition("/")
    if folder != "gates" or not slash or "/" in name or name in {".", ".."}:
        raise DataError(f"the record names {path[:80]!r} as its verdict, which lies elsewhere")
    return publishing.read_json(output / path)


def _test_images(record: Mapping[str, Any], data: Place | None) -> Dataset:
    dataset = source.load(source.of_run(record, data))
    if dictionary(record.get("data")).get("test_fingerprint") != dataset.test_fingerprint:
        raise DataError(
            f"{dataset.uri} has other test images now than the night had: bring them back, or name "
            "them with --data"
        )
    return dataset


@dataclass(frozen=True)
class _Group:
    """Images that the two models differ on in the same way."""

    title: str
    rows: list[dict[str, Any]]
    """Of each its index and label, and what each model said."""
    tiles: list[Tile]
    """The same, where the images are there."""


@dataclass(frozen=True)
class _Differ:
    told: str
    groups: list[_Group]


def _differ(
    told: Mapping[str, Any], gate: Mapping[str, Any], dataset: Dataset | None, wall: Wall
) -> _Differ | None:
    """Return the images that challenger and champion call differently, by who is right."""
    if not told:
        return None
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in told["images"]:
        is_right = (name for name in _TWO if row[name]["predicted"] == row["label"])
        kinds.setdefault(next(is_right, "neither"), []).append(_row_of(row))
    in_all, decided = int(told["count"]), gate["rules"]["champion"]
    lost, won = int(decided["lost"]), int(decided["won"])
    titles = {
        "champion": f"Lost: the champion is right ({lost:,})",
        "challenger": f"Won: the challenger is right ({won:,})",
        "neither": f"Neither is right ({in_all - lost - won:,})",
    }
    shown = len(told["images"])
    of = "" if shown == in_all else f"{shown:,} of them are shown, "
    return _Differ(
        f"They call {in_all:,} test images differently: {of}first those of which the wrong one was "
        "surest.",
        [
            _Group(title, rows, [] if dataset is None else _tiles(rows, dataset, wall))
            for kind, title in titles.items()
            if (rows := kinds.get(kind))
        ],
    )


def _row_of(row: Mapping[str, Any]) -> dict[str, Any]:
    said = {
        name: f"{int(row[name]['predicted'])}, {percent(row[name]['confidence'], 1)}"
        for name in _TWO
    }
    return {"index": int(row["index"]), "label": int(row["label"]), **said}


def _tiles(rows: Sequence[Mapping[str, Any]], dataset: Dataset, wall: Wall) -> list[Tile]:
    indices = [row["index"] for row in rows]
    if min(indices) < 0 or max(indices) >= len(dataset.x_test):
        raise IndexError(f"test image {max(indices)} of {len(dataset.x_test)}")
    found = []
    for row, place in zip(rows, wall.add(dataset.x_test[indices]), strict=True):
        index, label = row["index"], row["label"]
        doubt = mislabelled.doubt(index, dataset.test_fingerprint)
        spoken = (
            f"Test image {index:,}, labelled {label}; the champion said {row['champion']}, the "
            f"challenger {row['challenger']}. {doubt}"
        )
        lines = (f"is {label}", *(f"{name} {row[name]}" for name in _TWO))
        found.append(Tile(index, place, lines, spoken.rstrip(), doubt))
    return found


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    champion, who = dictionary(record.get("champion")), dictionary(record.get("who"))
    facts = [
        ("Challenger", str(record.get("run", "none was trained"))),
        ("Exit code", str(record.get("exit_code"))),
        ("Began (UTC)", moment(record.get("began"))),
        ("Ended (UTC)", moment(record.get("ended"))),
    ]
    if champion:
        days = float(champion["age_seconds"]) / 86_400
        stale = ", stale" if champion.get("stale") else ""
        facts += [
            ("Champion now", f"{champion['run']}, {percent(champion['accuracy'])}"),
            ("Its age", f"{days:.1f} days{stale}"),
        ]
        if champion.get("held"):
            facts.append(("Promotions held", str(champion["held"])))
    told = [str(who[name]) for name in ("job", "pod", "machine") if who.get(name)]
    facts += [("By", ", ".join(told))] if told else []
    facts.append(("With", origins.versions(dictionary(record.get("code")))))
    return facts


def _results(gate: Mapping[str, Any]) -> list[dict[str, Any]]:
    examples = int(gate["examples"])
    newest = dictionary(gate.get("newest"))
    rows = []
    for name in _MODELS:
        score = gate["scores"].get(name)
        if score is None:
            continue
        new = newest.get(name)
        rows.append(
            {
                "model": name,
                "run": str(gate[name]["run"]),
                "correct": count(score["correct"]),
                "accuracy": _accuracy(score, examples),
                "newest": "" if new is None else _accuracy(new, new["examples"]),
            }
        )
    return rows


def _accuracy(score: Mapping[str, Any], examples: int) -> str:
    digits = digits_of(examples)
    low, high = (f"{100 * float(end):.{digits}f}" for end in score["accuracy_interval_95"])
    return f"{percent(score['accuracy'], digits)} ({low} to {high})"


@dataclass(frozen=True)
class _Rules:
    told: str
    rows: list[dict[str, Any]]
    classes: list[dict[str, Any]]
    left_out: int


def _rules(gate: Mapping[str, Any]) -> _Rules:
    rules, alpha = gate["rules"], float(gate["settings"]["alpha"])
    rows = []
    for name in ("champion", "anchor"):
        if (rule := rules[name]) is not None:
            caught = f"a net loss of {count(rule['caught_net_loss'])} would have been caught"
            rows.append(_row(f"no significant loss against the {name}; {caught}", rule))
    if rules["classes"] is not None:
        rows.append(_row("no class significantly worse than the champion has it", rules["classes"]))
    if (least := rules["minimum"]) is not None:
        told = f"accuracy {percent(least['accuracy'])} of at least {percent(least['minimum'])}"
        rows.append(_row(told, least))
    if rules["better"] is not None:
        rows.append(_row("significantly better than the champion", rules["better"]))
    classes = list((rules["classes"] or {}).get("classes", ()))
    shown = sorted(classes, key=lambda row: float(row["p"]))[:MOST_CLASSES]
    shown.sort(key=lambda row: int(row["label"]))
    return _Rules(
        told=(
            f"Each test may refuse a model that is no worse in {100 * alpha:g} % of nights. p is "
            "how probable so many lost images, or more, are where neither model is better "
            "(McNemar, exact, one-sided). Verdicts on this test set before this one: "
            f"{count(gate['test_set_decided_before'])}; the more, the less it is a test."
        ),
        rows=rows,
        classes=[
            {
                **{name: int(row[name]) for name in ("label", "examples", "lost", "won")},
                "p": _PLAIN.format(float(row["p"])),
                "p_holm": _PLAIN.format(float(row["p_holm"])),
                "worse": float(row["p_holm"]) <= alpha,
            }
            for row in shown
        ],
        left_out=len(classes) - len(shown),
    )


def _row(rule: str, decided: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rule": rule,
        "passed": bool(decided["passed"]),
        "lost": count(decided["lost"]) if "lost" in decided else "",
        "won": count(decided["won"]) if "won" in decided else "",
        "p": _PLAIN.format(float(decided["p"])) if "p" in decided else "",
    }


def _findings(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "shard": str(each["shard"]),
            "what": str(each["what"]).replace("_", " "),
            "value": f"{float(each['value']):.3g}",
            "bound": f"{float(each['bound']):.3g}",
        }
        for each in record.get("findings") or ()
    ]


def _data_facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    data = record["data"]
    facts = [("Where", str(data["uri"]))]
    if data.get("fingerprint"):
        facts.append(("Fingerprint", short(data["fingerprint"])))
    if "train_examples" in data:
        facts += [
            ("Training images", count(data["train_examples"])),
            ("Test images", count(data["test_examples"])),
        ]
    for name, told in (("new", "New files"), ("changed", "Changed"), ("gone", "Gone")):
        if record.get(name):
            facts.append((told, ", ".join(map(str, record[name]))))
    return facts


def _command(config: Mapping[str, Any], gate: Mapping[str, Any]) -> list[str]:
    """Return what was typed, as far as the record tells: where the output is, it doesn't."""
    rules = dictionary(gate.get("settings"))
    other = {
        f"gate_{name}" if name != "promote" else name: rules[name]
        for name, default in _RULES.items()
        if rules.get(name, default) != default
    }
    return origins.command({**config, **other}, verb="retrain")


def _files(record: Mapping[str, Any], parts: Parts) -> list[dict[str, Any]]:
    """Return a row for each file that lay at the source, new ones and those left out first."""
    skipped, new = dictionary(record.get("skipped")), record.get("new") or []

    def told(name: str) -> str:
        if name in skipped:
            return f"left out: {skipped[name]}"
        return "new" if name in new else ""

    def rows() -> list[dict[str, Any]]:
        found = [
            {
                "name": str(each["name"]),
                "size": size(each["size"]),
                "sha256": short(each["sha256"]),
                "told": told(str(each["name"])),
            }
            for each in dictionary(record.get("data")).get("files") or ()
        ]
        return sorted(found, key=lambda row: not row["told"])

    return parts.of("Files", rows) or []

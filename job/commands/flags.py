"""The flags of all commands: name, variable, type and what help says of each.

Each flag can be given as an environment variable, `MNIST_JOB_` and its name: `MNIST_JOB_EPOCHS=3`.
"""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer

from job import config
from job.process.progress import LogFormat, Progress

PREFIX = "MNIST_JOB_"
_INTERNAL = f"{PREFIX}INTERNAL_"  # what the job tells processes of its own
_variables: set[str] = set()
# Flags that there were once, for who still has one in a manifest: what to do instead.
GONE = {"--cache": "the job no longer keeps copies of data sets: leave it out"}


def _flag(name: str, text: str) -> Any:
    """Return the flag `--name`, which the environment can give as well, and presets may."""
    variable = PREFIX + name.upper().replace("-", "_")
    _variables.add(variable)
    field = name.replace("-", "_")
    set_by = [
        f"{preset} {fields[field]}" for preset, fields in config.PRESETS.items() if field in fields
    ]
    if set_by:
        text = f"{text} [presets: {', '.join(set_by)}]"
    return typer.Option(f"--{name}", envvar=variable, help=text)


_OF_TRAINING = (
    *("model", "epochs", "batch_size", "learning_rate", "schedule", "seed", "weight_decay"),
    *("label_smoothing", "augment", "augment_strength", "dropout"),
    *("validation", "validation_seed", "early_stopping"),
)
"""Fields of a run's config that `train`, `retrain` and `tune` all have a flag for."""


def is_given(context: typer.Context, name: str) -> bool:
    """Tell whether somebody gave a parameter: by its flag, its variable, or through a platform."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def of_training(context: typer.Context, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that decide how a net is trained, as flags and preset have them.

    Args:
        context: of the command, which knows what somebody gave: that wins over the preset.
        given: all values of the command's flags, by name.
    """
    by_somebody = {name: given[name] for name in _OF_TRAINING if is_given(context, name)}
    by_preset = config.fields_of_preset(given["preset"], by_somebody)
    return {name: given[name] for name in _OF_TRAINING} | by_preset


def warn_of_unknown_variables(environment: Mapping[str, str], progress: Progress) -> None:
    """Report each variable that looks like a flag of some command and is none: a slip, most likely.

    A warning and not an error: an image may be older than the manifest that starts it.
    """
    known = {name.removeprefix(PREFIX) for name in _variables}
    for name in sorted(environment):
        given = name.removeprefix(PREFIX)
        if name.startswith(PREFIX) and not name.startswith(_INTERNAL) and given not in known:
            nearest = difflib.get_close_matches(given, sorted(known), n=1)
            near = PREFIX + nearest[0] if nearest else None
            progress.event("unknown_variable", variable=name, nearest=near)


Data = Annotated[
    str,
    _flag(
        "data",
        "'mnist' (embedded), or path or URI of an .npz, of a folder with the four IDX files, or of "
        "a folder of shards.",
    ),
]
Base = Annotated[
    str | None,
    _flag(
        "base",
        "What the shards at --data add to, named as that is. [default: what lies among them]",
    ),
]
Preset = Annotated[
    config.Preset,
    _flag(
        "preset",
        "Values for many flags at once; any flag given beside it wins. 'fast' passes 99 % in a "
        "quarter of a minute on two cores, 'cnn' 99.5 % in a minute, 'best' more in some ten.",
    ),
]
Model = Annotated[config.ModelName, _flag("model", "Architecture.")]
RunData = Annotated[
    str | None, _flag("data", "Data set whose test images to use. [default: the run's own]")
]
RunModel = Annotated[
    config.ModelName | None, _flag("model", "Architecture. [default: that of the run]")
]

StorageTimeout = Annotated[
    float,
    _flag("storage-timeout", "Seconds that each try of a request to an object store may take."),
]
Anonymous = Annotated[
    bool, _flag("anonymous", "Use object stores without credentials, as public places allow.")
]

# Of train.
Output = Annotated[
    str,
    _flag("output", "Folder or URI that runs are published below, each in a folder of its own."),
]
RunId = Annotated[
    str | None,
    _flag("run-id", "Name of the run; the same again is the same run. [default: a fresh one]"),
]
Epochs = Annotated[int, _flag("epochs", "Passes over the training set.")]
BatchSize = Annotated[int, _flag("batch-size", "Examples per optimizer step.")]
LearningRate = Annotated[
    float, _flag("learning-rate", "Peak learning rate, reached after a tenth of all steps.")
]
Schedule = Annotated[config.Schedule, _flag("schedule", "How the learning rate falls after that.")]
Seed = Annotated[int, _flag("seed", "Source of all randomness: the same seed, the same weights.")]
WeightDecay = Annotated[
    float, _flag("weight-decay", "Share of the learning rate by which kernels shrink a step.")
]
LabelSmoothing = Annotated[
    float, _flag("label-smoothing", "Share of each target spread over all classes.")
]
Augment = Annotated[
    config.Augmentation,
    _flag(
        "augment",
        "'shift' moves training images by up to two pixels; 'affine' turns, scales, slants and "
        "moves them.",
    ),
]
AugmentStrength = Annotated[
    float | None,
    _flag("augment-strength", "How far 'affine' goes, times 10 degrees. [default: 0.8]"),
]
Dropout = Annotated[
    float, _flag("dropout", "Share of the last hidden layer that each training step leaves out.")
]
Validation = Annotated[
    float,
    _flag(
        "validation",
        "Hold out this share of the training images, and score it after each epoch.",
    ),
]
ValidationSeed = Annotated[
    int, _flag("validation-seed", "Which images are held out: the same for runs of other seeds.")
]
EarlyStopping = Annotated[
    int | None,
    _flag(
        "early-stopping",
        "End after so many epochs without a better validation loss; the last epoch is published. "
        "[default: do all epochs]",
    ),
]
InitWeights = Annotated[
    str | None,
    _flag(
        "init-weights",
        "Begin with these weights: a model_weights.h5, the folder of a run, or 'champion', below "
        "--output. [default: drawn by the seed]",
    ),
]
Ensemble = Annotated[
    int | None,
    _flag(
        "ensemble",
        "Train so many nets, each a run of its own with the next seed, and publish them as one.",
    ),
]
Export = Annotated[
    config.Export | None,
    _flag(
        "export",
        "'savedmodel': also publish the model in serving/1/, as TensorFlow Serving takes it. "
        "[default: none]",
    ),
]
Strategy = Annotated[
    config.Strategy,
    _flag("strategy", "'auto' takes all workers there are, else all GPUs, else the CPU."),
]
RequireGpu = Annotated[bool, _flag("require-gpu", "Refuse (exit 78) to train without a GPU.")]
PeerTimeout = Annotated[
    float, _flag("peer-timeout", "Seconds to wait for the other workers at the start.")
]
Precision = Annotated[config.Precision, _flag("precision", "Numbers inside the hidden layers.")]
Exchange = Annotated[
    config.Exchange,
    _flag(
        "exchange",
        "How replicas send each other gradients: 'bfloat16' is half as long, for slow links.",
    ),
]
CheckpointSeconds = Annotated[
    float, _flag("checkpoint-seconds", "Save the training's state this often.")
]
TimeLimit = Annotated[
    float | None,
    _flag("time-limit", "Save and exit 75 after so many seconds, to be continued. [default: none]"),
]
Log = Annotated[
    LogFormat, _flag("log", "'auto': text on a terminal, elsewhere JSON, one object a line.")
]
Quiet = Annotated[bool, _flag("quiet", "Tell of warnings and failures alone.")]
TerminationLog = Annotated[
    str | None,
    _flag(
        "termination-log",
        "Write the verdict here as JSON, whatever it is. [default: /dev/termination-log, if there]",
    ),
]
# Not --report/--no-report, whose variable would be that of the reports of evaluate and tune.
NoReport = Annotated[
    bool,
    _flag(
        "no-report",
        "Leave no report.html, which shows the run, in its folder, and no attempts/0001.html where "
        "it fails or is stopped.",
    ),
]
Tensorboard = Annotated[
    bool,
    _flag("tensorboard", "Also write event files for TensorBoard, one with each checkpoint."),
]
TensorboardDir = Annotated[
    str | None,
    _flag(
        "tensorboard-dir",
        "Write them below this folder or URI, in a folder named after the run. [default: "
        "tensorboard in the run's own]",
    ),
]
Pushgateway = Annotated[
    str | None,
    _flag(
        "pushgateway",
        "URL of a Prometheus Pushgateway to tell how it ended, or a file that holds one. "
        "[default: none]",
    ),
]
FailureFile = Annotated[
    str | None,
    _flag("failure-file", "Write why here, in one line, if it fails. [default: none]"),
]
ModelDir = Annotated[
    str | None,
    _flag(
        "model-dir",
        "Folder or URI that all published files are copied to as well, metrics.json last. "
        "[default: none]",
    ),
]
Platform = Annotated[
    Literal["auto", "none", "sagemaker", "vertex"],
    _flag(
        "platform",
        "Take what this platform's files and variables say as defaults of flags; 'auto' looks "
        "which one it is.",
    ),
]
LivenessFile = Annotated[
    str | None,
    _flag("liveness-file", "Touch this file as long as the run moves. [default: none]"),
]

# Of tensorboard.
PrintOnly = Annotated[bool, _flag("print", "Only print the command that starts TensorBoard.")]

# Of evaluate and predict.
Weights = Annotated[
    str,
    _flag("weights", "A model_weights.h5, the folder of a run, or 'champion', below --output."),
]
Report = Annotated[
    str | None,
    _flag("report", "Also write the scores as JSON: a file that ends in .json, or a folder."),
]
NumImages = Annotated[
    int,
    _flag("num-images", "How many test images to show; of those that are picked out, at most."),
]
Start = Annotated[int, _flag("start", "Index of the first test image, from 0.")]
Image = Annotated[
    list[str] | None,
    _flag("image", "A PNG or JPEG of one digit, instead of test images; may be repeated."),
]
Only = Annotated[
    Literal["mistakes", "hits"] | None,
    _flag("only", "Pick out test images that the model has wrong, or right. [default: all]"),
]
Digit = Annotated[
    int | None,
    _flag("digit", "Pick out test images with this label in the data set. [default: all]"),
]
SortImages = Annotated[
    Literal["index", "confidence"],
    _flag(
        "sort",
        "'confidence': with --only mistakes the most confident first, else the least confident.",
    ),
]
Figure = Annotated[
    str | None,
    _flag(
        "figure",
        "Also draw images and predictions into this PNG; over 400 into several, NAME-001.png and "
        "so on.",
    ),
]
AsCsv = Annotated[
    str | None,
    _flag("csv", "Write CSV with all probabilities to this file; '-': instead of the table."),
]

# Of retrain, and of what people do to the log of champions.
Night = Annotated[
    str | None,
    _flag("night", "Names the night; the same again is the same night. [default: a fresh one]"),
]
Promote = Annotated[
    Literal["no-worse", "better", "manual"],
    _flag("promote", "What a challenger must be to be promoted; 'manual' leaves it to a person."),
]
GateAlpha = Annotated[
    float, _flag("gate-alpha", "Risk of each test of the gate to refuse a model that is no worse.")
]
GateMinimum = Annotated[
    float, _flag("gate-minimum", "Accuracy below which nothing is promoted, from 0 to 1.")
]
AcceptChangedShards = Annotated[
    bool, _flag("accept-changed-shards", "Take shards whose bytes have changed since a night.")
]
StaleAfter = Annotated[
    str | None,
    _flag("stale-after", "Call the champion stale at this age, such as 7d. [default: never]"),
]
Notify = Annotated[
    str | None,
    _flag("notify", "URL to post what the night came to, as JSON, or a file that holds one."),
]
Again = Annotated[bool, _flag("again", "Decide even if a night has decided on the same before.")]
Reason = Annotated[str, _flag("reason", "Why, for whoever reads the log later.")]
To = Annotated[
    int | None,
    _flag("to", "Entry whose champion to bring back. [default: the champion before this one]"),
]
AsJson = Annotated[bool, _flag("json", "Print JSON instead of a table.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name of a complete run.")]

# Of retrain and data check.
ChampionsOutput = Annotated[
    str | None,
    _flag("output", "Compare with what its champion was trained on. [default: with the base]"),
]
LeakAllow = Annotated[
    list[str] | None,
    _flag("leak-allow", "Digest of a test image that may be trained on; may be repeated."),
]
AcceptDrift = Annotated[
    list[str] | None,
    _flag("accept-drift", "Name of a shard that is taken however it differs; may be repeated."),
]
SkipBadShards = Annotated[
    bool, _flag("skip-bad-shards", "Leave bad shards out, instead of refusing (exit 65).")
]

# Of prune.
Keep = Annotated[int, _flag("keep", "How many complete runs stay, the newest.")]
KeepEntries = Annotated[
    int,
    _flag("keep-entries", "Of so many newest entries of the log, champion and anchor stay."),
]
LeftoversAfter = Annotated[
    str, _flag("leftovers-after", "Age of incomplete runs that go, such as 7d or 12h.")
]
Yes = Annotated[bool, _flag("yes", "Do it; without, only what would be done is shown.")]

# Of verify.
Proved = Annotated[
    str, typer.Argument(metavar="RUN", help="'champion', or the name of a complete run.")
]
ProvedData = Annotated[
    str | None, _flag("data", "Where the run's data lie now. [default: where they lay]")
]

# Of runs, compare and fetch.
SortRuns = Annotated[
    Literal["time", "accuracy", "seconds", "run", "status"],
    _flag("sort", "The newest, the best, the quickest, by name, or what needs somebody first."),
]
SilentAfter = Annotated[
    str,
    _flag(
        "silent-after",
        "Call a run without a recorded end silent when its newest start or checkpoint is so old.",
    ),
]
Watch = Annotated[bool, _flag("watch", "Draw the table anew every few seconds, until Ctrl-C.")]
Compute = Annotated[
    bool,
    _flag(
        "compute",
        "Where a run has published no predictions, compute them: takes data and some seconds.",
    ),
]
_A_RUN = "Id of a run below --output, path or URI of its folder, or 'champion'."
OneRun = Annotated[str, typer.Argument(metavar="RUN", help=_A_RUN)]
OtherRun = Annotated[str, typer.Argument(metavar="OTHER", help="The same, of the other one.")]
HomeFolder = Annotated[
    str, typer.Argument(metavar="DIR", help="Local folder; the run comes into one of its name.")
]

# Of report.
Shown = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]",
        help="Id of a run below --output, path or URI of its folder, or 'champion'; "
        "nights/<night>.json; or path or URI of an output. [default: the --output]",
        show_default=False,
    ),
]
ReportTo = Annotated[
    str | None,
    _flag(
        "to",
        "File to write; an older page makes room. [default: index.html in an output; report.html "
        "in the folder of a complete run that has none, else <run>.html in the current folder]",
    ),
]

# Of tune.
StudyName = Annotated[
    str | None,
    _flag("study", "Names the study; the same again goes on with it. [default: the Job's, if any]"),
]
Trials = Annotated[int, _flag("trials", "How many trials the study is to have.")]
Trial = Annotated[
    int | None,
    _flag(
        "trial",
        "Run this one only, from 0. [default: all; in an Indexed Job the pod's]",
    ),
]
Vary = Annotated[
    list[str] | None,
    _flag(
        "vary",
        "What trials differ in: NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C, NAME being that "
        "of a flag; may be repeated. [default: as the study has it]",
    ),
]
Space = Annotated[
    str | None, _flag("space", "Path or URI of a file that holds more of --vary, one a line.")
]
Objective = Annotated[
    Literal["accuracy", "loss"],
    _flag("objective", "What is compared, of the held-out images after the last epoch."),
]
Reduction = Annotated[
    int, _flag("reduction", "At each rung one trial in so many goes on; 1 lets all.")
]
FirstRung = Annotated[
    int,
    _flag("first-rung", "Epochs to the first rung; the next ones are --reduction times as far."),
]
Best = Annotated[
    bool,
    _flag(
        "best", "Run the best trials again with fresh seeds, and print the command of the choice."
    ),
]
StudyReport = Annotated[
    str | None, _flag("report", "Draw the study into this new HTML file. [default: no drawing]")
]

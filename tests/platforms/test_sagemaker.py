"""SageMaker's contract: a folder laid out as it documents, and the real command in it."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import botocore.session
import pytest
from botocore import xform_name
from botocore.validate import ParamValidator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from job.errors import ClusterError, UsageError
from job.platforms import Found, Surroundings, find
from job.platforms.sagemaker import SAGEMAKER, value_of
from job.workers import supervision

JOB = "mnist-2026-11-26-18-00-00-000"
FLAGS = frozenset({
    "data", "output", "run-id", "epochs", "learning-rate", "model-dir", "failure-file", "platform",
    "peer-timeout", "tensorboard-dir",
})  # fmt: skip


class Machine:
    """The files of a training job, as the AWS documentation lays them out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ml = root / "opt" / "ml"
        for folder in ("input/config", "input/data", "model", "output/data", "checkpoints"):
            (self.ml / folder).mkdir(parents=True)
        self.hyperparameters()
        self.hosts("algo-1", "algo-1")

    def hyperparameters(self, **values: object) -> None:
        self._write("hyperparameters.json", values)

    def hosts(self, current: str, *hosts: str) -> None:
        told = {"current_host": current, "hosts": hosts, "network_interface_name": "eth0"}
        self._write("resourceconfig.json", told | {"current_instance_type": "ml.m5.xlarge"})

    def channel(self, name: str, mode: str = "File") -> Path:
        path = self.ml / "input" / "config" / "inputdataconfig.json"
        channels = json.loads(path.read_text()) if path.exists() else {}
        channels[name] = {
            "TrainingInputMode": mode,
            "S3DistributionType": "FullyReplicated",
            "RecordWrapperType": "None",
        }
        self._write("inputdataconfig.json", channels)
        folder = self.ml / "input" / "data" / name
        folder.mkdir()
        return folder

    def _write(self, name: str, content: object) -> None:
        (self.ml / "input" / "config" / name).write_text(json.dumps(content))

    @property
    def environment(self) -> dict[str, str]:
        arn = f"arn:aws:sagemaker:eu-central-1:000000000000:training-job/{JOB}"
        root = {"MNIST_JOB_INTERNAL_ROOT": str(self.root)}
        return {"TRAINING_JOB_NAME": JOB, "TRAINING_JOB_ARN": arn} | root

    def find(self, *given: str, flags: frozenset[str] = FLAGS) -> Found:
        here = Surroundings(self.environment, flags, frozenset(given), self.root)
        found = find("auto", here)
        assert found is not None
        return found

    def values(self, *given: str) -> dict[str, object]:
        return {flag: each.value for flag, each in self.find(*given).defaults.items()}

    def start(self, **more: str) -> subprocess.Popen[str]:
        """Start the container's command."""
        return subprocess.Popen(
            [sys.executable, "-m", "job", "train"],
            env=os.environ | self.environment | {"MNIST_JOB_INTERNAL_OUTPUT": "/runs"} | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def failure(self) -> str | None:
        path = self.ml / "output" / "failure"
        return path.read_text() if path.exists() else None


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    for name, value in machine.environment.items():
        monkeypatch.setenv(name, value)
    return machine


# --- the real command -----------------------------------------------------------------------


def test_a_training_job_leaves_its_model_where_sagemaker_looks(
    machine: Machine, small_mnist: str
) -> None:
    shutil.copy(small_mnist, machine.channel("training") / "digits.npz")
    machine.hyperparameters(
        epochs="2", learning_rate='"0.01"', preset="fast", model="mlp", augment="none",
        sagemaker_program='"train.py"', _tuning_objective_metric="accuracy",
    )  # fmt: skip
    process = machine.start(MNIST_JOB_EPOCHS="1")  # a variable wins
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    first, second, *_ = events = [json.loads(line) for line in out.splitlines()]
    assert (first["event"], second["event"]) == ("platform", "started")
    ml = str(machine.ml)
    assert first["platform"] == "sagemaker"
    assert first["flags"] == {
        "run-id": JOB,
        "data": f"{ml}/input/data/training/digits.npz",
        "output": f"{ml}/checkpoints",
        "model-dir": f"{ml}/model",
        "failure-file": f"{ml}/output/failure",
        "learning-rate": "0.01",
        "preset": "fast",
        "model": "mlp",
        "augment": "none",
    }
    assert first["sources"]["run-id"] == "TRAINING_JOB_NAME"
    assert first["sources"]["model"] == f"{ml}/input/config/hyperparameters.json"
    assert first["ignored"] == ["_tuning_objective_metric", "sagemaker_program"]
    run, model = machine.ml / "checkpoints" / JOB, machine.ml / "model"
    metrics = json.loads((run / "metrics.json").read_text())
    config = {name: metrics["config"][name] for name in ("epochs", "learning_rate", "model")}
    assert config == {"epochs": 1, "learning_rate": 0.01, "model": "mlp"}
    assert metrics["config"]["schedule"] == "cosine"  # of the preset, which the others beat
    copied = {artifact["path"] for artifact in metrics["artifacts"]} | {"metrics.json"}
    assert {path.name for path in model.iterdir()} == copied
    assert all((model / name).read_bytes() == (run / name).read_bytes() for name in copied)
    assert machine.failure is None
    # The metric definition of the README finds the accuracy in the log, and nothing before.
    readme = (Path(__file__).parents[2] / "job" / "platforms" / "README.md").read_text()
    definition = json.loads(re.search(r'\{"Name": "accuracy".*?\}', readme)[0])
    found = [re.search(definition["Regex"], line) for line in out.splitlines()]
    [accuracy] = [match[1] for match in found if match]
    assert float(accuracy) == pytest.approx(events[-2]["accuracy"])
    assert events[-1]["event"] == "model_copied"


@pytest.mark.slow
def test_an_interrupted_spot_job_goes_on_where_it_was(machine: Machine, small_mnist: str) -> None:
    """SIGTERM, and 120 seconds; then another container that has the same checkpoints only."""
    shutil.copy(small_mnist, machine.channel("train") / "digits.npz")
    machine.hyperparameters(epochs="60", checkpoint_seconds="0")
    process = machine.start()
    for line in process.stdout:
        if json.loads(line)["event"] == "epoch":
            break
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=100)  # SIGKILL would come after 120
    assert process.returncode == 143, err
    assert machine.failure is None  # it is no failure
    saved = [json.loads(line) for line in out.splitlines() if "checkpoint_saved" in line][-1]
    shutil.rmtree(machine.ml / "model")
    (machine.ml / "model").mkdir()
    process = machine.start()
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    events = {event["event"]: event for event in map(json.loads, out.splitlines())}
    assert events["attempt_started"]["attempt"] == 2
    assert events["resumed"]["step"] == saved["step"] > 0
    assert (machine.ml / "model" / "metrics.json").exists()


# In a network and a file system of its own; the arguments: a folder, and Python.
HOSTS = """
set -eu
mount --make-rprivate /
printf '127.0.0.1 localhost\\n10.9.0.1 algo-1\\n10.9.0.2 algo-2\\n' > "$1/hosts"
mount --bind "$1/hosts" /etc/hosts
ip link set lo up
ip link add one type veth peer name two
ip addr add 10.9.0.1/24 dev one
ip link set one up
mkdir "$1/machine"
mkfifo "$1/moved"
unshare --net --mount sh -c 'read -r _ < "$0/moved"; ip link set lo up
    ip addr add 10.9.0.2/24 dev two; ip link set two up
    mount --bind "$0/algo-2" "$0/machine"; exec "$1" -m job train' "$1" "$2" &
here=$(readlink /proc/self/ns/net)
while [ "$(readlink /proc/$!/ns/net)" = "$here" ]; do sleep 0.05; done
ip link set two netns $!
echo > "$1/moved"
mount --bind "$1/algo-1" "$1/machine"
"$2" -m job train
wait $!
"""


@pytest.mark.slow
def test_two_hosts_train_one_model(tmp_path: Path, small_mnist: str) -> None:
    """Two networks with a cable between them, and files of its own on each side."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("TWO HOSTS ARE NOT TRIED: that takes root, and the program ip")
    machines = {name: Machine(tmp_path / name) for name in ("algo-1", "algo-2")}
    for name, machine in machines.items():
        machine.hosts(name, *machines)
        machine.hyperparameters(epochs="1", batch_size="500")
        shutil.copy(small_mnist, machine.channel("training"))
    unshare = ["unshare", "--net", "--mount", "--fork", "--kill-child"]
    place = {"TRAINING_JOB_NAME": JOB, "MNIST_JOB_INTERNAL_ROOT": str(tmp_path / "machine")}
    ended = subprocess.run(
        [*unshare, "sh", "-c", HOSTS, "hosts", tmp_path, sys.executable],
        env=os.environ | place,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    if "unshare failed" in ended.stderr:
        pytest.skip(f"TWO HOSTS ARE NOT TRIED: this machine gives no namespaces: {ended.stderr}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    models = [list((machine.ml / "model").iterdir()) for machine in machines.values()]
    assert [len(model) > 0 for model in models] == [True, False]
    metrics = json.loads((machines["algo-1"].ml / "model" / "metrics.json").read_text())
    assert metrics["environment"]["replicas"] == 2


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"epohcs": "3"}, ["'epohcs' is no flag of this command", "did you mean 'epochs'?"]),
        ({"Q": "3"}, ["'Q' is no flag of this command", "--help"]),
        ({"platform": "none"}, ["'platform' is no flag"]),
        ({"help": "true"}, ["'help' is no flag"]),
        ({"failure_file": "x"}, ["'failure_file' is no flag"]),
        ({"batch-size": "8", "batch_size": "9"}, ["'batch-size' twice"]),
        ({"epochs": "0"}, ["--epochs must be", "(--epochs is from", "hyperparameters.json)"]),
        ({"epochs": "ten"}, ["--epochs", "'ten'", "(--epochs is from", "hyperparameters.json)"]),
        ({"epochs": "[1, 2]"}, ["hyperparameters.json gives --epochs a list"]),
        ({"output": "ftp://x/y"}, ["--output has the scheme", "(--output is from"]),
    ],
)
def test_a_wrong_hyperparameter_is_the_reason_of_the_failure(
    command, machine: Machine, values: dict[str, str], told: list[str]
) -> None:
    machine.hyperparameters(**values)
    ended = command("train")
    assert (ended.code, ended.out) == (64, "")
    assert ended.err.count("\n") == 1
    assert machine.failure is not None
    assert machine.failure.startswith("exit 64: ")
    assert "\n" not in machine.failure
    for words in told:
        assert words in machine.failure
    assert json.loads(ended.err)["error"] in machine.failure


def test_a_model_of_another_run_is_found_before_anything_is_computed(
    command, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("job.run.train_run", lambda *_: pytest.fail("it trained"))
    (machine.ml / "model" / "model_weights.h5").write_text("another's")
    ended = command("train")
    assert ended.code == 73
    assert machine.failure.startswith("exit 73: --model-dir ")
    assert (machine.ml / "model" / "model_weights.h5").read_text() == "another's"


def test_several_hosts_train_together(
    command, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for the others as long as machines take to come up; only the chief has a model."""
    seen = []

    def supervise(*told: object) -> int:
        seen.append(told)
        return 0

    monkeypatch.setattr(supervision, "supervise", supervise)
    machine.hosts("algo-10", "algo-2", "algo-10", "algo-1")
    (machine.ml / "model" / "metrics.json").write_text("left by the chief, on a shared disk")
    assert command("train").code == 0
    [(words, workers, _, wait, *_)] = seen
    assert words == ["train"]  # its worker will find the same
    assert workers.addresses == ("algo-1:2222", "algo-10:2222", "algo-2:2222")
    assert (workers.index, wait) == (1, 600)


def test_it_can_be_switched_off(command, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("job.run.train_run", lambda config, *_: seen.append(config))
    machine.hyperparameters(nonsense="x")
    monkeypatch.setenv("MNIST_JOB_PLATFORM", "none")
    ended = command("train", "--output", "o", "--run-id", "r")
    assert ended.code == 0
    assert "platform" not in ended.out
    assert str(seen[0].place) == "o/r"


# --- what is read ---------------------------------------------------------------------------


def test_what_is_given_isnt_looked_at(machine: Machine) -> None:
    machine.channel("one")
    machine.channel("two")
    machine.hyperparameters(epochs="3")
    with pytest.raises(UsageError, match=r"channels 'one', 'two'.* give one channel, 'training'"):
        machine.find()
    assert "data" not in machine.values("data")
    assert "epochs" not in machine.values("data", "epochs")
    machine.hyperparameters(data="mnist")
    assert machine.values()["data"] == "mnist"


def test_without_a_checkpoint_config_runs_go_where_output_is_packed(machine: Machine) -> None:
    (machine.ml / "checkpoints").rmdir()
    assert machine.values()["output"] == str(machine.ml / "output" / "data")


def test_folders_of_roots_are_told_with_the_way_out(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = os.F_OK
    monkeypatch.setattr(
        os, "access", lambda path, mode: mode == there or Path(path).name != "checkpoints"
    )
    with pytest.raises(ClusterError, match=r"checkpoints can't be written by uid .*USER root"):
        machine.find()
    assert machine.values("output")["model-dir"] == str(machine.ml / "model")


def test_event_files_go_where_tensorboard_is_asked_for(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "tensorboard-dir" not in machine.values()
    (machine.ml / "output" / "tensorboard").mkdir()
    assert machine.values()["tensorboard-dir"] == str(machine.ml / "output" / "tensorboard")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "tensorboard-dir" not in machine.values()


def test_the_command_of_the_readme_is_one_that_the_api_takes() -> None:
    """By the model of the API that botocore brings; the command line's own words are derived."""
    readme = (Path(__file__).parents[2] / "job" / "platforms" / "README.md").read_text()
    words = shlex.split(readme.partition("create-training-job ")[2].partition("```")[0])
    words = [word for word in words if word.strip()]
    client = botocore.session.get_session().create_client(
        "sagemaker", region_name="eu-central-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    shape = client.meta.service_model.operation_model("CreateTrainingJob").input_shape
    members = {xform_name(name, "-"): name for name in shape.members}
    asked: dict[str, object] = {"EnableManagedSpotTraining": True}
    words.remove("--enable-managed-spot-training")
    for flag, value in zip(words[::2], words[1::2], strict=True):
        name = members[flag.removeprefix("--")]
        asked[name] = value
        if (kind := shape.members[name].type_name) != "string":
            pairs = dict(pair.split("=", 1) for pair in value.split(","))
            numbers = {key: int(text) for key, text in pairs.items() if text.isdecimal()}
            asked[name] = pairs | (numbers if kind == "structure" else {})
    asked["RoleArn"] = "arn:aws:iam::000000000000:role/x"
    assert ParamValidator().validate(asked, shape).generate_report() == ""


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (["digits.npz"], "/digits.npz"),
        (["digits.npz", ".hidden"], "/digits.npz"),
        (["base.npz"], ""),
        (["train-1.npz"], ""),
        (["a.npz", "b.npz"], ""),
        (["train-images-idx3-ubyte"], ""),
        ([], ""),
    ],
)
def test_a_channel_is_a_folder_or_the_one_file_in_it(
    machine: Machine, files: list[str], taken: str
) -> None:
    folder = machine.channel("train")
    machine.channel("sm_drivers")  # of SageMaker's own SDK
    for name in files:
        (folder / name).touch()
    assert machine.values()["data"] == f"{folder}{taken}"


def test_channels_are_seen_without_their_config_too(machine: Machine) -> None:
    folder = machine.channel("training")
    (machine.ml / "input" / "config" / "inputdataconfig.json").unlink()
    assert machine.values()["data"] == str(folder)


@pytest.mark.parametrize(
    ("name", "mode", "told"),
    [("mnist", "File", "'mnist'"), ("train", "Pipe", "input mode Pipe.*FastFile")],
)
def test_a_channel_that_cannot_be_read_is_refused(
    machine: Machine, name: str, mode: str, told: str
) -> None:
    machine.channel(name, mode)
    with pytest.raises(UsageError, match=told):
        machine.find()


@pytest.mark.parametrize("name", ["hyperparameters", "inputdataconfig", "resourceconfig"])
@pytest.mark.parametrize("content", ["", "[]", "{", "3", "[" * 100_000])
def test_a_file_that_cannot_be_understood_is_named(
    machine: Machine, name: str, content: str
) -> None:
    path = machine.ml / "input" / "config" / f"{name}.json"
    path.write_text(content)
    with pytest.raises(ClusterError, match=f"{name}.json .*object.*--platform none"):
        machine.find()


def test_nights_are_named_by_the_job(machine: Machine) -> None:
    found = machine.find(flags=frozenset({"night", "output", "data", "failure-file"}))
    assert found.defaults["night"].value == JOB
    assert found.defaults.keys() == {"night", "output", "failure-file"}
    assert found.defaults["output"].value == str(machine.ml / "checkpoints")


def test_a_night_needs_a_folder_that_stays(machine: Machine) -> None:
    (machine.ml / "checkpoints").rmdir()
    with pytest.raises(UsageError, match=r"--output is missing: .* the same S3Uri each night"):
        machine.find(flags=frozenset({"night", "output"}))


# --- hyperparameters and hosts, in general --------------------------------------------------

thorough = settings(deadline=None, derandomize=True)
texts = st.text(max_size=30)


@given(texts)
@thorough
def test_a_text_comes_as_it_was_meant_quoted_or_not(text: str) -> None:
    assert value_of(json.dumps(text)) == (text or None)
    if not text.strip().startswith(('"', "[", "n")):
        assert value_of(text) in (text or None, text.strip())


@given(st.integers() | st.floats(allow_nan=False) | st.booleans())
@thorough
def test_a_number_or_a_switch_comes_as_it_was_written(value: float) -> None:
    written = json.dumps(value)
    assert value_of(written) == value_of(value) == written
    assert value_of(json.dumps(written)) == written  # a string of a number, quoted once more


@given(st.lists(texts | st.integers(), max_size=4))
@thorough
def test_a_list_is_one_of_texts(values: list[str | int]) -> None:
    told = [value if isinstance(value, str) else str(value) for value in values]
    assert value_of(json.dumps(values)) == told


@given(st.recursive(st.none() | texts | st.integers() | st.booleans(), st.lists, max_leaves=5))
@thorough
def test_no_hyperparameter_is_a_bug(value: object) -> None:
    for told in (value, json.dumps(value), str(value)):
        found = value_of(told)
        assert found is None or isinstance(found, str | list)


names = st.from_regex(r"algo-[1-9][0-9]{0,2}", fullmatch=True)


@given(st.lists(names, min_size=2, max_size=12, unique=True), st.randoms())
@settings(thorough, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_host_finds_the_same_order_and_itself(
    machine: Machine, hosts: list[str], chance: random.Random
) -> None:
    orders = set()
    for current in hosts:
        machine.hosts(current, *chance.sample(hosts, len(hosts)))
        workers = SAGEMAKER.workers(Surroundings({}, root=machine.root))
        assert workers.addresses[workers.index] == f"{current}:2222"
        orders.add(workers.addresses)
    assert len(orders) == 1


@pytest.mark.parametrize(
    "hosts",
    [
        {"current_host": "algo-3", "hosts": ["algo-1", "algo-2"]},
        {"hosts": ["algo-1", "algo-2"]},
        {"current_host": "algo-1", "hosts": ["algo-1", "algo-1"]},
        {"current_host": "algo-1", "hosts": "algo-1"},
        {"current_host": 1, "hosts": [1, 2]},
        {"current_host": "a", "hosts": {"a": 1, "b": 2}},
        {"current_host": "", "hosts": ["", "b"]},
    ],
)
def test_hosts_that_cannot_be_understood_are_refused(machine: Machine, hosts: object) -> None:
    machine._write("resourceconfig.json", hosts)
    with pytest.raises(ClusterError, match=r"resourceconfig.json is not understood"):
        machine.find()


@pytest.mark.parametrize("hosts", [{}, {"current_host": "algo-1", "hosts": ["algo-1"]}])
def test_one_host_is_a_process_on_its_own(machine: Machine, hosts: object) -> None:
    machine._write("resourceconfig.json", hosts)
    assert machine.find().workers is None
    assert "peer-timeout" not in machine.values()


def test_folders_that_may_not_be_searched_count_as_missing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11 raises where it may not look; what can't be written is refused by name."""
    closed = machine.ml / "output"
    stat, access = Path.stat, os.access

    def refused(path: Path, **more: bool) -> os.stat_result:
        if closed in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **more)

    def no_access(path: Path, mode: int) -> bool:
        seen = closed not in path.parents and (path != closed or mode == os.F_OK)
        return seen and access(path, mode)

    (closed / "tensorboard").mkdir()
    monkeypatch.setattr(Path, "stat", refused)
    assert "tensorboard-dir" not in machine.values("failure-file")
    monkeypatch.setattr(os, "access", no_access)
    with pytest.raises(ClusterError, match=f"{closed} can't be written by uid "):
        machine.values()

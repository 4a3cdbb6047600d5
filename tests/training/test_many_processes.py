"""Training by several processes, as on several hosts: the same run, however often it is stopped.

Two stories on four simulated devices, told by fixtures, and the run that nothing interrupts:
two processes prepare the data and train until one is killed, and two go on, on a mesh in which
their devices take turns, as on TPU pods; four processes go on
from a checkpoint of one until SIGTERM, and one goes on.
"""

import json
import pathlib
import re
import shutil
import signal
import socket
import time

import micro
import numpy as np
import pytest

from starcoder_jax import train
from starcoder_jax.gin_files import recipe_text
from starcoder_jax.recipes import load_recipe
from starcoder_jax.training.metrics import read_metrics
from starcoder_jax.training.orbax_parameters import OrbaxParameters
from starcoder_jax.training.parameters import parameter_shapes, reading_order

STEPS, EVERY = 20, 4
HOST = socket.gethostname()
# Compiled alike, whoever runs it; in the test's own process it is set already.
QUICK = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many") / "root"
    micro.write_sources(folder)
    return folder


# What each process holds of a batch is noted.
TAKING_TURNS = """
import json, os, pathlib
from jax.experimental import mesh_utils
from starcoder_jax import train
from starcoder_jax.training import hosts

create_device_mesh, row_share = mesh_utils.create_device_mesh, hosts.row_share

def interleave(sizes, devices, **options):
    return create_device_mesh(sizes, devices[::2] + devices[1::2], **options)

def note(batch_size, sharding, process):
    share = row_share(batch_size, sharding, process)
    pathlib.Path(os.environ["ROWS"], f"{process}.json").write_text(json.dumps(share.rows))
    return share

mesh_utils.create_device_mesh, hosts.row_share = interleave, note
train.main()
"""


def arguments(root, workdir):
    return [
        *micro.arguments(root, workdir),
        f"--gin.train.total_steps={STEPS}",
        f"--gin.train.eval_every={STEPS}",
        f"--gin.train.checkpoint_every={EVERY}",
        "--gin.train.keep_checkpoints=9",
        "--gin.mesh.fsdp=2",
        "--gin.mesh.tensor=2",
    ]


def start(root, workdir, environments, logs, *more, **options):
    environments = [QUICK | environment for environment in environments]
    devices = 4 // len(environments)
    return micro.Together(
        [*arguments(root, workdir), *more], environments, logs, devices, **options
    )


def start_taking_turns(root, workdir, environments, logs):
    environments = [environment | {"ROWS": str(root)} for environment in environments]
    mesh = "--gin.mesh.fsdp=4", "--gin.mesh.tensor=1"
    return start(root, workdir, environments, logs, *mesh, program=TAKING_TURNS)


def checkpoints(workdir):
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def read_all(checkpoint):
    """Every parameter; raises if it is not whole."""
    source = OrbaxParameters(checkpoint)
    order = reading_order(parameter_shapes(source.config), source.config.num_layers)
    return [source.read(path, layer) for path, layer in order]


def heldout_files(log):
    """Bits per byte of each file."""
    lines = re.findall(r"^(\S.*\S) +[\d,]+ +([\d.]+) +[\d.]+$", log, re.MULTILINE)
    return {name: float(rate) for name, rate in lines}


def check_same_run(workdir, expected):
    """Data bit for bit, losses to 1e-5, and the parameters at the end."""
    records, wanted = read_metrics(workdir), read_metrics(expected)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    for record, other in zip(records, wanted, strict=True):
        assert micro.computed(record).keys() == micro.computed(other).keys()
        assert record["batch_fingerprint"] == other["batch_fingerprint"]
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-5)
    for name in ("loss", "infill_loss", "bits_per_byte"):
        last, other = (entry[-1][f"eval/{name}"] for entry in (records, wanted))
        assert last == pytest.approx(other, rel=1e-4)
    parameters = [read_all(run / "checkpoints" / str(STEPS)) for run in (workdir, expected)]
    for first, second in zip(*parameters, strict=True):
        np.testing.assert_allclose(first, second, atol=2e-4)


def processes_of(workdir):
    """Numbers of the processes with this working directory on their command line."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if str(workdir).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:  # ended meanwhile
            pass
    return found


@pytest.fixture(scope="module")
def killed(root):
    """Two processes, of which one was killed, and their working directory."""
    workdir = root / "killed"
    run = start_taking_turns(root, workdir, micro.by_hand(2), root / "killed-logs")
    # The checkpoint of step 8 is on disk: the save of step 12 waits for it.
    run.wait_for_step(3 * EVERY + 1)
    run.processes[1].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    statuses = run.wait()
    return run, workdir, statuses, time.monotonic() - begin


@pytest.fixture(scope="module")
def killed_and_resumed(root, killed):
    """The same working directory after a restart, its newest checkpoint damaged for process 1."""
    _, killed_workdir, _, _ = killed
    workdir = pathlib.Path(shutil.copytree(killed_workdir, root / "resumed"))
    broken = checkpoints(workdir)[-1]
    parts = list(
        (workdir / "checkpoints" / str(broken) / "params" / "ocdbt.process_1").rglob("d/*")
    )
    assert parts
    for part in parts:
        part.write_bytes(b"")
    tasks = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "JAX_COORDINATOR_PORT": str(micro.free_port()),
    }
    environments = [
        tasks | {"SLURM_PROCID": str(index), "SLURM_LOCALID": "0"} for index in range(2)
    ]
    run = start_taking_turns(root, workdir, environments, root / "resumed-logs")
    return run, workdir, run.wait(), broken


@pytest.fixture(scope="module")
def alone(root, killed):
    """The working directory of one process, which nothing interrupts."""
    workdir = root / "alone"
    run = start(root, workdir, [{}], root / "alone-logs")
    assert run.wait() == [0], run.log(0)
    (workdir / "heldout.txt").write_text(run.log(0))
    return workdir


@pytest.fixture(scope="module")
def terminated(root, alone):
    """Four processes that went on from a checkpoint of one, until SIGTERM to one of them."""
    workdir = root / "terminated"
    micro.without_checkpoints_after(alone, EVERY, workdir)
    hosts = {
        "TPU_WORKER_HOSTNAMES": "localhost,b,c,d",
        "JAX_COORDINATOR_PORT": str(micro.free_port()),
    }
    environments = [hosts | {"TPU_WORKER_ID": str(index)} for index in range(4)]
    run = start(root, workdir, environments, root / "terminated-logs")
    run.wait_for_step(EVERY + 2)
    run.processes[2].send_signal(signal.SIGTERM)
    return run, workdir, run.wait()


def test_two_processes_compute_what_one_does(killed, alone, root):
    _, workdir, _, _ = killed
    rows = [json.loads((root / f"{index}.json").read_text()) for index in range(2)]
    assert rows == [[0, 1, 4, 5], [2, 3, 6, 7]]
    records = read_metrics(workdir)
    assert len(records) > 3 * EVERY
    for record, other in zip(records, read_metrics(alone), strict=False):
        assert record["batch_fingerprint"] == other["batch_fingerprint"]
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_the_data_are_prepared_once_and_only_process_0_shows_and_writes(killed, root):
    run, workdir, _, _ = killed
    assert (root / "data" / "store.json").exists()
    assert run.log(0).count("texts kept") == 1
    assert run.log(0).count("step 1/") == 1
    assert run.log(1) == ""
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    assert (workdir / "config.gin").exists()


def test_when_a_process_is_killed_the_other_says_so_and_ends(killed):
    run, workdir, statuses, seconds = killed
    assert statuses == [4, -signal.SIGKILL]
    assert seconds < 60
    assert run.log(0).splitlines()[-1] == (
        f"train: process 1 ({HOST}) is gone (killed, or its host failed): start the same command "
        "on all hosts again"
    )
    assert "Traceback" not in run.log(0)
    assert processes_of(workdir) == []


def test_the_checkpoints_of_a_run_that_was_killed_are_whole(killed):
    _, workdir, _, _ = killed
    steps = checkpoints(workdir)
    assert steps[:2] == [EVERY, 2 * EVERY]
    for step in steps:
        assert read_all(workdir / "checkpoints" / str(step))


def test_two_processes_go_on_from_the_newest_checkpoint_that_both_can_read(
    killed_and_resumed, alone
):
    run, workdir, statuses, broken = killed_and_resumed
    assert statuses == [0, 0], run.log(0) + run.log(1)
    warning = f"warning: checkpoint {broken} cannot be read \\(process 1: .*broken-{broken}"
    assert re.search(warning, run.log(0))
    assert f"resuming after step {broken - EVERY}" in run.log(0)
    assert "texts kept" not in run.log(0)
    assert "done. Look at" in run.log(0)
    # What Orbax says of damaged files may stand there.
    assert not re.search("^(warning|resuming|step|done)", run.log(1), re.MULTILINE)
    check_same_run(workdir, alone)
    files = heldout_files(run.log(0))
    assert len(files) == 5  # four and their sum
    assert files == pytest.approx(heldout_files((alone / "heldout.txt").read_text()), abs=2e-3)


def test_sigterm_to_one_of_four_stops_all_at_one_step(terminated):
    run, workdir, statuses = terminated
    assert statuses == [143] * 4, [run.log(index) for index in range(4)]
    assert f"resuming after step {EVERY}" in run.log(0)
    reached = read_metrics(workdir)[-1]["step"]
    assert EVERY + 2 <= reached < STEPS
    assert checkpoints(workdir)[-1] == reached
    assert f"train: saved step {reached} and stopped" in run.log(0)
    assert [run.log(index) for index in (1, 2, 3)] == [""] * 3


def test_one_process_goes_on_from_a_checkpoint_of_four(terminated, alone, root):
    _, workdir, _ = terminated
    reached = checkpoints(workdir)[-1]
    run = start(root, workdir, [{}], root / "last-logs")
    assert run.wait() == [0], run.log(0)
    assert f"resuming after step {reached}" in run.log(0)
    check_same_run(workdir, alone)


def test_a_process_that_does_not_come_is_named(root):
    limit = {"STARCODER_START_TIMEOUT": "6"}
    environments = [limit | by_hand for by_hand in micro.by_hand(3)]
    run = start(root, root / "missing", [environments[0], environments[2]], root / "missing-logs")
    assert run.wait() == [2, 2]
    for index in range(2):
        assert run.log(index) == (
            "train: 1 of 3 processes did not come within 6 s: 1; those that came: "
            f"0 ({HOST}), 2 ({HOST}); start the same command on all hosts\n"
        )
    assert not (root / "missing").exists()


def test_a_process_with_another_recipe_is_named(root, alone, tmp_path):
    files, overrides = [str(alone / "config.gin")], ["mesh.fsdp=8", "mesh.tensor=1"]

    class Processes:
        """This one is told that process 0 has prepared the run."""

        def first(self, work):
            return 0, recipe_text(load_recipe(files))

    with pytest.raises(ValueError, match="was given another recipe than process 0"):
        train._train(files, overrides, tmp_path, Processes())

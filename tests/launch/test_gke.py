import json
import re
import subprocess
import sys

import pytest
import yaml
from stand_ins import ARGUMENTS, ROOT, dumping_python, make_machine

FLAGS = ["--accelerator=v5p-256", "--image=here.pkg.dev/p/r/starcoder:1", "--claim=shared"]


def container(manifest):
    pods = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    return pods, pods["template"]["spec"], pods["template"]["spec"]["containers"][0]


def expand(text: str) -> str:
    """What Kubernetes makes of an argument: $$ is a dollar, $(NAME) a variable."""
    names = r"\$\$|\$\([\w.-]+\)"
    return re.sub(names, lambda found: "$" if found[0] == "$$" else "REPLACED", text)


def test_run_applies_what_manifest_prints(launcher):
    printed = launcher.run("gke.sh", "manifest", *FLAGS, "--", *ARGUMENTS)
    assert printed.returncode == 0, printed.stderr
    assert launcher.calls() == []
    done = launcher.run("gke.sh", "run", *FLAGS, "--", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    assert launcher.calls() == [["kubectl", "--namespace=default", "apply", "--filename=-"]]
    (applied,) = launcher.inputs()
    assert yaml.safe_load(applied) == yaml.safe_load(printed.stdout)


def test_arguments_reach_training_as_they_were(launcher, tmp_path, checkout):
    printed = launcher.run("gke.sh", "manifest", *FLAGS, "--", *ARGUMENTS)
    _, _, train = container(yaml.safe_load(printed.stdout))
    assert train["command"][:3] == ["bash", "/starcoder/code/launch/worker.sh", "run"]
    worker = make_machine(tmp_path, checkout, dumping_python(tmp_path / "dump"))
    command = ["bash", str(worker), *train["command"][2:], *map(expand, train["args"])]
    subprocess.run(command, check=True)
    arguments, environment = json.loads((tmp_path / "dump").read_text())
    assert arguments == ["-m", "starcoder_jax.train", *ARGUMENTS]
    assert "--xla_tpu_" in environment["LIBTPU_INIT_ARGS"]


@pytest.mark.parametrize(
    ("accelerator", "label", "topology", "chips"),
    [
        ("v5litepod-256", "tpu-v5-lite-podslice", "16x16", 256),
        ("v5p-128", "tpu-v5p-slice", "4x4x4", 64),
        ("v5p-256", "tpu-v5p-slice", "4x4x8", 128),
        ("v5p-512", "tpu-v5p-slice", "4x8x8", 256),
        ("v6e-256", "tpu-v6e-slice", "16x16", 256),
        ("tpu7x-256", "tpu7x", "4x4x8", 128),
    ],
)
def test_machines_of_an_accelerator(launcher, accelerator, label, topology, chips):
    """There is one for each of the hardware recipes."""
    assert (ROOT / "gin" / "hardware" / f"{accelerator}.gin").exists()
    flags = [*FLAGS, f"--accelerator={accelerator}", "--name=mine", "--namespace=team"]
    done = launcher.run("gke.sh", "manifest", *flags, "--", *ARGUMENTS[:3])
    manifest = yaml.safe_load(done.stdout)
    jobs, pod, train = container(manifest)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": label,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    assert jobs["parallelism"] == jobs["completions"]
    assert jobs["completions"] * train["resources"]["limits"]["google.com/tpu"] == chips
    assert manifest["metadata"] | {"annotations": None} == {
        "name": "mine",
        "namespace": "team",
        "annotations": None,
    }
    assert [item["name"] for item in train["env"]] == ["STARCODER_START_TIMEOUT"]
    assert train["image"] == "here.pkg.dev/p/r/starcoder:1"
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "shared"}


def test_what_diverged_is_not_started_again(launcher):
    done = launcher.run("gke.sh", "manifest", *FLAGS, "--", *ARGUMENTS[:3])
    manifest = yaml.safe_load(done.stdout)
    jobs, pod, train = container(manifest)
    (rule,) = jobs["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [3]
    assert rule["onExitCodes"]["containerName"] == train["name"]
    (rule,) = manifest["spec"]["failurePolicy"]["rules"]
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    # Kubernetes asks both of a Job with such a policy, and of one that starts again as a whole.
    assert pod["restartPolicy"] == "Never" and jobs["backoffLimit"] == 0
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] > 10


def test_image_is_that_of_the_commit(launcher):
    done = launcher.run("gke.sh", "image", *FLAGS)
    assert done.returncode == 0, done.stderr
    build, push = launcher.calls()
    assert build[:2] == ["docker", "build"] and build[3] == f"--tag={FLAGS[1][8:]}"
    folder = build[4]
    assert build[2] == f"--file={folder}/launch/Dockerfile"
    assert push == ["docker", "push", FLAGS[1][8:]]
    assert not list(launcher.home.glob("tmp.*"))


def test_the_other_actions(launcher):
    assert launcher.run("gke.sh", "delete", stdin="no\n").returncode == 2
    for action in ("logs", "state", "delete"):
        done = launcher.run("gke.sh", action, "--name=mine", "--yes")
        assert done.returncode == 0, done.stderr
    logs, jobset, pods, delete = [" ".join(call[2:]) for call in launcher.calls()]
    assert logs.startswith("logs --follow") and "job-completion-index=0" in logs
    assert jobset == "get jobset mine" and "jobset-name=mine" in pods
    assert delete == "delete jobset mine"


def test_a_dry_run_calls_nothing(launcher):
    for action in ("image", "manifest", "run", "logs", "state", "delete"):
        done = launcher.run("gke.sh", action, *FLAGS, "--dry-run", "--", *ARGUMENTS)
        assert done.returncode == 0 and done.stdout, done.stderr
    assert launcher.calls() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", *FLAGS[1:]], "--accelerator=... is missing (or STARCODER_ACCELERATOR in"),
        (["run", FLAGS[0], FLAGS[2]], "--image=... is missing"),
        (["manifest", *FLAGS[:2]], "--claim=... is missing"),
        (["image"], "--image=... is missing"),
        (["run", *FLAGS], "lack --gin_file=..."),
        (["run", *FLAGS, "--zone=x"], "unknown flag --zone"),
        (["create", *FLAGS], "no action 'create'"),
    ],
)
def test_bad_input_is_named_in_one_line(launcher, arguments, message):
    done = launcher.run("gke.sh", *arguments)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert launcher.calls() == []


def test_an_unknown_topology_is_named(launcher):
    flags = [*FLAGS, "--accelerator=v5p-8960"]
    done = launcher.run("gke.sh", "run", *flags, "--", *ARGUMENTS)
    assert done.returncode == 2 and launcher.calls() == []
    assert done.stderr == "gke.sh: the topology of v5p-8960 is not known here: add it to gke.sh\n"


def test_the_image_installs_as_machines_do():
    text = (ROOT / "launch" / "Dockerfile").read_text()
    assert "COPY . /starcoder/code" in text
    assert "RUN bash /starcoder/code/launch/install.sh tpu" in text
    assert f"python:{sys.version_info[0]}" in text

import ast
import subprocess

import pytest
from stand_ins import ARGUMENTS, dumping_python

CLOUD = ["--project=p", "--region=europe-west4"]
FLAGS = [*CLOUD, "--image=here.pkg.dev/p/r/stack", "--temp=gs://b/tmp"]
STACK = ["run", "--gin_file=stack.gin", "--folder=gs://b/the stack", *ARGUMENTS[4:]]


def git(checkout, *arguments):
    command = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def commit(checkout):
    return git(checkout, "rev-parse", "--short=12", "HEAD")


@pytest.fixture
def python(launcher):
    """A stand-in; returns the arguments that it was called with, None if it was not."""
    dump = launcher.home / "dump"
    program = launcher.home / "bin" / "python"
    program.write_text(
        dumping_python(dump).replace(
            '("LIBTPU_INIT_ARGS", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")', "()"
        )
    )
    program.chmod(0o755)
    return lambda: ast.literal_eval(dump.read_text())[0] if dump.exists() else None


def test_arguments_reach_the_pipeline_as_they_were(launcher, python, commit):
    flags = [*FLAGS, "--name=v2", "--type=n2-standard-4", "--machines=7"]
    done = launcher.run("stack_dataflow.sh", "run", *flags, "--", *STACK)
    assert done.returncode == 0, done.stderr
    *given, engine, options = python()
    assert given == ["-m", "starcoder_jax.stack", *STACK]
    assert engine == "--gin.runner.engine=beam"
    name, _, value = options.partition("=")
    assert name == "--gin.runner.beam_options"
    assert ast.literal_eval(value) == [
        "--runner=DataflowRunner",
        "--project=p",
        "--region=europe-west4",
        "--job_name=v2",
        "--temp_location=gs://b/tmp",
        f"--sdk_container_image=here.pkg.dev/p/r/stack:{commit}",
        "--sdk_location=container",
        "--machine_type=n2-standard-4",
        "--max_num_workers=7",
        "--number_of_worker_harness_threads=1",
    ]


def test_image_is_that_of_the_commit(launcher, commit):
    done = launcher.run("stack_dataflow.sh", "image", *FLAGS)
    assert done.returncode == 0, done.stderr
    build, push = launcher.calls()
    folder = build[-1]
    tag = f"here.pkg.dev/p/r/stack:{commit}"
    assert build == ["docker", "build", f"--file={folder}/Dockerfile", f"--tag={tag}", folder]
    assert push == ["docker", "push", tag]
    assert not list(launcher.home.glob("tmp.*"))


def test_the_image_has_the_code_and_beam(launcher):
    docker = launcher.home / "bin" / "docker"
    docker.write_text('#!/bin/sh\n[ "$1" = push ] || cp -r "$4" "$(dirname "$0")/../context"\n')
    assert launcher.run("stack_dataflow.sh", "image", *FLAGS).returncode == 0
    context = launcher.home / "context"
    assert (context / "code" / "launch" / "stack_dataflow.sh").exists()
    base, copy, *rest = (context / "Dockerfile").read_text().splitlines()
    version = base.removeprefix("FROM apache/beam_python3.11_sdk:")
    assert copy == "COPY code /starcoder"
    assert rest[-1].endswith(f"'/starcoder[beam]' 'apache-beam[gcp]=={version}'")
    named = subprocess.run(
        ["bash", "-c", rest[0].removeprefix("RUN ").split(" /starcoder")[0]],
        input="jax==0.10\nprotobuf==7\npyarrow==26\nsentencepiece==0.2.3\nprotobuf-more==1\n",
        capture_output=True,
        text=True,
    )
    assert named.stdout == "jax==0.10\nprotobuf-more==1\n"


def test_code_that_is_not_in_the_image_runs_nothing(launcher, python, checkout, commit):
    file = checkout / "constraints.txt"
    file.write_text("changed\n")
    changed = launcher.run("stack_dataflow.sh", "run", *FLAGS, "--", *STACK)
    git(checkout, "commit", "-q", "-a", "-m", "second")
    other = launcher.run("stack_dataflow.sh", "run", *FLAGS, f"--commit={commit}", "--", *STACK)
    git(checkout, "reset", "-q", "--hard", commit)
    for done in (changed, other):
        assert done.returncode == 2 and python() is None
        assert done.stderr == (
            f"stack_dataflow.sh: what is checked out is not commit {commit}, that of the image, "
            "without changes\n"
        )


def test_stop_ends_the_jobs_of_the_name(launcher):
    launcher.answer({"jobs list": [(0, "id1\nid2")]})
    assert launcher.run("stack_dataflow.sh", "stop", *CLOUD, stdin="no\n").returncode == 2
    assert launcher.calls() == []
    done = launcher.run("stack_dataflow.sh", "stop", *CLOUD, "--name=v2", "--yes")
    assert done.returncode == 0, done.stderr
    listed, cancelled = launcher.calls()
    jobs = ["gcloud", "dataflow", "jobs"]
    assert listed[:6] == [*jobs, "list", "--status=active", "--filter=name~^v2-"]
    assert cancelled == [*jobs, "cancel", "id1", "id2", *CLOUD]


def test_stop_and_state_without_jobs(launcher):
    launcher.answer({"jobs list": [(0, "")]})
    done = launcher.run("stack_dataflow.sh", "state", *CLOUD)
    assert done.returncode == 0 and len(launcher.calls()) == 1
    done = launcher.run("stack_dataflow.sh", "stop", *CLOUD, "--yes")
    message = "stack_dataflow.sh: no job whose name begins with stack is at work\n"
    assert (done.returncode, done.stderr) == (2, message)


def test_a_dry_run_calls_nothing(launcher, python):
    for action in ("image", "run", "state", "stop"):
        done = launcher.run("stack_dataflow.sh", action, *FLAGS, "--dry-run", "--", *STACK)
        assert done.returncode == 0 and done.stdout, done.stderr
    assert launcher.calls() == [] and python() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", *FLAGS[1:], "--", *STACK], "--project=... is missing (or STARCODER_PROJECT in"),
        (["run", *FLAGS[:2], FLAGS[3], "--", *STACK], "--image=... is missing"),
        (["run", *FLAGS[:3], "--", *STACK], "--temp=... is missing"),
        (["run", *FLAGS, "--temp=/tmp", "--", *STACK], "--temp=/tmp must be gs://BUCKET/FOLDER"),
        (["run", *FLAGS, "--", "run"], "the arguments lack --folder=gs://"),
        (["run", *FLAGS, "--machines=many"], "--machines=many must be a positive number"),
        (["run", *FLAGS, "--name=A"], "--name=A must have small letters"),
        (["run", *FLAGS, "--commit=nothing"], "nothing is no commit"),
        (["state"], "--project=... is missing"),
        (["create", *FLAGS], "no action 'create'"),
    ],
)
def test_bad_input_is_named_in_one_line(launcher, python, arguments, message):
    done = launcher.run("stack_dataflow.sh", *arguments)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert launcher.calls() == [] and python() is None

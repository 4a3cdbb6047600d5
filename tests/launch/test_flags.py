"""The installed compilers know every flag: an unknown one would end training at its start."""

import os
import subprocess
import sys

import pytest
from stand_ins import ROOT

FLAGS = ROOT / "launch" / "flags"
# Makes libtpu, or JAX's own compiler, read its flags.
READ = {
    "LIBTPU_INIT_ARGS": "from jax.experimental.topologies import get_topology_desc as describe\n"
    "print(len(describe('v5e:2x2', 'tpu').devices))",
    "XLA_FLAGS": "import jax; print(len(jax.devices()))",
}


def flags_of(hardware: str) -> dict[str, str]:
    """What the file sets, of what is read by a compiler."""
    command = 'LIBTPU_INIT_ARGS="" XLA_FLAGS=""; source "$0"; echo "$LIBTPU_INIT_ARGS|$XLA_FLAGS"'
    done = subprocess.run(
        ["bash", "-c", command, str(FLAGS / f"{hardware}.env")],
        capture_output=True,
        text=True,
        check=True,
    )
    libtpu, xla = done.stdout.strip("\n").split("|")
    return {"LIBTPU_INIT_ARGS": libtpu.strip(), "XLA_FLAGS": xla.strip()}


def read(variable: str, flags: str) -> subprocess.CompletedProcess:
    own = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    clean = {k: v for k, v in os.environ.items() if k not in READ}
    return subprocess.run(
        [sys.executable, "-c", READ[variable]],
        env=clean | own | {variable: flags},
        capture_output=True,
        text=True,
    )


def test_libtpu_knows_the_flags_of_a_tpu(libtpu):
    flags = flags_of("tpu")
    assert not flags["XLA_FLAGS"] and "--xla_tpu_" in flags["LIBTPU_INIT_ARGS"]
    done = read("LIBTPU_INIT_ARGS", flags["LIBTPU_INIT_ARGS"])
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr


def test_jax_knows_the_flags_of_a_gpu():
    flags = flags_of("gpu")
    assert not flags["LIBTPU_INIT_ARGS"] and "--xla_gpu_" in flags["XLA_FLAGS"]
    done = read("XLA_FLAGS", flags["XLA_FLAGS"])
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.mark.parametrize("variable", READ)
def test_an_unknown_flag_would_be_noticed(variable, request):
    if variable == "LIBTPU_INIT_ARGS":
        request.getfixturevalue("libtpu")
    done = read(variable, "--xla_no_such_flag=true")
    assert done.returncode != 0 and "xla_no_such_flag" in done.stderr


@pytest.mark.parametrize("path", sorted(FLAGS.iterdir()), ids=lambda path: path.name)
def test_every_flag_has_its_reason(path):
    """Above it, or above the flags that it works together with."""
    lines = path.read_text().splitlines()
    assert lines[0].startswith("#") and max(map(len, lines)) <= 100
    for number, line in enumerate(lines):
        if line.startswith(("LIBTPU_INIT_ARGS", "XLA_FLAGS", "export ")):
            block = lines[:number]
            while block[-1].startswith(("LIBTPU_INIT_ARGS", "XLA_FLAGS")):
                block.pop()
            assert block[-1].startswith("# "), line
        else:
            assert not line or line.startswith("#"), line

"""Which processes a run has, and which of them this one is.

The sources are those of `jax.distributed`. They are read here because JAX tells what it found only
after all processes have come, and aborts when one does not.
"""

import dataclasses
import pathlib
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

_ADDRESS, _COUNT, _NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_PORT = "JAX_COORDINATOR_PORT"
_TPU_PORT = 8482  # JAX's choice
_GOOGLE = "0x1ae0"  # PCI vendor
_METADATA_TRIES = 3

Address = tuple[str, int]  # host and port


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run.

    Attributes:
        address: of the coordinator, process 0.
        num_processes: how many there are.
        process: number of this one.
        hosts: of the processes in their order, if they are known.
        local_devices: numbers of those GPUs of its host that this process uses; None: all.
    """

    address: Address
    num_processes: int
    process: int
    hosts: tuple[str, ...] = ()
    local_devices: tuple[int, ...] | None = None


def find_cluster(environment: Mapping[str, str]) -> Cluster | None:
    """The processes of the run, by the environment and the machine; None: this one is alone.

    Raises:
        ValueError: settings are missing, contradict each other or cannot be read; names them.
    """
    given = _by_hand(environment)
    if given.get("num_processes") == 1 and given.get("process", 0) == 0:
        return None
    found: dict[str, Any] = {}
    if len(given) < 3:
        found = (
            _gke_tpu(environment)
            or _tpu_vm(environment)
            or _slurm(environment)
            or _kubernetes(environment)
        )
    if found.get("num_processes") == 1 and not given:
        return None
    settings = found | given
    if not settings:
        return None
    number, count = settings.get("process", 0), settings.get("num_processes")
    if count is not None and not 0 <= number < count:
        raise ValueError(
            f"{_NUMBER} is {number}, but {_COUNT} is {count}: processes are numbered from 0"
        )
    names = {"address": _ADDRESS, "num_processes": _COUNT, "process": _NUMBER}
    if missing := [name for key, name in names.items() if key not in settings]:
        there = " and ".join(names[key] for key in given) or "JOB_COMPLETION_INDEX"
        raise ValueError(
            f"{there} without {' and '.join(missing)}: set all of them on every host, or "
            f"{_COUNT}=1 to train alone"
        )
    return Cluster(**settings)


def parse_address(text: str, port: str | None = None) -> Address:
    """HOST:PORT, HOST (with a port given apart) or [IPV6]:PORT.

    Raises:
        ValueError: there is no port.
    """
    match = re.fullmatch(r"(\[[^\]]+\]|[^:]+)(?::(\d+))?", text)
    if match is None or not (match[2] or port):
        raise ValueError(f"the address {text!r} has no port: give it as HOST:PORT")
    return match[1].strip("[]"), int(match[2] or port)


def _by_hand(environment: Mapping[str, str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if address := environment.get(_ADDRESS):
        given["address"] = parse_address(address, environment.get(_PORT))
    for key, name in (("num_processes", _COUNT), ("process", _NUMBER)):
        if text := environment.get(name):
            if not text.isdecimal():
                raise ValueError(f"{name} is {text!r}: it must be a whole number")
            given[key] = int(text)
    return given


def _gke_tpu(environment: Mapping[str, str]) -> dict[str, Any]:
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    worker = environment.get("TPU_WORKER_ID")
    if not hosts or not worker:
        return {}
    return _slices(hosts.split(","), int(worker), environment)


def _tpu_vm(environment: Mapping[str, str]) -> dict[str, Any]:
    if "TPU_SKIP_MDS_QUERY" in environment or not _has_google_device():
        return {}
    worker = _metadata("agent-worker-number", environment)
    endpoints = worker and _metadata("worker-network-endpoints", environment)
    if not endpoints:  # a virtual machine without TPUs
        return {}
    # Each endpoint is an address, or NAME:ID:ADDRESS.
    hosts = [endpoint.split(":")[-1] for endpoint in endpoints.split(",")]
    lines = re.findall(
        r"^\s*(\w+)\s*:\s*'?(.*?)'?\s*$", _metadata("tpu-env", environment) or "", re.M
    )
    return _slices(hosts, int(worker), dict(lines) | environment)


def _slices(hosts: list[str], worker: int, environment: Mapping[str, str]) -> dict[str, Any]:
    """Worker `worker` of a slice, perhaps one of several."""
    slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    index = int(environment.get("MEGASCALE_SLICE_ID") or 0)
    first = environment.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]
    return {
        "address": (first.split(":")[0], int(environment.get(_PORT) or _TPU_PORT)),
        "num_processes": slices * len(hosts),
        "process": index * len(hosts) + worker,
        "hosts": tuple(hosts) if slices == 1 else (),
    }


def _slurm(environment: Mapping[str, str]) -> dict[str, Any]:
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if not all(name in environment for name in names):
        return {}
    job, nodes, count, number, local = (environment[name] for name in names)
    # The first of nodes like gpu7, gpu[3,7-9] or rack[1-2]n[1-4],gpu7.
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)[0]
    host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)
    # As JAX: jobs that share a node are unlikely to share the port.
    port = int(environment.get(_PORT) or 61440 + int(job) % 4096)
    tasks = re.findall(r"(\d+)(?:\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    bound = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    shares_host = any(int(number) > 1 for number in tasks)
    sees_all = bound == [""] or len(bound) > 1  # not bound by --gpus-per-task
    return {
        "address": (host, port),
        "num_processes": int(count),
        "process": int(number),
        "local_devices": (int(local),) if shares_host and sees_all else None,
    }


def _kubernetes(environment: Mapping[str, str]) -> dict[str, Any]:
    """An indexed Job gives its pods numbers, but does not tell how many there are."""
    index = environment.get("JOB_COMPLETION_INDEX")
    return {"process": int(index)} if index and "KUBERNETES_SERVICE_HOST" in environment else {}


def _has_google_device() -> bool:
    vendors = pathlib.Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(vendor.read_text().strip() == _GOOGLE for vendor in vendors)


def _metadata(key: str, environment: Mapping[str, str]) -> str | None:
    """An attribute of this virtual machine at its metadata server; None: it has no such."""
    server = environment.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{key}",
        headers={"Metadata-Flavor": "Google"},
    )
    for attempt in range(_METADATA_TRIES):
        time.sleep(attempt)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.read().decode()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
        except OSError:  # no answer: not Google's cloud
            pass
    return None

import contextlib
import http.server
import threading

import pytest

from starcoder_jax.parallel import clusters
from starcoder_jax.parallel.clusters import Cluster, find_cluster, parse_address

HAND = {
    "JAX_COORDINATOR_ADDRESS": "first:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
SLURM = {
    "SLURM_JOB_ID": "987654",
    "SLURM_STEP_NODELIST": "gpu[07-10],big1",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
GKE = {"TPU_WORKER_ID": "2", "TPU_WORKER_HOSTNAMES": "a.pod,b.pod,c.pod"}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}


@pytest.fixture(autouse=True)
def no_tpu_of_this_machine(monkeypatch):
    monkeypatch.setattr(clusters, "_has_google_device", lambda: False)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"JAX_NUM_PROCESSES": "1"},
        {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
        SLURM | {"JAX_NUM_PROCESSES": "1"},
        SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        # A batch script's own shell is no task of `srun`.
        {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"},
        {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"},
        GKE | KUBERNETES | {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        KUBERNETES | {"JAX_NUM_PROCESSES": "1"},
    ],
)
def test_a_process_alone(environment):
    assert find_cluster(environment) is None


def test_by_hand():
    assert find_cluster(HAND) == Cluster(("first", 1234), 4, 3)
    assert find_cluster(HAND | SLURM | GKE) == Cluster(("first", 1234), 4, 3)
    apart = HAND | {"JAX_COORDINATOR_ADDRESS": "first", "JAX_COORDINATOR_PORT": "99"}
    assert find_cluster(apart).address == ("first", 99)
    assert find_cluster(HAND | {"JAX_COORDINATOR_ADDRESS": "[::1]:5"}).address == ("::1", 5)


# JAX's own detection gives the same addresses, numbers and ports.
@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu7,big1", "gpu7"),
        ("gpu[001-015],big1", "gpu001"),
        ("gpu[001,007-015],big1", "gpu001"),
        ("gpu7,big[1-2]", "gpu7"),
        ("rack[2-3]n[11-14],gpu7", "rack2n11"),
    ],
)
def test_slurm(nodes, first):
    port = 61440 + 987654 % 4096
    found = find_cluster(SLURM | {"SLURM_STEP_NODELIST": nodes})
    assert found == Cluster((first, port), 8, 5)
    found = find_cluster(SLURM | {"SLURM_STEP_NODELIST": nodes, "JAX_COORDINATOR_PORT": "77"})
    assert found.address == (first, 77)


@pytest.mark.parametrize(
    ("tasks", "visible", "devices"),
    [
        ("1(x8)", None, None),
        ("1(x8)", "0,1,2,3", None),
        ("4(x2)", None, (1,)),
        ("4(x2)", "0,1,2,3", (1,)),
        ("1,4(x2)", None, (1,)),
        ("4(x2)", "1", None),  # bound by SLURM
    ],
)
def test_which_gpus_a_slurm_task_uses(tasks, visible, devices):
    environment = SLURM | {"SLURM_STEP_TASKS_PER_NODE": tasks}
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    assert find_cluster(environment).local_devices == devices


def test_gke_tpus():
    hosts = ("a.pod", "b.pod", "c.pod")
    assert find_cluster(GKE | KUBERNETES) == Cluster(("a.pod", 8482), 3, 2, hosts)
    slices = {
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "job-0-0.pod:8080",
    }
    assert find_cluster(GKE | slices) == Cluster(("job-0-0.pod", 8482), 6, 5)
    assert find_cluster(GKE | {"JAX_COORDINATOR_PORT": "77"}).address == ("a.pod", 77)


@contextlib.contextmanager
def metadata_server(attributes):
    """Yields the environment that leads to it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            folder, _, key = self.path.rpartition("/")
            assert folder == "/computeMetadata/v1/instance/attributes"
            assert self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if key in attributes else 404)
            self.end_headers()
            self.wfile.write(attributes.get(key, "").encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
        server.shutdown()


def test_tpu_vms(monkeypatch):
    monkeypatch.setattr(clusters, "_has_google_device", lambda: True)
    attributes = {
        "agent-worker-number": "1",
        "worker-network-endpoints": "unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2",
        "tpu-env": "ACCELERATOR_TYPE: 'v5p-16'\nZONE: 'somewhere'\nEMPTY: ''\n",
    }
    hosts = ("10.0.0.1", "10.0.0.2")
    with metadata_server(attributes) as environment:
        assert find_cluster(environment) == Cluster(("10.0.0.1", 8482), 2, 1, hosts)
        assert find_cluster(environment | {"TPU_SKIP_MDS_QUERY": "1"}) is None
        attributes["worker-network-endpoints"] = "10.0.0.1,10.0.0.2"
        assert find_cluster(environment) == Cluster(("10.0.0.1", 8482), 2, 1, hosts)
        attributes["tpu-env"] += (
            "MEGASCALE_NUM_SLICES: '3'\nMEGASCALE_SLICE_ID: '2'\n"
            "MEGASCALE_COORDINATOR_ADDRESS: '10.9.0.1:8080'\n"
        )
        assert find_cluster(environment) == Cluster(("10.9.0.1", 8482), 6, 5)
        attributes.clear()  # a machine without TPUs
        assert find_cluster(environment) is None
    # Nor does a machine that cannot reach such a server wait for it for long.
    monkeypatch.setattr(clusters.time, "sleep", lambda _: None)
    assert find_cluster(environment) is None


def test_kubernetes_gives_the_number_alone():
    others = {"JAX_COORDINATOR_ADDRESS": "job-0.svc:1234", "JAX_NUM_PROCESSES": "2"}
    assert find_cluster(KUBERNETES | others) == Cluster(("job-0.svc", 1234), 2, 1)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"JAX_PROCESS_ID": "1"},
            "JAX_PROCESS_ID without JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES: .*alone",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "first:1", "JAX_PROCESS_ID": "1"},
            "JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID without JAX_NUM_PROCESSES",
        ),
        (
            {"JAX_NUM_PROCESSES": "4"},
            "JAX_NUM_PROCESSES without JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID",
        ),
        (
            KUBERNETES,
            "JOB_COMPLETION_INDEX without JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES",
        ),
        (HAND | {"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID is 4, but JAX_NUM_PROCESSES is 4"),
        (HAND | {"JAX_NUM_PROCESSES": "1"}, "JAX_PROCESS_ID is 3, but JAX_NUM_PROCESSES is 1"),
        (HAND | {"JAX_NUM_PROCESSES": "0"}, "JAX_PROCESS_ID is 3, but JAX_NUM_PROCESSES is 0"),
        (SLURM | {"JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID is 5, but JAX_NUM_PROCESSES is 2"),
        (HAND | {"JAX_PROCESS_ID": "two"}, "JAX_PROCESS_ID is 'two'"),
        (HAND | {"JAX_NUM_PROCESSES": "-4"}, "JAX_NUM_PROCESSES is '-4'"),
        (HAND | {"JAX_COORDINATOR_ADDRESS": "first"}, "the address 'first' has no port"),
        (HAND | {"JAX_COORDINATOR_ADDRESS": "::1"}, "the address '::1' has no port"),
    ],
)
def test_settings_that_contradict_each_other_are_named(environment, message):
    with pytest.raises(ValueError, match=message) as raised:
        find_cluster(environment)
    assert "\n" not in str(raised.value)


def test_parse_address():
    assert parse_address("10.0.0.1:80") == ("10.0.0.1", 80)
    assert parse_address("[fe80::1]:80") == ("fe80::1", 80)
    assert parse_address("host", "80") == ("host", 80)
    assert parse_address("host:81", "80") == ("host", 81)
    for text in ("", ":80", "host:", "host:x", "1::2:80"):
        with pytest.raises(ValueError, match="has no port"):
            parse_address(text)

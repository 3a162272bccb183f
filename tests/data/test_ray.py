"""`prepare` on a Ray cluster of two machines and an S3 server; run by `make test-ray`.

The machines are processes of this one (`ray.cluster_utils.Cluster`), and the server is moto.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="not installed: make test-ray")
moto_server = pytest.importorskip("moto.server", reason="not installed: make test-ray")
s3fs = pytest.importorskip("s3fs", reason="not installed: make test-ray")

import ray_faults  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from collamo.data.options import PrepareOptions  # noqa: E402
from collamo.data.prepare import prepare  # noqa: E402
from collamo.data.prepared import PreparedData  # noqa: E402
from collamo.errors import UsageError  # noqa: E402

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SMILES = [*("C" * n + "O" for n in range(1, 25)), "C1CC", *("C" * n + "N" for n in range(1, 12))]
OPTIONS = PrepareOptions(shard_size=4, conformers=False, time_limit=1.0)
EASY = {"max_reject_rate": 0.5, "progress": False}
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """An S3 server with a bucket; the environment says where it is."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLAMO_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name, value in {**keys, "AWS_ENDPOINT_URL": address, "AWS_REGION": "us-east-1"}.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem().mkdir("bucket")
        yield
    server.stop()


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def cluster(s3, faults):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        patch.setenv("COLLAMO_TEST_FAULTS", str(faults))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_health_check_period_ms", "500")  # a lost machine is missed in seconds
        cluster = Cluster(initialize_head=True, head_node_args=NODE)
        cluster.add_node(**NODE)
        ray.init(
            address=cluster.address,
            log_to_driver=False,
            runtime_env={"worker_process_setup_hook": "ray_faults.install"},
        )
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def slow(faults):
    """While it lasts a row takes 0.2 s and leaves a file named after the worker it is in."""
    (faults / "slow").touch()
    yield faults
    for path in faults.iterdir():
        path.unlink()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "molecules.smi"
    path.write_text("".join(f"{smiles}\n" for smiles in SMILES))
    return path


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def alone(source, tmp_path):
    """The bytes that one machine makes of the source."""
    prepare(source, tmp_path / "alone", OPTIONS, workers=1, **EASY)
    return files(tmp_path / "alone")


def in_background(source, out):
    """Start `prepare` on the cluster; return what waits for its manifest."""
    result = []
    thread = threading.Thread(
        target=lambda: result.append(prepare(source, out, OPTIONS, ray="auto", **EASY))
    )
    thread.start()

    def wait():
        thread.join()
        return result[0]

    return wait


def wait_for(condition):
    while not (found := condition()):
        time.sleep(0.05)
    return found


def test_molecules_that_hang_and_crash_cost_their_own_rows(cluster, tmp_path, monkeypatch):
    source = tmp_path / "faulty.smi"
    smiles = [*SMILES[:6], ray_faults.CRASH, *SMILES[6:9], ray_faults.HANG, *SMILES[9:12]]
    source.write_text("".join(f"{text}\n" for text in smiles))
    monkeypatch.setattr("collamo.data.workers.process_row", ray_faults._process_row)
    prepare(source, tmp_path / "alone", OPTIONS, workers=1, **EASY)
    manifest = prepare(source, tmp_path / "out", OPTIONS, ray="auto", **EASY)
    assert manifest.rejected == {"crash": 1, "time_limit": 1}
    assert manifest.rows == {"in": 14, "ok": 12, "rejected": 2}
    assert files(tmp_path / "out") == files(tmp_path / "alone")


def test_a_killed_worker_costs_nothing(cluster, slow, source, alone, tmp_path):
    manifest = in_background(source, tmp_path / "out")
    worker = wait_for(lambda: list(slow.glob("*.worker")))[0]
    os.kill(int(worker.stem), signal.SIGKILL)
    assert manifest().rows["in"] == len(SMILES)
    assert files(tmp_path / "out") == alone


def test_a_killed_machine_costs_nothing(cluster, slow, source, alone, tmp_path):
    node = cluster.add_node(**NODE)
    manifest = in_background(source, tmp_path / "out")
    wait_for(lambda: len(list(slow.glob("*.worker"))) >= 3)  # each machine has one at work
    cluster.remove_node(node, allow_graceful=False)
    assert manifest().rows["in"] == len(SMILES)
    assert files(tmp_path / "out") == alone


def test_s3_holds_the_same_bytes_and_is_resumed(cluster, source, alone):
    system = s3fs.S3FileSystem()
    system.put_file(str(source), "bucket/molecules.smi")
    prepare("s3://bucket/molecules.smi", "s3://bucket/data", OPTIONS, ray="auto", **EASY)

    def stored():
        system.invalidate_cache()
        return {name.rpartition("/")[2]: system.cat(name) for name in system.ls("bucket/data")}

    assert stored() == alone
    before = {entry["name"]: entry["LastModified"] for entry in system.ls("bucket/data", True)}
    system.rm("bucket/data/molecules-00002.json")
    time.sleep(1)  # the resolution of LastModified
    prepare("s3://bucket/molecules.smi", "s3://bucket/data", OPTIONS, ray="auto", **EASY)
    assert stored() == alone
    after = {entry["name"]: entry["LastModified"] for entry in system.ls("bucket/data", True)}
    made = {name.rpartition("/")[2] for name in after if after[name] != before[name]}
    shards = {name for name in made if name.startswith("molecules-")}
    assert shards == {"molecules-00002.json", "molecules-00002.parquet"}


def test_datasets_streams_what_s3_and_a_folder_hold(cluster, source, tmp_path):
    datasets = pytest.importorskip("datasets", reason="not installed: make test-ray")
    manifest = prepare(source, "s3://bucket/streamed", OPTIONS, ray="auto", **EASY)
    streamed = datasets.load_dataset(
        "parquet",
        data_files="s3://bucket/streamed/molecules-*.parquet",
        split="train",
        streaming=True,
        cache_dir=str(tmp_path / "cache"),
    )
    smiles = [text for text in SMILES if text != "C1CC"]
    assert [row["text"] for row in streamed] == smiles
    folder = str(PreparedData.open("s3://bucket/streamed").folder)
    opened = datasets.load_dataset(folder, streaming=True)
    counts = {split: sum(1 for _ in questions) for split, questions in opened.items()}
    assert counts == {name: sum(tasks.values()) for name, tasks in manifest.tasks.items()}
    molecules = datasets.load_dataset(folder, "molecules", split="train", streaming=True)
    assert [row["text"] for row in molecules] == smiles


def test_a_folder_that_machines_do_not_see_is_named(cluster, source):
    """This process has a file system in its memory, which no other has."""
    with pytest.raises(UsageError, match=r"does not see memory://here; give --out a folder"):
        prepare(source, "memory://here", OPTIONS, ray="auto", **EASY)


@pytest.mark.parametrize("killed", [False, True], ids=["whole", "killed"])
def test_the_command_starts_ray_and_goes_on(source, alone, faults, tmp_path, killed):
    out = tmp_path / "out"
    command = [*(sys.executable, "-m", "collamo", "prepare", "--ray", source, "--out", out)]
    command += ["--shard-size", "4", "--no-conformers", "--time-limit", "1", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": ""}
    if killed:
        with (tmp_path / "notes.txt").open("w") as notes:
            running = subprocess.Popen(command, env=environment, stdout=notes, stderr=notes)
        wait_for(lambda: list(out.glob("molecules-*.json")) or running.poll() is not None)
        running.kill()
        running.wait()
        kept = {path.name: path.stat().st_mtime_ns for path in out.glob("molecules-*.json")}
        assert kept, (tmp_path / "notes.txt").read_text()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("error")) == (0, 0), done.stderr
    assert done.stdout.startswith(f"{len(SMILES)} rows: {len(SMILES) - 1} ok, 1 rejected")
    assert files(out) == alone
    if killed:
        assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in out.iterdir()}.items()

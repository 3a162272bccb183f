"""Which configurations of the Triton attention a machine takes: by a rule, and after a check."""

import pytest
import torch

from collamo_kernels.coattention.triton import backend as _triton
from collamo_kernels.testing import required_backends

HALF, DEVICE = torch.bfloat16, torch.device("cuda", 0)


@pytest.fixture
def trust(monkeypatch, tmp_path):
    """The module, on an H200 with Triton 3.6 where nothing was checked yet."""
    if "triton" not in required_backends():
        pytest.importorskip("triton")
    from collamo_kernels.coattention.triton import trust

    machine = trust.Machine("NVIDIA H200", (9, 0), "3.6.0", "12.8")
    monkeypatch.setattr(trust, "machine_of", lambda device: machine)
    monkeypatch.setattr(trust.triton, "__version__", machine.triton)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setenv("COLLAMO_KERNELS_CACHE", str(tmp_path))
    trust.refused.cache_clear()
    yield trust
    trust.refused.cache_clear()


@pytest.mark.parametrize("capability", [(9, 0), (8, 9)])
def test_no_tiles_of_64_rows_where_older_compilers_go_wrong(capability, trust, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert trust.refused(DEVICE, 32, HALF) == {64, 128}
    assert trust.refused(DEVICE, 128, HALF) == frozenset()  # its buckets are tiles of 32
    assert trust.refused(DEVICE, 32, torch.float32) == frozenset()
    monkeypatch.setattr(trust.triton, "__version__", "3.8.0+git12")
    trust.refused.cache_clear()
    assert trust.refused(DEVICE, 32, HALF) == frozenset()


def test_other_gpus_take_every_tile(trust, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    assert trust.refused(DEVICE, 32, HALF) == frozenset()


def test_tiles_of_32_are_taken_instead(trust):
    from collamo_kernels.coattention.triton import configuration

    def taken(refused):
        """Buckets of molecules of one size."""
        classes = [configuration.size_classes(n, n, 32, HALF, refused) for n in (20, 40, 100, 300)]
        assert all(len(x) == 1 and x[0].above == 0 for x in classes)
        return [x[0].bucket for x in classes]

    assert taken(trust.refused(DEVICE, 32, HALF)) == [32, "2 x 32", "loop", "loop"]
    assert taken(frozenset()) == [32, 64, 128, "loop"]


def test_what_failed_a_check_is_not_taken(trust):
    machine = trust.machine_of(DEVICE)
    trust.record(machine, [(trust.Choice(torch.float32, 64, 32), "dk is wrong")])
    assert trust.refused(DEVICE, 64, torch.float32) == {32}
    assert trust.refused(DEVICE, 32, torch.float32) == frozenset()
    assert trust.why_none(DEVICE, 64, torch.float32) is None
    assert trust.recorded(machine) == {"float32, width 64, 32": "dk is wrong"}
    for other in ({"triton": "3.9.0"}, {"ptxas": "13.0"}, {"gpu": "NVIDIA H100"}):
        assert trust.recorded(machine._replace(**other)) == {}


def test_where_the_loop_failed_another_backend_runs(trust):
    failed = trust.Choice(torch.float32, 64, "loop")
    trust.record(trust.machine_of(DEVICE), [(failed, "dk is wrong")])
    reason = trust.why_none(DEVICE, 50, torch.float32)
    assert reason.startswith("its kernels failed the check of this GPU")


def test_a_second_check_forgets_what_was_mended(trust):
    machine = trust.machine_of(DEVICE)
    other = machine._replace(gpu="NVIDIA A100")
    trust.record(other, [(trust.Choice(HALF, 16, 32), "wrong")])
    trust.record(machine, [(trust.Choice(HALF, 16, 32), "wrong")])
    trust.record(machine, [])
    assert trust.recorded(machine) == {}
    assert trust.recorded(other) != {}


def test_a_broken_file_holds_nothing(trust):
    trust.failures_file().write_text("{")
    assert trust.refused(DEVICE, 16, torch.float32) == frozenset()
    trust.record(trust.machine_of(DEVICE), [])
    assert trust.failures_file().read_text() != "{"


def test_every_configuration_is_checked_and_a_process_that_dies_fails_its_own(trust, monkeypatch):
    from collamo_kernels.coattention.triton import check, configuration

    def run(command, **options):
        *_, dtype, width, _device = command
        lines = [f'["{dtype}, width {width}, 32", null]', "noise"]
        if (dtype, width) != ("float16", "16"):
            names = configuration.buckets(int(width), getattr(torch, dtype))
            lines += [f'["{dtype}, width {width}, {x}", null]' for x in names]
        if (dtype, width) == ("float32", "128"):
            raise check.subprocess.TimeoutExpired(command, 1, output=lines[0].encode())
        done = check.subprocess.CompletedProcess(command, 0)
        done.stdout, done.stderr = "\n".join(lines), "illegal access"
        return done

    monkeypatch.setattr(check.subprocess, "run", run)
    verdicts = check.check_gpu(DEVICE)
    taken = sum(len(check.choices(x, y, DEVICE)) for x, y, _ in {v.choice for v in verdicts})
    assert taken >= len(verdicts) == len({x.choice for x in verdicts})
    failed = [x for x in verdicts if x.error is not None]
    late = trust.Choice(torch.float32, 128, "loop")
    died = [trust.Choice(torch.float16, 16, x) for x in ("2 x 32", "loop")]
    assert [x.choice for x in failed] == [*died, late]
    assert failed[-1].error.startswith("not checked after")
    assert all("illegal access" in x.error for x in failed[:-1])
    recorded = trust.recorded(trust.machine_of(DEVICE))
    assert list(recorded) == ["float16, width 16, 2 x 32", "float16, width 16, loop"]


@pytest.mark.skipif(
    not (_triton.INTERPRETED or torch.cuda.is_available()), reason="runs the kernels"
)
def test_a_wrong_kernel_is_found(monkeypatch):
    from collamo_kernels.coattention.triton import check, launch
    from collamo_kernels.coattention.triton.trust import Choice

    device = "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.setitem(check.SIZES, 32, (5, 3))
    choice = Choice(torch.float16, 16, 32)
    assert check.verdict_on(choice, device, heads=1).error is None
    forward = launch.forward

    def wrong(inputs):
        return forward(inputs._replace(scale=1.1 * inputs.scale))

    monkeypatch.setattr(launch, "forward", wrong)
    assert "out: error" in check.verdict_on(choice, device, heads=1).error

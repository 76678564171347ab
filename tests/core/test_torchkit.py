"""Devices, precisions and halved batches, held against a torch that has only what is asked of it."""

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from stainbridge import torchkit
from stainbridge.errors import ConfigError, DeviceUnavailable, MissingExtra
from stainbridge.torchkit import (
    autocast,
    cpu_has_bf16,
    devices,
    import_torch,
    in_batches,
    inference_precision,
    resolve_device,
)
from stainbridge.weights import loading


class OutOfMemoryError(RuntimeError):
    """As torch's own."""


@pytest.fixture
def torch(monkeypatch):
    """A torch of version 2.10 with no CUDA device, in the place of the real one."""
    emptied = []
    fake = SimpleNamespace(
        __version__="2.10.0+cpu",
        version=SimpleNamespace(cuda=None, hip=None),
        OutOfMemoryError=OutOfMemoryError,
        device=lambda name: SimpleNamespace(type=name.split(":")[0], name=name),
        cuda=SimpleNamespace(
            is_available=lambda: False,
            device_count=lambda: 0,
            empty_cache=lambda: emptied.append(1),
            get_device_capability=lambda device: (8, 0),
        ),
        cpu=SimpleNamespace(get_capabilities=lambda: {"avx512_bf16": False}),
        autocast=lambda kind, dtype: (kind, dtype),
        bfloat16="bfloat16",
        float16="float16",
        float32="float32",
        emptied=emptied,
    )
    monkeypatch.setitem(sys.modules, "torch", fake)
    return fake


def with_gpus(torch, count):
    torch.version.cuda = "12.8"
    torch.cuda.is_available = lambda: count > 0
    torch.cuda.device_count = lambda: count


class Memory:
    """Doubles pictures, and runs out of memory from `fits` pictures up."""

    def __init__(self, fits):
        self.fits, self.sizes, self.failures = fits, [], 0

    def __call__(self, batch):
        if len(batch) > self.fits:
            self.failures += 1
            raise OutOfMemoryError("CUDA out of memory")
        self.sizes.append(len(batch))
        return batch * 2


def pictures(count):
    return np.arange(count * 4 * 5).reshape(count, 4, 5)


class TestTorchItself:
    def test_without_torch_the_pip_line_is_given(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(MissingExtra, match=r"some plugin needs torch, .*\nRun: pip install 'stainbridge\[torch\]'"):
            import_torch("some plugin")

    @pytest.mark.parametrize("version", ["2.9.1", "1.13.0+cu117"])
    def test_a_torch_that_loads_weights_unsafely_is_refused(self, torch, version):
        torch.__version__ = version
        with pytest.raises(MissingExtra, match=rf"needs torch 2\.10 or newer; found {version.split('+')[0]}") as raised:
            import_torch("some plugin")
        assert "pip install 'torch>=2.10,<2.14'" in str(raised.value)

    @pytest.mark.parametrize("version", ["2.10.0", "2.13.1+cpu", "3.0.0"])
    def test_a_newer_torch_is_taken(self, torch, version):
        torch.__version__ = version
        assert import_torch("some plugin") is torch

    def test_the_oldest_torch_is_the_one_of_the_weight_store(self):
        assert torchkit.TORCH_AT_LEAST == loading.TORCH_AT_LEAST


class TestDevices:
    def test_a_cpu_is_always_there(self, torch):
        assert resolve_device("cpu").type == "cpu"

    @pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
    def test_a_gpu_that_is_there_is_taken(self, torch, name):
        with_gpus(torch, 2)
        assert resolve_device(name).name == name

    def test_a_build_without_cuda_says_so(self, torch):
        with pytest.raises(DeviceUnavailable, match=r"'cuda' was asked for, but this torch is built without CUDA") as e:
            resolve_device("cuda")
        assert "--device cpu" in str(e.value)

    def test_a_machine_without_gpu_says_so(self, torch):
        with_gpus(torch, 0)
        with pytest.raises(DeviceUnavailable, match="torch finds no CUDA device"):
            resolve_device("cuda:0")

    def test_a_gpu_of_a_higher_number_is_answered_with_those_that_are_there(self, torch):
        with_gpus(torch, 2)
        with pytest.raises(DeviceUnavailable, match=r"'cuda:2' was asked for; this machine has cuda:0, cuda:1\."):
            resolve_device("cuda:2")

    @pytest.mark.parametrize("name", ["gpu", "cudo", "cuda:", "cuda:x", "cpu:0", ""])
    def test_other_names_are_refused(self, torch, name):
        with pytest.raises(ConfigError, match=f"'cpu', 'cuda' or 'cuda:N'; found '{name}'"):
            resolve_device(name)


class TestPrecision:
    def test_single_precision_changes_nothing_on_any_device(self, torch):
        for name in ("cpu", "cuda"):
            with autocast(torch.device(name), "fp32"):
                pass

    @pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16")])
    def test_mixed_precision_is_torch_autocast_on_cuda(self, torch, precision, dtype):
        assert autocast(torch.device("cuda:1"), precision) == ("cuda", dtype)

    def test_bf16_on_a_cpu_without_the_arithmetic_is_refused(self, torch):
        with pytest.raises(DeviceUnavailable, match=r"'bf16' needs .*AVX512-BF16 or AMX.*\nSet precision = 'fp32'"):
            autocast(torch.device("cpu"), "bf16")

    @pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
    def test_bf16_on_a_cpu_with_the_arithmetic_is_torch_autocast(self, torch, flag):
        torch.cpu.get_capabilities = lambda: {flag: True}
        assert autocast(torch.device("cpu"), "bf16") == ("cpu", "bfloat16")

    @pytest.mark.parametrize("flag", ["avx512_bf16", "none"])
    def test_fp16_on_any_cpu_is_refused(self, torch, flag):
        torch.cpu.get_capabilities = lambda: {flag: True}
        with pytest.raises(DeviceUnavailable, match=r"'fp16' is for CUDA devices; .*\nSet precision = 'fp32'"):
            autocast(torch.device("cpu"), "fp16")

    def test_other_precisions_are_refused(self, torch):
        with pytest.raises(ConfigError, match="one of auto, fp32, bf16, fp16; found 'fp8'"):
            autocast(torch.device("cuda"), "fp8")

    @pytest.mark.parametrize(
        ("device", "arithmetic", "chosen"),
        [
            ("cpu", {"avx512_bf16": True}, "bf16"),
            ("cpu", {"amx_bf16": True}, "bf16"),
            ("cpu", {"avx512_f": True}, "fp32"),
        ],
    )
    def test_auto_on_a_cpu_is_bf16_where_the_processor_has_it(self, torch, device, arithmetic, chosen):
        torch.cpu.get_capabilities = lambda: arithmetic
        assert inference_precision("auto", torch.device(device)) == chosen

    @pytest.mark.parametrize(("capability", "chosen"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
    def test_auto_on_a_card_is_bf16_where_the_card_has_it(self, torch, capability, chosen):
        torch.cuda.get_device_capability = lambda device: capability if device.name == "cuda:1" else None
        assert inference_precision("auto", torch.device("cuda:1")) == chosen

    @pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
    def test_what_is_asked_of_a_card_is_taken(self, torch, precision):
        assert inference_precision(precision, torch.device("cuda")) == precision

    @pytest.mark.parametrize(("flags", "has"), [("fpu avx512f avx512_bf16 vaes", True), ("fpu avx512f", False)])
    def test_where_torch_does_not_tell_linux_is_asked(self, torch, monkeypatch, tmp_path, flags, has):
        del torch.cpu.get_capabilities
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
        monkeypatch.setattr(devices, "_CPUINFO", tmp_path / "cpuinfo")
        assert cpu_has_bf16() is has

    def test_where_nobody_tells_there_is_none(self, torch, monkeypatch, tmp_path):
        del torch.cpu.get_capabilities
        monkeypatch.setattr(devices, "_CPUINFO", tmp_path / "absent")
        assert cpu_has_bf16() is False


class TestBatches:
    @pytest.mark.parametrize("size", [1, 3, 7, 100])
    def test_the_result_does_not_depend_on_the_size(self, torch, size):
        run = Memory(fits=100)
        assert np.array_equal(in_batches(run, pictures(7), size), pictures(7) * 2)
        assert max(run.sizes) == min(size, 7)

    @pytest.mark.parametrize("fits", [1, 2, 3, 5, 8, 16])
    @pytest.mark.parametrize("size", [1, 5, 8, 16])
    def test_out_of_memory_halves_the_batch_and_changes_nothing_else(self, torch, size, fits):
        run = Memory(fits)
        assert np.array_equal(in_batches(run, pictures(19), size), pictures(19) * 2)
        assert run.failures <= np.log2(size)
        assert sum(run.sizes) == 19
        assert len(torch.emptied) == run.failures

    def test_a_single_picture_that_does_not_fit_says_what_to_do(self, torch):
        run = Memory(fits=0)
        with pytest.raises(DeviceUnavailable, match=r"One tile of 4 x 5 px does not fit .*\nTake smaller tiles"):
            in_batches(run, pictures(8), 8)
        assert run.failures == 4

    def test_another_error_is_not_taken_for_lack_of_memory(self, torch):
        def broken(batch):
            raise ValueError("of the plugin")

        with pytest.raises(ValueError, match="of the plugin"):
            in_batches(broken, pictures(2), 2)


@pytest.mark.heavy
class TestTheRealTorch:
    @pytest.fixture(autouse=True)
    def _torch(self):
        if importlib.util.find_spec("torch") is None:
            pytest.skip("needs torch: pip install 'stainbridge[torch]'")

    def test_its_out_of_memory_error_is_the_one_that_halves(self):
        import torch

        def run(batch):
            if len(batch) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return batch * 2

        assert np.array_equal(in_batches(run, pictures(5), 4), pictures(5) * 2)

    def test_its_cpu_is_a_device(self):
        assert resolve_device("cpu").type == "cpu"

    def test_it_tells_of_the_processor_what_linux_tells(self):
        if not devices._CPUINFO.exists():
            pytest.skip("no /proc/cpuinfo on this system")
        flags = devices._CPUINFO.read_text().split()
        assert cpu_has_bf16() == ("avx512_bf16" in flags or "amx_bf16" in flags)

    def test_bf16_on_a_cpu_that_has_it_multiplies_in_bf16(self):
        import torch

        if not cpu_has_bf16():
            pytest.skip("this processor has no bf16 arithmetic")
        with autocast(torch.device("cpu"), "auto"):
            assert (torch.ones(4, 4) @ torch.ones(4, 4)).dtype == torch.bfloat16

    def test_a_gpu_that_is_absent_is_refused(self):
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a CUDA device")
        with pytest.raises(DeviceUnavailable, match="--device cpu"):
            resolve_device("cuda")

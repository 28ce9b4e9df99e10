import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from parity_skips import NO_DATA, summary
from processes import sitecustomize as process

from mobileo_mlx import blas

os.environ["MOBILEO_CACHE"] = tempfile.mkdtemp()  # not what the doctor found on this machine
os.environ["MOBILEO_QUIET"] = "1"  # what the command writes is the same on machines without a fast BLAS
os.environ.setdefault("MLX_ENABLE_TF32", "0")  # float32 on an M5 or NVIDIA's GPUs has 10 bits of mantissa otherwise
blas.preload()  # before any test imports MLX
PROCESSES = str(Path(__file__).parent / "processes")


def pytest_configure() -> None:
    """Chooses the device and the default precision; see `processes/sitecustomize.py`."""
    import mlx.core as mx

    from mobileo_mlx.checkpoints import precision

    devices, dtypes = ("cpu", "gpu", "forms"), ("", *precision.DTYPES)
    if process.device() not in devices or os.environ.get("MOBILEO_TEST_DTYPE", "") not in dtypes:
        raise pytest.UsageError(f"MOBILEO_TEST_DEVICE is one of {devices}, MOBILEO_TEST_DTYPE one of {dtypes}.")
    if process.device() == "gpu" and mx.default_device() == mx.cpu:
        raise pytest.UsageError("MOBILEO_TEST_DEVICE is gpu, and MLX finds no GPU on this machine.")
    process.set_device(mx)
    process.set_default_dtype(precision)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (PROCESSES, os.environ.get("PYTHONPATH"))))


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Programs can be interrupted, even where the tests run in the background, or under nohup, and have inherited an
    ignored signal: a process that is started inherits what is ignored, and not what is handled."""
    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler)}
    for number in (signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:
            before[number] = signal.signal(number, lambda *_: None)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder with the original's outputs, which lies beside the repository where there is one."""
    path = Path(__file__).parents[2] / "shared" / "reference"
    if not path.is_dir():
        pytest.skip(NO_DATA)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small untrained model; tests read it and leave it as it is."""
    from mobileo_mlx.checkpoints.random_model import write_random_model

    path = tmp_path_factory.mktemp("models") / "tiny"
    write_random_model(path)
    return path


@pytest.fixture
def table_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Components take what the table and the doctor say, with whatever default the suite runs."""
    from mobileo_mlx.checkpoints import precision

    monkeypatch.setattr(precision, "default_dtype", lambda *of: precision.choice(*of).dtype)


@pytest.fixture
def settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of its own for what the doctor stores; it is not there yet."""
    from mobileo_mlx.ops import device_settings

    monkeypatch.setenv("MOBILEO_CACHE", str(tmp_path / "cache"))
    device_settings.forget()
    yield device_settings.path()
    device_settings.forget()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Says at the end, below pytest's own summary, how many parity tests were skipped."""
    yield
    reports = terminalreporter.stats.get("skipped", [])
    reasons = [(r.nodeid, r.longrepr[2] if isinstance(r.longrepr, tuple) else str(r.longrepr)) for r in reports]
    if (line := summary(reasons)) is not None:
        terminalreporter.write_line(line)

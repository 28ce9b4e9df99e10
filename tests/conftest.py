from pathlib import Path

import pytest

import mobileo_mlx  # noqa: F401  (before any test imports MLX: this is what loads a fast BLAS)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder with the original's outputs, which lies beside the repository where there is one."""
    path = Path(__file__).parents[2] / "shared" / "reference"
    if not path.is_dir():
        pytest.skip("the reference data are not beside the repository")
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small untrained model; tests read it and leave it as it is."""
    from mobileo_mlx.checkpoints.random_model import write_random_model

    path = tmp_path_factory.mktemp("models") / "tiny"
    write_random_model(path)
    return path

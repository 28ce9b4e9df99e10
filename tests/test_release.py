"""The release: its workflow, and the scripts that it runs, which run here, too."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SMOKE, RELEASE = ROOT / ".ci" / "smoke", ROOT / ".ci" / "release"


@pytest.fixture(scope="module")
def release() -> ModuleType:
    loader = SourceFileLoader("release", str(RELEASE))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("release", loader))
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def workflow() -> dict:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))


def test_jobs_wait_for_each_other_and_only_one_may_publish(workflow):
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML reads `on` as a truth value
    jobs = workflow["jobs"]
    assert {name: job.get("needs") for name, job in jobs.items()} == {
        "build": None,
        "smoke": "build",
        "publish": "smoke",
        "release": "publish",
    }
    assert workflow["permissions"] == {"contents": "read"}
    assert {name: job["permissions"] for name, job in jobs.items() if "permissions" in job} == {
        "publish": {"id-token": "write"},
        "release": {"contents": "write"},
    }
    assert jobs["publish"]["environment"]["name"] == "pypi"
    assert set(jobs["smoke"]["strategy"]["matrix"]["os"]) == {"macos-15", "ubuntu-24.04"}


def test_its_steps_run_the_scripts_that_are_tested_here(workflow):
    steps = {name: [step.get("run") for step in job["steps"]] for name, job in workflow["jobs"].items()}
    assert '.ci/release notes "$GITHUB_REF_NAME" > notes.md' in steps["build"]
    assert ".ci/release wheel dist/*.whl" in steps["build"]
    assert ".ci/smoke dist/*.whl" in steps["smoke"]
    assert all(os.access(script, os.X_OK) for script in (SMOKE, RELEASE))


def test_the_smoke_test_passes_here(tmp_path):
    """With the command that is installed. The workflow gives it a wheel, which it installs first."""
    scripts = sysconfig.get_path("scripts")
    environment = {**os.environ, "PATH": os.pathsep.join([scripts, os.environ["PATH"]])}
    done = subprocess.run([SMOKE], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("what color is the star? red\nlanguage\nall as it should be\n")


def test_notes_are_the_changelogs_section(release, tmp_path):
    (tmp_path / "mobileo_mlx").mkdir()
    (tmp_path / "mobileo_mlx" / "_version.py").write_text('__version__ = "0.2.0"\n')
    sections = ("# Changelog", "## Unreleased\n\n- a", "## 0.2.0, 2027-01-02\n\n### Added\n\n- b", "## 0.1.0\n\n- c\n")
    changelog = "\n\n".join(sections)
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    assert release.notes("v0.2.0", tmp_path) == "### Added\n\n- b"
    with pytest.raises(SystemExit, match=r"the tag is v0.2.1, and .* says 0.2.0"):
        release.notes("v0.2.1", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text(changelog.replace("2027-01-02", "unreleased"))
    with pytest.raises(SystemExit, match=r"still says '0.2.0, unreleased'"):
        release.notes("v0.2.0", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text(changelog.replace("0.2.0", "0.20.0"))
    with pytest.raises(SystemExit, match="has no section"):
        release.notes("v0.2.0", tmp_path)


def test_a_wheel_that_lacks_a_file_is_found(release):
    if not (ROOT / ".git").exists():
        pytest.skip("no clone")
    everything = set(release.missing(set()))
    tiny = "mobileo_weights/models/tiny/dit.safetensors"
    assert {tiny, "mobileo_mlx/py.typed", "mobileo_cli/export.py"} <= everything
    assert not any(name.startswith(("tests", "cli/", "weights/")) for name in everything)
    assert release.missing(everything - {tiny}) == [tiny]


@pytest.mark.slow
def test_the_wheel_is_whole_and_works(tmp_path):
    """As in the workflow: built from the source distribution, installed into a new environment."""
    pytest.importorskip("build")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    build = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, env=environment)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([RELEASE, "wheel", wheel], check=True)
    done = subprocess.run([SMOKE, wheel], cwd=tmp_path, env={**environment, "PYTHON": sys.executable}, text=True)
    assert done.returncode == 0

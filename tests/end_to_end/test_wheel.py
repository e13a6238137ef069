"""An installed wheel runs from any folder and finds its configuration."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.any_format

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_carries_its_configuration(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*pip, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("svdexp-*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    done = subprocess.run(
        [sys.executable, "-m", "svdexp", "--cfg", "job", "method=svd"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert yaml.safe_load(done.stdout)["method"]["name"] == "svd"
    assert (site / "svdexp" / "conf" / "config.yaml").is_file()
    assert {path.suffix for path in (site / "svdexp" / "report" / "page").iterdir()} == {".css", ".js", ".jinja"}
    assert (site / "svdexp" / "py.typed").is_file()
    assert (site / "hydra_plugins" / "svdexp_sweeps" / "grid.py").is_file()
    assert not list(site.rglob("tests"))

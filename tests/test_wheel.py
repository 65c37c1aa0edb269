"""What the wheel holds: exactly the files of the package folders."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

from tests.house import CORE, FOLDERS, ROOT, module_name, source_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_folder_is_listed_in_pyproject() -> None:
    folders = {path.parent for path in source_files()}
    names = {module_name(folder / "__init__.py") for folder in folders}
    assert names == set(PROJECT["tool"]["setuptools"]["packages"])
    assert [f for f in folders if not (f / "__init__.py").is_file()] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """File names in the wheel.

    It is built from a copy: a `build/` folder left in the checkout would leak old files into it.
    """
    copy = tmp_path_factory.mktemp("checkout")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", copy / "dist", copy], check=True, stdin=subprocess.DEVNULL)
    (built,) = (copy / "dist").glob("*.whl")
    return zipfile.ZipFile(built).namelist()


def test_the_wheel_holds_exactly_the_files_of_the_package_folders(wheel: list[str]) -> None:
    folder_of = {folder: package.replace(".", "/") for folder, package in FOLDERS.items()}
    relative = (path.relative_to(ROOT).parts for path in source_files(suffix=""))
    expected = sorted("/".join([folder_of[folder], *rest]) for folder, *rest in relative)
    assert sorted(name for name in wheel if ".dist-info/" not in name) == expected


def test_the_wheel_is_typed_licensed_and_installs_one_top_level_package(wheel: list[str]) -> None:
    top = {name.split("/")[0] for name in wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == {CORE}
    assert f"{CORE}/py.typed" in wheel
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)

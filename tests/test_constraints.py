"""The constraints files pin all that pyproject.toml asks for, and nothing that a build decides."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"constraints.txt": ("sae", "dev"), "constraints-tl4.txt": ("dev",)}
PYTHONS = ("3.11.0", "3.12.0", "3.13.0")


def pins(name: str, python: str) -> list[Requirement]:
    """The lines of a constraints file that hold on a Linux machine with this Python."""
    lines = (ROOT / name).read_text().splitlines()
    every = [Requirement(line) for line in lines if not line.startswith("#")]
    here = {"python_full_version": python, "python_version": python.rpartition(".")[0]}
    here |= {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    return [pin for pin in every if pin.marker is None or pin.marker.evaluate(here)]


def differences(asked: list[str], locked: list[Requirement]) -> list[str]:
    """What is asked for and not locked, or in a version that is not allowed."""
    versions = {pin.name: str(pin.specifier).removeprefix("==") for pin in locked}
    wrong = []
    for requirement in map(Requirement, asked):
        version = versions.get(requirement.name)
        if version is None or not requirement.specifier.contains(version):
            wrong.append(f"{requirement}: {version}")
    return wrong


def asked_for(name: str) -> list[str]:
    extras = PROJECT["optional-dependencies"]
    return [*PROJECT["dependencies"], *(line for extra in EXTRAS[name] for line in extras[extra])]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", EXTRAS)
def test_what_is_asked_for_is_locked_in_a_version_that_is_allowed(name: str, python: str) -> None:
    assert differences(asked_for(name), pins(name, python)) == []


def test_a_requirement_that_the_lock_does_not_meet_is_noticed() -> None:
    locked = [Requirement("pytest==9.2.0")]
    assert differences(["pytest==9.2.0"], locked) == []
    assert differences(["pytest==9.2.1"], locked) == ["pytest==9.2.1: 9.2.0"]
    assert differences(["uv"], locked) == ["uv: None"]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", EXTRAS)
def test_each_package_is_locked_once_to_one_version_of_any_build(name: str, python: str) -> None:
    locked = pins(name, python)
    assert len(locked) > 100  # whole environments, not the few packages that are named
    assert len({pin.name for pin in locked}) == len(locked)
    for pin in locked:
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert "+" not in specifier.version
        assert "*" not in specifier.version
    assert [pin.name for pin in locked if pin.name.startswith(("nvidia-", "cuda-", "triton"))] == []


def test_each_file_holds_one_line_of_transformer_lens() -> None:
    locked = {n: {pin.name: str(pin.specifier) for pin in pins(n, "3.11.0")} for n in EXTRAS}
    assert locked["constraints.txt"]["transformer-lens"].startswith("==3.9.")
    assert locked["constraints-tl4.txt"]["transformer-lens"].startswith("==4.")
    assert "sae-lens" in locked["constraints.txt"]
    assert "sae-lens" not in locked["constraints-tl4.txt"]

"""What `mechinterp doctor` says of a machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mechinterp_toolkit.cli import doctor


def test_doctor_reports_each_check_and_fails_when_one_does(
    mechinterp: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> str:
        raise OSError("no such device")

    monkeypatch.setattr(
        doctor,
        "diagnose",
        lambda: [doctor._look("good", lambda: "fine"), doctor._look("bad", broken)],
    )
    done = mechinterp("doctor")
    assert done.code == 1
    assert "OSError: no such device" in done.out
    assert json.loads(mechinterp("doctor", "--json").out) == {
        "good": {"ok": True, "detail": "fine"},
        "bad": {"ok": False, "detail": "OSError: no such device"},
    }


def test_doctor_says_versions_offline_variables_and_broken_packages(
    mechinterp: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_bundled", lambda: "none")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    checks = json.loads(mechinterp("doctor", "--json").out)
    assert f"torch {torch.__version__}" in checks["versions"]["detail"]
    assert "HF_HUB_OFFLINE=1" in checks["environment"]["detail"]
    assert "TransformerBridge" in checks["wrapper"]["detail"]
    assert checks["devices"]["detail"].startswith("cpu")
    assert checks["analyses"] == {
        "ok": False,
        "detail": "ImportError: outdated could not be imported: RuntimeError: old",
    }

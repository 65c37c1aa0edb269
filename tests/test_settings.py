"""What this very run is set to: shapes are checked, and a warning of our own is an error."""

from __future__ import annotations

import importlib
import warnings

import pytest

from tests.conftest import LONGEST, WITHOUT_LENS, lens_refused
from tests.house import CORE, FOLDERS, ROOT, module_name, source_files

MODULES = [module_name(path) for path in source_files()]


@pytest.mark.parametrize("name", [name for name in MODULES if name != CORE])
def test_shapes_are_checked_while_tests_run(name: str) -> None:
    """All but the package's own `__init__`: bare `pytest` finds it by the editable install."""
    loader = type(importlib.import_module(name).__loader__)
    assert loader.__module__.startswith("jaxtyping"), (
        "run pytest with the options in pyproject.toml"
    )


@pytest.mark.parametrize(
    "name", [f"{CORE}.model", f"{FOLDERS['hooks']}.erase", f"{FOLDERS['analyses']}.circles.finding"]
)
def test_a_warning_caused_by_our_own_code_is_an_error(name: str) -> None:
    with pytest.raises(DeprecationWarning, match="old"):
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module=name)


def test_a_warning_caused_by_another_package_is_not_an_error() -> None:
    with pytest.warns(DeprecationWarning, match="old"):
        warnings.warn_explicit(
            "old", DeprecationWarning, "file.py", 1, module="transformer_lens.components"
        )


def test_the_places_that_the_order_of_tests_names_are_there() -> None:
    places = [*LONGEST, *WITHOUT_LENS]
    assert [place for place in places if not (ROOT / "tests" / place).exists()] == []


def test_a_test_that_is_run_with_one_transformer_lens_only_may_not_import_it() -> None:
    import transformer_lens  # noqa: F401 - it has been imported before, as by another test

    with lens_refused(), pytest.raises(AssertionError, match="lies in WITHOUT_LENS"):
        from transformer_lens.hook_points import HookPoint  # noqa: F401
    from transformer_lens.hook_points import HookPoint as again  # noqa: F401

"""What a user installs is whole, and is what the tests test."""

from __future__ import annotations

import os
from importlib.metadata import metadata
from pathlib import Path

import pytest

import bullmq_kombu

CHECKOUT = Path(__file__).parents[2]
INSTALLED = Path(bullmq_kombu.__file__).parent

under_tox = pytest.mark.skipif(not os.environ.get("BULLMQ_KOMBU_WHEEL"), reason="the wheel is built and tested by tox")


def files(package: Path) -> set[str]:
    return {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


@under_tox
def test_the_wheel_is_what_is_tested():
    assert CHECKOUT / "bullmq_kombu" != INSTALLED
    assert "site-packages" in INSTALLED.parts


@under_tox
def test_the_wheel_holds_every_file_of_the_package():
    in_wheel, in_checkout = files(INSTALLED), files(CHECKOUT / "bullmq_kombu")

    assert in_checkout - in_wheel == set(), "missing in the wheel: see package_data in setup.cfg"
    assert in_wheel - in_checkout == set(), "left by an earlier build: remove the folder build/ and try again"


@under_tox
def test_the_version_is_the_packages_own():
    assert metadata("bullmq-kombu")["Version"] == bullmq_kombu.__version__


def test_type_checkers_see_a_typed_package():
    assert (INSTALLED / "py.typed").is_file()

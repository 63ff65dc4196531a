"""The plugin in another project: README's example as it stands, and a test that fails."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests import readme

if TYPE_CHECKING:
    import pytest

    from qemu.image import Bootable

pytest_plugins = ["pytester"]

BLOCKS = re.findall(r"^```python\n(.*?)^```$", readme.README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
IMAGE = """
import pathlib

import pytest

from qemu.image import Files


@pytest.fixture(scope="session")
def image():
    return Files(*map(pathlib.Path, {paths}))
"""
FAILING = """
def test_failing(node):
    assert not node.running
"""


def test_another_project_tests_a_node(pytester: pytest.Pytester, image: Bootable) -> None:
    conftest = next(block for block in BLOCKS if "pytest_plugins" in block)
    example = next(block for block in BLOCKS if "def test_" in block)
    # Its home, and with it the cache, is another one: it boots files that it was given.
    pytester.makeconftest(conftest + IMAGE.format(paths=[str(image.kernel), str(image.initramfs), str(image.disk)]))
    pytester.makepyfile(test_node=example, test_report=FAILING)
    result = pytester.runpytest_subprocess("-v", timeout=240)
    result.assert_outcomes(passed=example.count("def test_"), failed=1)
    result.stdout.fnmatch_lines(["*test_failing FAILED*", "*- console of test-*", "*- events of test-*", '*"kind": *'])

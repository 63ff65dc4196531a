"""Kubernetes' own judgement of a node: [NodeConformance] of its end-to-end tests, run by its own program.

conformance.toml says which of those specs pass, and which are left out and why; together they are all that there are.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree as ET

import pytest

from qemu.cluster import Cluster
from rootfs import build
from rootfs.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qemu.image import Bootable

pytestmark = pytest.mark.cluster
LIST: dict[str, Any] = tomllib.loads(Path(__file__).with_name("conformance.toml").read_text())
FOCUS = r"\[NodeConformance\]"
PROCESSES = 3  # that run at once: a spec waits much of its time
LIMIT = 7200  # seconds for all of them


class Result(NamedTuple):
    status: str  # passed, failed, skipped, ...
    seconds: float
    text: str  # why it is not passed


@pytest.fixture(scope="module")
def suite() -> build.Conformance:
    return build.conformance(Progress())


@pytest.fixture(scope="module")
def specs(suite: build.Conformance, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all specs that there are."""
    found = run(suite, tmp_path_factory.mktemp("all"), "--ginkgo.dry-run", f"--ginkgo.focus={FOCUS}")
    return {name for name, result in found.items() if result.status == "passed"}


@pytest.fixture
def kubeconfig(suite: build.Conformance, image: Bootable) -> Iterator[Path]:
    """How to reach a cluster with one node, whose registry has the images of the tests."""
    with Cluster(f"conformance-{os.getpid()}", image, images=suite.images) as cluster:
        # An emulator translates a program anew for each address that it is loaded at, and runc runs five times a pod.
        cluster.machine("node-1", kernel_arguments="norandmaps").start()
        cluster.wait_ready("node-1")
        yield cluster.control_plane.kubeconfig


def run(suite: build.Conformance, folder: Path, *arguments: str) -> dict[str, Result]:
    """Run the program with `arguments`, its files in `folder`: what became of each spec that it knows."""
    command = [str(suite.program), "--provider=skeleton", f"--report-dir={folder}", "--ginkgo.no-color", *arguments]
    log = folder / "log"
    with log.open("wb") as output:
        subprocess.run(command, stdout=output, stderr=output, check=False, cwd=folder, timeout=LIMIT + 60)
    report = folder / "junit_01.xml"
    assert report.exists(), log.read_text()[-4000:]
    found = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 our own program wrote it
        kind, _, name = case.attrib["name"].partition(" ")
        if kind == "[It]":
            said = "\n".join(f"{part.get('message', '')}{part.text or ''}" for part in case)
            found[name] = Result(case.attrib["status"], float(case.attrib["time"]), said)
    return found


def run_specs(suite: build.Conformance, kubeconfig: Path, folder: Path, names: Sequence[str]) -> dict[str, Result]:
    """Run the named specs in several processes, dealt out in the order that they are given in, serial ones at last."""

    def share(mine: Sequence[str]) -> dict[str, Result]:
        # The report appends constraints on the kubelet's version, which are not in what the focus is compared with.
        texts = [re.sub(r" \[kubelet: .*\]$", "", name) for name in mine]
        focus = [f"--ginkgo.focus= {re.escape(text)}$" for text in texts]
        own = Path(tempfile.mkdtemp(dir=folder))
        found = run(suite, own, f"--kubeconfig={kubeconfig}", f"--ginkgo.timeout={LIMIT}s", *focus)
        return {name: found[name] for name in mine if name in found}

    alone = [name for name in names if "[Serial]" in name]
    others = [name for name in names if name not in alone]
    shares = [others[number::PROCESSES] for number in range(PROCESSES)]
    with ThreadPoolExecutor(PROCESSES) as pool:
        results = [*pool.map(share, filter(None, shares)), share(alone) if alone else {}]
    return {name: result for found in results for name, result in found.items()}


def test_each_spec_is_either_run_or_left_out_for_a_reason(specs: set[str]) -> None:
    passed = {*LIST["passed"], *LIST["passed_too"]}
    assert sorted(passed - specs) == [], "there are no such specs"
    rest = specs - passed
    assert all(entry["reason"] for entry in LIST["left_out"])
    named = {name for entry in LIST["left_out"] for name in entry.get("specs", ())}
    assert sorted(named - rest) == [], "left out, but passed, or not there"
    patterns = [entry["pattern"] for entry in LIST["left_out"] if "pattern" in entry]
    matched = {pattern: {name for name in rest if re.search(pattern, name)} for pattern in patterns}
    assert [pattern for pattern, names in matched.items() if not names] == [], "patterns of nothing that is left out"
    assert sorted(rest.difference(named, *matched.values())) == [], "neither run nor left out"


@pytest.mark.parametrize("part", ["passed", pytest.param("passed_too", marks=pytest.mark.conformance)])
def test_the_node_conforms(suite: build.Conformance, kubeconfig: Path, tmp_path: Path, part: str) -> None:
    passed: dict[str, float] = LIST[part]
    longest_first = sorted(passed, key=lambda name: (-passed[name], name))
    results = run_specs(suite, kubeconfig, tmp_path, longest_first)
    missing = Result("not run", 0, "")
    bad = {name: result for name in passed if (result := results.get(name, missing)).status != "passed"}
    for name, result in bad.items():
        print(f"{result.status} after {result.seconds:.0f} s: {name}\n{result.text[-3000:]}\n")
    assert sorted(bad) == []

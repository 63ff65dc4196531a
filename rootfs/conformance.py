"""The images that Kubernetes' end-to-end tests run in pods, as far as our build can make them: OCI archives.

Upstream they are Alpine, Debian or busybox with the tests' own programs; here all are busybox with those programs.
Names and versions are those of test/utils/image/manifest.go.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from typing import TYPE_CHECKING

from native.oci import Directory, Entry, File, Image, Link, archive, write

if TYPE_CHECKING:
    from pathlib import Path

    from rootfs.tools import Tools

MANIFEST = "test/utils/image/manifest.go"
PATH = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
USERS = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nuser-defined-in-image:x:1000:1000::/:/bin/sh\n",
    "/etc/group": "root:x:0:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n",
}
# curl as the tests call it: options in front, one URL, what it answers on standard output.
CURL = """#!/bin/sh
for word; do
    case $previous in --max-time) limit="-T $word" ;; esac
    previous=$word
done
exec wget -q $limit -O - "$word"
"""


def names(source: Path) -> dict[str, str]:
    """The full name of each image by its name in Go, from the Kubernetes module at `source`."""
    text = (source / MANIFEST).read_text()
    hosts = dict(re.findall(r"^\t\t(\w+): +\"(.+)\",$", text, re.MULTILINE))
    images = re.findall(r"^\tconfigs\[(\w+)\] = Config\{list\.(\w+), \"(.+)\", \"(.+)\"\}$", text, re.MULTILINE)
    return {go: f"{hosts[host]}/{name}:{version}" for go, host, name, version in images}


def _registry(image: Image) -> dict[str, Entry]:
    """The files from which agnhost serves `image` as pause:testing (test/images/agnhost/fakeregistryserver)."""
    files: dict[str, Entry] = {}
    with tarfile.open(fileobj=io.BytesIO(archive(image))) as tar:
        content = {member.name: file.read() for member in tar if (file := tar.extractfile(member))}
    manifest = json.loads(content.pop("index.json"))["manifests"][0]["digest"]
    for name, data in content.items():
        if name.startswith("blobs/"):
            digest = name.rpartition("/")[2]
            kind = "manifests" if manifest == f"sha256:{digest}" else "blobs"
            files[f"/var/registry/pause/{kind}/sha256/{digest[:2]}/{digest}/data"] = File(data)
    return files | {"/var/registry/pause/manifests/testing": File(manifest.encode())}


def make_images(folder: Path, source: Path, programs: Path, busybox: Path, tools: Tools) -> None:
    """Write the archives into `folder`: busybox with each of `programs`, and what else those need from `source`."""
    applets = tools.run("/mnt/busybox", "--list-full", binds={"busybox": busybox}).split()
    # All in /bin, as busybox' own image has them, and where Debian and Alpine have them.
    places = {place for name in applets for place in (f"/{name}", f"/bin/{name.rpartition('/')[2]}")}
    shell: dict[str, Entry] = {place: Link("/bin/busybox") for place in places}
    shell |= {path: File(text.encode()) for path, text in USERS.items()}
    shell |= {"/bin/busybox": File(busybox, 0o755), "/tmp": Directory(0o1777), "/root": Directory(0o700)}
    name = names(source)
    pause = Image(name["Pause"], {"/pause": File(programs / "pause", 0o755)}, ("/pause",))
    porter = source / "test/images/agnhost/porter"
    agnhost: dict[str, Entry] = {
        "/agnhost": File(programs / "agnhost", 0o755),
        "/agnhost-2": Link("agnhost"),
        "/usr/bin/curl": File(CURL.encode(), 0o755),
        "/bin/bash": File(b'#!/bin/sh\nexec sh "$@"\n', 0o755),
        "/uploads": Directory(),
        **_registry(pause),
        **{f"/{name}": File(porter / name) for name in ("localhost.crt", "localhost.key")},
    }
    nnp = {"/usr/local/bin/nnp": File(programs / "nonewprivs", 0o6755)}
    for image in (
        Image(name["Agnhost"], {**shell, **agnhost}, ("/agnhost",), ("pause",), PATH),
        Image(name["AgnhostPrev"], {**shell, **agnhost}, ("/agnhost",), ("pause",), PATH),
        Image(name["BusyBox"], shell, (), ("sh",), PATH),
        Image(name["GlibcDnsTesting"], shell, (), ("sh",), PATH),
        Image(name["Nginx"], shell, ("httpd", "-f"), (), PATH),
        Image(name["NonRoot"], shell, (), ("sh",), PATH, user="1234"),
        Image(name["Nonewprivs"], {**shell, **nnp}, (), ("nnp",), PATH),
        pause,
    ):
        write(folder / f"{image.name.rpartition('/')[2].replace(':', '-')}.tar", image)

"""Roles: who the kernel says is there, and what that lets them do."""

from __future__ import annotations

import os
import socket

import pytest

from initd.api import access
from initd.api.access import identify, is_pod, role
from initd.api.registry import Role
from initd.config.schema import RoleConfig

GRANTS = (RoleConfig("operator", uid=1000), RoleConfig("reader", gid=100), RoleConfig("reader", gid=0))


@pytest.mark.parametrize(
    ("uid", "gid", "in_pod", "expected"),
    [
        pytest.param(0, 0, False, Role.ADMIN, id="root of the node"),
        pytest.param(1000, 5, False, Role.OPERATOR, id="a user who was granted a role"),
        pytest.param(5, 100, False, Role.READER, id="a group that was granted one"),
        pytest.param(1000, 100, False, Role.OPERATOR, id="both: the higher one"),
        pytest.param(5, 5, False, Role.NONE, id="anyone else"),
        pytest.param(0, 0, True, Role.NONE, id="root in a pod"),
        pytest.param(1000, 100, True, Role.NONE, id="a user of that number in a pod"),
    ],
)
def test_role(uid: int, gid: int, in_pod: bool, expected: Role) -> None:
    assert role(uid, gid, GRANTS, in_pod=in_pod) is expected


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        ("0::/kubepods/besteffort/podx/y\n", True),
        ("0::/kubepods.slice/x\n", True),
        ("0::/kubepods\n", True),
        ("12:pids:/kubepods/podx\n0::/\n", True),
        ("0::/initd/pid1\n", False),
        ("0::/kubelet\n", False),
        ("0::/user/kubepods\n", False),
        ("0::/kubepodsx\n", False),
        ("", False),
    ],
)
def test_pods_are_known_by_their_cgroup(cgroup: str, expected: bool) -> None:
    assert is_pod(cgroup) is expected


def test_the_kernel_says_who_connected() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = identify(ours, [RoleConfig("admin", uid=os.getuid())])
    assert (peer.pid, peer.uid, peer.gid, peer.role) == (os.getpid(), os.getuid(), os.getgid(), Role.ADMIN)
    assert f"pid {os.getpid()}" in peer.text


def test_a_peer_that_has_ended_has_no_role(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_cgroup_of", lambda *_: None)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert identify(ours, [RoleConfig("admin", uid=os.getuid())]).role is Role.NONE

"""Roles as the kernel tells them: peers that are processes of other users, or have ended."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from initd.api.access import identify
from initd.api.registry import Role
from initd.config.schema import RoleConfig
from tests.unit.api_support import listen

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


def connect_as(uid: int, path: str) -> int:
    """Start a process of that user that connects, says so, and waits for its end; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setgid(uid)
        os.setuid(uid)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            connection.sendall(b"x")
            signal.pause()
    finally:
        os._exit(1)


@pytest.mark.parametrize(("uid", "role"), [(0, Role.ADMIN), (1234, Role.READER), (4321, Role.NONE)])
def test_the_role_is_that_of_the_process_that_connected(tmp_path: Path, uid: int, role: Role) -> None:
    for folder in (tmp_path, *tmp_path.parents):  # pytest's folders are its user's only
        if folder.is_relative_to("/tmp") and folder != folder.parent and str(folder) != "/tmp":
            folder.chmod(0o755)
    path = str(tmp_path / "api.sock")
    with listen(path) as listener:
        listener.setblocking(True)
        listener.settimeout(10)
        pid = connect_as(uid, path)
        try:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(1) == b"x"
                peer = identify(connection, [RoleConfig("reader", uid=1234)])
                assert (peer.pid, peer.uid, peer.gid, peer.role) == (pid, uid, uid, role)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                pid = 0
                late = identify(connection, [RoleConfig("reader", uid=1234)])
                assert (late.uid, late.role) == (uid, Role.NONE), "its pid may be another process by now"
        finally:
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

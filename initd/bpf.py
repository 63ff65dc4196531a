"""Classic BPF programs for sockets (socket(7), SO_ATTACH_FILTER): what they drop wakes no process."""

import array
import socket
import struct
from typing import NamedTuple

_SO_ATTACH_FILTER = 26
# Operation codes (linux/bpf_common.h); a load goes to A, or from packet offset X + k with _AT.
LOAD_BYTE, LOAD_HALF, LOAD_WORD, LOAD_HALF_AT = 0x30, 0x28, 0x20, 0x48
LOAD_IP_HEADER = 0xB1  # X = 4 * (byte[k] & 15)
SET, SET_X = 0x00, 0x01
EQUAL, ANY_BIT, RETURN = 0x15, 0x45, 0x06


class Op(NamedTuple):
    """One instruction; the labels say where a comparison that is true or false goes on, None at the next line."""

    code: int
    k: int = 0
    true: str | None = None
    false: str | None = None


def assemble(*lines: Op | str) -> bytes:
    """The program as the kernel reads it; a string is a label."""
    labels: dict[str, int] = {}
    ops: list[Op] = []
    for line in lines:
        if isinstance(line, str):
            labels[line] = len(ops)
        else:
            ops.append(line)
    packed = []
    for position, op in enumerate(ops):
        jumps = [0 if label is None else labels[label] - position - 1 for label in (op.true, op.false)]
        packed.append(struct.pack("HBBI", op.code, *jumps, op.k))
    return b"".join(packed)


def attach(sock: socket.socket, program: bytes) -> None:
    """Let the kernel drop what the program does not return a length for."""
    code = array.array("B", program)
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program) // 8, code.buffer_info()[0]))

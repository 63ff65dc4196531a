"""The VM harness: boots a node in QEMU, listens to it, hurts it, and says what it saw.

from qemu.machine import Machine

with Machine(config="...") as node:
    node.wait_for("ready", timeout=120)
"""

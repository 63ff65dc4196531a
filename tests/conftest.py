"""For all tests: the harness' fixtures (an installed package registers them itself), and time on a busy host."""

from hypothesis import settings

pytest_plugins = ["qemu.plugin"]

settings.register_profile("busy", deadline=None)
settings.load_profile("busy")

"""For all tests: the harness' fixtures (an installed package registers them itself)."""

pytest_plugins = ["qemu.plugin"]

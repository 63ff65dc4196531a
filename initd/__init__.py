"""initd: PID 1 for an immutable Kubernetes node."""

__version__ = "0.1.0"

"""The API's methods, one file a subject; importing this package registers them all."""

from initd.api.methods import files, node, services, system, workers

__all__ = ["files", "node", "services", "system", "workers"]

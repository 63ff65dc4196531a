"""The API's methods, one file a subject; importing this package registers them all."""

from initd.api.methods import configuration, node, services, system, workers

__all__ = ["configuration", "node", "services", "system", "workers"]

"""The API's methods, one file a subject; importing this package registers them all."""

from initd.api.methods import node, services, system, workers

__all__ = ["node", "services", "system", "workers"]

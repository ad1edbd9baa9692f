"""The literature's networks, registered with timm when this package is imported."""

from kdbench.bench.networks.zoo import mobile, msdnet, plain, residual

__all__ = ["mobile", "msdnet", "plain", "residual"]

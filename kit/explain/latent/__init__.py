"""Codes that carry the factors of their images, learnt without labels: networks, what is read off them, metrics."""
from kit.explain.latent.metrics import DCI, binned, dci, factor_vae_score, information, mig, sap

__all__ = ["DCI", "binned", "dci", "factor_vae_score", "information", "mig", "sap"]

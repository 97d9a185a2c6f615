"""Codes that carry the factors of their images, learnt without labels: networks, what is read off them, metrics."""
from kit.explain.latent.infogan import draw_code, information_bound
from kit.explain.latent.metrics import DCI, binned, dci, factor_vae_score, information, mig, sap
from kit.explain.latent.moves import Progression, along, progression, swap, traverse
from kit.explain.latent.transfer import transfer
from kit.explain.latent.vae import Discriminator, kl, permuted, sample, vae_terms

__all__ = [
    "DCI", "Discriminator", "Progression", "along", "binned", "dci", "draw_code", "factor_vae_score", "information",
    "information_bound", "kl", "mig", "permuted", "progression", "sample", "sap", "swap", "transfer", "traverse",
    "vae_terms",
]

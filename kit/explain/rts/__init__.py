"""RTS, real-time saliency: a network learns once which pixels a classifier must see, and then says so in one pass.

    Φ(x, m) = m ⊙ x + (1 − m) ⊙ x̃      x̃ the blurred image or one noisy colour, either half the time

    ℓ(m) = destroy(Φ(x, 1 − m)) + λ_p preserve(Φ(x, m)) + λ_a area(m) + λ_s smooth(m),     one number per image

    area       mean over the pixels of (m + 0.0005)^q
    smooth     ½ (Σ (m_ij − m_i+1,j)² + Σ (m_ij − m_i,j+1)² + 0.3 Σ_border m²), sums over the pixels
    preserve   max(0, 1 − lead)        lead = z_y − max_{j≠y} z_j of the image that keeps m
    destroy    max(0, 5 + lead)        of the image that has lost m

The class is named from outside, by a selector in the decoder (`kit.models.decoders`). Training asks for classes that
are not there too; then the roles change: without m the image must still be y (max(0, 1 − lead)), and m alone must not
be (max(0, 1 + lead)), so that the best mask is empty.

Source: Dabkowski & Gal, Real time image saliency for black box classifiers, NeurIPS 2017, section 3 and 4, and their
code (pytorch-saliency), whose terms and constants these are. The paper's own equation 3 has −log p_y for `preserve`
and p_y^λ for `destroy`, λ = 0.3: that is form="probability".
"""
from kit.explain.rts.explainer import RTS
from kit.explain.rts.training import rts_figures, rts_training

__all__ = ["RTS", "rts_figures", "rts_training"]

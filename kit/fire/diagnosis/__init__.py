"""Where does an attack take hold? What each layer still says of its input, drawn; and what each contributes.

InterpretGAN: for each layer l of a classifier f, with features h_l(x) and class probabilities p(x), a generator G_l
that draws an image from the features and from noise n ~ N(0, I); a critic D sees images alone.

    G    min E[ softplus(−D(G_l)) + λ ( ‖h_l(G_l) − h_l‖² / Var h_l + KL(p(x) ‖ p(G_l)) ) ],   G_l = G_l(h_l(x), n)
    D    min E[ softplus(−D(x)) + softplus(D(G_l)) + ½ ‖∇D(x)‖² ]

The generator is never shown the image: what f does not read at layer l is drawn anew, from n.

The diagnosis: e_l = P[J(G_l(h_l(x'), n)) ≠ J(G_l(h_l(x), n))] for attacked images x' and a judge J that was not
attacked, e_0 on the images themselves, V_l = e_l − e_{l−1}; beside it the information that the layer loses.

Source: Zheng, Zhang, Lee and Prakash, Understanding and diagnosing vulnerability under adversarial attacks, 2020, of
which only the abstract and the references are known to us. From it: generators that explain "the features used for
classification in latent variables", layer by layer, for attacked images too; a number for the vulnerability that each
layer contributes; information loss beside it; average against max pooling. Ours: losses, networks, judge, V_l, the
measure of information lost, and all controls.
"""
from kit.fire.diagnosis.drawing import InterpretGAN, other_answers
from kit.fire.diagnosis.information import bits_kept, gains, information_lost, rank_kept
from kit.fire.diagnosis.layers import Diagnosis, diagnose, equal_noise, nearest_flip
from kit.fire.diagnosis.pooling import equally_accurate
from kit.fire.diagnosis.training import interpretgan_figures, interpretgan_training, pooled_training

__all__ = [
    "Diagnosis", "InterpretGAN", "bits_kept", "diagnose", "equal_noise", "equally_accurate", "gains",
    "information_lost", "interpretgan_figures", "interpretgan_training", "nearest_flip", "other_answers",
    "pooled_training", "rank_kept",
]

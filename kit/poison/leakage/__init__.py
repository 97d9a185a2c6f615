"""What a shared gradient gives away: images and labels, from ∇_θ of the loss alone.

A client computes g* = ∇_θ 1/B Σ_i ℓ(x_i, y_i; θ) on B images of its own and sends it to a server that knows the network
θ. The server looks for images whose gradient is the same:

    leak          min ‖g(x) − g*‖² / ‖g*‖²               L-BFGS, in the box; labels known or found with the images
    leak_cosine   min 1 − cos(g(x), g*) + λ TV(x)         signed Adam; whatever the scale of g*
    leak_linear   x = ∇W_i / ∇b_i                         exact for one image, where the network begins with Linear
    leak_labels   the negative entry of ∇b = p − e_y      exact for one image; counts for a batch

    shared        name of a parameter → (clients, …): one gradient for each client, as `client_gradients` gives it
    shape         (C, H, W) of an image             batch   B; images come back in the order of the clients
    restarts      how many starts each client's images have; what matches best is returned

The network is in evaluation mode, its batch norm as it is. Every client is a row of its own: its images do not depend
on the other clients. Sources: Zhu et al., Deep leakage from gradients, NeurIPS 2019 (`leak`); Zhao et al., iDLG, 2020
(`leak_labels`); Geiping et al., Inverting gradients, NeurIPS 2020 (`leak_cosine`, and proposition 3.1 for
`leak_linear`).
"""
from kit.poison.leakage.closed import leak_labels, leak_linear
from kit.poison.leakage.matching import leak, leak_cosine
from kit.poison.leakage.quality import matched, psnr, ssim
from kit.poison.leakage.shared import (
    client_gradients,
    clipped_gradient,
    fit_on_shared,
    lenet,
    noisy_gradient,
    pruned_gradient,
)

__all__ = [
    "client_gradients", "clipped_gradient", "fit_on_shared", "leak", "leak_cosine", "leak_labels", "leak_linear",
    "lenet", "matched", "noisy_gradient", "pruned_gradient", "psnr", "ssim",
]

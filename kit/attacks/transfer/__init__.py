"""Transfer attacks: made on a network at hand, meant for one that is not.

    ingredients    another gradient: momentum, a look ahead, smoothing, scaling, diversity
    attention      another objective: features (TAP) and attention (ATA) beside the loss
"""
from kit.attacks.transfer.attention import ata, attention, attention_maps, blocks, channel_weights, middle, tap, tap_ata
from kit.attacks.transfer.ingredients import (
    RATIO,
    Travel,
    dim,
    ni_fgsm,
    si_ni_ti_dim,
    sim,
    tim,
    travel,
    travelling,
    width,
)

__all__ = [
    "RATIO", "Travel", "ata", "attention", "attention_maps", "blocks", "channel_weights", "dim", "middle", "ni_fgsm",
    "si_ni_ti_dim", "sim", "tap", "tap_ata", "tim", "travel", "travelling", "width",
]

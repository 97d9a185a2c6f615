"""What needs attack and explanation at once: explanations under fire."""
from kit.fire.adv2 import adv2, adv2_mask, map_distance, random_patches

__all__ = ["adv2", "adv2_mask", "map_distance", "random_patches"]

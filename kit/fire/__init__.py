"""What needs attack and explanation at once: explanations under fire."""
from kit.fire.adv2 import adv2, adv2_flow, adv2_mask, map_distance, random_patches
from kit.fire.defences import RTSA, Disagreement, joint
from kit.fire.diagnosis import InterpretGAN, diagnose
from kit.fire.scaffold import Scaffold, applicants, lime_probes, move_map, shap_probes

__all__ = [
    "RTSA", "Disagreement", "adv2", "adv2_flow", "adv2_mask", "joint", "map_distance", "random_patches",
    "InterpretGAN", "diagnose",
    "Scaffold", "applicants", "lime_probes", "move_map", "shap_probes",
]

"""Attacks on things: what is stuck onto a sign or into a scene, and seen by a camera from wherever it stands."""
from kit.attacks.physical.camera import Camera
from kit.attacks.physical.masks import bars, face, glasses, graffiti, squares, turn
from kit.attacks.physical.printing import palette, printability, printed
from kit.attacks.physical.stickers import Anywhere, masked_attack, paste, patch, stick

__all__ = [
    "Anywhere", "Camera", "bars", "face", "glasses", "graffiti", "masked_attack", "palette", "paste", "patch",
    "printability", "printed", "squares", "stick", "turn",
]

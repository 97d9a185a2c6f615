"""What might help against ADV², and the attack that knows of it.

    several explainers     a forged map deceives the one that it was made for: do others disagree with it?
                           `Disagreement` is the detector, `joint` the explainer by which `adv2` deceives them all
    RTS^A                  an RTS that was trained to give another map where ADV² forges it: `RTSA`
    squeezers              `kit.detect.FeatureSqueezing`; its `views` are what `adv2` must deceive as well

Source: Zhang et al., Interpretable deep learning under fire, USENIX Security 2020, its discussion and countermeasures.
"""
from kit.fire.defences.disagreement import Disagreement, joint
from kit.fire.defences.rtsa import RTSA, rtsa_figures, rtsa_training

__all__ = ["RTSA", "Disagreement", "joint", "rtsa_figures", "rtsa_training"]

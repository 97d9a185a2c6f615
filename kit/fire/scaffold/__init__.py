"""Explanations that are lied to: by the model that they explain, and by the image.

    hidden   a model that decides by one thing, and by another where it believes that it is being explained
    moved    an image that moves the map of any explainer, by questions alone, and keeps its answer

Sources: Slack et al., Fooling LIME and SHAP: adversarial attacks on post hoc explanation methods, AIES 2020; the search
is that of Andriushchenko et al., Square attack, ECCV 2020.
"""
from kit.fire.scaffold.hidden import Scaffold, applicants, lime_probes, shap_probes
from kit.fire.scaffold.moved import move_map

__all__ = ["Scaffold", "applicants", "lime_probes", "move_map", "shap_probes"]

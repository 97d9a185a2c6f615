"""LIME and KernelSHAP on one image beside their 1000 bare forward passes, and beside lime, shap and captum."""
import importlib.util

import numpy as np
import torch
from torch import nn

import kit.data
import kit.models
from kit.core import chunk_size, laid_out
from kit.explain import image_game, shapley, superpixels, surrogate
from tests.bench import Task

SAMPLES = 1000


def tasks():
    data = kit.data.load("scenes", "test", n=8)
    x = data.x[:1]
    for family in ("resnet", "vgg"):
        model = kit.models.load(f"scenes/{family}").requires_grad_(False)
        target = int(model(x).argmax())
        parts = superpixels(x, "slic", n_segments=30, compactness=5)[0]

        def passes(model=model):
            """The forward passes alone, in the default layout, in chunks of 128."""
            batch = x.expand(128, -1, -1, -1).contiguous()
            with torch.no_grad():
                for start in range(0, SAMPLES, 128):
                    model(batch[:min(128, SAMPLES - start)])

        def laid(model=model):
            """The same passes as the kit runs them: chunks of 64, channels last."""
            batch = laid_out(x.expand(chunk_size(x), -1, -1, -1).contiguous())
            with torch.no_grad():
                for start in range(0, SAMPLES, len(batch)):
                    model(batch[:min(len(batch), SAMPLES - start)])

        def game(model=model, parts=parts, target=target):
            return image_game(model, x, parts, target)

        few = superpixels(x, "grid", side=11)[0]
        exact = shapley(image_game(model, x, few, target))
        error = (surrogate(image_game(model, x, few, target), kernel="shap").weights - exact).abs().max()
        reference = surrogate(game(), samples=20_000, generator=torch.Generator().manual_seed(9)).weights

        def agreement(weights, reference=reference):
            if weights is None:
                return ""
            weights = torch.as_tensor(np.asarray(weights)).double()
            return f"r = {float(torch.corrcoef(torch.stack([weights, reference]))[0, 1]):.3f} with 20 000 samples"

        theirs = peers(model, x, parts, target)
        yield Task(f"LIME, {SAMPLES} samples, scenes/{family}", passes,
                   {"kit": lambda game=game: surrogate(game(), samples=SAMPLES).weights, "the kit's passes": laid,
                    **{name: run for name, run in theirs.items() if "shap" not in name}}, agreement, target=1.3)
        yield Task(f"KernelSHAP, {SAMPLES} samples, scenes/{family}", passes,
                   {"kit": lambda game=game: surrogate(game(), kernel="shap", samples=SAMPLES),
                    "the kit's passes": laid,
                    **{name: run for name, run in theirs.items() if "shap" in name}},
                   lambda found, error=error: f"all 512 of 9 pieces: {float(error):.0e} from exact", target=1.2)


def peers(model, x, parts, target):
    """The same explanation by other libraries, where they are installed."""
    found = {}
    count = int(parts.max()) + 1

    def probabilities(images):
        with torch.no_grad():
            return model(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))).softmax(1).numpy()

    image = x[0].permute(1, 2, 0).numpy()
    hidden = np.stack([image[parts.numpy() == k].mean(0) for k in range(count)])[parts.numpy()]
    baseline = torch.from_numpy(hidden.transpose(2, 0, 1)[None].copy())
    if importlib.util.find_spec("lime"):
        from lime.lime_image import LimeImageExplainer

        def lime():
            explanation = LimeImageExplainer(random_state=0).explain_instance(
                image, probabilities, labels=(target,), top_labels=None, hide_color=None, num_samples=SAMPLES,
                num_features=count, batch_size=128, segmentation_fn=lambda _: parts.numpy())
            weights = dict(explanation.local_exp[target])
            return [weights[k] for k in range(count)]

        found["lime"] = lime
    if importlib.util.find_spec("captum"):
        from captum._utils.models.linear_model import SkLearnRidge
        from captum.attr import KernelShap, Lime

        class Probabilities(nn.Module):
            def forward(self, images):
                return model(images).softmax(1)

        mask = parts[None, None].expand(1, x.shape[1], -1, -1)

        def captum(method, **options):
            maps = method.attribute(x, target=target, baselines=baseline, feature_mask=mask, n_samples=SAMPLES,
                                    perturbations_per_eval=128, **options)
            return [float(maps[0, 0][parts == k][0]) for k in range(count)]

        found["captum"] = lambda: captum(Lime(Probabilities(), interpretable_model=SkLearnRidge(alpha=1)))
        found["captum shap"] = lambda: captum(KernelShap(Probabilities()))
    if importlib.util.find_spec("shap"):
        import shap

        def value(b):
            out = []
            flat = parts.numpy()
            for start in range(0, len(b), 128):
                shown = np.where(b[start:start + 128][:, flat, None] > 0.5, image, hidden)
                out.append(probabilities(shown.astype("float32")))
            return np.concatenate(out)[:, target]

        found["shap"] = lambda: shap.KernelExplainer(value, np.zeros((1, count))).shap_values(
            np.ones((1, count)), nsamples=SAMPLES, silent=True)
    return found

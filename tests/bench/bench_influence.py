"""Last-layer influence beside its closed form, TracIn beside one pass, and both beside captum and dattri."""
import importlib.util

import torch
import torch.nn.functional as F
from torch import nn

import kit.data
import kit.models
from kit.explain import Influence, tracin
from tests.bench import Task

L2, DAMPING, TRAIN, TEST = 1e-3, 1e-2, 1024, 16


def tasks():
    train, test = kit.data.load("scenes", "train", n=TRAIN), kit.data.load("scenes", "test", n=TEST)
    model = kit.models.load("scenes/resnet").requires_grad_(False)
    x, y, x_test, y_test = train.x, train.y, test.x, test.y
    exact = closed_form(model, x, y, x_test, y_test)

    def same(scores, exact=exact):
        scores = torch.as_tensor(scores).double()
        scores = scores if scores.shape == exact.shape else scores.T
        return f"r = {float(torch.corrcoef(torch.stack([scores.flatten(), exact.flatten()]))[0, 1]):.6f}"

    yield Task(f"last-layer influence, {TRAIN} × {TEST}", lambda: closed_form(model, x, y, x_test, y_test),
               {"kit": lambda: Influence(model, layers=["head.linear"], l2=L2, damping=DAMPING, solver="exact").fit(
                   x, y).score(x_test, y_test),
                "kit, cg": lambda: Influence(model, layers=["head.linear"], l2=L2, damping=DAMPING, tol=1e-4).fit(
                    x, y).score(x_test, y_test),
                **influence_peers(model, x, y, x_test, y_test)}, same, target=1.4, repeats=3)
    products = by_gradients(model, x[:256], y[:256], x_test, y_test)

    def alike(scores, products=products):
        scores = torch.as_tensor(scores)
        scores = scores if scores.shape[0] == TEST else scores.T
        pair = torch.stack([scores[:, :256].flatten(), products.flatten()])
        return f"r = {float(torch.corrcoef(pair)[0, 1]):.6f}"

    yield Task(f"TracIn, all layers, {TRAIN} × {TEST}", lambda: passes(model, x, y, x_test, y_test),
               {"kit": lambda: tracin(model, x, y, x_test, y_test), **tracin_peers(model, x, y, x_test, y_test)},
               alike, target=1.5, repeats=3)


def features(model, x):
    """The inputs of the last layer, in chunks of 64, channels last, and a one for the bias."""
    body = nn.Sequential(*list(model)[:-1], model.head.pool, model.head.flatten)
    with torch.no_grad():
        a = torch.cat([body(part.contiguous(memory_format=torch.channels_last)) for part in x.split(64)])
    return torch.cat([a, torch.ones(len(a), 1)], 1)


def closed_form(model, x, y, x_test, y_test):
    """−I/n of a softmax layer: a forward pass, the Hessian (diag p − p pᵀ) ⊗ a aᵀ, a factorisation, the products."""
    weight = torch.cat([model.head.linear.weight, model.head.linear.bias[:, None]], 1)
    a, b = features(model, x), features(model, x_test)
    p, q = (a @ weight.T).softmax(1), (b @ weight.T).softmax(1)
    n, d, k = len(a), a.shape[1], len(weight)
    H = torch.zeros(k, d, k, d)
    for i in range(k):
        for j in range(k):
            H[i, :, j] = (a * (p[:, i] * (float(i == j) - p[:, j]))[:, None]).T @ a / n
    H = H.view(k * d, k * d) + (L2 + DAMPING) * torch.eye(k * d)
    v = ((q - F.one_hot(y_test, k))[:, :, None] * b[:, None]).flatten(1)
    h = torch.cholesky_solve(v.T, torch.linalg.cholesky(H)).T.view(-1, k, d)
    return torch.einsum("nk,tkd,nd->tn", p - F.one_hot(y, k), h, a).double() / n


def passes(model, x, y, x_test, y_test):
    """A forward and a backward pass to the parameters, in chunks of 128, and nothing else."""
    model.requires_grad_(True)
    for part, labels in zip((*x.split(128), x_test), (*y.split(128), y_test), strict=True):
        torch.autograd.grad(F.cross_entropy(model(part), labels), list(model.parameters()))
    model.requires_grad_(False)


def by_gradients(model, x, y, x_test, y_test):
    """The products of whole gradients, image by image."""
    model.requires_grad_(True)

    def gradients(images, labels):
        return torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(
            F.cross_entropy(model(image[None]), label[None]), list(model.parameters()))])
            for image, label in zip(images, labels, strict=True)])

    products = gradients(x_test, y_test) @ gradients(x, y).T
    model.requires_grad_(False)
    return products


def influence_peers(model, x, y, x_test, y_test):
    found = {}
    if importlib.util.find_spec("captum"):
        from captum.influence._core.influence_function import NaiveInfluenceFunction
        from torch.utils.data import DataLoader, TensorDataset

        def captum():
            model.requires_grad_(True)
            method = NaiveInfluenceFunction(
                model, DataLoader(TensorDataset(x, y), batch_size=128), "", checkpoints_load_func=lambda m, path: 1.0,
                loss_fn=nn.CrossEntropyLoss(reduction="sum"), sample_wise_grads_per_batch=True, layers=["head.linear"],
                hessian_reg=DAMPING)
            scores = method.influence((x_test, y_test))
            model.requires_grad_(False)
            return scores

        found["captum"] = captum
    if importlib.util.find_spec("dattri"):
        from dattri.algorithm.influence_function import IFAttributorCG, IFAttributorExplicit
        from dattri.task import AttributionTask
        from torch.func import functional_call
        from torch.utils.data import DataLoader, TensorDataset

        def dattri(kind, **options):
            a, b = features(model, x)[:, :-1], features(model, x_test)[:, :-1]
            head = nn.Linear(a.shape[1], 10)
            head.load_state_dict(model.head.linear.state_dict())

            def loss(params, data):
                features_, labels = data
                return F.cross_entropy(functional_call(head, params, features_), labels.flatten())

            task = AttributionTask(loss_func=loss, model=head, checkpoints=head.state_dict())
            method = kind(task=task, device="cpu", **options)
            method.cache(DataLoader(TensorDataset(a, y), batch_size=len(a)))
            return method.attribute(DataLoader(TensorDataset(a, y), batch_size=256),
                                    DataLoader(TensorDataset(b, y_test), batch_size=256)).detach()

        found["dattri, cg"] = lambda: dattri(IFAttributorCG, regularization=L2 + DAMPING)
        found["dattri, explicit"] = lambda: dattri(IFAttributorExplicit, regularization=L2 + DAMPING)
    return found


def tracin_peers(model, x, y, x_test, y_test):
    found = {}
    if importlib.util.find_spec("captum"):
        from captum.influence import TracInCP
        from torch.utils.data import TensorDataset

        def captum(**options):
            model.requires_grad_(True)
            method = TracInCP(model, TensorDataset(x, y), [""], checkpoints_load_func=lambda m, path: 1.0,
                              batch_size=128, **options)
            scores = method.influence((x_test, y_test))
            model.requires_grad_(False)
            return scores

        found["captum"] = lambda: captum(loss_fn=nn.CrossEntropyLoss(reduction="sum"), sample_wise_grads_per_batch=True)
        found["captum, default"] = lambda: captum(loss_fn=nn.CrossEntropyLoss(reduction="none"))
    if importlib.util.find_spec("dattri"):
        from dattri.algorithm.tracin import TracInAttributor
        from dattri.task import AttributionTask
        from torch.func import functional_call
        from torch.utils.data import DataLoader, TensorDataset

        def dattri():
            def loss(params, data):
                image, label = data
                return F.cross_entropy(functional_call(model, params, image[None]), label[None])

            model.requires_grad_(True)
            task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
            method = TracInAttributor(task=task, weight_list=torch.ones(1), normalized_grad=False, device="cpu")
            scores = method.attribute(DataLoader(TensorDataset(x, y), batch_size=64),
                                      DataLoader(TensorDataset(x_test, y_test), batch_size=64)).detach()
            model.requires_grad_(False)
            return scores

        found["dattri"] = dattri
    return found

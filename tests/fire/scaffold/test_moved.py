"""Maps moved by questions: an explainer whose best image is found by exhaustive search, one that cannot move, LIME."""
from functools import partial
from itertools import product

import torch
from torch import nn

from kit.core import QueryCounter, generator, logits
from kit.explain import lime, saliency, superpixels
from kit.fire import map_distance, move_map

EPS = 0.1


def itself(model, x, target=None):
    """The map is the image: every change of it is seen."""
    return x.mean(1)


def constant(classes=2):
    """Every image is of class 0, by far; a model that does not look at all is refused."""
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))
    model(torch.zeros(1, 3, 8, 8))
    nn.init.constant_(model[1].weight, 1e-4)
    model[1].weight.data[1] *= -1
    model[1].bias.data = torch.tensor([1.0] + [0.0] * (classes - 1))
    return model.requires_grad_(False)


def pictures(n=6, size=8):
    return 0.2 + 0.6 * torch.rand(n, 3, size, size, generator=generator(1))


def test_it_finds_what_exhaustive_search_finds_on_four_pixels():
    x = 0.3 + 0.4 * torch.rand(8, 1, 2, 2, generator=generator(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    model[1].weight.data, model[1].bias.data = 1e-3 * torch.ones(2, 4), torch.tensor([1.0, 0.0])
    model[1].weight.data[1] *= -1
    y = torch.zeros(8, dtype=torch.long)
    m = torch.rand(8, 2, 2, generator=generator(2))
    corners = torch.tensor(list(product((-EPS, 0.0, EPS), repeat=4))).view(-1, 1, 2, 2)
    for target, sign in ((None, 1), (m, -1)):
        aim = x[:, 0] if target is None else m
        v = move_map(model, x, y, itself, eps=EPS, steps=150, map_target=target, p=0.25)
        ours = sign * map_distance(v[:, 0], aim)
        best = torch.stack([sign * map_distance((x + c)[:, 0], aim) for c in corners]).amax(0)
        start = sign * map_distance(x[:, 0], aim)
        share = (ours - start) / (best - start)
        assert (share <= 1 + 1e-4).all()
        assert float(share.mean()) > 0.9


def test_the_answer_is_kept_and_what_it_forbids_is_not_taken():
    x, model = pictures(), nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    nn.init.zeros_(model[1].weight)
    model[1].weight.data[1] = 1.0  # class 1 where the sum of the pixels is larger than this image's by a little
    y = torch.zeros(6, dtype=torch.long)
    model[1].bias.data = torch.tensor([float(x.flatten(1).sum(1).max()) + 0.5, 0.0])
    kept = move_map(model, x, y, itself, eps=EPS, steps=80)
    free = move_map(constant(), x, y, itself, eps=EPS, steps=80)
    assert (logits(model, kept).argmax(1) == y).all()
    assert (logits(model, free).argmax(1) != y).any()
    moved, could = (map_distance(v.mean(1), x.mean(1)) for v in (kept, free))
    assert (moved > 0.003).all()
    assert float(could.mean()) > float(moved.mean())
    for v in (kept, free):
        assert float((v - x).abs().max()) <= EPS + 1e-6
        assert float(v.min()) >= 0
        assert float(v.max()) <= 1


def test_towards_a_map_it_comes_nearer_and_away_it_goes_farther():
    x, model, y = pictures(), constant(), torch.zeros(6, dtype=torch.long)
    m = torch.rand(6, 8, 8, generator=generator(3))
    before = map_distance(x.mean(1), m)
    near = move_map(model, x, y, itself, eps=EPS, steps=60, map_target=m)
    assert (map_distance(near.mean(1), m) < 0.95 * before).all()


def test_a_map_that_does_not_move_leaves_the_image():
    """The gradient of a linear network is the same everywhere."""
    x, model = pictures(), nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    y = logits(model, x).argmax(1)
    assert torch.equal(move_map(model, x, y, saliency, eps=EPS, steps=20), x)


def test_limes_map_moves_for_questions_that_were_not_asked_before_and_the_questions_are_counted():
    """A smooth network that looks at 16 places. The map is judged by another draw of coalitions than the search's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
                          nn.Linear(96, 3)).eval()
    with torch.no_grad():
        model[4].weight.mul_(20)
    x = pictures(3)
    y = logits(model, x).argmax(1)
    grid = partial(superpixels, method="grid", side=2)
    search = partial(lime, segments=grid, samples=40)
    asked = QueryCounter(model, 3)
    v = move_map(asked, x, y, search, eps=EPS, steps=80)
    assert (asked.counts > 80).all()
    assert (asked.counts <= 80 + 81 * 41).all()
    assert (logits(model, v).argmax(1) == y).all()
    judge = partial(lime, model, target=y, segments=grid, samples=400, generator=generator(9))
    noise = (x + EPS * torch.randn(x.shape, generator=generator(4)).sign()).clamp(0, 1)
    a, b, c = (judge(u, generator=generator(9)) for u in (x, v, noise))
    assert float(map_distance(b, a).mean()) > 1.5 * float(map_distance(c, a).mean())


def test_it_goes_on_from_the_images_that_it_is_given():
    """One step from a corner of the ball keeps what the corner has won; a start beyond the ball is cut to it."""
    x, y = pictures(), torch.zeros(6, dtype=torch.long)
    far = x + 5 * torch.randn(x.shape, generator=generator(3))
    v = move_map(constant(), x, y, itself, eps=EPS, steps=1, p=0.01, start=far, generator=generator(4))
    begun = x + (far - x).clamp(-EPS, EPS)
    assert (v - x).abs().amax() <= EPS + 1e-6
    assert (map_distance(v.mean(1), x.mean(1)) >= map_distance(begun.clamp(0, 1).mean(1), x.mean(1))).all()
    assert ((v == begun.clamp(0, 1)).flatten(1).float().mean(1) > 0.9).all()


def test_a_start_that_is_answered_otherwise_is_not_used():
    x, y = pictures(), torch.ones(6, dtype=torch.long)
    v = move_map(constant(), x, y, itself, eps=EPS, steps=3, start=x + EPS)
    assert torch.equal(v, x)

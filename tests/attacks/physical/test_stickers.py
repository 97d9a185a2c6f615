import itertools

import pytest
import torch
from torch import nn

from kit.attacks import Anywhere, Camera, bim, masked_attack, paste, patch, stick
from kit.attacks.physical import palette, printability
from kit.core import Trace, ball, fooled, generator, logits, steepest


class Linear(nn.Module):
    """z = W x, for images of any number of pixels."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x):
        return x.flatten(1) @ self.w.T


def tiny(seed=3, classes=3, side=6):
    """A network with one hidden layer, 1 × side × side."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 12), nn.Tanh(), nn.Linear(12, classes))
    for p in model.parameters():
        p.data = 0.8 * torch.randn(p.shape, generator=generator(seed + p.numel()))
    return model


def some(n=6, channels=1, side=6, seed=1):
    """Photographs of 8 bits."""
    return torch.randint(60, 196, (n, channels, side, side), generator=generator(seed)).float() / 255


def block(side=6, top=1, left=2, size=2):
    mask = torch.zeros(1, 1, side, side)
    mask[:, :, top:top + size, left:left + size] = 1
    return mask


class Masked(nn.Module):
    """The model on x0 with the pixels of the mask taken from what it is given."""

    def __init__(self, model, x0, mask):
        super().__init__()
        self.model, self.x0, self.mask = model, x0, mask

    def forward(self, x):
        return self.model((1 - self.mask) * self.x0 + self.mask * x)


def test_one_photograph_and_no_view_is_projected_descent_within_the_mask():
    model, x, mask = tiny(), some(1), block()
    y = logits(model, x).argmax(1)
    target, eps, step = (y + 1) % 3, 40 / 255, 5 / 255
    plain = bim(Masked(model, x, mask), x, y, eps=eps, step=step, steps=9, target=target)
    plain = torch.where(mask > 0, plain, x)
    delta = masked_attack(model, x, y, mask=mask, target=target, eps=eps, lam=0.0, steps=9,
                          rule=steepest(ball("linf", eps), step))
    assert torch.allclose(stick(x, delta, mask), plain, atol=1e-6)
    assert (plain - x).abs().max() > 0.1


def test_a_fixed_view_is_descent_through_it():
    model, x, mask = tiny(), some(1), block()
    y = logits(model, x).argmax(1)

    class Darker(nn.Module):
        def forward(self, v):
            return model(0.6 * v)

    eps, step = 40 / 255, 5 / 255
    delta = masked_attack(model, x, y, mask=mask, eps=eps, lam=0.0, steps=9, views=lambda v, source: 0.6 * v,
                          rule=steepest(ball("linf", eps), step))
    plain = bim(Masked(Darker(), x, mask), x, y, eps=eps, step=step, steps=9)
    assert torch.allclose(stick(x, delta, mask), torch.where(mask > 0, plain, x), atol=1e-6)


def whole_places(side, size):
    """The frames that put a patch of size pixels at each whole pixel of an image of that side."""
    frames, corners = [], list(itertools.product(range(side - size + 1), repeat=2))
    for top, left in corners:
        s = size / side
        cx, cy = (2 * left + size) / side - 1, (2 * top + size) / side - 1
        frames.append([[1 / s, 0, -cx / s], [0, 1 / s, -cy / s]])
    return torch.tensor(frames), corners


def ahead(z, y):
    """By how much the other of two classes leads y."""
    z_y = z.gather(1, y[:, None])[:, 0]
    return z.sum(1) - 2 * z_y


def test_the_best_patch_for_a_linear_network_is_the_sign_of_the_mean_weight():
    """p*_i = 1 exactly where the mean over the places of w_t − w_o is positive."""
    side, size = 6, 3
    w = torch.randn(2, side * side, generator=generator(5))
    frames, corners = whole_places(side, size)
    gap = (w[1] - w[0]).view(side, side)
    exact = (torch.stack([gap[a:a + size, b:b + size] for a, b in corners]).mean(0) > 0).float()
    x, ones = torch.full((len(corners), 1, side, side), 0.5), torch.ones(len(corners), dtype=torch.long)
    p = patch(Linear(w), x, ones * 0, mask=torch.ones(1, 1, size, size), target=ones, place=frames, steps=60, lr=0.1,
              loss=ahead)
    assert torch.allclose(p[0, 0], exact, atol=0.01)
    drawn = patch(Linear(w), x, ones * 0, mask=torch.ones(1, 1, size, size), target=ones, batch=16, steps=200, lr=0.1,
                  place=lambda n, source: frames[torch.randint(len(frames), (n,), generator=source)], loss=ahead)
    strong = torch.stack([gap[a:a + size, b:b + size] for a, b in corners]).mean(0).abs() > 0.1
    assert torch.equal((drawn[0, 0] > 0.5).float()[strong], exact[strong])


def test_two_by_two_pixels_are_as_good_as_the_best_of_all_sixteen():
    side, size = 6, 2
    model, x = tiny(side=side), some(5, side=side)
    y, frames = logits(model, x).argmax(1), whole_places(side, size)[0][7].expand(5, -1, -1)
    target, mask = torch.full_like(y, 1), torch.ones(1, 1, size, size)

    def value(p):
        return -torch.nn.functional.cross_entropy(logits(model, paste(x, p, mask, frames)), target)

    every = [torch.tensor(bits, dtype=torch.float).view(1, 1, 2, 2) for bits in itertools.product((0, 1), repeat=4)]
    values = torch.stack([value(p) for p in every])
    found = value(patch(model, x, y, mask=mask, target=target, place=frames, steps=100, lr=0.1))
    assert found >= values.max() - 1e-3
    assert found > value(torch.full((1, 1, 2, 2), 0.5)) + 0.1 * (values.max() - values.min())
    away = patch(model, x, y, mask=mask, target=None, place=frames, steps=100, lr=0.1)
    assert torch.nn.functional.cross_entropy(logits(model, paste(x, away, mask, frames)), y) > 1.2 * (
        torch.nn.functional.cross_entropy(logits(model, x), y))


@pytest.mark.parametrize("put", [stick, paste])
def test_outside_the_mask_nothing_changes_by_a_bit(put):
    x = torch.rand(4, 3, 9, 9, generator=generator(2))
    content = torch.rand(1, 3, 9, 9, generator=generator(3))
    mask = block(9, 2, 4, 3)
    changed = put(x, content, mask)
    assert torch.equal(changed[(mask == 0).expand_as(x)], x[(mask == 0).expand_as(x)])
    assert not torch.equal(changed, x)
    frames = Anywhere(scale=(0.3, 0.4), angle=20)(4, generator(1))
    out = put(x, content, torch.ones(1, 1, 9, 9), frames)
    axis = (torch.arange(9) + 0.5) * 2 / 9 - 1
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    inside = torch.einsum("nij,jhw->nihw", frames, torch.stack([u, v, torch.ones_like(u)])).abs().amax(1) < 1.4
    assert torch.equal(out[~inside[:, None].expand_as(x)], x[~inside[:, None].expand_as(x)])
    assert out.min() >= 0
    assert out.max() <= 1


def test_a_pasted_patch_covers_what_is_under_it():
    x, p = some(2), torch.rand(1, 1, 2, 2, generator=generator(0))
    frames, corners = whole_places(6, 2)
    k = 8
    out = paste(x, p, torch.ones(1, 1, 2, 2), frames[k].expand(2, -1, -1))
    a, b = corners[k]
    assert torch.allclose(out[:, :, a:a + 2, b:b + 2], p.expand(2, -1, -1, -1), atol=1e-6)


def test_places_lie_within_the_image_and_are_drawn_as_they_are_named():
    where = Anywhere(scale=(0.2, 0.6), angle=30.0)
    frames = where(500, generator(0))
    back = torch.linalg.inv(torch.cat([frames, torch.tensor([[[0.0, 0, 1]]]).expand(500, -1, -1)], 1))
    scale = back[:, :2, :2].det().sqrt()
    turn = torch.rad2deg(torch.atan2(back[:, 1, 0], back[:, 0, 0]))
    middle = back[:, :2, 2]
    assert 0.2 <= scale.min() < 0.23
    assert 0.57 < scale.max() <= 0.6 + 1e-6
    assert -30.01 <= turn.min() < -27
    assert 27 < turn.max() <= 30.01
    assert (middle.abs() <= 1 - scale[:, None] + 1e-5).all()
    assert middle.min() < -0.4
    assert middle.max() > 0.4
    assert torch.equal(frames, where(500, generator(0)))
    assert not torch.equal(frames, where(500, generator(1)))


def test_what_is_returned_has_eight_bits_and_stays_in_the_box_and_in_eps():
    model, x, mask = tiny(), some(), block()
    y = logits(model, x).argmax(1)
    for eps in (1.0, 0.1, 10.4 / 255):
        delta = masked_attack(model, x, y, mask=mask, eps=eps, lam=0.0, steps=20)
        assert torch.allclose(255 * delta, (255 * delta).round(), atol=1e-4)
        assert delta.abs().max() <= eps
        assert (delta * (1 - mask) == 0).all()
        shown = stick(x, delta, mask)
        again = (255 * shown).round() / 255  # as a file would hold it
        assert torch.allclose(shown, again, atol=1e-6)
        assert torch.equal(fooled(model, shown, y), fooled(model, again, y))
    p = patch(model, x, y, mask=block(6), steps=20)
    assert torch.equal(p, (255 * p).round() / 255)
    assert 0 <= p.min() < p.max() <= 1
    assert (p * (1 - block(6)) == 0).all()


@pytest.mark.parametrize("attack", [masked_attack, patch])
def test_calls_repeat_and_leave_nothing_behind(attack):
    model, x, mask = tiny(), some(), block()
    model.train()
    y = logits(model, x).argmax(1)
    before, ambient, given = [p.clone() for p in model.parameters()], torch.get_rng_state(), (x.clone(), mask.clone())
    first = attack(model, x, y, mask=mask, steps=3, batch=4)
    second = attack(model, x, y, mask=mask, steps=3, batch=4)
    assert torch.equal(first, second)
    assert not torch.equal(first, attack(model, x, y, mask=mask, steps=3, batch=4, generator=generator(9)))
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters(), strict=True))
    assert model.training
    assert torch.equal(ambient, torch.get_rng_state())
    assert torch.equal(given[0], x)
    assert torch.equal(given[1], mask)


def test_a_step_is_taken_along_that_steps_gradient_alone():
    """ART's patch never clears its gradient, so that each step repeats all before it."""
    model, x, mask = tiny(), some(3), block()
    y, target = logits(model, x).argmax(1), torch.tensor([1, 1, 1])
    plain = lambda v, g, memory: v + 0.5 * g  # noqa: E731
    p = torch.full((1, 1, 6, 6), 0.5) * mask
    for _ in range(4):
        p = p.requires_grad_()
        value = -torch.nn.functional.cross_entropy(model(paste(x, p, mask, identity(3))), target)
        (g,) = torch.autograd.grad(value, p)
        p = ((p + 0.5 * g).clamp(0, 1) * mask).detach()
    found = patch(model, x, y, mask=mask, target=target, place=identity(3), steps=4, rule=plain)
    assert (found - p).abs().max() <= 0.51 / 255
    assert (p - 0.5 * mask).abs().max() > 5 / 255


def identity(n):
    return torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(n, -1, -1)


def test_the_norm_is_a_price_and_is_not_squared():
    """For a linear network: with λ above ‖∇‖ nothing is worth its price, below it all is."""
    w = torch.zeros(2, 36)
    w[1, 8], w[1, 9] = 3.0, 4.0  # inside the mask: the gradient of z_1 − z_0 has length 5
    x, mask, lead = torch.full((2, 1, 6, 6), 0.5), block(), ahead
    y, target = torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.long)
    how = {"mask": mask, "target": target, "loss": lead, "steps": 60, "lr": 0.02, "eps": 0.4}
    assert (masked_attack(Linear(w), x, y, lam=4.5, **how).abs().max()) > 0.3
    assert (masked_attack(Linear(w), x, y, lam=5.5, **how).abs().max()) < 0.05
    assert masked_attack(Linear(w), x, y, lam=3.5, norm="linf", **how).flatten()[8:10].min() > 0.3
    down = masked_attack(Linear(w), x, target, lam=0.0, **{**how, "target": y})
    assert down.flatten()[8:10].max() < -0.3  # the other target, the other sign


def test_printable_colours_cost_little_and_are_reached():
    model, x, mask = tiny(), some(), block()
    y, inks = logits(model, x).argmax(1), palette(1)
    free = masked_attack(model, x, y, mask=mask, lam=0.0, steps=60)
    bound = masked_attack(model, x, y, mask=mask, lam=0.0, lam_print=20.0, steps=60)
    framed = masked_attack(model, x, y, mask=mask, frames=identity(6), lam=0.0, lam_print=20.0, steps=60)
    assert torch.allclose(bound, framed, atol=2 / 255)
    a, b = (printability(stick(x, d, mask), inks, mask).mean() for d in (free, bound))
    assert b < 0.8 * a
    loud, mild = (patch(model, x, y, mask=block(), lam_tv=t, steps=40) for t in (0.0, 5.0))
    spread = [float(p[0, 0, 1:3, 2:4].std()) for p in (loud, mild)]
    assert spread[1] < 0.5 * spread[0]
    print_free, print_bound = (patch(model, x, y, mask=block(), lam_print=t, steps=60) for t in (0.0, 20.0))
    assert printability(print_bound, inks, block()) < printability(print_free, inks, block())


def test_a_sticker_reaches_its_target_where_noise_of_the_mask_does_not():
    """Photographs held out, seen by a camera; the control has random colours in the same mask."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 2))
    model[2].weight.data = torch.tensor([[1.0, 1, 1, 1], [-1, -1, -1, -1]])
    model[2].bias.data = torch.tensor([-1.6, 1.6])
    x, mask = some(20, side=16, seed=7), block(16, 4, 4, 9)
    y, target = torch.zeros(20, dtype=torch.long), torch.ones(20, dtype=torch.long)
    assert not fooled(model, x, y).any()
    camera = Camera(angle=(-30, 30), size=8, light=(0.9, 1.1))
    delta = masked_attack(model, x[:8], y[:8], mask=mask, target=target[:8], views=camera, steps=40, batch=16)
    content = torch.rand(1, 1, 16, 16, generator=generator(1)) - 0.5

    def hit(d):
        return fooled(model, camera(stick(x[8:], d, mask), generator(5)), y[8:], target[8:]).float().mean()

    assert hit(delta) > 0.9
    assert hit(content) < 0.3
    assert hit(-delta) < 0.1


def test_a_trace_holds_every_step():
    model, x = tiny(), some()
    y, trace = logits(model, x).argmax(1), Trace()
    for _ in range(2):
        masked_attack(model, x, y, mask=block(), steps=7, lam=0.0, trace=trace)
        assert trace.values.shape == (7, 1)
    assert trace.values[-1] > trace.values[0]


@pytest.mark.parametrize(("wrong", "words"), [
    ({"mask": torch.ones(6, 6)}, r"\(1, 1, S, S\)"), ({"mask": 0.5 * torch.ones(1, 1, 6, 6)}, "0 and 1"),
    ({"mask": torch.zeros(1, 1, 6, 6)}, "a 1 somewhere"), ({"mask": torch.ones(1, 1, 3, 3)}, "give frames"),
    ({"frames": torch.zeros(2, 2, 3)}, r"\(6, 2, 3\)"), ({"steps": 0}, "steps"), ({"lr": -1.0}, "lr"),
    ({"eps": -1.0}, "eps"), ({"norm": "l3"}, "norm"), ({"batch": 0}, "batch"), ({"lam": float("nan")}, "lam"),
    ({"target": torch.zeros(6)}, "target"), ({"generator": 3}, "generator"),
    ({"frames": [1]}, r"\(6, 2, 3\).*list"), ({"frames": torch.full((6, 2, 3), torch.nan)}, "NaN"),
    ({"frames": torch.tensor([[1.0, 0, 9], [0, 1, 0]]).expand(6, -1, -1), "lam_print": 1.0}, "move its frame"),
    ({"eps": torch.full((6,), 0.1)}, "eps must be a number, not a tensor"), ({"lam": torch.ones(2)}, "lam must"),
    ({"lam_print": 1.0, "inks": [[0.5]]}, "the inks must"), ({"lam_print": 1.0, "inks": torch.ones(0, 1)}, "inks must"),
    ({"target": torch.tensor([2] * 6)}, "its own label"), ({"model": [tiny()]}, "Ensemble"),
    ({"views": lambda v, source: 255 * v}, "views returns.*divide them by 255"),
    ({"views": lambda v, source: v[:1]}, "one image for each"), ({"views": lambda v, source: None}, "views returns"),
    ({"views": lambda v, source: v.detach()}, "no gradient"),
])
def test_mistakes_get_one_sentence(wrong, words):
    wrong = dict(wrong)
    model, x = wrong.pop("model", tiny()), some()
    y = torch.full((6,), 2)
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        masked_attack(model, x, y, **({"mask": block()} | wrong))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="scale"):
        Anywhere(scale=(0.5, 0.2))
    with pytest.raises(ValueError, match="angle"):
        Anywhere(angle=200)
    with pytest.raises(ValueError, match="scale"):
        Anywhere(scale=0.3)
    with pytest.raises(ValueError, match="one number"):
        Anywhere(angle=(-20, 20))
    with pytest.raises(ValueError, match="divide them by 255"):
        patch(tiny(), 255 * x, y, mask=block())
    for place in (3, [1, 2], torch.zeros(2, 2, 3), lambda n, source: torch.zeros(1, 2, 3)):
        with pytest.raises(ValueError, match=r"frames must have the shape \(6, 2, 3\)"):
            patch(tiny(), x, y, mask=block(), place=place)


@pytest.mark.parametrize("put", [stick, paste])
def test_a_sticker_of_another_size_is_not_stretched(put):
    x, mask = some(2, channels=3), block()
    good = torch.rand(1, 3, 6, 6, generator=generator(0))
    for wrong, words in (
            ({"x": 255 * x}, "divide them by 255"), ({"content": good[..., :1, :1]}, r"sticker \(1, 1\)"),
            ({"content": good[..., :1, :1], "mask": mask[..., 1:2, 2:3]}, "or give frames"),
            ({"mask": mask[..., :3, :3], "frames": identity(2)}, r"mask \(3, 3\), sticker \(6, 6\)$"),
            ({"content": good[:, :1]}, "3 channels"), ({"mask": mask.expand(1, 3, 6, 6)}, "mask 1, not 3 and 3"),
            ({"content": good[0]}, "4 axes"), ({"mask": mask.numpy()}, "mask must be a tensor"),
            ({"frames": identity(3)}, r"\(2, 2, 3\)")):
        given = {"x": x, "content": good, "mask": mask, "frames": None} | wrong
        with pytest.raises(ValueError, match=words):
            put(*given.values())
    for colours in (255 * good, good - 1):
        with pytest.raises(ValueError, match="colours of a patch"):
            paste(x, colours, mask)
    assert torch.equal(stick(x, -good, mask.bool()), stick(x, -good, mask))


@pytest.mark.parametrize("attack", [masked_attack, patch])
def test_each_photograph_is_seen_with_its_own_frame_and_others_at_each_step(attack):
    """Grey photographs tell themselves by their grey. The rule moves every pixel, also outside of the mask."""
    model = tiny()
    x = (torch.arange(6.0) / 10 + 0.1).view(6, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()
    frames, mask, seen, draws = whole_places(6, 3)[0][:6], torch.ones(1, 1, 3, 3), [], []
    mask[..., 0, 0] = 0

    def look(v, source):
        seen.append(v.detach())
        draws.append(float(torch.rand(1, generator=source)))
        return v

    where = {"frames": frames, "lam": 0.0} if attack is masked_attack else {"place": frames}
    out = attack(model, x, logits(model, x).argmax(1), mask=mask, views=look, steps=5, batch=3, **where,
                 rule=lambda v, g, memory: v + 10 / 255)
    put, first = (stick, 0.0) if attack is masked_attack else (paste, 0.5)
    assert torch.equal(out, (255 * mask * (first + 50 / 255)).round() / 255)
    groups = []
    for k, shown in enumerate(seen[1:]):
        rows = ((shown[:, 0, 5, 0] - 0.1) * 10).round().long()  # a corner where none of the frames lies
        groups.append(tuple(sorted(rows.tolist())))
        content = mask * (first + k * 10 / 255)
        assert torch.allclose(shown, put(x[rows], content, mask, frames[rows]), atol=1e-6)
    assert len(set(groups)) > 1
    assert len(set(draws[1:])) == 5


def test_a_patch_has_another_place_at_each_step():
    model, x, places = tiny(), some(), []

    def place(n, source):
        places.append(Anywhere()(n, source))
        return places[-1]

    patch(model, x, torch.zeros(6, dtype=torch.long), mask=block(), place=place, steps=4)
    assert len({float(p.sum()) for p in places}) == len(places) == 4
    default = patch(model, x, torch.zeros(6, dtype=torch.long), mask=block(), steps=4)
    given = patch(model, x, torch.zeros(6, dtype=torch.long), mask=block(), steps=4, place=Anywhere())
    assert torch.equal(default, given)


def test_each_photograph_has_its_own_target_and_is_printed_where_its_own_mask_lies():
    """The rule leaves δ at zero, so that every step's value is known: photographs tell themselves by their pixels."""
    model, x, inks = tiny(), some(), palette(1)
    places, corners = whole_places(6, 3)
    at, mask, seen, trace = [0, 3, 5, 6, 9, 15], torch.ones(1, 1, 3, 3), [], Trace()
    mask[..., 0, 0] = 0
    target = torch.tensor([0, 1, 2, 0, 1, 2])
    under = torch.zeros(6, 1, 6, 6)
    for i, k in enumerate(at):
        a, b = corners[k]
        under[i, :, a:a + 3, b:b + 3] = mask

    def look(v, source):
        seen.append(v.detach())
        return v

    masked_attack(model, x, (target + 1) % 3, mask=mask, target=target, frames=places[at], views=look, lam=0.0,
                  lam_print=7.0, inks=inks, steps=4, batch=3, rule=lambda v, g, memory: v, trace=trace)
    z = logits(model, x)
    gain = -torch.nn.functional.cross_entropy(z, target, reduction="none")
    price = printability(x, inks, under > 0.5)
    for value, shown in zip(trace.values[:, 0], seen[1:], strict=True):
        rows = [int((x - v).abs().amax((1, 2, 3)).argmin()) for v in shown]
        assert float(value) == pytest.approx(float((gain - 7 * price)[rows].mean()), abs=1e-5)
    assert float(price.std()) > 0.01


def test_unevenness_is_the_mean_difference_of_neighbours_inside_the_mask():
    model, x, trace = tiny(), some(), Trace()
    y, mask = logits(model, x).argmax(1), torch.ones(1, 1, 6, 6)
    mask[..., 2, 3] = mask[..., 0, 0] = 0
    pattern = 0.04 * torch.rand(1, 1, 6, 6, generator=generator(4))
    patch(model, x, y, mask=mask, place=identity(6), lam_tv=5.0, steps=4, rule=lambda v, g, memory: v + pattern,
          trace=trace)
    pixels = [(i, j) for i in range(6) for j in range(6) if mask[0, 0, i, j]]
    pairs = [(a, b) for a in pixels for b in pixels if (b[0] - a[0], b[1] - a[1]) in ((0, 1), (1, 0))]
    for k, value in enumerate(trace.values[:, 0]):
        p = (0.5 + k * pattern) * mask
        uneven = sum(float((p[0, 0][a] - p[0, 0][b]).abs()) for a, b in pairs) / len(pairs)
        loss = float(torch.nn.functional.cross_entropy(logits(model, paste(x, p, mask)), y))
        assert float(value) == pytest.approx(loss - 5 * uneven, abs=1e-5)
    assert uneven > 0.02

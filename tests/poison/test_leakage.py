"""Gradient leakage where the answer is known: one linear layer, labels, and images that a smooth network gives back."""
import pytest
import torch
from torch import nn

from kit.core import Normalize, generator
from kit.poison import (
    client_gradients,
    clipped_gradient,
    fit_on_shared,
    leak,
    leak_cosine,
    leak_labels,
    leak_linear,
    lenet,
    matched,
    noisy_gradient,
    pruned_gradient,
    psnr,
    ssim,
)
from kit.poison.leakage import matching
from kit.poison.leakage.matching import _Match, signed_adam, total_variation
from kit.poison.leakage.shared import gradients, norms

SHAPE = (1, 8, 8)


def images(n, dtype=torch.float64):
    return torch.rand(n, *SHAPE, generator=generator(1), dtype=torch.float64).to(dtype)


def smooth():
    return lenet(5, 1, 8, width=8, activation="tanh", generator=generator(2)).double()


def chain(bias=True):
    model = nn.Sequential(Normalize((0.3,), (0.2,)), nn.Flatten(), nn.Linear(64, 12), nn.Tanh(),
                          nn.Linear(12, 5, bias=bias)).double()
    for k, p in enumerate(model.parameters()):
        p.data = torch.randn(p.shape, generator=generator(k), dtype=p.dtype) / p[0].numel() ** 0.5
    return model


def test_the_gradient_of_each_client_is_autograd_s():
    model, x, y = smooth(), images(6), torch.tensor([0, 1, 2, 3, 4, 0])
    shared = client_gradients(model, x, y, batch=3)
    for client, rows in enumerate((slice(0, 3), slice(3, 6))):
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        by_autograd = torch.autograd.grad(loss, [*model.parameters()])
        for (name, _), g in zip(model.named_parameters(), by_autograd, strict=True):
            assert torch.allclose(shared[name][client], g, atol=1e-12)


def test_a_linear_layer_gives_its_image_and_of_a_pair_the_mixture():
    model, x, y = chain(), images(4), torch.tensor([0, 1, 2, 3])
    read = leak_linear(model, client_gradients(model, x, y), SHAPE)
    assert float((read - x).abs().max()) < 1e-6
    assert float((read.roll(1, 0) - x).abs().amax((1, 2, 3)).min()) > 0.1  # another image's gradient gives another
    pair = client_gradients(model, x[:2], y[:2], batch=2)
    apart = client_gradients(model, x[:2], y[:2])
    row = pair["2.bias"][0].abs().argmax()
    d = apart["2.bias"][:, row]
    mixture = (d.view(2, 1, 1, 1) * x[:2]).sum(0) / d.sum()
    assert torch.allclose(leak_linear(model, pair, SHAPE)[0], mixture, atol=1e-8)


def test_what_is_no_linear_layer_at_first_is_refused():
    with pytest.raises(ValueError, match="must begin with a linear layer"):
        leak_linear(smooth(), client_gradients(smooth(), images(1), torch.tensor([0])), SHAPE)
    mixing = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Flatten(), nn.Linear(64, 5)).double()
    with pytest.raises(ValueError, match="no pixel by itself"):
        leak_linear(mixing, client_gradients(mixing, images(1), torch.tensor([0])), SHAPE)


@pytest.mark.parametrize("bias", [True, False])
def test_one_label_is_exact_with_and_without_a_bias(bias):
    """Hidden units of tanh are of both signs, where the row sums of ∇W would be wrong."""
    model, x = chain(bias), images(20)
    y = torch.arange(20) % 5
    assert torch.equal(leak_labels(model, client_gradients(model, x, y), SHAPE), y)


def test_labels_of_a_batch_are_counted():
    model = smooth()
    model.head.weight.data.mul_(0.01)
    y = torch.tensor([1, 1, 1, 4, 0, 2, 2, 4])
    read = leak_labels(model, client_gradients(model, images(8), y, batch=4), SHAPE, batch=4)
    assert read.tolist() == [1, 1, 1, 4, 0, 2, 2, 4]
    with pytest.raises(ValueError, match="last linear layer with a bias"):
        leak_labels(chain(False), client_gradients(chain(False), images(4), y[:4], batch=4), SHAPE, batch=4)


def test_leak_finds_the_image_and_not_from_another_s_gradient():
    model, x, y = smooth(), images(3), torch.tensor([0, 1, 2])
    shared = client_gradients(model, x, y)
    found = leak(model, shared, SHAPE, y=y, steps=120)
    assert float(psnr(found, x).min()) > 40
    assert float(psnr(found.roll(1, 0), x).max()) < 15
    unknown = leak(model, shared, SHAPE, steps=120)
    assert float(psnr(unknown, x).min()) > 30


def test_a_client_does_not_depend_on_the_others():
    model, x, y = smooth(), images(3), torch.tensor([0, 1, 2])
    shared = client_gradients(model, x, y)
    together = leak(model, shared, SHAPE, y=y, steps=15, restarts=2, generator=generator(5))
    first = {name: g[:1] for name, g in shared.items()}
    alone = leak(model, first, SHAPE, y=y[:1], steps=15, restarts=2, generator=generator(5))
    assert torch.allclose(together[:1], alone, atol=1e-6)


def off(model, v, y, shared):
    """How far the gradient of the images v is from what was sent, for each client."""
    g = gradients(model, v[:, None], nn.functional.one_hot(y, 5).to(v)[:, None])
    return torch.stack([(g[name] - shared[name]).flatten(1).square().sum(1) for name in g]).sum(0)


def test_of_several_starts_the_best_is_kept():
    model, x, y = smooth(), images(4), torch.tensor([0, 1, 2, 3])
    shared = client_gradients(model, x, y)
    one, four = (off(model, leak(model, shared, SHAPE, y=y, steps=8, restarts=r), y, shared) for r in (1, 4))
    assert (four <= one + 1e-12).all()
    assert four.mean() < one.mean()


def test_a_batch_is_found_up_to_its_order():
    model, x, y = smooth(), images(2), torch.tensor([3, 1])
    found = leak(model, client_gradients(model, x, y, batch=2), SHAPE, batch=2, y=torch.tensor([1, 3]), steps=250)
    assert float(psnr(found, x).max()) < 15
    assert float(psnr(matched(found, x, batch=2), x).min()) > 25


def test_the_angle_is_blind_to_scale_and_the_distance_is_not():
    model, x, y = smooth(), images(2), torch.tensor([0, 1])
    shared = client_gradients(model, x, y)
    clipped = clipped_gradient(shared, 0.1 * float(norms(shared).min()))
    assert torch.allclose(norms(clipped), 0.1 * norms(shared).min().expand(2))
    a, b = (leak_cosine(model, g, SHAPE, y=y, steps=250, lam_tv=0.0) for g in (shared, clipped))
    assert float(psnr(a, x).min()) > 25
    assert torch.allclose(a, b, atol=1e-3)
    assert float(psnr(leak(model, clipped, SHAPE, y=y, steps=120), x).max()) < 20


def test_a_start_is_where_the_search_begins_and_without_one_the_generator_decides():
    model, x, y = smooth(), images(2), torch.tensor([0, 1])
    shared = client_gradients(model, x, y)
    near = (x + 0.02 * torch.randn(x.shape, generator=generator(3), dtype=x.dtype)).clamp(0, 1)
    for search in (leak, leak_cosine):
        assert float(psnr(search(model, shared, SHAPE, y=y, start=near, steps=3), x).min()) > 25
        a, again, b = (search(model, shared, SHAPE, y=y, steps=2, generator=generator(s)) for s in (0, 0, 1))
        assert torch.equal(a, again)
        assert not torch.allclose(a, b, atol=1e-2)
        assert float(psnr(a, x).max()) < 20


def test_restarts_from_a_given_start_find_what_one_does():
    model, x, y = smooth(), images(4), torch.tensor([0, 1, 2, 3])
    shared, start = client_gradients(model, x, y, batch=2), x.flip(3)
    for search in (leak, leak_cosine):
        one, three = (search(model, shared, SHAPE, batch=2, y=y, start=start, steps=3, restarts=r) for r in (1, 3))
        assert torch.allclose(one, three)


def test_total_variation_is_lowered_by_its_weight():
    model, x, y = smooth(), images(2), torch.tensor([0, 1])
    shared = client_gradients(model, x, y)
    rough, flat = (total_variation(leak_cosine(model, shared, SHAPE, y=y, steps=60, lam_tv=lam)) for lam in (0.0, 3.0))
    assert (flat < 0.5 * rough).all()


def test_noise_is_drawn_from_the_generator_and_the_rate_falls_by_ten_three_times():
    shared = client_gradients(smooth(), images(2), torch.tensor([0, 1]))
    a, again, b = (noisy_gradient(shared, 1.0, generator(s))["head.bias"] for s in (0, 0, 1))
    assert torch.equal(a, again)
    assert not torch.equal(a, b)
    rule, v, memory, moved = signed_adam(0.1, 80), torch.zeros(1, 1, dtype=torch.float64), {}, []
    for _ in range(80):
        new = rule(v, torch.ones_like(v), memory)
        moved.append(float((new - v).abs()))
        v = new
    assert [round(moved[k], 5) for k in (0, 29, 30, 49, 50, 69, 70, 79)] == \
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001]


def test_relu_stalls_where_tanh_does_not():
    y = torch.tensor([0, 1, 2])
    model = lenet(5, 1, 8, width=8, activation="relu", generator=generator(2)).double()
    found = leak(model, client_gradients(model, images(3), y), SHAPE, y=y, steps=120)
    assert float(psnr(found, images(3)).max()) < 25


def test_defences_do_what_they_say():
    model, y = smooth(), torch.tensor([0, 1, 2])
    shared = client_gradients(model, images(3), y)
    pruned = pruned_gradient(shared, 0.75)
    for name, g in pruned.items():
        zero = (g == 0).flatten(1).sum(1)
        assert (zero == round(0.75 * g[0].numel())).all()
        kept = g != 0
        assert torch.equal(g[kept], shared[name][kept])
        assert shared[name][kept].abs().min() > 0
    noisy = noisy_gradient(shared, 0.5, generator(0))
    size = norms({name: noisy[name] - shared[name] for name in shared})
    assert torch.allclose(size, 0.5 * norms(shared), rtol=0.1)
    assert torch.equal(clipped_gradient(shared, 1e6)["head.bias"], shared["head.bias"])


def test_zeros_that_are_left_out_bring_the_image_back():
    model, x, y = smooth(), images(3), torch.tensor([0, 1, 2])
    pruned = pruned_gradient(client_gradients(model, x, y), 0.7)
    plain, adaptive = (leak(model, pruned, SHAPE, y=y, steps=150, nonzero=seen) for seen in (False, True))
    assert float(psnr(adaptive, x).mean()) > float(psnr(plain, x).mean()) + 5


def test_training_on_what_is_shared_learns_and_noise_prevents_it():
    x = images(80, torch.float32)
    x[:40, :, :4] *= 0.2
    y = (torch.arange(80) < 40).long()

    def accuracy(defend):
        model = lenet(5, 1, 8, width=4, activation="tanh")
        fit_on_shared(model, x, y, defend, steps=100, clients=8, lr=0.2)
        return float((model(x).argmax(1) == y).float().mean())

    assert accuracy(lambda g: g) > 0.95
    assert accuracy(lambda g: noisy_gradient(g, 100.0)) < 0.8


def test_total_variation_and_quality():
    x = torch.zeros(1, 1, 8, 8)
    x[..., 4:] = 1.0
    assert float(total_variation(x)) == pytest.approx(1 / 7)
    assert torch.isinf(psnr(x, x)).all()
    assert float(psnr(x + 0.1, x)) == pytest.approx(20, abs=1e-4)
    assert float(ssim(x, x)) == pytest.approx(1)
    assert float(ssim(1 - x, x)) < 0


def test_a_unit_that_only_falls_gives_the_image_as_well():
    """The one entry of ∇b that is not zero is negative."""
    model, x = chain(), images(1)
    shared = client_gradients(model, x, torch.tensor([2]))
    row = int(shared["2.bias"][0].argmin())
    assert float(shared["2.bias"][0, row]) < 0
    alone = torch.arange(12) == row
    shared = shared | {"2.bias": shared["2.bias"] * alone, "2.weight": shared["2.weight"] * alone[:, None]}
    assert torch.allclose(leak_linear(model, shared, SHAPE), x, atol=1e-6)


def test_a_sure_network_s_labels_are_counted_where_its_answers_are_known():
    model, x = chain(), images(8)
    model[4].weight.data.mul_(8)
    y = (model(x).argmin(1) + torch.tensor([0, 1] * 4)) % 5
    shared = client_gradients(model, x, y, batch=8)
    assert leak_labels(model, shared, SHAPE, batch=8, guess=x).tolist() == sorted(y.tolist())
    assert leak_labels(model, shared, SHAPE, batch=8).tolist() != sorted(y.tolist())


def test_what_is_found_stays_in_the_box():
    model, x, y = smooth(), images(2).round(), torch.tensor([0, 1])
    noisy = noisy_gradient(client_gradients(model, x, y), 1.0, generator(0))
    for search in (leak, leak_cosine):
        found = search(model, noisy, SHAPE, y=y, steps=30)
        assert 0 <= float(found.min()) <= 0.01
        assert 0.99 <= float(found.max()) <= 1


def test_each_image_of_a_batch_has_a_soft_label_of_its_own():
    model, x = smooth(), images(2)
    free = torch.tensor([[3.0, 0, 0, 0, 0, 0, 0, 0, 3.0, 0]], dtype=torch.float64)
    shared = client_gradients(model, x, torch.tensor([0, 3]), batch=2)
    found, _ = _Match(model, shared, SHAPE, 5, None, False).gradients(x.view(1, -1), free, slice(None))
    wanted = gradients(model, x[None], free.view(1, 2, 5).softmax(2))
    assert all(torch.allclose(found[name], wanted[name]) for name in wanted)


def test_the_weight_of_roughness_is_that_of_an_image_whatever_the_batch(monkeypatch):
    model, x, values = smooth(), images(2), {}
    shared = client_gradients(model, x, torch.tensor([0, 1]), batch=2)
    for lam in (0.0, 2.0):
        def once(objective, v, lam=lam, **_):
            values[lam] = float(objective(v, 0))
            return v

        monkeypatch.setattr(matching, "optimise", once)
        leak_cosine(model, shared, SHAPE, batch=2, y=torch.tensor([0, 1]), start=x, lam_tv=lam)
    assert values[0.0] - values[2.0] == pytest.approx(2 * float(total_variation(x).mean()))


def test_a_step_follows_the_sign_whatever_the_size():
    rule, memory, v = signed_adam(0.1, 80), {}, torch.zeros(1, 2, dtype=torch.float64)
    for size in (1.0, 1e-3, 1e-6):
        new = rule(v, torch.tensor([[size, -5 * size]], dtype=torch.float64), memory)
        assert torch.allclose(new - v, torch.tensor([[0.1, -0.1]], dtype=torch.float64), atol=1e-6)
        v = new


def test_each_client_s_images_are_matched_among_themselves_by_squared_error():
    x = images(6)
    turned = x[[1, 2, 0, 5, 3, 4]]
    assert torch.equal(matched(turned, x, batch=3), x)
    assert torch.equal(matched(turned, x, batch=1), turned)
    first, second, far = torch.zeros(3, *SHAPE, dtype=torch.float64)
    second[0, 0, 0], far[0, 0, :2] = 0.64, torch.tensor([-0.141, 0.624])  # 0.64 from the first, 1 from the second
    found = torch.stack([first, far])  # distances 0 + 1 as they stand, 0.64 + 0.64 turned: squared, turned is less
    assert torch.equal(matched(found, torch.stack([first, second]), batch=2), found.flip(0))


def test_quality_in_numbers():
    x = torch.zeros(1, 1, 8, 8)
    x[..., 4:, :] = 0.5
    assert float(total_variation(x)) == pytest.approx(0.5 / 7)  # rows beside columns, and no square
    a, b, c = 0.1, 0.2, 0.01**2
    flat = torch.ones(1, 1, 8, 8)
    assert float(ssim(a * flat, b * flat)) == pytest.approx((2 * a * b + c) / (a * a + b * b + c), abs=1e-5)


def test_pruning_keeps_the_largest_of_either_sign():
    shared = client_gradients(smooth(), images(2), torch.tensor([0, 1]))
    for name, g in pruned_gradient(shared, 0.5).items():
        sizes, kept = shared[name].abs().flatten(1), (g != 0).flatten(1)
        for size, there in zip(sizes, kept, strict=True):
            assert size[there].min() >= size[~there].max()


def test_training_on_what_is_shared_is_sgd_on_the_mean_of_the_clients():
    x, y = images(20), torch.arange(20) % 5
    ours, theirs, source = smooth(), smooth(), generator(3)
    fit_on_shared(ours, x, y, steps=4, clients=3, batch=2, lr=0.1, generator=generator(3))
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for k in range(4):
        rows = torch.randint(20, (3, 2), generator=source).flatten()
        sgd.zero_grad()
        nn.functional.cross_entropy(theirs(x[rows]), y[rows]).backward()
        sgd.param_groups[0]["lr"] = 0.1 * (1 - k / 4)
        sgd.step()
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_the_network_has_the_paper_s_strides_and_pytorch_s_scale():
    model, v = lenet(10, 3, 32), torch.zeros(1, 3, 32, 32)
    sides = [(v := block(v)).shape[-1] for block in model[:3]]
    assert sides == [16, 8, 8]
    for layer in (model.block1[0], model.block3[0], model.head):
        reach = layer.weight[0].numel() ** -0.5
        assert 0.9 * reach < float(layer.weight.detach().abs().max()) <= reach


def test_mistakes_get_one_sentence():
    model, x, y = smooth(), images(4), torch.tensor([0, 1, 2, 3])
    shared = client_gradients(model, x, y)
    with pytest.raises(ValueError, match="multiple"):
        client_gradients(model, x, y, batch=3)
    for defend in (lambda g: noisy_gradient(g, 1.0), lambda g: pruned_gradient(g, 0.5),
                   lambda g: clipped_gradient(g, 1.0), lambda g: leak_linear(model, g, SHAPE)):
        with pytest.raises(TypeError, match="as client_gradients gives it, not NoneType"):
            defend(None)
        with pytest.raises(ValueError, match="holds no gradient"):
            defend({})
    with pytest.raises(ValueError, match="not list and"):
        psnr([x], x)
    with pytest.raises(ValueError, match="not list and"):
        matched([x], x)
    with pytest.raises(ValueError, match="no parameter 'other'"):
        leak(model, {"other": shared["head.bias"]}, SHAPE)
    with pytest.raises(ValueError, match="a row for each client"):
        leak(model, {"head.bias": shared["head.bias"][0]}, SHAPE)
    with pytest.raises(ValueError, match="one for each image"):
        leak(model, shared, SHAPE, y=y[:2])
    with pytest.raises(ValueError, match="start must have the shape"):
        leak(model, shared, SHAPE, y=y, start=x[:2])
    with pytest.raises(ValueError, match="steps must be 1 or more"):
        leak_cosine(model, shared, SHAPE, y=y, steps=0)
    with pytest.raises(ValueError, match="share must be"):
        pruned_gradient(shared, 1.0)
    with pytest.raises(ValueError, match="one for each image"):
        leak(model, shared, SHAPE, y=y.tolist())
    with pytest.raises(ValueError, match="start is of no use|divide them by 255"):
        leak(model, shared, SHAPE, y=y, start=255 * x)
    with pytest.raises(ValueError, match="gradient of client 0 is zero"):
        leak(model, {name: 0 * g for name, g in shared.items()}, SHAPE, y=y)
    with pytest.raises(ValueError, match="NaN or infinity"):
        leak_cosine(model, {name: g * torch.nan for name, g in shared.items()}, SHAPE, y=y)
    with pytest.raises(ValueError, match="sigma must be"):
        noisy_gradient(shared, -1.0)
    with pytest.raises(ValueError, match="many must be 1 or more"):
        fit_on_shared(smooth(), x, y, clients=0)
    with pytest.raises(ValueError, match="multiple of batch=0"):
        matched(x, x, batch=0)
    with pytest.raises(ValueError, match="the same shape"):
        psnr(x, x[:2])
    with pytest.raises(ValueError, match="use psnr"):
        ssim(x[..., :4], x[..., :4])
    with pytest.raises(ValueError, match="1 or more"):
        lenet(0)
    with pytest.raises(ValueError, match="activation must be"):
        lenet(activation="gelu")


def test_nothing_is_left_behind():
    model, x, y = smooth().train(), images(2), torch.tensor([0, 1])
    before = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    leak(model, client_gradients(model, x, y), SHAPE, y=y, steps=3)
    assert model.training
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert torch.equal(state, torch.get_rng_state())

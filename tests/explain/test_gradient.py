"""On a linear network every one of these maps is known; on a ReLU network, what it must be."""
import pytest
import torch
from torch import nn

from kit.core import MisleadingModel, generator, logits, passes
from kit.explain import (
    gradient_times_input,
    guided_backpropagation,
    integrated_gradients,
    occlusion,
    saliency,
    sensitivity,
    smoothgrad,
)
from kit.models.families import resnet
from tests.bench import peak_memory

ALL = [sensitivity, saliency, gradient_times_input, smoothgrad, integrated_gradients, guided_backpropagation, occlusion]
QUICK = {smoothgrad: {"samples": 3}, integrated_gradients: {"steps": 40}, occlusion: {"size": 4, "stride": 4}}


@pytest.fixture(scope="module")
def small():
    """A residual network with random weights, of 5 classes, and six images."""
    torch.manual_seed(1)
    model = resnet(classes=5, width=4, norm=False)
    for m in model.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(m.weight)
    x = torch.rand(6, 3, 16, 16, generator=generator(2))
    return model.eval(), x


def weights(model, target):
    return model[1].weight.detach()[target].view(-1, 3, 4, 4)


@pytest.mark.parametrize("explain", ALL[:5])
def test_a_linear_model_has_closed_forms(linear, explain):
    model, x, _ = linear
    target = torch.arange(len(x)) % 5
    w = weights(model, target)
    wanted = {
        sensitivity: (w**2).sum(1), saliency: w.abs().amax(1), smoothgrad: w.abs().amax(1),
        gradient_times_input: (w * x).sum(1), integrated_gradients: (w * x).sum(1),
    }[explain]
    assert torch.allclose(explain(model, x, target), wanted, rtol=1e-4, atol=1e-5)


def test_smoothgrad_squared_is_the_average_sensitivity(linear):
    model, x, y = linear
    assert torch.allclose(smoothgrad(model, x, y, squared=True), sensitivity(model, x, y), rtol=1e-4)


def test_smoothgrad_averages_the_gradient_over_its_noise(small):
    """Many samples from two generators agree better than few; without noise it is the saliency."""
    model, x = small
    target = logits(model, x).argmax(1)
    assert torch.allclose(smoothgrad(model, x, target, sigma=0.0, samples=2), saliency(model, x, target), atol=1e-6)

    def spread(samples):
        a, b = (smoothgrad(model, x, target, sigma=0.3, samples=samples, generator=generator(s)) for s in (1, 2))
        return float((a - b).norm() / a.norm())

    assert spread(64) < spread(4) / 2
    assert not torch.allclose(smoothgrad(model, x, target, sigma=0.3), saliency(model, x, target), atol=1e-3)


def test_occlusion_of_a_linear_model_is_the_part_of_the_score_in_the_patch(linear):
    model, x, y = linear
    w = weights(model, y)
    drop = (w * (x - 0.5)).sum(1)
    tiles = occlusion(model, x, y, size=2, stride=2)
    sums = nn.functional.avg_pool2d(drop[:, None], 2, divisor_override=1)[:, 0]
    assert torch.allclose(tiles, sums.repeat_interleave(2, 1).repeat_interleave(2, 2), atol=1e-4)
    whole = occlusion(model, x, y, size=4, stride=1, fill=0.0)
    assert torch.allclose(whole, (w * x).sum((1, 2, 3)).view(-1, 1, 1).expand_as(whole), atol=1e-4)


def test_occlusion_covers_the_far_edge():
    """Patches of 3 every 2 pixels do not divide a side of 6: one more stands at the edge."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2, bias=False))
    model[1].weight.data.zero_()
    model[1].weight.data[0, 35] = 2.0
    R = occlusion(model, torch.ones(1, 1, 6, 6), torch.tensor([0]), size=3, stride=2, fill=0.0)[0]
    assert R[5, 5] == 2
    assert R[0, 0] == 0


def test_integrated_gradients_are_complete_at_the_default_steps(small):
    model, x = small
    target = torch.arange(6) % 5
    for baseline in (0.0, 0.5, torch.rand(1, 3, 16, 16, generator=generator(3)), x.flip(0)):
        b = torch.as_tensor(baseline).expand_as(x)
        change = (logits(model, x) - logits(model, b.contiguous())).gather(1, target[:, None])[:, 0]
        R = integrated_gradients(model, x, target, baseline=baseline)
        assert ((R.sum((1, 2)) - change).abs() <= 1e-2 * change.abs() + 1e-5).all()


def test_the_correction_closes_the_gap_and_leaves_the_pixels_as_exact():
    """Completeness alone could be had by any rescaling: against a fine integral the map must not get worse."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    x = torch.rand(20, 3, 4, 4, generator=generator(0))
    target = torch.zeros(20, dtype=torch.long)
    exact = integrated_gradients(model, x, target, steps=3000)
    plain, closed = (integrated_gradients(model, x, target, steps=20, complete=c) for c in (False, True))

    def error(R):
        return float((R - exact).norm(dim=(1, 2)).mean())

    def gap(R):
        return float((R - exact).sum((1, 2)).abs().mean())

    assert gap(closed) < gap(plain) / 100
    assert error(closed) < 1.1 * error(plain) < 0.1 * float(exact.norm(dim=(1, 2)).mean())


def test_too_few_steps_are_reported():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 2))
    step = nn.Sequential(nn.Flatten(), nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    step[1].weight.data.fill_(50.0)
    step[1].bias.data.copy_(torch.tensor([-25.0, -26, -45, -46]))
    step[3].weight.data.copy_(torch.tensor([[1.0, -1, 1, -1], [0, 0, 0, 0]]))
    x = torch.ones(1, 1, 1, 1)
    with pytest.warns(MisleadingModel, match="steps are few"):
        integrated_gradients(step, x, torch.tensor([0]), steps=7)
    integrated_gradients(model, x, torch.tensor([0]), steps=2)


def test_guided_backpropagation_lets_only_positive_gradients_back():
    """z = relu(relu(x₁ − x₂) − relu(x₂)): by hand the guided gradient at (3, 1) is 1 for x₁ and 0 for x₂."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    model[1].weight.data.copy_(torch.tensor([[1.0, -1], [0, 1]]))
    model[3].weight.data.copy_(torch.tensor([[1.0, -1], [0, 0]]))
    x = torch.tensor([[[[0.9, 0.3]]]])
    target = torch.tensor([0])
    plain = torch.autograd.functional.jacobian(lambda v: model(v)[0, 0], x).flatten()
    assert plain.tolist() == [1, -2]
    assert guided_backpropagation(model, x, target).flatten().tolist() == [1, 1]  # −1 of the kept unit only, in |·|


def test_guided_backpropagation_needs_a_relu(linear):
    model, x, _ = linear
    with pytest.raises(ValueError, match="none: use saliency"):
        guided_backpropagation(model, x)


@pytest.mark.parametrize("explain", ALL)
def test_contract(small, explain, monkeypatch):
    """Shape, the predicted class, chunks, batch-mates, repeatability, nothing leaked."""
    model, x = small
    options = QUICK.get(explain, {})
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    model.train()
    R = explain(model, x, **options)
    assert all(m.training for m in model.modules())
    model.eval()
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert R.shape == (6, 16, 16)
    assert R.isfinite().all()
    assert not R.requires_grad
    assert float(R.abs().amax((1, 2)).min()) > 0
    assert torch.allclose(R, explain(model, x, logits(model, x).argmax(1), **options), atol=1e-5)
    other = (logits(model, x).argmax(1) + 1) % 5
    assert not torch.allclose(R, explain(model, x, other, **options), atol=1e-4)
    monkeypatch.setitem(passes.PIXELS, "cpu", 1)
    monkeypatch.setattr(passes, "chunk_size", lambda x: 4)
    assert torch.allclose(R, explain(model, x, **options), atol=1e-4)
    assert torch.allclose(R[2:3], explain(model, x[2:3], **options), atol=1e-4)


@pytest.mark.parametrize("explain", ALL)
def test_create_graph_gives_the_derivative_of_the_map(explain):
    """Against finite differences, on a network whose curvature is not zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Softplus(), nn.Flatten(), nn.Linear(48, 3)).double().eval()
    if explain is guided_backpropagation:  # a ReLU's own second derivative is zero: curvature before it
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Softplus(), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Flatten(),
                              nn.Linear(48, 3)).double().eval()
    x = torch.rand(2, 2, 6, 6, dtype=torch.double, generator=generator(1)).mul(0.8).add(0.1).requires_grad_()
    target = torch.tensor([0, 2])
    direction = torch.randn(2, 2, 6, 6, dtype=torch.double, generator=generator(2))
    probe = torch.randn(2, 6, 6, dtype=torch.double, generator=generator(3))
    options = {smoothgrad: {"samples": 3}, occlusion: {"size": 3, "stride": 2}}.get(explain, {})
    R = explain(model, x, target, create_graph=True, **options)
    (g,) = torch.autograd.grad((R * probe).sum(), x)
    h = 1e-6
    up, down = (explain(model, x.detach() + s * h * direction, target, **options) for s in (1, -1))
    slope = ((up - down) * probe).sum() / (2 * h)
    assert float(slope.abs()) > 1e-4
    assert torch.allclose((g * direction).sum(), slope, rtol=1e-4)


def test_mistakes_are_named(small):
    model, x = small
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        saliency(model, x * 255)
    with pytest.raises(ValueError, match="the model has the classes"):
        saliency(model, x, torch.full((6,), 9))
    with pytest.raises(ValueError, match="steps must be 2 or more"):
        integrated_gradients(model, x, steps=1)
    with pytest.raises(ValueError, match="a number or images"):
        integrated_gradients(model, x, baseline=torch.zeros(6, 16, 16))
    with pytest.raises(ValueError, match="do not tile"):
        occlusion(model, x, size=2, stride=3)
    with pytest.raises(ValueError, match="samples must be 1"):
        smoothgrad(model, x, samples=0)


def test_the_memory_of_integrated_gradients_is_flat_in_the_number_of_steps():
    """Peak memory of the tensors, and the largest batch that the model sees, with 64 and with 512 steps."""
    rows = []

    class Watched(nn.Sequential):
        def forward(self, x):
            rows.append(len(x))
            return super().forward(x)

    torch.manual_seed(0)
    model = Watched(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 30 * 30, 5)).eval()
    x = torch.rand(2, 3, 32, 32, generator=generator(0))
    few, many = (peak_memory(lambda k=k: integrated_gradients(model, x, steps=k)) for k in (64, 512))
    assert 0.5 < many < 1.02 * few  # MB; all steps at once would need eight times as much
    assert max(rows) <= 64


class Detached(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, x):
        return self.model(x)


@pytest.mark.parametrize("explain", [
    sensitivity, saliency, gradient_times_input, smoothgrad, integrated_gradients, guided_backpropagation])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_model_without_a_gradient_is_refused(explain):
    """Run under no_grad, or with int8 layers: an error that says so, not a map of zeros."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    int8 = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    x = torch.rand(2, 3, 4, 4, generator=generator(1))
    assert explain(net, x).shape == (2, 4, 4)
    for model in (Detached(net), int8):
        with pytest.raises(ValueError, match="has no gradient"):
            explain(model, x)
    assert bool(occlusion(int8, x, size=2, stride=1).any())  # asks for answers alone


def test_steps_and_samples_are_whole_numbers():
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval(), torch.rand(1, 3, 4, 4, generator=generator(1))
    with pytest.raises(TypeError, match="samples must be a whole number"):
        smoothgrad(net, x, samples=2.5)
    with pytest.raises(ValueError, match="sigma must be finite and at least 0"):
        smoothgrad(net, x, sigma=float("nan"))
    with pytest.raises(TypeError, match="steps must be a whole number"):
        integrated_gradients(net, x, steps=2.5)

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn, idctn
from torch import nn

import kit.data
import kit.models
from kit.attacks import bim
from kit.core import accuracy, check_model, fold_batch_norm, generator, logits
from kit.defend import (
    HGD,
    JPEG,
    ComDefend,
    FeatureDistillation,
    RandomEnsemble,
    RandomResizePad,
    Squeezed,
    Through,
    straight_through,
)
from kit.defend.purify import Purified, adversarial_versions, codec_training, denoiser_training
from kit.models import Recipe, build
from kit.models.purifiers import Codec, UNet


@pytest.fixture
def model():
    """Sees where things are, and takes images of any size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)).eval()


@pytest.fixture
def x():
    return torch.rand(5, 3, 32, 32, generator=generator(1))


def stirred(network):
    """A learned network that does something, without training it."""
    g = generator(5)
    for p in network.parameters():
        p.data.add_(0.05 * torch.randn(p.shape, generator=g))
    return network.eval()


def every(model, source=None):
    yield RandomResizePad(model, draws=4, generator=source)
    yield RandomEnsemble([model, model], draws=2, generator=source)
    yield FeatureDistillation(model)
    yield JPEG(model, 50)
    yield Squeezed(model, "bit_depth", 3)
    yield Squeezed(model, "median", 3)
    yield Squeezed(model, "non_local_means", 5, 3, 60.0)
    yield Through(model, straight_through(lambda x: (4 * x).round() / 4))
    yield ComDefend(model, stirred(Codec()))
    yield HGD(model, stirred(UNet(norm=False)))


def test_each_changes_the_answer_and_draws_as_it_is_told(model, x):
    victims = list(every(model))
    before = torch.get_rng_state()
    for victim in victims:
        z = victim(x)
        assert check_model(victim, x) == 5
        assert (z.softmax(1) - model(x).softmax(1)).abs().max() > 1e-4
        torch.testing.assert_close(z, victim(x), rtol=0, atol=0)
        assert not victim.training
        y = x.clone().requires_grad_()
        assert torch.autograd.grad(victim(y)[:, 0].sum(), y)[0].flatten(1).norm(dim=1).min() > 0
    assert torch.equal(torch.get_rng_state(), before)
    for victim in list(every(model, generator(3)))[:2]:
        assert not torch.equal(victim(x), victim(x))


def test_an_image_depends_on_no_other(model, x):
    """In double precision: in single, the size of the batch decides a bit that lies within 1e-7 of one half."""
    for victim in every(model):
        z, alone = (torch.cat([victim.double()(rows) for rows in x.double().split(n)]) for n in (5, 1))
        torch.testing.assert_close(z, alone, rtol=1e-9, atol=1e-9)


# --- random transformations -----------------------------------------------------------------------------------------


def resized_and_padded(image, size, down, right, mirrored):
    """Pixel by pixel, from the words of the paper."""
    new = 33 + int(size * 3)
    top, left = int(down * (37 - new)), int(right * (37 - new))
    out = np.zeros((3, 36, 36), dtype=np.float32)
    for i in range(new):
        for j in range(new):
            out[:, top + i, left + j] = image[:, i * 32 // new, j * 32 // new]
    return out[:, :, ::-1].copy() if mirrored < 0.5 else out


def test_a_defence_without_a_purifier_is_refused_when_it_is_made(model):
    class Nothing(Purified):
        pass

    with pytest.raises(TypeError, match="purify"):
        Nothing(model)


def test_resize_and_pad_against_the_words_of_the_paper(model, x):
    draws = torch.rand(6, 4, generator=generator(0)).tolist()
    assert len({d[3] < 0.5 for d in draws}) == 2
    p = 0
    for numbers in draws:
        changed = np.stack([resized_and_padded(image, *numbers) for image in x.numpy()])
        p = p + model(torch.from_numpy(changed)).softmax(1) / 6
    torch.testing.assert_close(RandomResizePad(model, draws=6)(x).softmax(1), p)


def test_resize_and_pad_draws_everything(x):
    seen = {"size": set(), "top": set(), "left": set(), "mirrored": set()}
    ramp = torch.linspace(0.5, 1, 32).expand(1, 3, 32, 32)
    for q in RandomResizePad(nn.Identity(), draws=400).transforms(32, 32):
        z = q(ramp)[0, 0]
        assert z.shape == (36, 36)
        rows, columns = (z > 0).any(1).nonzero()[:, 0], (z > 0).any(0).nonzero()[:, 0]
        assert len(rows) == len(columns) == rows[-1] - rows[0] + 1
        seen["size"].add(len(rows))
        seen["top"].add(int(rows[0]))
        seen["left"].add(int(columns[0]))
        seen["mirrored"].add(bool(z[rows[0], columns[0]] > z[rows[0], columns[-1]]))
    assert seen == {"size": {33, 34, 35}, "top": {0, 1, 2, 3}, "left": {0, 1, 2, 3}, "mirrored": {False, True}}
    (paper,) = RandomResizePad(nn.Identity(), draws=1).transforms(299, 299)
    assert paper(torch.ones(1, 1, 299, 299)).shape == (1, 1, 331, 331)


def test_an_ensemble_that_moves_nothing_is_the_mean_of_its_members(model, x):
    other = nn.Sequential(model, nn.Linear(5, 5))
    still = RandomEnsemble([model, other], draws=2, rotation=0, shear=0, shift=0, zoom=0)
    torch.testing.assert_close(still(x).softmax(1), (model(x).softmax(1) + other(x).softmax(1)) / 2)


def test_the_maps_are_what_they_are_called():
    eye = torch.eye(2)
    some = {"rotation": 0.0, "shear": 0.0, "shift": 0.0, "zoom": 0.0}
    one = [nn.Identity()]
    a = RandomEnsemble(one, draws=300, **some | {"rotation": 10.0}).maps()[0]
    torch.testing.assert_close(a[:, :, :2] @ a[:, :, :2].mT, eye.expand(300, 2, 2))
    angle = torch.rad2deg(torch.asin(a[:, 1, 0]))
    assert -10 <= angle.min() < -9
    assert 9 < angle.max() <= 10
    a = RandomEnsemble(one, draws=300, **some | {"shift": 0.1}).maps()[0]
    torch.testing.assert_close(a[:, :, :2], eye.expand(300, 2, 2))
    assert 0.19 < a[:, :, 2].abs().max() <= 0.2  # the side is 2 long in these coordinates
    a = RandomEnsemble(one, draws=300, **some | {"zoom": 0.2}).maps()[0]
    assert a[:, 0, 0].min() == pytest.approx(1 / 1.2, abs=0.01)
    assert a[:, 0, 0].max() == pytest.approx(1 / 0.8, abs=0.02)
    a = RandomEnsemble(one, draws=300, **some | {"shear": 0.3}).maps()[0]
    torch.testing.assert_close(torch.linalg.det(a[:, :, :2]), torch.ones(300))
    assert a[:, 0, 1].abs().max() == pytest.approx(0.3, abs=0.01)


# --- compression ----------------------------------------------------------------------------------------------------


def distilled(channel):
    """A channel by SciPy, block by block."""
    q = np.full((8, 8), 30.0)
    q[:4, :4] = 25
    out = np.empty_like(channel)
    for i in range(0, channel.shape[0], 8):
        for j in range(0, channel.shape[1], 8):
            levels = dctn(255 * channel[i:i + 8, j:j + 8], norm="ortho") / q
            out[i:i + 8, j:j + 8] = idctn(np.round(levels) * q, norm="ortho") / 255
    return out.clip(0, 1)


def test_feature_distillation_against_scipy_on_every_image(model):
    scenes = kit.data.load("scenes", "test", n=6).x.double()
    q = FeatureDistillation(model).double().purify
    found = q(scenes)
    for image, result in zip(scenes.numpy(), found.numpy(), strict=True):  # the first as well
        for channel, expected in zip(image, result, strict=True):
            assert np.abs(distilled(channel) - expected).max() < 1e-6
    assert 0.005 < (found - scenes).abs().mean() < 0.05
    torch.testing.assert_close(q(scenes[:, :, :28, :20]), q(torch.nn.functional.pad(
        scenes[:, :, :28, :20], (0, 4, 0, 4), mode="replicate"))[:, :, :28, :20])


def test_feature_distillation_removes_what_is_smaller_than_its_steps(model):
    flat = torch.full((1, 3, 32, 32), 0.5)
    q = FeatureDistillation(model).purify
    noisy = flat + 2 / 255 * torch.randn(flat.shape, generator=generator(0))
    torch.testing.assert_close(q(noisy), q(flat), rtol=0, atol=1e-5)
    wave = flat + 0.2 * torch.sin(torch.arange(32.0))
    assert (q(wave) - wave).abs().max() < 0.08  # and keeps what is larger


def by_pillow(images, quality):
    """The same images (N, C, H, W) out of a file."""
    found = []
    for image in (255 * images).round().byte().numpy():
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(file, "JPEG", quality=quality, subsampling=0)
        array = np.asarray(Image.open(file), dtype=np.float32) / 255
        found.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
    return torch.from_numpy(np.stack(found))


@pytest.mark.parametrize("quality", [10, 50, 75, 95])
def test_jpeg_is_the_one_of_files(model, quality):
    """But for what lies at a half: libjpeg computes in whole numbers."""
    scenes = (255 * kit.data.load("scenes", "test", n=6).x).round() / 255
    for images in (scenes, scenes[:, :1], scenes[:, :, :27, :21]):
        ours, theirs = JPEG(model, quality).purify(images), by_pillow(images, quality)
        apart = (ours - theirs).abs()
        assert apart.mean() < 0.7 / 255
        assert (apart < 4 / 255).float().mean() > 0.98


def test_a_squeezed_network_answers_about_squeezed_images(model, x):
    torch.testing.assert_close(Squeezed(model, "bit_depth", 1)(x), model((x > 0.5).float()))
    assert torch.equal(Squeezed(model, "median", 1)(x), model(x))


def test_straight_through_sees_what_rounding_hides():
    """A linear model behind a rounding that has no gradient: without help the attack stays where it is."""
    q = lambda x: (8 * x).round() / 8  # noqa: E731
    w = torch.linspace(0.5, 1, 16)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    linear[1].weight.data = torch.stack([w, -w])
    hidden, seen = Through(linear, q), Through(linear, straight_through(q))
    grey, y = torch.full((1, 1, 4, 4), 0.4), torch.zeros(1).long()
    assert torch.equal(hidden(grey), seen(grey))
    v, g = grey.clone().requires_grad_(), torch.randn(grey.shape, generator=generator(0))
    assert torch.equal(torch.autograd.grad((straight_through(q)(v) * g).sum(), v)[0], g)
    torch.testing.assert_close(bim(seen, grey, y, eps=0.1), grey - 0.1)
    with pytest.raises(ValueError, match="keep the images' shape"):
        straight_through(lambda x: x[:, :1, :2])(grey)


def test_a_code_is_binary_and_can_be_seen_through(x):
    codec = stirred(Codec())
    b = codec.code(x)
    assert b.shape == (5, 12, 32, 32)
    assert set(b.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(b, (codec.logits(x) > 0).float())
    torch.testing.assert_close(codec(x), codec.decode(b))
    assert [m.out_channels for m in codec.encoder if isinstance(m, nn.Conv2d)] == [8, 12, 16, 24, 24, 24, 16, 12, 12]
    assert sum(isinstance(m, nn.Conv2d) for m in codec.decoder) == 9


# --- the two that are learned ---------------------------------------------------------------------------------------


def test_an_untrained_denoiser_changes_nothing_and_folds(x):
    network = UNet().eval()
    torch.testing.assert_close(network(x), x)
    network = stirred(network)
    folded = fold_batch_norm(network, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(x), network(x), rtol=1e-4, atol=1e-4)
    bare = build("hgd/scenes")
    bare.load_state_dict(folded.state_dict())
    torch.testing.assert_close(bare.eval()(x), folded(x))


def test_adversarial_versions(linear):
    model, x, y = linear
    eps = 0.1
    made = adversarial_versions(x.repeat(10, 1, 1, 1), y.repeat(10), [model], eps, generator(0))
    size = (made - x.repeat(10, 1, 1, 1)).flatten(1).abs().amax(1)
    assert 0.1 < (size == 0).float().mean() < 0.3  # a fifth stays clean
    assert size.max() <= eps + 1e-6
    assert abs(size[size > 0].mean() - eps / 2) < 0.01
    margin = lambda z: z.gather(1, y.repeat(10)[:, None])[:, 0]  # noqa: E731
    moved = size > 0
    worse = model(made).log_softmax(1), model(x.repeat(10, 1, 1, 1)).log_softmax(1)
    assert (margin(worse[0]) < margin(worse[1]))[moved].all()


def test_the_denoiser_is_trained_to_give_the_guide_its_logits_back(model, monkeypatch):
    monkeypatch.setattr(kit.models, "load", lambda name, device=None: model)
    x = kit.data.load("scenes", "train", n=160).x[:, :, ::2, ::2].contiguous()
    y = model(x).argmax(1)
    recipe = Recipe("none", "unet", {"width": 4}, epochs=8, batch=32)
    network = denoiser_training(
        recipe, x, y, guide="guide", sources=["guide"], eps=0.1, device=torch.device("cpu")).eval()
    x_adv = bim(model, x, y, eps=0.1)
    error = [(model(v) - model(x)).abs().mean().item() for v in (x_adv, network(x_adv))]
    assert error[1] < 0.8 * error[0]
    assert all(p.requires_grad for p in network.parameters())


def test_the_codec_is_trained_to_survive_rounding():
    g = generator(0)
    x = torch.rand(128, 1, 1, 1, generator=g).expand(-1, 1, 8, 8).contiguous()
    recipe = Recipe("none", "codec", {"channels": 1, "widths": (4, 4), "bits": 6}, epochs=40, batch=16, lr=1e-2)
    network = codec_training(recipe, x, torch.zeros(128).long(), noise=8.0, device=torch.device("cpu")).eval()
    with torch.no_grad():
        assert (network(x) - x).square().mean() < 0.15 * x.var()
        assert Codec()(torch.rand(2, 3, 32, 32, generator=g)).flatten(1).std(dim=1).min() > 0.05  # nothing fades


def test_what_trains_them_draws_from_its_own_seed(linear):
    """Whatever the ambient random state is, and other draws with another seed."""
    model, x, y = linear
    pictures = torch.rand(32, 1, 8, 8, generator=generator(0))
    recipe = Recipe("none", "codec", {"channels": 1, "widths": (4, 4), "bits": 6}, epochs=2, batch=16)

    def codec(seed):
        network = codec_training(recipe, pictures, torch.zeros(32).long(), seed=seed, device=torch.device("cpu"))
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    def versions(seed):
        return adversarial_versions(x, y, [model], 0.1, generator(seed))

    for made in (codec, versions):
        torch.manual_seed(1)
        first = made(0)
        torch.manual_seed(2)
        assert torch.equal(first, made(0))
        assert not torch.equal(first, made(1))


@pytest.fixture(scope="module")
def attacked():
    """200 scenes, and BIM at 16/255 against a network that the denoiser never met."""
    d = kit.data.load("scenes", "test", n=200)
    return d, bim(kit.models.load("scenes/mobilenet"), d.x, d.y, eps=16 / 255)


def test_the_denoiser_undoes_attacks_from_a_network_it_never_met(attacked):
    d, x_adv = attacked
    model = kit.models.load("scenes/inception")
    victim = HGD(model)
    assert accuracy(victim, d.x, d.y) > 0.94
    assert accuracy(victim, x_adv, d.y) > accuracy(model, x_adv, d.y) + 0.2
    z = logits(model, d.x)
    error = [(logits(v, x_adv) - z).abs().mean().item() for v in (model, victim)]
    assert error[1] < 0.6 * error[0]
    # What it takes away is the perturbation, and not only something as large.
    change, noise = victim.purify(x_adv) - x_adv, x_adv - d.x
    assert torch.nn.functional.cosine_similarity(-change.flatten(1), noise.flatten(1)).mean() > 0.2


def test_the_codec_keeps_the_image_and_loses_some_of_the_attack(attacked):
    d, x_adv = attacked
    victim = ComDefend(kit.models.load("scenes/inception"))
    assert (victim.purify(d.x) - d.x).square().mean() < 0.004
    assert accuracy(victim, d.x, d.y) > 0.65  # the image survives, the classifier that never saw a decoded one less
    lost = [accuracy(v, d.x, d.y) - accuracy(v, x_adv, d.y) for v in (victim.model, victim)]
    assert lost[1] < 0.6 * lost[0]
    assert accuracy(ComDefend(kit.models.load("ens3/inception")), d.x, d.y) > 0.8


def test_what_makes_no_sense(model):
    with pytest.raises(ValueError, match="no squeezer 'blur'"):
        Squeezed(model, "blur")
    with pytest.raises(ValueError, match=r"quality must be 1 … 100"):
        JPEG(model, 0)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        JPEG(model)(torch.rand(1, 2, 8, 8))
    with pytest.raises(ValueError, match="draws must be 1 or more"):
        RandomResizePad(model, draws=0)
    with pytest.raises(ValueError, match="at least one model"):
        RandomEnsemble([])

"""LIME and KernelSHAP: planted linear models, exact Shapley values, the `lime` package on the same samples."""
import math
import types

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from kit.core import QueryCounter, generator
from kit.explain import (
    image_game,
    kernel_shap,
    lime,
    lime_table,
    shapley,
    sp_lime,
    stability,
    superpixels,
    surrogate,
    table_game,
    text_game,
)
from kit.explain.lime import _near


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
                          nn.Linear(128, 5)).eval()
    with torch.no_grad():
        model[4].weight.mul_(30)
    return model


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 16, 16, generator=generator(1))


@pytest.fixture(scope="module")
def wine():
    data = load_wine()
    return data, make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(data.data, data.target)


def brightness(x):
    """A plain function of a NumPy batch that reads only the top left quarter, positively, and the bottom right."""
    return 0.5 + x[:, :, :8, :8].mean((1, 2, 3)) / 2 - x[:, :, 8:, 8:].mean((1, 2, 3)) / 4


def ranks(a):
    return torch.as_tensor(a).argsort().argsort().double()


def rank_correlation(a, b):
    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


def test_lime_finds_the_weights_of_a_model_that_is_linear_in_its_pieces(images):
    quarters = superpixels(images[:1], "grid", side=8)[0]
    game = image_game(brightness, images[:1], quarters, 0, fill=0.0)
    found = surrogate(game, ridge=1e-8, samples=200)
    top, bottom = float(images[0, :, :8, :8].mean()) / 2, -float(images[0, :, 8:, 8:].mean()) / 4
    assert torch.allclose(found.weights, torch.tensor([top, 0, 0, bottom], dtype=torch.float64), atol=1e-5)
    assert found.intercept == pytest.approx(0.5, abs=1e-5)
    assert found.r2 > 0.999999
    assert found.prediction == pytest.approx(found.value, abs=1e-5)
    ridged = surrogate(game, samples=200)
    assert float(ridged.weights[0]) < top  # ridge shrinks
    curved = surrogate(image_game(lambda x: brightness(x) ** 8, images[:1], quarters, 0, fill=0.0))
    assert 0.5 < curved.r2 < 0.999  # pieces that interact cannot be fitted so


@pytest.mark.parametrize("select", ["weights", "forward", "lasso"])
def test_feature_selection_keeps_the_pieces_that_matter(images, select):
    quarters = superpixels(images[:1], "grid", side=8)[0]
    game = image_game(brightness, images[:1], quarters, 0, fill=0.0)
    found = surrogate(game, ridge=1e-8, samples=300, keep=2, select=select)
    assert found.weights.nonzero().flatten().tolist() == [0, 3]
    assert surrogate(game, ridge=1e-8, samples=300, keep=1, select=select).weights.nonzero().flatten().tolist() == [0]


def test_kernel_shap_with_all_coalitions_is_the_exact_shapley_value(network, images):
    segments = superpixels(images[:1], "grid", side=6)[0]
    game = image_game(network, images[:1], segments, 2)
    exact = shapley(game)
    found = surrogate(game, kernel="shap", samples=2**9)
    assert game.players == 9
    assert torch.allclose(found.weights, exact, atol=1e-6)
    assert float(exact.sum()) == pytest.approx(found.value - found.intercept, abs=1e-9)
    sampled = surrogate(game, kernel="shap", samples=250)
    assert torch.corrcoef(torch.stack([sampled.weights, exact]))[0, 1] > 0.95
    assert float(sampled.weights.sum()) == pytest.approx(float(exact.sum()), abs=1e-9)
    assert not torch.allclose(surrogate(game, samples=2**9).weights, exact, atol=1e-4)  # the kernel matters


def test_shapley_values_of_games_that_are_known_by_hand():
    glove = table_game(lambda x: np.minimum(x[:, 0], x[:, 1] + x[:, 2]).clip(0, 1), np.ones(3), np.zeros(3))
    assert torch.allclose(shapley(glove), torch.tensor([4 / 6, 1 / 6, 1 / 6], dtype=torch.float64))
    found = surrogate(glove, kernel="shap", samples=8)
    assert torch.allclose(found.weights, torch.tensor([4 / 6, 1 / 6, 1 / 6], dtype=torch.float64))


def test_shapley_values_of_a_linear_model_against_a_background(wine):
    data, _ = wine
    w = np.arange(13) - 6.0
    found = surrogate(table_game(lambda x: x @ w, data.data[0], data.data[::6], 0), kernel="shap", samples=3000)
    by_hand = w * (data.data[0] - data.data[::6].mean(0))
    assert np.allclose(found.weights.numpy(), by_hand, atol=1e-6 * np.abs(by_hand).max())


def test_coefficients_are_those_of_the_definition(network, images):
    """Weighted ridge by scikit-learn on the same coalitions, with the authors' kernel."""
    from sklearn.linear_model import Ridge

    segments = superpixels(images[:1], "grid", side=3)[0]
    game = image_game(network, images[:1], segments, 1)
    found = surrogate(game, samples=300, generator=generator(5))
    b = torch.cat(list(_near(game.players, 300, game.batch, "half", generator(5))))
    v = game.value(b)
    cosine = 1 - b.double().sum(1).sqrt() / math.sqrt(game.players)
    weight = torch.sqrt(torch.exp(-(cosine**2) / 0.25**2))
    model = Ridge(alpha=1).fit(b.double(), v, sample_weight=weight)
    assert bool(b[0].all())
    assert np.allclose(found.weights, model.coef_, atol=1e-9)
    assert found.intercept == pytest.approx(model.intercept_)
    assert found.r2 == pytest.approx(model.score(b.double(), v, sample_weight=weight))


@pytest.mark.peers
def test_the_lime_package_agrees_on_the_same_segments_and_samples(network, images):
    base = pytest.importorskip("lime.lime_base")
    segments = superpixels(images[:1], "grid", side=3)[0]
    game = image_game(network, images[:1], segments, 1)
    found = surrogate(game, samples=500, generator=generator(5))
    b = torch.cat(list(_near(game.players, 500, game.batch, "half", generator(5)))).double()
    v = game.value(b.bool())[:, None].numpy()
    distances = 1 - b.sum(1).sqrt().numpy() / math.sqrt(game.players)
    kernel = base.LimeBase(lambda d: np.sqrt(np.exp(-(d**2) / 0.25**2)))
    answer = kernel.explain_instance_with_data(b.numpy(), v, distances, 0, game.players, feature_selection="none")
    theirs = dict(answer[1])
    assert rank_correlation(found.weights, [theirs[k] for k in range(game.players)]) > 0.99


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_lime_package_explains_images_alike_on_the_same_segments_and_samples(network, images, monkeypatch, seed):
    """LimeImageExplainer from the image to the weights, and kit's surrogate on the coalitions that it drew."""
    package = pytest.importorskip("lime.lime_image")
    segments = superpixels(images[:1], "grid", side=3)[0]
    game = image_game(network, images[:1], segments, 1)
    drawn = np.random.RandomState(seed).randint(0, 2, (500, game.players))
    drawn[0] = 1
    monkeypatch.setitem(surrogate.__globals__, "_near", lambda *given: iter(torch.tensor(drawn == 1).split(game.batch)))
    found = surrogate(game, samples=500).weights

    def probabilities(batch):
        with torch.no_grad():
            return network(torch.tensor(batch).permute(0, 3, 1, 2)).softmax(1).numpy()

    state = np.random.RandomState(seed)
    explainer = package.LimeImageExplainer(random_state=state, feature_selection="none")
    answer = explainer.explain_instance(
        images[0].permute(1, 2, 0).numpy(), probabilities, labels=(1,), top_labels=None, num_samples=500,
        num_features=game.players, segmentation_fn=lambda image: segments.numpy(), random_seed=0)
    theirs = dict(answer.local_exp[1])
    assert rank_correlation(found, [theirs[k] for k in range(game.players)]) > 0.99


def test_lime_and_kernel_shap_return_maps_of_each_image_alone(network, images):
    parts = superpixels(images, "grid", side=4)
    for explain in (lime, kernel_shap):
        maps = explain(network, images, segments=parts, samples=100)
        assert maps.shape == (3, 16, 16)
        alone = explain(network, images[2:], segments=parts[2:], samples=100)
        assert torch.allclose(maps[2:], alone, atol=1e-6)
        assert all(len(maps[i][parts[i] == s].unique()) == 1 for i in range(3) for s in range(4))
        other = explain(network, images, torch.tensor([0, 1, 2]), segments=parts, samples=100)
        assert not torch.allclose(maps, other)
        assert torch.equal(maps, explain(network, images, segments=parts, samples=100))
        with pytest.raises(ValueError, match="no gradient"):
            explain(network, images, create_graph=True)


def test_the_generator_decides_the_coalitions(network, images):
    parts = superpixels(images, "grid", side=4)
    for explain in (lime, kernel_shap):
        first, again, other = (
            explain(network, images, segments=parts, samples=60, generator=generator(s)) for s in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.allclose(first, other, atol=1e-3)


def test_around_a_row_of_a_table_the_row_itself_is_one_sample():
    asked = []
    lime_table(lambda x: asked.append(x) or x, np.ones(2), np.eye(2), 0, samples=2500)
    assert (np.concatenate(asked[1:]) == 1).all(1).nonzero()[0].tolist() == [0]  # not the first of each chunk


def test_the_same_model_as_module_function_and_scikit_learn_object(images):
    data = load_digits()
    sk = LogisticRegression(max_iter=2000).fit(data.data / 16, data.target)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor(sk.coef_)), module[1].bias.copy_(torch.tensor(sk.intercept_))
    x = torch.tensor(data.images[:2] / 16)[:, None]
    parts = superpixels(x, "grid", side=2)

    def function(batch):
        assert isinstance(batch, np.ndarray)
        assert batch.shape[1:] == (1, 8, 8)
        return sk.predict_proba(batch.reshape(len(batch), -1))

    maps = [lime(f, x, segments=parts, samples=200, fill=0.0) for f in (module, sk, function)]
    assert float(maps[0].abs().max()) > 1e-3
    assert torch.allclose(maps[0], maps[1], atol=1e-9)
    assert torch.allclose(maps[1], maps[2], atol=1e-12)


def test_lime_for_a_table_is_the_gradient_of_a_linear_model_in_standard_deviations(wine):
    data, model = wine
    w = np.arange(13) - 6.0
    found = lime_table(lambda x: x @ w + 3, data.data[0], data.data, ridge=1e-8)
    assert np.allclose(found.weights.numpy(), w * data.data.std(0), rtol=1e-5, atol=1e-4)
    assert found.prediction == pytest.approx(float(data.data[0] @ w + 3), rel=1e-6)
    assert found.game.pieces[0] == "column 0"
    real = lime_table(model, data.data[0], data.data, names=data.feature_names)
    assert real.game.pieces[int(real.weights.argmax())] in ("proline", "alcohol", "flavanoids")
    assert 0.1 < real.r2 < 1  # a confident classifier is far from linear over a standard deviation


def test_lime_for_text_finds_the_planted_words():
    def sentiment(texts):
        return np.array([[0.5 - s, 0.5 + s] for s in (0.3 * ("good" in t) - 0.2 * ("dull" in t) for t in texts)])

    game = text_game(sentiment, "A good film, and a good cast; only the end is dull.", 1)
    found = surrogate(game, samples=500, draw="sizes", ridge=1e-6)
    weights = dict(zip(game.pieces, found.weights.tolist(), strict=True))
    assert len(game.pieces) == 11  # "A" and "a" are two words, "good" one
    assert weights["good"] == pytest.approx(0.3, abs=1e-4)
    assert weights["dull"] == pytest.approx(-0.2, abs=1e-4)
    assert sum(abs(w) for word, w in weights.items() if word not in ("good", "dull")) < 1e-3


@pytest.mark.parametrize("method", ["slic", "quickshift", "felzenszwalb", "watershed", "grid"])
@pytest.mark.parametrize("channels", [1, 3])
def test_segmenters_number_every_pixel(images, method, channels):
    smooth = nn.functional.interpolate(images[:2, :channels, ::4, ::4], size=32, mode="bilinear")
    parts = superpixels(smooth, method)
    assert parts.shape == (2, 32, 32)
    assert parts.dtype == torch.int64
    for part in parts:
        assert part.unique().tolist() == list(range(int(part.max()) + 1))
        assert int(part.max()) > 1


def test_samples_are_asked_for_in_chunks_and_counted(network, images):
    largest = []

    class Watched(nn.Module):
        def forward(self, x):
            largest.append(len(x))
            return network(x)

    counter = QueryCounter(Watched(), 2)
    lime(counter, images[:2], segments=superpixels(images[:2], "grid"), samples=1500)
    assert counter.counts.tolist() == [1501, 1501]
    assert max(largest) <= 256
    counter = QueryCounter(Watched(), 2)
    kernel_shap(counter, images[:2], segments=superpixels(images[:2], "grid", side=2), samples=1500)
    assert counter.counts.tolist() == [1501, 1501]


def test_stability_rises_with_the_number_of_samples(network, images):
    game = image_game(network, images[:1], superpixels(images[:1], "grid", side=3)[0], 0)
    few = stability(lambda g: surrogate(game, samples=60, generator=g), top=5)
    many = stability(lambda g: surrogate(game, samples=2000, generator=g), top=5)
    assert few[0] < many[0] <= 1
    assert float(many[1].mean()) < float(few[1].mean()) / 2
    assert stability(lambda g: types.SimpleNamespace(weights=torch.arange(9.0)))[0] == 1


def test_sp_lime_covers_the_important_features_first():
    W = torch.tensor([[0, 5.0, 0, 0], [3.0, 0, 0, 0], [3.0, 0, 1, 0], [0, 4, 0, 0.0], [0, 0, 0, 0.1]])
    assert sp_lime(W, 3).tolist() == [2, 0, 4]
    assert len(set(sp_lime(W, 5).tolist())) == 5


def test_bad_input_is_refused_with_what_to_do(network, images):
    segments = superpixels(images[:1], "grid")[0]
    game = image_game(network, images[:1], segments)
    for options, message in (({"kernel": "rbf"}, "kernel must be"), ({"select": "best"}, "select must be"),
                             ({"keep": 99}, "keep must lie"), ({"samples": 1}, "samples must be")):
        with pytest.raises(ValueError, match=message):
            surrogate(game, **options)
    with pytest.raises(ValueError, match="use surrogate"):
        shapley(game)
    with pytest.raises(ValueError, match=r"use x\[:1\]"):
        image_game(network, images, segments)
    with pytest.raises(ValueError, match="segments must have"):
        image_game(network, images[:1], segments[:4])
    with pytest.raises(ValueError, match="one piece"):
        image_game(network, images[:1], torch.zeros(16, 16))
    with pytest.raises(TypeError, match="predict must be"):
        image_game("resnet", images[:1], segments)
    with pytest.raises(ValueError, match="predict must return"):
        image_game(lambda x: 1.0, images[:1], segments)
    with pytest.raises(ValueError, match="holds no words"):
        text_game(lambda t: np.zeros((len(t), 2)), " … ")
    with pytest.raises(ValueError, match="method must be"):
        superpixels(images, "voronoi")
    with pytest.raises(ValueError, match="budget must lie"):
        sp_lime(torch.ones(2, 2), 3)


@pytest.mark.parametrize(("text", "words"), [
    ("The film isn't good.", ("The", "film", "isn", "t", "good")),
    ("这家餐厅差，很差", ("这", "家", "餐", "厅", "差", "很")),
    ("カメラ2台 good", ("カ", "メ", "ラ", "2", "台", "good")),
    ("อาหารดี", ("อ", "า", "ห", "ร", "ดี")),
    ("यह फ़िल्म अच्छी है", ("यह", "फ़िल्म", "अच्छी", "है")),
    ("좋은 영화", ("좋은", "영화")),
    ("naïve cafe\u0301", ("naïve", "cafe\u0301")),
])
def test_words_and_where_there_are_no_spaces_characters(text, words):
    game = text_game(lambda texts: [[len(t), 0.0] for t in texts], text)
    assert game.pieces == words
    shown = game.value(torch.ones(1, len(words), dtype=torch.bool))
    assert float(shown) == len(text)


def test_the_character_that_decides_gets_the_weight():
    found = surrogate(text_game(lambda texts: [[0.1 + 0.8 * ("差" in t), 0.9 - 0.8 * ("差" in t)] for t in texts],
                                "这家餐厅的服务非常差"), ridge=1e-8, samples=200)
    assert found.game.pieces[int(found.weights.abs().argmax())] == "差"
    assert float(found.weights.abs().max()) == pytest.approx(0.8, abs=0.02)

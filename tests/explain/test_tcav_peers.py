"""Agreement with captum on the same vectors where it is right; and with what it documents, where it computes other."""
import pytest
import torch

from kit.explain import ConceptTest
from kit.explain.tcav import summary
from tests.explain.test_explain_peers import TARGET, network

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


def test_captum_scores_the_same_vectors_alike(tmp_path):
    """Its sign count is our score. Its magnitude is documented as the share of positive derivatives, which is our
    ratio, and computed as their mean, which is our mean."""
    concept = pytest.importorskip("captum.concept")
    draws = torch.Generator().manual_seed(0)
    pool, base = torch.rand(40, 3, 16, 16, generator=draws), torch.rand(60, 3, 16, 16, generator=draws)
    pool[:, 0] = (pool[:, 0] + 0.3).clamp(0, 1)
    model, x = network("resnet"), torch.rand(12, 3, 16, 16, generator=draws)
    ours = ConceptTest(model, "block1", runs=2, images=12).fit({"red": pool}, base)

    class Ours(concept.Classifier):
        """Hands over our vectors, one for each pair of concepts that captum sets against each other."""

        def __init__(self):
            self.left = [ours.cavs[0, r].flatten() for r in range(2)]

        def train_and_eval(self, dataloader, **kwargs):
            self.v, self.ids = self.left.pop(0), sorted({int(k) for _, kinds in dataloader for k in kinds})
            return {"accs": torch.tensor(1.0)}

        def weights(self):
            return torch.stack([self.v, -self.v])

        def classes(self):
            return self.ids

    sets = [concept.Concept(k, str(k), torch.utils.data.DataLoader(base[:6])) for k in range(3)]
    theirs = concept.TCAV(model, ["block1"], classifier=Ours(), save_path=str(tmp_path))
    found = theirs.interpret(x, [[sets[0], sets[1]], [sets[0], sets[2]]], target=int(TARGET[3]))
    scores = [found[key]["block1"] for key in ("0-1", "0-2")]
    S = ours.derivatives(x, torch.full((12,), int(TARGET[3])))[:, 0]
    for r in range(2):
        assert float(scores[r]["sign_count"][0]) == pytest.approx(float(summary(S, "sign")[r]), abs=1e-6)
        assert float(scores[r]["magnitude"][0]) == pytest.approx(float(summary(S, "mean")[r]), rel=1e-3)
        documented = float(S[:, r].clamp_min(0).sum() / S[:, r].abs().sum())
        assert float(summary(S, "ratio")[r]) == pytest.approx(documented, rel=1e-6)
        assert abs(float(scores[r]["magnitude"][0]) - documented) > 0.5
    assert 0 < float(summary(S, "sign").min()) < float(summary(S, "sign").max()) < 1

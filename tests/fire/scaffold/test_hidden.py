"""The scaffold: a detector that is perfect, one that is blind, and a fitted one; what explainers ask, by its law."""
import numpy as np
import pytest
import torch

from kit.core import generator
from kit.explain import lime_table, shapley, surrogate, table_game
from kit.fire import Scaffold, applicants, lime_probes, shap_probes

AGE, HOUSE = 0, 9


def by_age(rows):
    return (rows[:, AGE] < 0).astype(float)


def by_house(rows):
    return (rows[:, HOUSE] > 0).astype(float)


class Known:
    """A detector that is never wrong: it knows the real rows by heart."""

    def __init__(self, rows):
        self.seen = {row.tobytes() for row in rows}

    def predict_proba(self, rows):
        made = np.array([row.tobytes() not in self.seen for row in rows], dtype=float)
        return np.column_stack([1 - made, made])


@pytest.fixture(scope="module")
def people():
    return applicants(600, generator(0))[0]


@pytest.fixture(scope="module")
def hidden(people):
    return Scaffold(by_age, by_house, trees=40).fit(people, copies=5)


def first(model, row, people, samples=500):
    return int(lime_table(model, row, people, 0, samples=samples).weights.abs().argmax())


def test_with_a_perfect_detector_lime_shows_the_innocuous_model_and_people_meet_the_biased_one(people):
    perfect = Scaffold(by_age, by_house)
    perfect.forest = Known(people)
    assert (perfect.predict_proba(people)[:, 0] == by_age(people)).all()
    row = people[by_age(people) == by_house(people)][0]  # the row itself is asked about too
    shown, innocuous = (lime_table(m, row, people, 0, samples=300).weights for m in (perfect, by_house))
    assert torch.equal(shown, innocuous)
    assert int(shown.abs().argmax()) == HOUSE


@pytest.mark.parametrize(("threshold", "alone"), [(1.0, by_age), (-1.0, by_house)])
def test_a_detector_that_is_not_heard_leaves_one_model_alone(people, hidden, threshold, alone):
    blind = Scaffold(by_age, by_house, threshold=threshold)
    blind.forest = hidden.forest
    game, same = (table_game(m, people[3], people[:5], 0) for m in (blind, alone))
    assert torch.allclose(shapley_first(game), shapley_first(same))
    assert first(blind, people[3], people) == (AGE if alone is by_age else HOUSE)


def shapley_first(game):
    return surrogate(game, kernel="shap", samples=300).weights


def test_a_fitted_scaffold_is_biased_towards_new_people_and_innocuous_towards_lime(people, hidden):
    new = applicants(200, generator(1))[0]
    assert (hidden.predict_proba(new)[:, 0] == by_age(new)).mean() > 0.85
    assert hidden.hides(new).mean() < 0.35
    assert hidden.hides(lime_probes(people)(new, generator(2))).mean() > 0.9
    named = {model: [first(model, row, people) for row in new[:12]] for model in (hidden, by_age)}
    assert named[by_age].count(AGE) >= 11  # of who is far from the median, LIME's rows seldom cross it
    assert named[hidden].count(HOUSE) >= 11


def test_on_the_rows_it_was_fitted_on_the_detector_looks_better_than_it_is(people, hidden):
    probes, new = lime_probes(people), applicants(600, generator(1))[0]
    remembered, honest = hidden.separates(people, probes), hidden.separates(new, probes)
    assert 0.9 < honest < remembered - 0.005
    same = hidden.separates(new, lambda rows, source: rows)
    assert abs(same - 0.5) < 1e-9


def test_against_shap_it_learns_what_shap_asks(people):
    background, new = people[:20], applicants(200, generator(1))[0]
    scaffold = Scaffold(by_age, by_house, trees=40).fit(people, probes=shap_probes(background), copies=5)
    assert scaffold.separates(new, shap_probes(background)) > 0.7
    row = new[0]
    game, alone = (table_game(m, row, background, 0) for m in (scaffold, by_age))
    age, house = surrogate(game, kernel="shap", samples=200).weights[[AGE, HOUSE]].abs()
    assert house > age
    assert float(shapley(alone).abs()[1:].max()) < 1e-12  # the biased model alone has age, and nothing else


def test_the_probes_have_the_law_of_the_explainers_questions():
    rows, background = np.zeros((20000, 5)), 1 + np.arange(15.0).reshape(3, 5)
    made = shap_probes(background)(rows, generator(0))
    hidden_columns = made != 0
    where = hidden_columns[:, :, None] & (made[:, :, None] == background.T[None])
    assert (where.any(2) == hidden_columns).all()  # a hidden column has a value of the background …
    filler = where.any(1).sum(1)
    assert (filler == 1).all()  # … and all of them have the same row's
    size = np.bincount(5 - hidden_columns.sum(1), minlength=6)[1:5] / len(rows)
    mass = np.array([4 / (k * (5 - k)) for k in range(1, 5)])
    assert np.allclose(size, mass / mass.sum(), atol=0.015)
    data = np.random.default_rng(0).normal(size=(500, 3)) * [1.0, 5.0, 0.1]
    spread = (lime_probes(data)(np.zeros((20000, 3)), generator(0))).std(0)
    assert np.allclose(spread, data.std(0), rtol=0.03)


def test_the_made_people_have_three_causes_and_a_house_number_that_has_none():
    rows, names = applicants(5000, generator(3))
    r = np.corrcoef(rows.T)
    assert names[AGE] == "age"
    assert names[HOUSE] == "house number"
    causes = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 3])
    alike = (causes[:, None] == causes) & ~np.eye(10, dtype=bool)
    assert np.allclose(r[alike], 1 / 1.09, atol=0.02)
    assert np.allclose(r[causes[:, None] != causes], 0, atol=0.06)
    assert np.allclose(rows.std(0), 1, atol=0.04)


def test_a_fit_repeats_and_leaves_the_ambient_state(people):
    state = torch.get_rng_state()
    a, b = (Scaffold(by_age, by_house, trees=5).fit(people, copies=1, generator=generator(4)) for _ in range(2))
    assert (a.score(people) == b.score(people)).all()
    assert torch.equal(state, torch.get_rng_state())


def test_mistakes_get_one_sentence(people):
    with pytest.raises(RuntimeError, match="call fit"):
        Scaffold(by_age, by_house).predict_proba(people)
    with pytest.raises(ValueError, match="every perturbed row is a real one"):
        Scaffold(by_age, by_house).fit(people, probes=lambda rows, source: rows)
    with pytest.raises(ValueError, match="NaN"):
        Scaffold(by_age, by_house).fit(people * np.nan)
    with pytest.raises(ValueError, match="one row"):
        Scaffold(by_age, by_house).fit(people[0])
    two = Scaffold(by_age, lambda rows: np.stack([by_house(rows)] * 2, 1), trees=3).fit(people, copies=1)
    with pytest.raises(ValueError, match="same classes"):
        two.predict_proba(people)

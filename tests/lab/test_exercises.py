"""Every exercise: the right answer passes, a stub does not, and each named wrong answer gets its own hint."""
import numpy as np
import pytest
import torch

from kit.core import generator
from kit.lab import EXERCISES, check, exercise, judge, marks, marks_number
from kit.lab.checks import tensors

NAMES = sorted(EXERCISES)
MISTAKES = [(name, wrong) for name in NAMES for wrong in EXERCISES[name].wrong]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 17, 7936])
def test_the_right_answer_passes_on_any_seed(name, seed):
    assert judge(name, EXERCISES[name].right, seed=seed).passed


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_written_passes_nowhere(name):
    def stub(*arguments):
        raise NotImplementedError

    for answer in (stub, lambda *arguments: None, lambda *arguments: ...):
        verdict = judge(name, answer)
        assert not verdict.passed
        assert verdict.mistake == "not written"
        assert EXERCISES[name].asks in verdict.message()


@pytest.mark.parametrize(("name", "wrong"), MISTAKES, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("seed", [0, 17, 7936])
def test_a_named_wrong_answer_gets_its_own_hint(name, wrong, seed):
    verdict = judge(name, wrong.answer, seed=seed)
    assert not verdict.passed
    assert (verdict.mistake, verdict.hints) == (wrong.name, wrong.hints)
    assert verdict.message(1) != verdict.message(2) or len(verdict.hints) == 1


def shifted(low, high):
    """Images that move by `low` to `high` pixels, whatever was drawn."""
    def moved(x, source):
        drawn = torch.randint(-3, 4, (len(x), 2), generator=source)
        shifts = drawn.clamp(torch.tensor(low), torch.tensor(high)).tolist()
        return torch.stack([image.roll(tuple(s), (1, 2)) for image, s in zip(x, shifts, strict=True)])
    return moved


def start(change):
    """A random start whose δ/ε, uniform in [−1, 1], is changed."""
    return lambda x, eps, source: (x + eps * change(2 * torch.rand(x.shape, generator=source) - 1)).clamp(0, 1)


def weights(change):
    """Weights that are drawn anew, their standard normal draws changed."""
    return lambda w, source: w.std() * change(torch.randn(w.shape, generator=source))


def on_the_way(past):
    """The right points, and farther by that share of the way."""
    return lambda wrong, x, v: EXERCISES["pull-back"].right(wrong, x, v) + past * (v - x)


def symmetric(row, known, xi, more=0.0):
    """Noise by the symmetric root of the covariance; the first row is off by `more`."""
    size, way = np.linalg.eigh(np.cov(known.T))
    off = more * (np.arange(len(xi)) == 0)[:, None]
    return row + xi @ (way * size**0.5) @ way.T + off


def later(name):
    """The right answer, from other draws of its generator, the last argument."""
    return lambda *case: EXERCISES[name].right(*case[:-1], case[-1].manual_seed(case[-1].initial_seed() + 1))


ALSO_RIGHT = [
    *((name, later(name)) for name in ("moved", "pgd-start", "drawn-anew")),
    ("moved", lambda x, source: shifted(-3, 3)(x, source).flip(2, 3)),
    ("pgd-start", start(lambda u: -u)),
    ("pgd-start", start(lambda u: u.flip(0))),
    ("drawn-anew", weights(lambda z: -z)),
    ("drawn-anew", weights(lambda z: z.flip(0))),
    ("pull-back", on_the_way(0.001)),
    ("correlated-rows", symmetric),
    ("correlated-rows", lambda row, known, xi: 2 * row - symmetric(row, known, xi)),
]
ALSO_WRONG = [
    ("moved", shifted(-2, 3)),
    ("moved", shifted(-3, 2)),
    ("moved", shifted([-3, 0], 3)),
    ("moved", shifted([0, -3], 3)),
    ("pgd-start", start(lambda u: 0.9 * u)),
    ("pgd-start", start(lambda u: u.abs().sqrt() * u.sign())),
    ("pgd-start", start(lambda u: (u + u.flip(0)) / 2)),
    ("pgd-start", start(lambda u: u.where(u > -0.9, -0.9))),
    ("pgd-start", start(lambda u: u.where(u < 0.9, 0.9))),
    ("drawn-anew", weights(lambda z: 0.8 * z)),
    ("drawn-anew", weights(lambda z: 1.25 * z)),
    ("drawn-anew", weights(torch.sign)),
    ("drawn-anew", lambda w, source: (w + weights(lambda z: z)(w, source)) / 2**0.5),
    ("pull-back", on_the_way(0.01)),
    ("pull-back", on_the_way(-0.001)),
    ("correlated-rows", lambda row, known, xi: symmetric(row, known, xi, 0.05)),
]


@pytest.mark.parametrize(("name", "answer"), ALSO_RIGHT)
@pytest.mark.parametrize("seed", [0, 17, 7936])
def test_what_is_read_of_an_answer_passes_other_draws_and_other_ways(name, answer, seed):
    assert judge(name, answer, seed=seed).passed


@pytest.mark.parametrize(("name", "answer"), ALSO_WRONG)
@pytest.mark.parametrize("seed", [0, 17, 7936])
def test_what_is_read_of_an_answer_tells_mistakes_without_a_name(name, answer, seed):
    assert not judge(name, answer, seed=seed).passed


@pytest.mark.parametrize("name", NAMES)
def test_hints_are_told_apart_and_no_mistake_is_named_twice(name):
    task = EXERCISES[name]
    assert len(task.wrong) >= 4
    assert len({wrong.name for wrong in task.wrong}) == len({wrong.hints for wrong in task.wrong}) == len(task.wrong)
    for wrong in task.wrong:
        assert all(hint.rstrip(')"').endswith((".", "?")) for hint in wrong.hints), wrong.hints


def test_the_mistakes_of_the_course_are_all_there():
    named = {wrong.name for _, wrong in MISTAKES}
    assert {"no-op", "sign error", "mean for sum", "scale, then clip", "missing random start", "a mask of zeros",
            "eps in the wrong units", "threshold chosen on training images", "|R| for R", "relevance doubled at a sum",
            "SVs outside the margin"} <= named


@pytest.fixture
def double():
    """An exercise that is there for one test: twice x, of which x is the no-op."""
    def cases(g):
        yield (torch.rand(3, generator=g) + 1,)

    exercise("double", "double(x) -> 2x", lambda x: 2 * x, cases,
             [("no-op", lambda x: x, ["the first.", "the second."])])
    yield
    del EXERCISES["double"]


@pytest.mark.parametrize(("answer", "words"), [
    (lambda x: 1 / 0, "it stops with ZeroDivisionError"),
    (lambda x: x[:2], "the shape is (2,), and should be (3,)"),
    (lambda x: "2x", "returns a str"),
    (lambda x: x * torch.nan, "NaN"),
    (lambda x: x.mul_(2), "changes its arguments in place"),
    (lambda x: -2 * x, "the negative"),
    (lambda x: 5 * x, "2.5 times"),
    (lambda x: 2 * x + torch.tensor([0, 0, 1]), "1 of 3 values differ"),
    (torch.ones(3), "hand over the function itself"),
])
def test_what_no_name_fits_is_described(double, answer, words):
    verdict = judge("double", answer)
    assert not verdict.passed
    assert words in verdict.message()


def test_a_list_of_numbers_is_as_good_as_a_tensor_of_them(double):
    assert judge("double", lambda x: [2 * v for v in x]).passed
    assert judge("double", lambda x: tuple(2 * v for v in x.numpy())).passed
    assert judge("double", lambda x: list(x)).mistake == "no-op"
    assert judge("double", lambda x: [2 * v for v in x[:2]]).mistake == "shape"
    assert judge("densest-window", lambda mask, side: torch.tensor(
        EXERCISES["densest-window"].right(mask, side))).passed


def test_arrays_are_described_and_may_not_be_changed_either():
    def in_place(rows, others, column, who):
        rows[np.arange(len(rows)), column] = others[who, column]
        return rows

    assert judge("swap-probes", in_place).mistake == "in place"
    said = judge("swap-probes", lambda rows, others, column, who: rows[99]).message()
    assert "(arguments: array (6, 4), array (20, 4), array (6,), array (6,))" in said


def test_hints_go_from_a_nudge_to_the_answer(double, capsys):
    check("double", lambda x: x)
    assert capsys.readouterr().out == '✗ double: the first.\n  More: check("double", …, hint=2)\n'
    for hint in (2, 3):
        check("double", lambda x: x, hint=hint)
        assert capsys.readouterr().out == "✗ double: the second.\n"
    check("double", lambda x: x + x)
    assert capsys.readouterr().out == "✓ double: right.\n"


def test_marks_are_all_or_none(double):
    assert marks("double", lambda x: 2 * x, points=3, seed=5) == 3.0
    assert marks("double", lambda x: x, points=3, seed=5) == 0.0
    assert marks_number("n", 0.5004, 0.5, points=2) == 2.0
    assert marks_number("n", torch.tensor(0.51), 0.5, points=2) == 0.0
    assert marks_number("n", None, 0.5, points=2) == marks_number("n", "0.5", 0.5, points=2) == 0.0


def test_other_numbers_on_another_seed(double):
    seen = []
    for seed in (1, 1, 2):
        judge("double", lambda x: seen.append(x) or 2 * x, seed=seed)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_an_unknown_name_is_one_sentence():
    with pytest.raises(LookupError, match="there is no exercise 'fgsm'; there are .*fgsm-step"):
        check("fgsm", lambda: 1)


def test_a_name_is_given_once(double):
    with pytest.raises(ValueError, match="already"):
        exercise("double", "", lambda x: x, lambda g: [], [])


def test_no_exercise_touches_the_ambient_random_state():
    state = torch.get_rng_state()
    for task in EXERCISES.values():
        assert judge(task.name, task.right).passed
        for wrong in task.wrong:
            judge(task.name, wrong.answer)
    assert torch.equal(state, torch.get_rng_state())


def test_answers_of_many_kinds_are_compared():
    assert len(tensors((torch.ones(2), 1.0))) == 2
    assert tensors([1, 2.5])[0].tolist() == [1, 2.5]
    assert tensors(torch.tensor(True))[0].item() == 1
    with pytest.raises(TypeError, match="dict"):
        tensors({})
    assert list(EXERCISES["auc"].cases(generator(0)))


def test_a_gradient_without_a_way_is_told_what_may_be_missing():
    def without_a_graph(J, m, v, aim, lr):
        m, v = m.detach().requires_grad_(), v.detach().requires_grad_()
        ahead = m - lr * torch.autograd.grad(J(m, v).sum(), m)[0]
        return torch.autograd.grad((ahead - aim).square().sum(), v)[0]

    verdict = judge("look-ahead", without_a_graph)
    assert verdict.mistake == "stops"
    assert "create_graph=True" in verdict.message(hint=2)

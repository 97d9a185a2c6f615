"""What robustness costs, where it can be computed: five worlds in which every accuracy has a closed form.

A world is two classes y = ±1, a law of the features x given y, and rules that are judged under the worst change of x
within ε (ℓ∞). Each is a small dataclass: `sample` draws from it, its other methods are closed forms.

    linear_accuracy    any weights, x ~ N(y μ, σ²): what a margin is worth
    Weak               one strong feature and many weak ones: accuracy is lost          (Tsipras et al. 2019)
    Gaussian           two Gaussians, few samples: more data is needed                  (Schmidt et al. 2018)
    Bits               the same with bits: sometimes no more data is needed             (Schmidt et al. 2018)
    Parity             a weak feature beside a parity of strong ones: capacity          (after Nakkiran 2019)

Features are not pixels: they have no bounds, and ε is in their units. A rule is its weights w, and answers sign(w·x).
Of all changes within ε the worst is −ε y sign(w), so that FGSM finds what PGD finds, and both are exact. Features and
weights are float64; labels are −1.0 or 1.0.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kit.core.checks import check_settings

DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}  # the norm of w that a ball of x is worth


def phi(t: Tensor | float) -> Tensor:
    """Φ, the distribution function of N(0, 1)."""
    return torch.special.ndtr(torch.as_tensor(t, dtype=torch.float64))


def margins(w: Tensor, x: Tensor, y: Tensor, *, eps: float = 0.0, norm: str = "linf") -> Tensor:
    """y w·x − ε‖w‖*, (N,): what is left of the margins after the worst change of x (N, d); the rule is right above 0.

    ‖·‖* is the dual norm: ℓ1 against ℓ∞, ℓ2 against ℓ2, ℓ∞ against ℓ1. Raises ValueError for labels other than ± 1.
    """
    check_change(eps, norm)
    check_weights(w, x.shape[-1])
    if y.shape != x.shape[:1] or not bool((y.abs() == 1).all()):
        raise ValueError(f"labels y are −1 or 1, one for each of {len(x)} rows: use 2.0 * y - 1 where they are 0 and 1")
    return y * (x @ w) - eps * torch.linalg.vector_norm(w, DUAL[norm])


def robust_share(w: Tensor, x: Tensor, y: Tensor, *, eps: float = 0.0, norm: str = "linf") -> float:
    """The share of a sample on which the rule is right under the worst change."""
    return float((margins(w, x, y, eps=eps, norm=norm) > 0).double().mean())


def linear_accuracy(
    w: Tensor, mean: Tensor, sigma: float = 1.0, *, eps: float = 0.0, norm: str = "linf"
) -> Tensor:
    """P(y w·x > ε‖w‖*) for x ~ N(y·mean, σ² I):   Φ((w·mean − ε‖w‖*) / (σ‖w‖₂)),   w (…, d) -> (…).

    A rule without weights is never right. Raises ValueError for sigma ≤ 0.
    """
    check_scale("sigma", sigma)
    check_change(eps, norm)
    check_weights(w, len(mean))
    left = w @ mean - eps * torch.linalg.vector_norm(w, DUAL[norm], dim=-1)
    return phi(ratio(left, sigma * torch.linalg.vector_norm(w, dim=-1)))


def robust_fit(
    x: Tensor, y: Tensor, *, eps: float = 0.0, norm: str = "linf", steps: int = 300, lr: float = 0.02,
    start: Tensor | None = None,
) -> Tensor:
    """min over w of the mean of log(1 + exp(ε‖w‖* − y w·x)): adversarial training of a linear rule, exactly; w (d,).

    Logistic regression on the margins that the worst change leaves. The problem is convex; Adam takes `steps` steps
    with a rate that falls to zero, over all of x (N, d). The default start is Σ y x / N, the mean.
    Source: Goodfellow et al., Explaining and harnessing adversarial examples, ICLR 2015, section 5.
    """
    check_settings({"eps": eps, "steps": steps, "lr": lr})
    w = ((y @ x) / len(x) if start is None else start).clone().requires_grad_()
    optimiser = torch.optim.Adam([w], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        loss = torch.nn.functional.softplus(-margins(w, x, y, eps=eps, norm=norm)).mean()
        (w.grad,) = torch.autograd.grad(loss, w)
        optimiser.step()
        schedule.step()
    return w.detach()


@dataclass(frozen=True)
class Weak:
    """One strong feature and d weak ones: x₁ = y with probability p, else −y;   x₂ … x_{d+1} ~ N(η y, 1).

    Rules are w = (w₁, v), (d + 1,). Together the weak features say nearly everything, and an ε of 2η turns them round.
    Source: Tsipras et al., Robustness may be at odds with accuracy, ICLR 2019, section 2.1.
    """

    p: float = 0.95
    eta: float = 0.1
    d: int = 1000

    def __post_init__(self) -> None:
        check_share("p", self.p)
        check_scale("eta", self.eta)
        check_scale("d", self.d)

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """x (n, d + 1) and y (n,)."""
        y = signs(n, generator)
        strong = torch.where(torch.rand(n, generator=generator, dtype=torch.float64) < self.p, y, -y)
        weak = self.eta * y[:, None] + torch.randn(n, self.d, generator=generator, dtype=torch.float64)
        return torch.cat([strong[:, None], weak], 1), y

    def rule(self, strong: float, weak: float = 1.0) -> Tensor:
        """The weights (w₁, v, …, v)."""
        return torch.tensor([strong, *[weak] * self.d], dtype=torch.float64)

    def mean(self) -> Tensor:
        """The weak features alone: Φ(η√d) without an attack."""
        return self.rule(0.0)

    def bayes(self) -> Tensor:
        """The best rule without an attack: w₁ = ln(p / (1 − p)), v = 2η, the log odds of each feature."""
        return self.rule(math.log(self.p / (1 - self.p)), 2 * self.eta)

    def best(self, eps: float) -> Tensor:
        """The best of the rules (w₁, v, …, v), w₁, v ≥ 0, under ε < 1. A weak one is worth η − ε, nothing for ε ≥ η.

        For a smaller ε it is found on the grid of `trade_off`; near η it may be the strong feature alone already.
        """
        check_change(eps)
        if eps >= self.eta:
            return self.rule(1.0, 0.0)
        return self.trade_off(eps, 1.0)

    def accuracy(self, w: Tensor, eps: float = 0.0) -> Tensor:
        """p Φ((w₁ + ηΣv − ε‖w‖₁) / ‖v‖) + (1 − p) Φ((−w₁ + ηΣv − ε‖w‖₁) / ‖v‖), of w (…, d + 1)."""
        check_change(eps)
        check_weights(w, self.d + 1)
        strong, v = w[..., 0], w[..., 1:]
        left = self.eta * v.sum(-1) - eps * w.abs().sum(-1)
        noise = torch.linalg.vector_norm(v, dim=-1)
        return self.p * phi(ratio(left + strong, noise)) + (1 - self.p) * phi(ratio(left - strong, noise))

    def bound(self, delta: float) -> float:
        """Whoever is right on a share 1 − δ is right on at most δ p / (1 − p) under an ε of 2η (their theorem 2.1)."""
        check_share("delta", delta)
        return min(1.0, delta * self.p / (1 - self.p))

    def trade_off(self, eps: float, beta: float, points: int = 4001) -> Tensor:
        """The rule (w₁, v, …, v) with the least standard error + β (standard accuracy − accuracy under ε).

        The second term are the images that are right, and within ε of another answer: what TRADES regularises (its
        section 3), exactly. β = 0 is Bayes' rule, β = 1 the best under attack, more asks for less and less change.
        """
        check_settings({"eps": eps, "beta": beta})
        angle = torch.linspace(0, math.pi / 2, points, dtype=torch.float64)  # from the weak features alone to none
        w = torch.cat([angle.sin()[:, None], (angle.cos() / self.d**0.5)[:, None].expand(-1, self.d)], 1)
        clean = self.accuracy(w)
        return w[(1 - clean + beta * (clean - self.accuracy(w, eps))).argmin()]


@dataclass(frozen=True)
class Gaussian:
    """Two Gaussians at ± θ, θ one of the corners ± 1 of the cube: x ~ N(y θ, σ²), and the rule is the mean of n y x.

        one sample is enough to be right        Φ(√d / (σ√(1 + τ²))),           τ = σ/√n
        and not enough to be robust             Φ(√d (1 − ε m) / (σ√(1 + τ²))),  m = E|1 + τ z|, z ~ N(0, 1)

    The weights are θ + τ z: the noise of each of them is worth to the attacker what a feature is. Both lines take
    ‖w‖² for its mean d (1 + τ²), and ‖w‖₁ for d m: right for many features, as d grows.
    Source: Schmidt et al., Adversarially robust generalization requires more data, NeurIPS 2018, section 2.
    """

    d: int = 1000
    sigma: float = 1000**0.25

    def __post_init__(self) -> None:
        check_scale("d", self.d)
        check_scale("sigma", self.sigma)

    def sample(self, theta: Tensor, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """x (n, d) and y (n,), of the centre θ (d,)."""
        check_weights(theta, self.d, "theta")
        y = signs(n, generator)
        noise = torch.randn(n, self.d, generator=generator, dtype=torch.float64)
        return y[:, None] * theta + self.sigma * noise, y

    def learnt(self, n: int, trials: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """As many centres θ (trials, d), and for each of them the mean w (trials, d) of n samples y x, by its law."""
        check_scale("n", n)
        theta = signs(trials * self.d, generator).view(trials, self.d)
        noise = torch.randn(trials, self.d, generator=generator, dtype=torch.float64)
        return theta, theta + self.sigma / n**0.5 * noise

    def spread(self, n: float) -> float:
        """m = E|1 + τ z| = τ √(2/π) exp(−1/(2τ²)) + 1 − 2Φ(−1/τ): how large a weight is, noise included."""
        tau = self.sigma / n**0.5
        return tau * (2 / math.pi) ** 0.5 * math.exp(-0.5 / tau**2) + 1 - 2 * float(phi(-1 / tau))

    def accuracy(self, n: float, eps: float = 0.0) -> float:
        """Of the rule that n samples teach, under the worst change."""
        check_scale("n", n)
        check_change(eps)
        tau = self.sigma / n**0.5
        return float(phi(self.d**0.5 * (1 - eps * self.spread(n)) / (self.sigma * (1 + tau**2) ** 0.5)))

    def needed(self, accuracy: float, eps: float = 0.0) -> float:
        """The least number of samples, not rounded, for this accuracy; inf where no number is enough.

        By bisection: for ε < 1 more samples are never worse (`tests/defend/test_costs.py` looks).
        """
        check_share("accuracy", accuracy)
        low, high = 1e-9, 1e15
        if self.accuracy(high, eps) < accuracy:
            return math.inf
        for _ in range(200):
            middle = (low * high) ** 0.5
            low, high = (low, middle) if self.accuracy(middle, eps) >= accuracy else (middle, high)
        return high


@dataclass(frozen=True)
class Bits:
    """d bits, each says the class a little: x_i = y θ_i with probability ½ + τ, else −y θ_i.

    The rule is learnt from n samples, sign Σ y x_i feature by feature, at odds fair for a tie. Linear, it is as
    dear to make robust as the Gaussians'. With sign(·) before it every ε < 1 changes nothing at all: the gradient is
    zero *and* the rule is robust. A vanishing gradient alone proves nothing, either way.
    Source: Schmidt et al. 2018, section 3.
    """

    d: int = 500
    tau: float = 0.1

    def __post_init__(self) -> None:
        check_scale("d", self.d)
        if not 0 < self.tau <= 0.5:
            raise ValueError(f"tau is above 0 and at most 1/2, not {self.tau:g}")

    def sample(self, theta: Tensor, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """x (n, d) of bits ± 1 and y (n,), of the signs θ (d,)."""
        check_weights(theta, self.d, "theta")
        y = signs(n, generator)
        agree = torch.rand(n, self.d, generator=generator, dtype=torch.float64) < 0.5 + self.tau
        return torch.where(agree, y[:, None] * theta, -y[:, None] * theta), y

    def learnt(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The rule's weights ± 1, (d,)."""
        votes = y @ x
        return torch.where(votes == 0, signs(len(votes), generator), votes.sign())

    def found(self, n: int) -> float:
        """The probability that n samples name the sign of a feature: P(Bin(n, ½ + τ) > n/2), a tie counts half."""
        return majority(n, 0.5 + self.tau, 0.0)

    def accuracy(self, n: int, eps: float = 0.0, *, rounded: bool = False) -> float:
        """Of the rule that n samples teach, under the worst change: P(Σ y w_i x_i > ε d), exactly.

        A feature and its learnt weight agree with probability ½ + τ (2 `found` − 1), independently of the others, so
        that the sum is binomial. `rounded` puts sign(·) before the rule, for any ε < 1. A margin of zero counts half.
        """
        check_scale("n", n)
        check_change(eps)
        if rounded and eps < 1:
            eps = 0.0
        return majority(self.d, 0.5 + self.tau * (2 * self.found(n) - 1), eps)


@dataclass(frozen=True)
class Parity:
    """k bits whose product is the class, and one weak feature that says it at once: x = (s₁, …, s_k, η y), y = Π s_i.

    Without an attack a single threshold on the last feature is always right. From ε = η on it is worth nothing, and the
    class is the parity of Σ s_i, which changes k times. So a rule of h thresholds on that sum, of the kind that a layer
    of h units computes, is right on what h changes can follow: robustness is a matter of h. The thresholds lie in the
    middle of gaps of 2, and an attack on all bits moves the sum by ε k, so that ε < 1/k must hold.
    Source: after Nakkiran, Adversarial robustness may be at odds with simplicity, 2019, whose worlds are of this kind.
    """

    k: int = 8
    eta: float = 0.05

    def __post_init__(self) -> None:
        check_scale("k", self.k)
        if not 0 < self.eta < 1 / self.k:
            raise ValueError(f"eta is above 0 and below 1/k = {1 / self.k:g}, not {self.eta:g}")

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """x (n, k + 1) and y (n,)."""
        s = signs(n * self.k, generator).view(n, self.k)
        y = s.prod(1)
        return torch.cat([s, self.eta * y[:, None]], 1), y

    def accuracy(self, units: int, eps: float = 0.0) -> float:
        """Of the best rule with so many thresholds: 1 for ε < η, else the best that a sum cut so often can say.

        Raises ValueError for ε ≥ 1/k, where the bits are no longer safe.
        """
        check_scale("units", units)
        if not 0 <= eps < 1 / self.k:
            raise ValueError(f"eps is from 0 to below 1/k = {1 / self.k:g}, not {eps:g}")
        return 1.0 if eps < self.eta else self.followed(units)[0]

    def followed(self, units: int) -> tuple[float, list[int]]:
        """The largest share that answers with at most `units` changes get right, and their answers by the number of
        bits that are −1: k + 1 signs. By dynamic programming over that number."""
        best: dict[tuple[int, int], tuple[float, list[int]]] = {(0, side): (0.0, []) for side in (-1, 1)}
        for minus in range(self.k + 1):
            weight, y = math.comb(self.k, minus) / 2**self.k, (-1) ** minus
            on: dict[tuple[int, int], tuple[float, list[int]]] = {}
            for (used, last), (value, path) in best.items():
                for side in (-1, 1):
                    changed = used + (side != last and minus > 0)
                    there = (value + weight * (side == y), [*path, side])
                    if changed <= units and there[0] > on.get((changed, side), (-1.0,))[0]:
                        on[changed, side] = there
            best = on
        return max(best.values(), key=lambda end: end[0])


def majority(n: int, q: float, eps: float) -> float:
    """P(2B − n > ε n), B ~ Bin(n, q); equality counts half."""
    total = 0.0
    for b in range(n + 1):
        ahead = 2 * b - n - eps * n
        if ahead > -1e-9:
            log = math.lgamma(n + 1) - math.lgamma(b + 1) - math.lgamma(n - b + 1)
            chance = math.exp(log + times_log(b, q) + times_log(n - b, 1 - q))
            total += chance * (0.5 if ahead < 1e-9 else 1.0)
    return total


def times_log(count: int, q: float) -> float:
    """count · log q, and 0 for a count of 0."""
    return 0.0 if count == 0 else (count * math.log(q) if q > 0 else -math.inf)


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, where b = 0 stands for no noise at all: ± inf by the sign of a, and −inf for a margin of zero."""
    certain = torch.where(a > 0, math.inf, -math.inf).to(a)
    return torch.where(b > 0, a / b.clamp_min(1e-300), certain)


def signs(n: int, generator: torch.Generator | None = None) -> Tensor:
    """n fair signs, float64."""
    return 2.0 * torch.randint(2, (n,), generator=generator).double() - 1


def check_change(eps: float, norm: str = "linf") -> None:
    """Raise ValueError for a norm without a dual here, and for a radius that is none."""
    if norm not in DUAL:
        raise ValueError(f"norm must be 'linf', 'l2' or 'l1', not {norm!r}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be 0 or more and finite, not {eps:g}")


def check_weights(w: Tensor, d: int, name: str = "w") -> None:
    """Raise ValueError where w (…, d) has not one value for each feature."""
    if w.shape[-1:] != (d,):
        raise ValueError(f"{name} needs {d} values, one for each feature, and has the shape {tuple(w.shape)}")


def check_scale(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, not {value:g}")


def check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} is a share between 0 and 1, not {value:g}")

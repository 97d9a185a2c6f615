"""MASK: which part of an image must be seen? The smallest whose loss costs the answer, or that is enough for it.

    m (N, h, w)    one number in [0, 1] for each cell of a coarse grid: 1 keeps the image, 0 shows the reference x̃
    M (N, H, W)    m enlarged (nearest) and blurred, σ = 5/8 of a cell
    Φ(x; m)        M x + (1 − M) x̃, moved at random by up to `jitter` pixels
    TV(m)          Σ_cells (Δ₁² + Δ₂²)^(β/2), differences to the next cell, 0 beyond the last

`Descent` keeps where the optimisation stands, so that a call can go on from there.
"""
from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core import Trace, adam, alike, differentiate, laid_out, leaf, optimise, per_image
from kit.core.loop import Memory, Oracle, Rule
from kit.core.passes import PerImage
from kit.core.seeding import Draws
from kit.explain.gradient import score

# Fong and Vedaldi 2017, on 224 × 224 pixels: 28 × 28 cells, λ₁ = 1e-4 on a sum, a blur of σ = 10, 4 pixels of jitter.
CELLS, SIDE = 28, 224
AREA, BLUR, JITTER, MASK_BLUR = 1e-4 * CELLS**2, 10 / SIDE, 4 / SIDE, 5 / 8
RADII = 12  # discs that are tried as a start
VARIANTS = ("delete", "preserve")


@per_image
def mask(
    model: nn.Module, x: Tensor, target: Tensor | None = None, *, variant: str = "delete",
    reference: str | float | Tensor = "blur", sigma: float | None = None, cell: int | None = None, steps: int = 300,
    lr: float = 0.1, lam: float | None = None, lam_tv: float = 1e-2, beta: float = 3.0, jitter: int | None = None,
    state: Descent | None = None, unroll: int = 1, generator: torch.Generator | None = None,
    trace: Trace | None = None, create_graph: bool = False,
) -> Tensor:
    """MASK: R = 1 − M for the m that deletes the class, R = M for the m that preserves it. In [0, 1].

        delete      min_m  λ Σ_cells (1 − m) + λ_tv TV(m) + E_jitter p_c(Φ(x; m))
        preserve    min_m  λ Σ_cells m       + λ_tv TV(m) − E_jitter p_c(Φ(x; m))

    by `steps` steps of Adam, one draw of the jitter each, m cut to [0, 1] after each. p is the softmax, and both sums
    run over the cells of one image. All images draw the same jitter and noise.

    reference    x̃: "blur" (σ = `sigma` pixels; None is 10 of 224 pixels, but at least 4), "noise" (U(0, 1), new at each
                 step), a grey level, or images (1 or N, C, H, W)
    cell         pixels to a side of a cell; None is 1/28 of the shorter side of the image, but at least 2
    lam          λ; None is 1e-4 · 28² over the number of cells: the authors' price of the whole image
    jitter       None is 4 of 224 pixels, but at least 1
    state        a `Descent`: empty, it is filled; filled, the descent goes on from it. Without one it starts at the
                 smallest central disc that does 99 % of what the whole reference does to p_c
    create_graph    the graph goes through the last `unroll` steps and the references; 1 is the look-ahead by which ADV²
                 attacks MASK, `steps` the derivative of the whole map. A first step of Adam is g/|g|, which has no
                 slope: with steps=1 give a state
    trace        gets minus the objective

    Cost: `steps` forward and backward passes, and 14 forward passes for the start. Memory does not grow with `steps`,
    but with `unroll` where create_graph asks for it.
    Source: Fong and Vedaldi, Interpretable explanations of black boxes by meaningful perturbation, ICCV 2017, sect. 4;
    constants and TV as in their code (ruthcfong/perturb_explanations). Look-ahead: Zhang et al., Interpretable deep
    learning under fire, 2020, section 4.3.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}, not {variant!r}")
    side = min(x.shape[2:])
    cell = pixels("cell", min(side, max(2, side // CELLS)) if cell is None else cell, 1, side)
    grid = math.ceil(x.shape[2] / cell), math.ceil(x.shape[3] / cell)
    lam = AREA / (grid[0] * grid[1]) if lam is None else lam
    jitter = pixels("jitter", min(side - 1, max(1, round(JITTER * side))) if jitter is None else jitter, 0, side - 1)
    rows = _checked_state(state, x)
    begun, (m, memory) = rows.begun, rows.read(x)
    if target is None:
        with torch.no_grad():
            target = model(x).argmax(1)
    wanted, keeps = target, variant == "preserve"
    draws = _Draws(generator, begun + steps, jitter, x, reference, sigma)

    def p(m: Tensor, k: int) -> Tensor:
        M, away = enlarged(m, x, cell)[:, None], draws.reference(k)
        return score(model(laid_out(draws.moved(away + M * (x - away), k))).softmax(1), wanted)

    def objective(m: Tensor, k: int) -> Tensor:
        area = (m if keeps else 1 - m).sum((1, 2))
        evidence = p(m, k + begun) * (1 if keeps else -1)
        return evidence - lam * area - lam_tv * total_variation(m, beta)

    if m is not None and m.shape[1:] != grid:
        raise ValueError(f"the state's masks have {tuple(m.shape[1:])} cells, these images {grid}")
    if m is None:
        with torch.no_grad():
            m = _disc(lambda m: p(m, -1), grid, x, keeps)
    m = climb(objective, m, adam(lr), memory, steps, unroll if create_graph else 0, trace)
    rows.keep(m, memory, steps)
    M = enlarged(m, x, cell).clamp(0, 1)
    return M if keeps else 1 - M


def climb(
    objective: Callable[[Tensor, int], Tensor], m: Tensor, rule: Rule, memory: Memory, steps: int, unroll: int,
    trace: Trace | None,
) -> Tensor:
    """argmax_m objective(m, k) in [0, 1]^d by `steps` steps, of which the last `unroll` keep their graph."""
    unroll = min(unroll, steps)

    def run(first: int, last: int, m: Tensor, oracle: Oracle | None) -> Tensor:
        return optimise(lambda m, k: objective(m, first + k), m, steps=last - first, rule=rule, oracle=oracle,
                        project=lambda m: m.clamp(0, 1), memory=memory, trace=trace)

    if steps > unroll:
        m = run(0, steps - unroll, m, None)
    return run(steps - unroll, steps, m, _with_graph) if unroll else m


def _with_graph(f: Callable[[Tensor], Tensor], m: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
    """The gradient with its graph. Exact zeros become constants: Adam's √u has no slope there."""
    m = m if m.requires_grad else leaf(m)
    value = f(m)
    g = differentiate(value, m, create_graph=True)
    return value.detach(), torch.where(g == 0, torch.finfo(g.dtype).tiny ** 0.5, g)


class Descent(PerImage):
    """Where the descent on the mask of each image of x stands: `mask(…, state=state)` fills it and goes on from it.

    m (N, h, w) is the coarse mask, which may be given as a start, (N or 1, h, w) in [0, 1]; `first` and `second` are
    Adam's moments, `t` (N,) the steps so far; None when empty. `state[rows]` stands for some of the images, and what
    is done with it is done to the whole.
    """

    def __init__(self, x: Tensor, m: Tensor | None = None):
        with torch.inference_mode(False):
            self.m: Any = None if m is None else _checked_start(m, x).expand(len(x), *m.shape[1:]).clone()
            self.first: Any = None
            self.second: Any = None
            self.t = torch.zeros(len(x), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, rows: slice) -> _Rows:
        return _Rows(self, torch.arange(len(self)))[rows]


class _Rows(PerImage):
    """Some images of a Descent, by their `places`; `mates` are the places of the call that they are a part of."""

    def __init__(self, whole: Descent, places: Tensor, mates: Tensor | None = None):
        self.whole, self.places, self.mates = whole, places, places if mates is None else mates

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: slice) -> _Rows:
        return _Rows(self.whole, self.places[rows], self.places)

    @property
    def begun(self) -> int:
        """The steps so far. Raises ValueError where these images, or at the start of a call all of it, differ in it."""
        starts = torch.equal(self.places[:1], self.mates[:1])
        t = self.whole.t[self.mates if starts else self.places]
        if int(t.min()) != int(t.max()):
            raise ValueError("the state's images are not at the same step, since a call was stopped: start a new one")
        return int(t[0])

    def read(self, x: Tensor) -> tuple[Tensor | None, Memory]:
        """The coarse masks, None where there are none yet, and Adam's memory, in the dtype of x."""
        m, first, second = (
            None if value is None or bool(value[self.places].isnan().any()) else value[self.places].to(x)
            for value in (self.whole.m, self.whole.first, self.whole.second))
        return m, {"m": first, "u": second, "t": torch.tensor(float(self.begun))} if self.begun else {}

    def keep(self, m: Tensor, memory: Memory, steps: int) -> None:
        whole = self.whole
        for name, value in (("m", m), ("first", memory["m"]), ("second", memory["u"])):
            if getattr(whole, name) is None:
                setattr(whole, name, value.new_full((len(whole), *value.shape[1:]), torch.nan))
            getattr(whole, name)[self.places] = value.detach().to(getattr(whole, name))
        whole.t[self.places] += steps


def _checked_state(state: Any, x: Tensor) -> _Rows:
    if state is None:
        return Descent(x)[:]
    if not isinstance(state, Descent | _Rows):
        raise TypeError(f"state must be a kit.explain.Descent(x), not a {type(state).__name__}")
    if len(state) != len(x):
        raise ValueError(f"the state has {len(state)} rows for {len(x)} images: make a Descent of these images")
    return state[:] if isinstance(state, Descent) else state


def _checked_start(m: Any, x: Tensor) -> Tensor:
    if not isinstance(m, Tensor) or not m.is_floating_point() or m.dim() != 3 or len(m) not in (1, len(x)):
        found = f"{m.dtype} {tuple(m.shape)}" if isinstance(m, Tensor) else type(m).__name__
        raise ValueError(f"the masks to start from must be floats ({len(x)} or 1, h, w), one number for each cell, not "
                         f"{found}")
    if not bool(((m >= 0) & (m <= 1)).all()):
        raise ValueError("the masks to start from must lie in [0, 1]")
    return m.detach()


class _Draws:
    """The jitter and the reference of each step k, the same for all images; k = −1 is the image unmoved."""

    def __init__(
        self, source: torch.Generator | Draws | None, steps: int, jitter: int, x: Tensor,
        reference: str | float | Tensor, sigma: float | None,
    ):
        common = alike(source)
        self.seed, self.jitter, self.x = int(torch.randint(2**62, (), generator=common)), jitter, x
        self.moves = torch.randint(jitter + 1, (steps, 2), generator=common).tolist()
        self.noise = isinstance(reference, str) and reference == "noise"
        self.fixed = x if self.noise else referred(x, reference, sigma)

    def reference(self, k: int) -> Tensor:
        if not self.noise:
            return self.fixed
        source = torch.Generator().manual_seed((self.seed + k) % 2**63)
        return torch.rand(self.x[:1].shape, generator=source, dtype=self.x.dtype).to(self.x.device)

    def moved(self, x: Tensor, k: int) -> Tensor:
        """x moved by up to half the jitter each way, its edge repeated."""
        if k < 0 or not self.jitter:
            return x
        (top, left), before = self.moves[k], self.jitter // 2
        h, w = x.shape[2:]
        around = F.pad(x, [before, self.jitter - before] * 2, mode="replicate")
        return around[..., top:top + h, left:left + w]


def referred(x: Tensor, reference: str | float | Tensor, sigma: float | None) -> Tensor:
    """What is shown where the image is not: blurred images, a grey level, or images of one's own."""
    kinds = "'blur', 'noise', a grey level or images"
    if isinstance(reference, str):
        if reference != "blur":
            raise ValueError(f"reference must be {kinds}, not {reference!r}")
        return gaussian_blur(x, max(4.0, BLUR * min(x.shape[2:])) if sigma is None else sigma)
    if isinstance(reference, Tensor) and reference.dim():
        if reference.dim() != 4 or reference.shape[1:] != x.shape[1:]:
            raise ValueError(f"the reference must be images {tuple(x.shape)} or one of them, not "
                             f"{tuple(reference.shape)}")
        away = reference.to(x)
    else:
        try:
            away = torch.full_like(x, float(reference))
        except TypeError:
            raise TypeError(f"reference must be {kinds}, not {reference!r}") from None
    if not bool(((away >= -1e-6) & (away <= 1 + 1e-6)).all()):
        raise ValueError("the reference must lie in [0, 1], as the images do")
    return away


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """(N, C, H, W) convolved with a Gaussian of σ = `sigma` pixels, cut at 4 σ, the edge repeated."""
    if sigma <= 0:
        return x
    reach = math.ceil(4 * sigma)
    at = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    line = torch.exp(-(at / sigma).square() / 2)
    line = (line / line.sum()).expand(x.shape[1], 1, -1)
    x = F.pad(x, [reach] * 4, mode="replicate")
    return F.conv2d(F.conv2d(x, line[..., None], groups=x.shape[1]), line[:, :, None], groups=x.shape[1])


def enlarged(m: Tensor, x: Tensor, cell: int) -> Tensor:
    """M (N, H, W) of the cells m (N, h, w): each as a square of `cell` pixels, then blurred."""
    squares = m[:, None].repeat_interleave(cell, 2).repeat_interleave(cell, 3)
    return gaussian_blur(squares[..., :x.shape[2], :x.shape[3]], MASK_BLUR * cell)[:, 0]


def total_variation(m: Tensor, beta: float) -> Tensor:
    """Σ_cells (Δ₁² + Δ₂²)^(β/2), (N,); the addition of a tiny number gives it second derivatives at 0."""
    down = F.pad(m[:, 1:] - m[:, :-1], (0, 0, 0, 1))
    across = F.pad(m[:, :, 1:] - m[:, :, :-1], (0, 1))
    return (down.square() + across.square() + 1e-12).pow(beta / 2).sum((1, 2))


def pixels(name: str, value: Any, least: int, most: int) -> int:
    """The value as an int. Raises ValueError for what is no whole number of pixels within the image."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        raise ValueError(f"{name} must be a whole number of pixels from {least} to {most}, not {value!r}")
    return number


def _disc(p: Callable[[Tensor], Tensor], grid: tuple[int, int], x: Tensor, keeps: bool) -> Tensor:
    """For each image the smallest central disc of cells that, shown alone (`keeps`) or hidden, brings p_c to within 1 %
    of what showing or hiding everything does, (N, h, w). Cost: `RADII` + 2 forward passes."""
    rows, columns = (torch.arange(n, device=x.device, dtype=x.dtype) - (n - 1) / 2 for n in grid)
    away = torch.hypot(rows[:, None], columns)
    radii = torch.linspace(-0.5, float(away.max()) + 0.5, RADII + 1).tolist()  # nothing to everything
    discs = [(r - away + 0.5).clamp(0, 1) for r in radii]
    values = torch.stack([p((disc if keeps else 1 - disc).expand(len(x), *grid)) for disc in discs])
    near = (values - values[-1]).abs() <= 0.01 * (values[0] - values[-1]).abs()
    first = near.int().argmax(0).clamp_max(RADII)
    chosen = torch.stack(discs)[first]
    return chosen if keeps else 1 - chosen



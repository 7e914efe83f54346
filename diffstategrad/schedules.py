r"""Noise schedules, in float64.

Two parametrisations of the same forward process appear in the papers. With
:math:`n \sim N(0, I)`,

- variance exploding (EDM): :math:`x = x_0 + \sigma n`;
- variance preserving (DDPM):
  :math:`z = \sqrt{\bar\alpha}\, x_0 + \sqrt{1 - \bar\alpha}\, n`,

linked by :math:`z = \sqrt{\bar\alpha}\, x` and :math:`\sigma^2 + 1 = 1 / \bar\alpha`.
Samplers here work with :math:`x` and :math:`\sigma`; networks are fed :math:`z` and
a time :math:`t` in 0..999.

References
----------
Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020.
Song, Meng, Ermon, "Denoising Diffusion Implicit Models", ICLR 2021, eq. 12 and 16.
Nichol, Dhariwal, "Improved Denoising Diffusion Probabilistic Models", ICML 2021,
eq. 17.
Karras, Aittala, Aila, Laine, "Elucidating the Design Space of Diffusion-Based
Generative Models", NeurIPS 2022, Table 1 (VP preconditioning), eq. 5 (the poly grid).
Zhang et al., "Improving Diffusion Inverse Problem Solving with Decoupled Noise
Annealing", CVPR 2025 (DAPS), and its two published codes for the two grids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from diffstategrad._options import nearest

__all__ = [
    "CosineSchedule",
    "DDIMGrid",
    "DDPMTables",
    "Schedule",
    "SqrtVPSchedule",
    "TableSchedule",
    "VPSchedule",
    "beta_table",
    "daps_annealing",
    "daps_ode",
    "ddim_grid",
    "ddpm_tables",
    "latent_grid",
    "latent_times",
    "layer_grid",
    "poly_grid",
    "sigma_of",
]

_VERSIONS = ("2024", "2025")


@runtime_checkable
class Schedule(Protocol):
    """What links sigma and the network time: those here, or one's own."""

    @property
    def last(self) -> float:
        """The largest time that networks of this schedule were trained at."""
        ...

    def alpha_bar(self, t: ArrayLike) -> np.ndarray:
        """Signal variance left at network time `t`, fractions allowed."""
        ...

    def sigma_of_t(self, t: ArrayLike) -> np.ndarray:
        """Noise level sigma >= 0 of network time `t`."""
        ...

    def t_of_sigma(self, sigma: ArrayLike) -> np.ndarray:
        """Network time (fractional, not rounded) of noise level `sigma`."""
        ...


@dataclass(frozen=True)
class VPSchedule:
    r"""Continuous variance-preserving schedule with linear :math:`\beta`.

    :math:`\bar\alpha(u) = \exp(-\tfrac12 \beta_d u^2 - \beta_{min} u)`, network time
    :math:`t = 999 u`. This is the schedule by which DAPS drives DDPM networks trained
    with the linear 1e-4..0.02 table, and by which the bundled priors are trained.  The
    table itself, ``TableSchedule(1e-4, 0.02, sqrt=False)``, has other times at the same
    sigma: 999 at its end where this has 1002.4.
    """

    beta_min: float = 0.1
    beta_d: float = 19.9

    @property
    def last(self) -> float:
        return 999.0

    def alpha_bar(self, t: ArrayLike) -> np.ndarray:
        """Signal variance left at network time `t` (0..999, fractions allowed)."""
        u = np.asarray(t, dtype=np.float64) / 999
        return np.exp(-0.5 * self.beta_d * u * u - self.beta_min * u)

    def sigma_of_t(self, t: ArrayLike) -> np.ndarray:
        """Noise level sigma >= 0 of network time `t`, in units of the image."""
        u = np.asarray(t, dtype=np.float64) / 999
        return np.sqrt(np.expm1(0.5 * self.beta_d * u * u + self.beta_min * u))

    def t_of_sigma(self, sigma: ArrayLike) -> np.ndarray:
        """Network time (fractional, not rounded) of noise level `sigma`."""
        sigma = np.asarray(sigma, dtype=np.float64)
        log = np.log1p(sigma * sigma)
        root = np.sqrt(self.beta_min**2 + 2 * self.beta_d * log)
        return 999 * (root - self.beta_min) / self.beta_d


@dataclass(frozen=True)
class SqrtVPSchedule:
    r"""Continuous schedule with linear :math:`\sqrt\beta`, as Stable Diffusion's.

    With :math:`b = \sqrt{\beta_{min}}` and :math:`a = \sqrt{\beta_{max}} - b`,
    :math:`-\ln\bar\alpha(u) = ((b + a u)^3 - b^3) / 3a`, network time
    :math:`t = 1000 u` (1000 here, 999 in `VPSchedule`: so do the published codes).
    """

    beta_min: float = 0.85
    beta_max: float = 12.0

    @property
    def last(self) -> float:
        return 999.0

    def _log(self, t: ArrayLike) -> np.ndarray:
        """-ln alpha_bar, without cancellation at small t."""
        b = self.beta_min**0.5
        step = (self.beta_max**0.5 - b) * (np.asarray(t, dtype=np.float64) / 1000)
        ratio = step * (3 * b * b + 3 * b * step + step * step)
        return ratio / (3 * (self.beta_max**0.5 - b))

    def alpha_bar(self, t: ArrayLike) -> np.ndarray:
        """Signal variance left at network time `t` (0..1000, fractions allowed)."""
        return np.exp(-self._log(t))

    def sigma_of_t(self, t: ArrayLike) -> np.ndarray:
        """Noise level sigma >= 0 of network time `t`, in units of the image."""
        return np.sqrt(np.expm1(self._log(t)))

    def t_of_sigma(self, sigma: ArrayLike) -> np.ndarray:
        """Network time (fractional, not rounded) of noise level `sigma`."""
        b = self.beta_min**0.5
        a = self.beta_max**0.5 - b
        cube = 3 * a * np.log1p(np.asarray(sigma, dtype=np.float64) ** 2)
        root = np.cbrt(cube + b**3)
        # root - b written without cancellation
        return 1000 * cube / (root * root + root * b + b * b) / a


class _Table:
    """What the discrete schedules share."""

    n: int

    def _betas(self) -> np.ndarray:
        """Of every time."""
        raise NotImplementedError

    @property
    def last(self) -> float:
        return self.n - 1.0

    @cached_property
    def _log(self) -> np.ndarray:
        """-ln alpha_bar of every time."""
        return -np.cumsum(np.log1p(-self._betas()))

    def _at(self, t: ArrayLike) -> np.ndarray:
        times = np.asarray(t, dtype=np.float64)
        return np.interp(times, np.arange(self.n), self._log)

    def alpha_bar(self, t: ArrayLike) -> np.ndarray:
        """Signal variance left at network time `t`, fractions allowed."""
        return np.exp(-self._at(t))

    def sigma_of_t(self, t: ArrayLike) -> np.ndarray:
        """Noise level sigma > 0 of network time `t`, in units of the latent."""
        return np.sqrt(np.expm1(self._at(t)))

    def t_of_sigma(self, sigma: ArrayLike) -> np.ndarray:
        """Network time (fractional, not rounded) of noise level `sigma`."""
        log = np.log1p(np.asarray(sigma, dtype=np.float64) ** 2)
        t = np.interp(log, self._log, np.arange(self.n))
        whole = np.rint(t)
        # whatever sigma was rounded to: some networks take whole times alone
        return np.where(np.abs(t - whole) < 1e-8, whole, t)


@dataclass(frozen=True)
class TableSchedule(_Table):
    r"""The discrete schedule of :func:`beta_table`, by default latent diffusion's.

    Network time `t` is the index of the table, 0..n - 1;
    :math:`\ln\bar\alpha` is linear in between.  Times and levels beyond the ends
    are those of the ends: with the default 0 has sigma = 0.0388, 999 has 83.8.  Levels
    of the table have whole times.
    """

    start: float = 0.0015
    end: float = 0.0195
    n: int = 1000
    sqrt: bool = True

    def _betas(self) -> np.ndarray:
        return beta_table(self.start, self.end, n=self.n, sqrt=self.sqrt)


@dataclass(frozen=True)
class CosineSchedule(_Table):
    r"""The discrete schedule of improved DDPM, "squaredcos_cap_v2" of `diffusers`.

    :math:`\bar\alpha` is :math:`f(t + 1) / f(0)` with
    :math:`f(t) = \cos^2\!\left(\frac{\pi}{2}\,\frac{t/n + 0.008}{1.008}\right)` as long
    as every :math:`\beta` is at most `largest`.  Times as in `TableSchedule`; with the
    default 0 has sigma = 0.00643, 999 has 2.03e4.
    """

    n: int = 1000
    largest: ClassVar[float] = 0.999

    def _betas(self) -> np.ndarray:
        _check_count("CosineSchedule: n", self.n)
        u = np.arange(self.n + 1) / self.n
        left = np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1 - left[1:] / left[:-1], self.largest)


#: Network times are 0..999.
_TIMES = 1000


def sigma_of(alpha_bar: float) -> float:
    """Noise level sqrt((1 - ab) / ab) of signal variance ab = `alpha_bar`; ValueError
    unless 0 < ab < 1."""
    if not 0 < alpha_bar < 1:
        raise ValueError(f"need 0 < alpha_bar < 1, got {alpha_bar}")
    return math.sqrt((1 - alpha_bar) / alpha_bar)


def poly_grid(smax: float, smin: float, n: int, rho: float = 7.0) -> np.ndarray:
    r"""n noise levels from `smax` down to `smin`, evenly spaced in
    :math:`\sigma^{1/\rho}`; n = 1 gives `smax` alone.

    Raises
    ------
    ValueError
        Unless n >= 1, rho > 0 and 0 < smin <= smax < inf (smin is unused for n = 1).
    """
    _check_count("poly_grid: n", n)
    if not (0 < smax < np.inf and rho > 0):
        raise ValueError(f"poly_grid: smax and rho must be > 0, got {smax} and {rho}")
    if n > 1 and not 0 < smin <= smax:
        raise ValueError(f"poly_grid: need 0 < smin <= smax, got {smin} and {smax}")
    top, bottom = smax ** (1 / rho), smin ** (1 / rho)
    return (top + np.linspace(0, 1, n) * (bottom - top)) ** rho


def daps_annealing(
    version: str, steps: int, sigma_max: float = 100.0, sigma_min: float = 0.1
) -> np.ndarray:
    """Noise levels of DAPS's outer loop.

    Parameters
    ----------
    version : "2024" or "2025"
        Generation of the published code: in the first the last positive level is
        `sigma_min`, in the second the grid has one node more and the 0 takes the place
        of `sigma_min`.
    steps : int >= 1
    sigma_max, sigma_min : float

    Returns
    -------
    array, shape (steps + 1,), float64, descending to 0.
    """
    _check_count("daps_annealing: steps", steps)
    if _is_2024(version):
        return np.append(poly_grid(sigma_max, sigma_min, steps), 0.0)
    grid = poly_grid(sigma_max, sigma_min, steps + 1)
    return np.append(grid[:-1], 0.0)


def daps_ode(
    version: str, sigma: float, steps: int, sigma_min: float = 0.01
) -> np.ndarray:
    """Noise levels of DAPS's probability-flow ODE from `sigma`.

    "2024" ends `sigma_min`, 0 and with one step is [sigma, 0]: an Euler step to the
    denoiser's mean.  "2025" stops at `sigma_min`; its published code computes in
    float32, which moves the nodes by up to some 1e-6 of their value.

    Returns
    -------
    array, shape (steps + 1,), float64.
    """
    _check_count("daps_ode: steps", steps)
    if _is_2024(version):
        return np.append(poly_grid(sigma, sigma_min, steps), 0.0)
    return poly_grid(sigma, sigma_min, steps + 1)


def beta_table(
    start: float = 1e-4, end: float = 0.02, *, n: int = 1000, sqrt: bool = False
) -> np.ndarray:
    """n values from `start` to `end`, evenly spaced, or evenly spaced in the root.

    The default is DDPM's; LDM has (0.0015, 0.0195, sqrt=True), Stable Diffusion
    (0.00085, 0.012, sqrt=True).
    """
    _check_count("beta_table: n", n)
    if not 0 < start <= end < 1:
        raise ValueError(f"beta_table: need 0 < start <= end < 1, got {start}, {end}")
    return (
        np.linspace(start**0.5, end**0.5, n) ** 2
        if sqrt
        else np.linspace(start, end, n)
    )


@dataclass(frozen=True)
class DDPMTables:
    r"""Coefficients of the discrete process, float64, index i = 0 the cleanest.

    ``timesteps``: network times.  ``beta``, ``abar``, ``abar_prev`` with
    :math:`\bar\alpha_{-1} = 1`.  Posterior mean :math:`c_1 x_0 + c_2 x` and variance:

    .. math:: c_1 = \frac{\beta_i \sqrt{\bar\alpha_{i-1}}}{1 - \bar\alpha_i}, \quad
              c_2 = \frac{(1 - \bar\alpha_{i-1}) \sqrt{1 - \beta_i}}{1 - \bar\alpha_i},
              \quad
              \tilde\beta = \frac{\beta_i (1 - \bar\alpha_{i-1})}{1 - \bar\alpha_i}.

    ``minlog`` :math:`= \ln\tilde\beta` (entry 0 repeats entry 1), ``maxlog``
    :math:`= \ln\beta`: the ends between which a learned variance interpolates.
    """

    timesteps: np.ndarray
    beta: np.ndarray
    abar: np.ndarray
    abar_prev: np.ndarray
    c1: np.ndarray
    c2: np.ndarray
    btilde: np.ndarray
    minlog: np.ndarray
    maxlog: np.ndarray


def ddpm_tables(steps: int = 1000, betas: np.ndarray | None = None) -> DDPMTables:
    """Tables of the process respaced to `steps` of the network's times.

    Parameters
    ----------
    steps : int, 2..len(betas)
        The times kept are evenly spaced, first and last included, halves to even.
    betas : array, shape (T,)
        Default `beta_table()`.
    """
    betas = beta_table() if betas is None else np.asarray(betas, dtype=np.float64)
    if betas.ndim != 1 or not (betas.size and ((betas > 0) & (betas < 1)).all()):
        raise ValueError(f"ddpm_tables: betas must lie in (0, 1), got {betas!r}")
    _check_count("ddpm_tables: steps", steps, 2, len(betas))

    stride = (len(betas) - 1) / (steps - 1)
    # added up, not multiplied: halves round as in the published code
    position = np.cumsum(np.append(0.0, np.full(steps - 1, stride)))
    timesteps = np.rint(position).astype(np.int64)

    kept = np.cumprod(1 - betas)[timesteps]
    beta = 1 - kept / np.append(1.0, kept[:-1])
    abar = np.cumprod(1 - beta)
    abar_prev = np.append(1.0, abar[:-1])
    btilde = beta * (1 - abar_prev) / (1 - abar)
    return DDPMTables(
        timesteps=timesteps,
        beta=beta,
        abar=abar,
        abar_prev=abar_prev,
        c1=beta * np.sqrt(abar_prev) / (1 - abar),
        c2=(1 - abar_prev) * np.sqrt(1 - beta) / (1 - abar),
        btilde=btilde,
        minlog=np.log(np.append(btilde[1], btilde[1:])),
        maxlog=np.log(beta),
    )


@dataclass(frozen=True)
class DDIMGrid:
    r"""Steps :math:`z_t \to z_p` of a deterministic or stochastic DDIM sampler.

    ``timesteps``: network times.  ``a``, ``p``: :math:`\bar\alpha` before and after
    the step.  ``sigma``: standard deviation of the noise that the step adds,
    :math:`\eta \sqrt{(1-p)/(1-a)\,(1 - a/p)}`.
    """

    timesteps: np.ndarray
    a: np.ndarray
    p: np.ndarray
    sigma: np.ndarray


def ddim_grid(
    steps: int, *, eta: float = 0.0, schedule: Schedule | None = None
) -> DDIMGrid:
    """`steps` network times evenly spaced from 0 to the last, 999, ascending.

    From 1 where the schedule has no noise at 0, to the schedule's last time if that is
    earlier; whole numbers where there are enough of them, as some networks know no
    others.  Every step goes to the level before it and the first one to alpha_bar = 1.

    Parameters
    ----------
    steps : int, 1..1000
        At most as many as there are whole times.
    eta : float >= 0
    schedule
        Of the network; default `TableSchedule()`, latent diffusion's.
    """
    schedule = schedule or TableSchedule()
    last = int(min(schedule.last, _TIMES - 1))
    first = int(schedule.alpha_bar(0) == 1)
    _check_count("ddim_grid: steps", steps, 1, last + 1)
    times = np.linspace(last, first, steps)[::-1]
    if steps <= last + 1 - first:
        times = np.rint(times)
    a = schedule.alpha_bar(times)
    return _ddim(times, a, np.append(1.0, a[:-1]), eta)


def latent_times(steps: int) -> np.ndarray:
    """Network times of `latent_grid`; arguments and errors as there."""
    _check_count("latent_grid: steps", steps, 1, _TIMES)
    if _ends_beyond(steps):
        near = (range(steps, 0, -1), range(steps, _TIMES + 1))
        fewer, more = (next(n for n in ns if not _ends_beyond(n)) for ns in near)
        raise ValueError(
            f"latent_grid: {steps} steps end at network time {_TIMES}, which has no "
            f"entry in a table of {_TIMES}: use {fewer} or {more} steps, or grid='even'"
        )
    return np.arange(0, _TIMES, _TIMES // steps) + 1


def latent_grid(
    steps: int, *, eta: float = 0.0, schedule: Schedule | None = None
) -> DDIMGrid:
    r"""Grid of the released latent-diffusion samplers (LDM, PSLD, ReSample), ascending.

    With the stride :math:`c = \lfloor 1000 / steps \rfloor` the times are 1, 1 + c, ...
    up to 1000: :math:`\lceil 1000 / c \rceil` of them, **more than asked for** unless
    `steps` divides 1000.  The first step of the grid goes to :math:`\bar\alpha_0`, not
    to 1.  `steps` = 1000 is the published patch of PSLD: times 1..1000, but
    a = abar[i] at time i + 1 and p = abar[i - 1], so that times and levels disagree by
    one.

    Parameters
    ----------
    steps : int, 1..1000
    eta : float >= 0
    schedule
        Of the network; default `TableSchedule()`, latent diffusion's.  Its levels are
        rounded to float32, in which the models keep them.

    Raises
    ------
    ValueError
        Also when the grid would end at time 1000, which these codes cannot run, or
        start at a level without noise.
    """
    timesteps = latent_times(steps)
    index = timesteps - 1 if steps == _TIMES else timesteps
    abar = (schedule or TableSchedule()).alpha_bar(np.arange(_TIMES))
    abar = abar.astype(np.float32).astype(np.float64)
    a = abar[index]
    if a[0] == 1:
        raise ValueError(
            f"latent_grid: {steps} steps start at a level without noise of this "
            "schedule"
        )
    return _ddim(timesteps, a, abar[np.append(0, index[:-1])], eta)


def _ends_beyond(steps: int) -> bool:
    """Whether the last time of a latent grid has no entry in the table."""
    return steps < _TIMES and (_TIMES - 1) % (_TIMES // steps) == 0


def _ddim(times: np.ndarray, a: np.ndarray, p: np.ndarray, eta: float) -> DDIMGrid:
    if not 0 <= eta < np.inf:
        raise ValueError(f"a DDIM grid: eta must be >= 0, got {eta}")
    return DDIMGrid(times, a, p, eta * np.sqrt((1 - p) / (1 - a) * (1 - a / p)))


def layer_grid(
    layers: int, *, shifted: bool = False, betas: np.ndarray | None = None
) -> DDIMGrid:
    r"""Grid of DDIM steps used as the layers of a generator, in order of execution.

    With the stride :math:`c = \lfloor T / layers \rfloor` the times are
    (layers - 1) c, ..., c, 0 and every layer goes to the time c earlier; before 0,
    :math:`\bar\alpha = 1` (DMPlug).  `shifted` adds c to every time, T becoming T - 1
    (DMILO, DMILO-PGD), so that the last layer goes to :math:`\bar\alpha_0`.
    """
    betas = beta_table() if betas is None else np.asarray(betas, dtype=np.float64)
    abar = np.cumprod(1 - betas)
    n = len(abar)
    _check_count("layer_grid: layers", layers, 1, n)
    stride = n // layers
    timesteps = stride * np.arange(layers - 1, -1, -1)
    if shifted:
        timesteps = np.minimum(timesteps + stride, n - 1)
    previous = timesteps - stride
    p = np.where(previous < 0, 1.0, abar[np.maximum(previous, 0)])
    return DDIMGrid(timesteps, abar[timesteps], p, np.zeros(layers))


def _check_count(name: str, n: Any, low: int = 1, high: int | None = None) -> None:
    """ValueError unless n is an int in low..high."""
    integral = isinstance(n, int | np.integer) and not isinstance(n, bool)
    if not integral or n < low or (high is not None and n > high):
        bound = f">= {low}" if high is None else f"in {low}..{high}"
        raise ValueError(f"{name} must be an int {bound}, got {n!r}")


def _is_2024(version: object) -> bool:
    if version not in _VERSIONS:
        raise ValueError(
            f"unknown DAPS version {version!r}{nearest(version, _VERSIONS)}"
        )
    return version == "2024"

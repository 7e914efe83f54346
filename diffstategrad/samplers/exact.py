r"""A level of DAPS drawn exactly instead of by a Markov chain.

For a linear A and the noise level :math:`\sigma_y` of y the level's target
:math:`p(y \mid x)\, N(x; m, S)` is Gaussian.  With :math:`x' \sim N(m, S)` and
:math:`y' = y + \sigma_y n`,

.. math:: x = x' + S A^\top (A S A^\top + \sigma_y^2)^{-1} (y' - A x')
            = x' + (A^\top A + \sigma_y^2 S^{-1})^{-1} A^\top (y' - A x')

is a draw from it (Matheron's rule).  Choices of S at a level :math:`\sigma`:

isotropic  :math:`\sigma^2 I`, what DAPS says.  Directions that y does not see get noise
           of size :math:`\sigma` that the next level adds again.
capped     :math:`r^2 I`, :math:`r^2 = \sigma^2 s^2 / (\sigma^2 + s^2)`, s the standard
           deviation of the prior's pixels.
spectral   :math:`\sigma^2 C / (C + \sigma^2)`, C the prior's power spectrum: exact for
           a stationary Gaussian prior.
tweedie    :math:`\sigma^2\, \partial D / \partial x_t`, the covariance that the prior
           itself implies, by vector-Jacobian products; draws by a Lanczos iteration.
           A network's is neither quite symmetric nor positive: at high levels its draws
           are what conjugate gradients come to, and a warning says so.

With a network as prior, spectral draws are 1.4 to 7.5 dB above capped and isotropic
ones (``tests/bench/compare_exact.py``) and the default; C, which knows no edges, is
still wider than what the network implies.

The first two are the operator's own data step where that has a closed form.  All else
takes conjugate gradients in double precision: tweedie on the first form of the rule,
the others on the second, preconditioned by :math:`(\alpha + \sigma_y^2 / S)^{-1}` with
:math:`\alpha` the diagonal of :math:`A^\top A` in the basis of C.  For a non-linear A
the data step of a perturbed m and y (randomise, then optimise) is approximate; it
exists for the first two.

References
----------
Papandreou, Yuille, "Gaussian sampling by local perturbations", NeurIPS 2010.
Doucet, "A note on efficient conditional simulation of Gaussian distributions", 2010.
Chow, Saad, "Preconditioned Krylov subspace methods for sampling multivariate Gaussian
distributions", SIAM J. Sci. Comput. 2014.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import AvgPool2d

from diffstategrad.noise import CounterNoise
from diffstategrad.priors.spectrum import Spectrum
from diffstategrad.samplers.base import Problem, square_norm
from diffstategrad.samplers.conjugate_gradients import (
    Product,
    column,
    conjugate_gradients,
    dot,
)
from diffstategrad.samplers.data_step import data_step

__all__ = ["Covariance", "ExactDraw"]

Covariance = Literal["isotropic", "capped", "spectral", "tweedie"]

#: Of conjugate gradients: residual relative to the right-hand side, iterations.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
_ITERATIONS = 500
#: Images on which A's response is measured.
_PROBES = 16
#: Steps of the Lanczos iteration.
_LANCZOS = 20


class ExactDraw:
    """Draws the levels of one run.

    Attributes
    ----------
    iterations, residuals : list of int, list of float
        Of conjugate gradients, a level: the most of any image, and the largest relative
        residual that was left; 0 where the operator's own data step was taken.
    vjps : list of int
        Products with the network's Jacobian, a level: the most of any image.
    spectrum_calls : int
        Network calls, with one image each, that measuring the prior took, in this run
        or before it.
    """

    def __init__(
        self, problem: Problem, covariance: Covariance, signal_std: float | None
    ):
        if not problem.operator.linear and covariance in ("spectral", "tweedie"):
            raise ValueError(
                f"covariance={covariance!r} needs a linear operator, got "
                f"{problem.operator!r}: take 'capped'"
            )
        self.problem, self.covariance = problem, covariance
        self.iterations: list[int] = []
        self.residuals: list[float] = []
        self.vjps: list[int] = []
        self.spectrum_calls = 0
        self.std = signal_std
        start = problem.start
        image = tuple(start.shape[1:])
        if covariance == "spectral" or (covariance == "capped" and signal_std is None):
            prior = problem.network.prior
            self.spectrum = prior.power_spectrum(image, start.dtype, start.device)
            self.spectrum_calls = prior.spectrum_calls
            self.std = self.std or self.spectrum.std
        else:
            self.spectrum = Spectrum(torch.ones(image, dtype=torch.float64))
        self.spectrum = self.spectrum.to(start.device)

    def __call__(self, m: Tensor, xt: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """A draw with centre m, and ||A(x) - y||^2 of every image."""
        self.iterations.append(0)
        self.residuals.append(0.0)
        if self.covariance == "spectral":
            C = self.spectrum.variance
            x = self._shaped(m, sigma**2 * C / (C + sigma**2))
        elif self.covariance == "tweedie":
            x = self._tweedie(m, xt, sigma)
        else:
            x = self._round(m, sigma)
        self._note_residual()
        return x, square_norm(self.problem.operator(x) - self.problem.y)

    def _round(self, m: Tensor, sigma: float) -> Tensor:
        """S = r^2 I."""
        problem = self.problem
        operator, y, noise = problem.operator, problem.y, problem.noise
        r = sigma
        if self.covariance == "capped":
            assert self.std is not None
            r = sigma * self.std / (sigma**2 + self.std**2) ** 0.5
        rho = (problem.sigma / r) ** 2
        if not operator.linear:
            n1, n2 = self._noise(m)
            return data_step(operator, m + r * n1, y + problem.sigma * n2, rho)
        if operator._data_step(tuple(m.shape[1:]), m.dtype, m.device).closed_form:
            return operator.posterior_sample(m, y, rho, problem.sigma, noise)
        return self._shaped(m, torch.full_like(self.spectrum.variance, r**2))

    def _shaped(self, m: Tensor, S: Tensor) -> Tensor:
        """S diagonal in the spectrum's basis."""
        operator, image = self.problem.operator, tuple(m.shape[1:])
        spectrum, ratio = self.spectrum, self.problem.sigma**2 / S
        n1, n2 = self._noise(m)
        x = m.double() + spectrum.filter(n1.double(), S.sqrt())
        misfit = (self.problem.y + self.problem.sigma * n2).double() - operator(x)
        d = self._solve(
            lambda v: operator.adjoint(operator(v), image) + spectrum.filter(v, ratio),
            operator.adjoint(misfit, image),
            m.dtype,
            lambda v: spectrum.filter(v, 1 / (self.response + ratio)),
        )
        return (x + d).to(m)

    def _tweedie(self, m: Tensor, xt: Tensor, sigma: float) -> Tensor:
        operator, image = self.problem.operator, tuple(m.shape[1:])
        n1, n2 = self._noise(m)
        y = (self.problem.y + self.problem.sigma * n2).double()
        x = torch.empty_like(m)
        self.vjps.append(0)
        for part, vjp in self.problem.network.linearised(xt, sigma):
            count = 0

            def product(v: Tensor, vjp: Product = vjp) -> Tensor:
                nonlocal count
                count += 1
                return sigma**2 * vjp(v.to(xt)).double()

            def in_y(z: Tensor, product: Product = product) -> Tensor:
                spread = operator(product(operator.adjoint(z, image)))
                return spread + self.problem.sigma**2 * z

            free = m[part].double() + _lanczos_root(product, n1[part].double())
            z = self._solve(in_y, y[part] - operator(free), m.dtype)
            x[part] = (free + product(operator.adjoint(z, image))).to(m)
            self.vjps[-1] = max(self.vjps[-1], count)
        return x

    def _noise(self, m: Tensor) -> tuple[Tensor, Tensor]:
        """The level's draws, like m and like y."""
        noise = self.problem.noise
        return noise.normal(m), noise.normal(self.problem.y)

    def _solve(
        self,
        product: Product,
        b: Tensor,
        dtype: torch.dtype,
        precondition: Product = lambda v: v,
    ) -> Tensor:
        solution, iterations, residual = conjugate_gradients(
            product,
            b,
            tolerance=_TOLERANCE[dtype],
            iterations=_ITERATIONS,
            precondition=precondition,
        )
        self.iterations[-1] = max(self.iterations[-1], iterations)
        self.residuals[-1] = max(self.residuals[-1], residual)
        return solution

    def _note_residual(self) -> None:
        """A warning at the first level that is not solved to the tolerance."""
        tolerance = _TOLERANCE[self.problem.start.dtype]
        *before, residual = self.residuals
        if residual > tolerance >= max(before, default=0):
            self.problem.outcome.warnings.append(
                f"level {len(self.residuals)} is not drawn exactly: conjugate "
                f"gradients left a relative residual of {residual:.1e}, above "
                f"{tolerance:.0e}; see details['cg_residuals']"
            )

    @cached_property
    def response(self) -> Tensor:
        """The diagonal of A^T A in the spectrum's basis, (C, H, W), estimated on white
        noise and smoothed over neighbours."""
        operator, start = self.problem.operator, self.problem.start
        white = start.new_empty((_PROBES, *start.shape[1:]), dtype=torch.float64)
        white = CounterNoise(0, range(_PROBES), [0] * _PROBES).normal(white)
        seen = operator.adjoint(operator(white), tuple(start.shape[1:]))
        c = self.spectrum.coefficients(white)
        together = (c.conj() * self.spectrum.coefficients(seen)).real.mean(0)
        alone = (c.conj() * c).real.mean(0)
        smooth = AvgPool2d(5, stride=1, padding=2, count_include_pad=False)
        return (smooth(together) / smooth(alone)).clamp_min(0)


def _lanczos_root(product: Product, n: Tensor) -> Tensor:
    r"""S^{1/2} n of every image: with the Lanczos vectors Q from n and the tridiagonal
    T = Q^T S Q, :math:`\lVert n \rVert\, Q\, T^{1/2} e_1`."""
    length = dot(n, n).sqrt()
    q = n / column(length.where(length > 0, 1))
    basis, diagonal, beside = [q], [], []
    for k in range(_LANCZOS):
        w = product(q)
        diagonal.append(dot(w, q))
        if k == _LANCZOS - 1:
            break
        for _ in range(2):  # against rounding, and against what is not symmetric
            for earlier in basis:
                w = w - column(dot(w, earlier)) * earlier
        beta = dot(w, w).sqrt()
        # an invariant subspace: nothing is left, and nothing couples to it
        left = beta > 1e-10 * diagonal[0].abs()
        beside.append(torch.where(left, beta, 0))
        q = torch.where(column(left), w / column(beta.where(left, 1)), 0)
        basis.append(q)
    T = torch.diag_embed(torch.stack(diagonal, 1))
    off = torch.stack(beside, 1)
    T = T + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    values, vectors = torch.linalg.eigh(T.nan_to_num(0, 0, 0))
    root = values.clamp_min(0).sqrt()
    first = (vectors * (root * vectors[:, 0])[:, None, :]).sum(2)  # T^{1/2} e_1
    weights = (length[:, None] * first)[:, :, None, None, None]
    return (weights * torch.stack(basis, 1)).sum(1)

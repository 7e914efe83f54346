"""A prior in the latent space of an autoencoder.

With an encoder :math:`E` and a decoder :math:`D` an image is :math:`x = D(z)`, and the
diffusion model knows the latents :math:`z` (Rombach et al., CVPR 2022).
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from diffstategrad.priors.base import Prior
from diffstategrad.priors.border import Border

__all__ = ["LatentAutoencoder", "LatentPrior"]


@runtime_checkable
class LatentAutoencoder(Protocol):
    """What an autoencoder must have.

    Attributes
    ----------
    image_channels, latent_channels : int
    stride : int
        Pixels of a latent's entry, along each axis.
    stochastic : bool
        Whether the encoder gives a distribution.
    """

    image_channels: int
    latent_channels: int
    stride: int
    stochastic: bool

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """The latent of x (B, C, H, W) in [-1, 1], in the units that the diffusion
        model knows; differentiable.  Of a stochastic encoder the mean, or with standard
        normals of the latent's shape a draw."""
        ...

    def decode(self, z: Tensor, quantise: bool = True) -> Tensor:
        """The image of a latent, not clipped; differentiable, straight through a vector
        quantiser, which `quantise=False` leaves out."""
        ...


class LatentPrior(Prior):
    """Diffusion on latents, for the methods that work there.

    `denoise`, `predict`, `estimate`, `eps` and `power_spectrum` are of latents;
    `channels`, `stride` and `check_shape` of images.

    Parameters
    ----------
    latent : Prior
        Of latents.
    autoencoder : LatentAutoencoder
    name : str, optional
        For the record of a result.

    Raises
    ------
    TypeError
        For what is no prior or no autoencoder; later, where a gradient is asked for and
        the autoencoder gives none.
    ValueError
        If their latents' channels differ; later, if the autoencoder gives another shape
        than it says.
    """

    def __init__(
        self,
        latent: Prior,
        autoencoder: LatentAutoencoder,
        *,
        name: str | None = None,
    ):
        if isinstance(latent, LatentPrior) or not isinstance(latent, Prior):
            raise TypeError(
                "latent must be a Prior of latents alone, such as a NetworkPrior, got "
                f"{type(latent).__name__}"
            )
        if isinstance(autoencoder, type) or not isinstance(
            autoencoder, LatentAutoencoder
        ):
            raise TypeError(
                "autoencoder must have image_channels, latent_channels, stride, "
                f"stochastic, encode and decode, got {type(autoencoder).__name__}"
            )
        known = latent.channels
        if known is not None and known != autoencoder.latent_channels:
            raise ValueError(
                f"the prior knows latents of {known} channels, the autoencoder's have "
                f"{autoencoder.latent_channels}"
            )
        self.latent, self.autoencoder, self.name = latent, autoencoder, name
        self.border = Border(autoencoder)
        self.channels = autoencoder.image_channels
        self.stride = autoencoder.stride * latent.stride
        self.schedule = latent.schedule
        self.learned_variance = latent.learned_variance

    def image_shape(self, latent: tuple[int, ...]) -> tuple[int, int, int]:
        """(C, H, W) of the image of a latent (c, h, w)."""
        h, w = (self.autoencoder.stride * n for n in latent[1:])
        return self.autoencoder.image_channels, h, w

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(c, h, w) of the latent of an image (C, H, W)."""
        self.check_shape(shape)
        latent = self._latent(shape)
        try:
            self.latent.check_shape(latent)
        except ValueError as error:
            raise ValueError(f"of latents of shape {latent}: {error}") from None
        return latent

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """The latent of x (B, C, H, W) in [-1, 1], not quantised; differentiable.

        Parameters
        ----------
        noise : Tensor of the latent's shape, optional
            Standard normals: a draw of a stochastic encoder in place of its mean.
        """
        if noise is not None:
            noise = self.border.cast(noise)
        z = self.border(self.autoencoder.encode, x, noise)
        return _of_shape(z, (len(x), *self._latent(tuple(x.shape[1:]))), "encode")

    def decode(self, z: Tensor, quantise: bool = True) -> Tensor:
        """The image of z (B, c, h, w), not clipped; differentiable, straight through a
        vector quantiser, which `quantise=False` leaves out."""
        x = self.border(self.autoencoder.decode, z, quantise)
        return _of_shape(x, (len(z), *self.image_shape(tuple(z.shape[1:]))), "decode")

    def _latent(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        h, w = (n // self.autoencoder.stride for n in shape[1:])
        return self.autoencoder.latent_channels, h, w

    @property
    def borders(self) -> tuple[Border, ...]:
        return (*self.latent.borders, self.border)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        return self.latent.denoise(x, sigma)

    def predict(self, z: Tensor, alpha_bar: float) -> tuple[Tensor, Tensor | None]:
        return self.latent.predict(z, alpha_bar)

    def estimate(self, z: Tensor, alpha_bar: float) -> tuple[Tensor, Tensor | None]:
        return self.latent.estimate(z, alpha_bar)

    def eps(self, z: Tensor, t: float) -> Tensor:
        return self.latent.eps(z, t)

    def spec(self) -> dict[str, Any]:
        own = {"name": self.name} if self.name else {}
        return {**self.latent.spec(), **own, "latent": True}


def _of_shape(out: Tensor, shape: tuple[int, ...], what: str) -> Tensor:
    """The tensor; ValueError for one of another shape, which might broadcast."""
    if tuple(out.shape) != shape:
        raise ValueError(
            f"the autoencoder's {what} must give the shape {shape}, got "
            f"{tuple(out.shape)}"
        )
    return out

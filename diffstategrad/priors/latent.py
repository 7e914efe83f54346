"""A prior in the latent space of an autoencoder.

With an encoder :math:`E` and a decoder :math:`D` an image is :math:`x = D(z)`, and the
diffusion model knows the latents :math:`z` (Rombach et al., CVPR 2022).
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from diffstategrad.priors.base import Prior

__all__ = ["LatentAutoencoder", "LatentPrior"]


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
    """

    def __init__(
        self,
        latent: Prior,
        autoencoder: LatentAutoencoder,
        *,
        name: str | None = None,
    ):
        known = latent.channels
        if known is not None and known != autoencoder.latent_channels:
            raise ValueError(
                f"the prior knows latents of {known} channels, the autoencoder's have "
                f"{autoencoder.latent_channels}"
            )
        self.latent, self.autoencoder, self.name = latent, autoencoder, name
        self.channels = autoencoder.image_channels
        self.stride = autoencoder.stride * latent.stride
        self.schedule = latent.schedule
        self.learned_variance = latent.learned_variance

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(c, h, w) of the latent of an image (C, H, W)."""
        self.check_shape(shape)
        stride = self.autoencoder.stride
        return (
            self.autoencoder.latent_channels,
            shape[1] // stride,
            shape[2] // stride,
        )

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """The latent of x (B, C, H, W) in [-1, 1], not quantised; differentiable.

        Parameters
        ----------
        noise : Tensor of the latent's shape, optional
            Standard normals: a draw of a stochastic encoder in place of its mean.
        """
        return self.autoencoder.encode(x, noise)

    def decode(self, z: Tensor, quantise: bool = True) -> Tensor:
        """The image of z (B, c, h, w), not clipped; differentiable, straight through a
        vector quantiser, which `quantise=False` leaves out."""
        return self.autoencoder.decode(z, quantise)

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

r"""Published autoencoders as the first stage of latent diffusion.

With an encoder :math:`E`, a decoder :math:`G` and the factor :math:`s` that gives
latents about unit variance,

.. math:: \operatorname{encode}(x) = s\, E(x), \qquad
          \operatorname{decode}(z) = G(Q(z / s)),

where :math:`Q` is the nearest code of a vector-quantised autoencoder, with its gradient
passed straight through, and the identity of a variational one, whose :math:`E(x)` is
the mean of a Gaussian or, given normals :math:`n`, its draw :math:`\mu + \varsigma n`.

References
----------
Rombach, Blattmann, Lorenz, Esser, Ommer, "High-Resolution Image Synthesis with Latent
Diffusion Models", CVPR 2022, section 3.1 and appendix G.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from diffstategrad.models.autoencoder import quantise_straight

__all__ = ["KLFirstStage", "VQFirstStage"]


class _FirstStage(nn.Module):
    """What both kinds share.

    Parameters
    ----------
    network : diffusers.VQModel or diffusers.AutoencoderKL
    scale : float > 0
        s above.
    """

    stochastic = False

    def __init__(self, network: Any, scale: float = 1.0):
        super().__init__()
        self.network, self.scale = network, scale
        self.training = network.training
        config = network.config
        self.image_channels: int = config.in_channels
        self.latent_channels: int = config.latent_channels
        self.stride: int = 2 ** (len(config.block_out_channels) - 1)

    def _encode(self, x: Tensor) -> Tensor:
        net = self.network
        h = net.encoder(x)
        return h if net.quant_conv is None else net.quant_conv(h)

    def _decode(self, h: Tensor) -> Tensor:
        net = self.network
        return net.decoder(h if net.post_quant_conv is None else net.post_quant_conv(h))


class VQFirstStage(_FirstStage):
    """A vector-quantised autoencoder; what is encoded is not quantised."""

    def __init__(self, network: Any, scale: float = 1.0):
        super().__init__(network, scale)
        self.latent_channels = network.config.vq_embed_dim or self.latent_channels

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """z (B, c, H / stride, W / stride) of x (B, C, H, W) in [-1, 1]; no noise."""
        return self.scale * self._encode(x)

    def decode(self, z: Tensor, quantise: bool = True) -> Tensor:
        """x, not clipped, of z with each vector replaced by its nearest code first."""
        h = z / self.scale
        if quantise:
            # half precision would mistake one code for another
            h = quantise_straight(h, self.network.quantize.embedding.weight.float())
        return self._decode(h)


class KLFirstStage(_FirstStage):
    """A variational autoencoder."""

    stochastic = True

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """The mean of z (B, c, H / stride, W / stride) given x (B, C, H, W) in [-1, 1],
        or with `noise`, standard normals of the shape of z, a draw."""
        mean, log_variance = self._encode(x).chunk(2, dim=1)
        if noise is not None:
            # the limits with which it was trained
            mean = mean + (log_variance.clamp(-30, 20) / 2).exp() * noise
        return self.scale * mean

    def decode(self, z: Tensor, quantise: bool = True) -> Tensor:
        """x, not clipped; there is nothing to quantise."""
        return self._decode(z / self.scale)

r"""Procedural images: dead leaves with textures, shading and depth of field.

A scene is a stack of opaque shapes ("leaves") painted from back to front. The radius
of a leaf follows the power law :math:`p(r) \propto r^{-\alpha}` on
:math:`[r_{min}, r_{max}]`, which makes the scene statistics nearly scale invariant,
as in photographs. Each leaf is an implicit shape: a function that is negative inside
and grows like a distance in pixels, so that

.. math:: m = \operatorname{clip}(1/2 - d / w, 0, 1)

is its antialiased coverage for an edge width :math:`w = 1` pixel, and a leaf out of
focus for larger :math:`w`. Colours come from a small muted palette per scene, surfaces
carry gradients, rounded shading and one of several textures, and the finished canvas
is lit, blurred and clipped. No photograph enters.

References
----------
Lee, Mumford, Huang, "Occlusion models for natural images", IJCV 2001.
Achddou, Gousseau, Ladjal, "Fully synthetic training for image restoration tasks",
CVIU 2023.
Achddou et al., "VibrantLeaves: a principled parametric image generator for training
deep restoration models", arXiv 2504.10201, 2025.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["power_law", "render", "scene"]

Array = np.ndarray
Shape = Callable[[Array, Array], Array]

_MAX_LEAVES = 2500


def scene(seed: int, index: int, size: int) -> Array:
    """Image number `index` of the stream with this `seed`.

    Returns
    -------
    ndarray, shape (3, size, size), float32 in [-1, 1]
    """
    return render(np.random.default_rng([seed, index]), size)


def render(rng: np.random.Generator | int, size: int) -> Array:
    """One random scene.

    Parameters
    ----------
    rng : Generator or int
        A seed gives the same scene on every call.
    size : int
        Height and width in pixels, at least 8.

    Returns
    -------
    ndarray, shape (3, size, size), float32 in [-1, 1]
    """
    if size < 8:
        raise ValueError(f"render: size must be at least 8, got {size}")
    if not isinstance(rng, np.random.Generator):
        rng = np.random.default_rng(rng)
    fields = _noise_bank(rng, size)
    palette = _palette(rng)
    canvas = _background(rng, size, palette, fields)
    for radius, y, x in _layout(rng, size):
        _paint_leaf(rng, canvas, radius, y, x, palette, fields)
    return _develop(rng, canvas, fields)


def power_law(
    rng: np.random.Generator, n: int, low: float, high: float, alpha: float
) -> Array:
    r"""`n` radii in [`low`, `high`] with density :math:`\propto r^{-\alpha}`."""
    a, b = low ** (1 - alpha), high ** (1 - alpha)
    return (a + (b - a) * rng.random(n)) ** (1 / (1 - alpha))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


# ---- Where the leaves are -----------------------------------------------------------


def _layout(rng: np.random.Generator, size: int) -> Array:
    """Radius and centre of every leaf, back to front; shape (n, 3)."""
    low = _log_uniform(rng, 1.6, 25.0)
    high = max(0.8 * size, 2.0 * low)
    alpha = rng.uniform(2.3, 3.2)
    radii = power_law(rng, _MAX_LEAVES, low, high, alpha)
    coverage = rng.uniform(1.0, 4.0) * size * size
    n = 1 + int(np.searchsorted(np.cumsum(2.0 * radii**2), coverage))
    radii = radii[:n]
    n = len(radii)
    centres = rng.uniform(-0.6, 0.6, (n, 2)) * (size + radii[:, None]) + size / 2

    # Half of the scenes keep their small leaves together: photographs are busy in some
    # places and calm in others, and clutter everywhere trains a worse prior.
    if rng.random() < 0.5:
        hubs = rng.uniform(0, size, (rng.integers(1, 5), 2))
        near = hubs[rng.integers(len(hubs), size=n)]
        near = near + rng.normal(0, 0.12 * size, (n, 2))
        small = radii < 10
        centres[small] = near[small]
    order = rng.permutation(n)
    if rng.random() < 0.6:  # large things behind, details in front
        order = np.argsort(-radii * np.exp(rng.normal(0, 0.7, n)))
    return np.column_stack([radii, centres])[order]


# ---- Shapes: negative inside, about one unit per pixel near the edge -----------------


def _lobed(rng: np.random.Generator, r: float) -> Shape:
    """A disc whose radius varies with the angle by a few Fourier terms."""
    orders = np.arange(2, 2 + rng.integers(1, 7))
    amplitude = rng.normal(0, 1, len(orders)) * rng.uniform(0, 0.35) / orders**0.8
    phase = rng.uniform(0, 2 * np.pi, len(orders))

    def distance(v: Array, u: Array) -> Array:
        theta = np.arctan2(v, u)
        edge = np.ones_like(theta)
        for k, a, p in zip(orders, amplitude, phase, strict=True):
            edge += np.float32(a) * np.cos(np.float32(k) * theta + np.float32(p))
        return np.hypot(v, u) - r * np.maximum(edge, 0.1)

    return distance


def _ellipse(rng: np.random.Generator, r: float) -> Shape:
    aspect = _log_uniform(rng, 1.0, 2.5)
    a, b = r * np.sqrt(aspect), r / np.sqrt(aspect)
    return lambda v, u: (np.hypot(v / b, u / a) - 1) * b


def _box(rng: np.random.Generator, r: float) -> Shape:
    """A rectangle with more or less rounded corners."""
    aspect = _log_uniform(rng, 1.0, 3.5)
    a, b = 0.9 * r * np.sqrt(aspect), 0.9 * r / np.sqrt(aspect)
    corner = b * rng.choice([0.0, rng.uniform(0, 0.6)])
    shear = rng.normal(0, 0.25) if rng.random() < 0.3 else 0.0

    def distance(v: Array, u: Array) -> Array:
        du = np.abs(u + np.float32(shear) * v) - np.float32(a - corner)
        dv = np.abs(v) - np.float32(b - corner)
        outside = np.hypot(np.maximum(du, 0), np.maximum(dv, 0))
        return outside + np.minimum(np.maximum(du, dv), 0) - np.float32(corner)

    return distance


def _bar(rng: np.random.Generator, r: float) -> Shape:
    """A long stroke, straight or bent, of constant or tapering width."""
    length = r * rng.uniform(1.2, 2.5)
    width = max(0.5, r * _log_uniform(rng, 0.03, 0.25))
    bend = rng.normal(0, 0.35) / length if rng.random() < 0.6 else 0.0
    taper = rng.uniform(0, 0.9) if rng.random() < 0.4 else 0.0

    def distance(v: Array, u: Array) -> Array:
        along = np.clip(u, -length, length)
        local = np.float32(width) * (1 - np.float32(taper / length) * np.abs(along))
        return np.hypot(u - along, v - np.float32(bend) * u * u) - local

    return distance


def _polygon(rng: np.random.Generator, r: float) -> Shape:
    """A convex polygon: the intersection of half planes."""
    n = int(rng.integers(3, 8))
    angles = 2 * np.pi * (np.arange(n) + rng.uniform(-0.35, 0.35, n)) / n
    offsets = r * rng.uniform(0.6, 1.0, n)

    def distance(v: Array, u: Array) -> Array:
        d = np.full(np.broadcast_shapes(v.shape, u.shape), -np.inf, np.float32)
        for a, o in zip(angles, offsets, strict=True):
            c, s = np.float32(np.cos(a)), np.float32(np.sin(a))
            d = np.maximum(d, c * u + s * v - np.float32(o))
        return d

    return distance


def _cluster(rng: np.random.Generator, r: float) -> Shape:
    """A rounded concave shape: the smooth union of a few discs."""
    n = int(rng.integers(3, 7))
    centres = rng.normal(0, 0.45 * r, (n, 2))
    radii = r * rng.uniform(0.25, 0.6, n)
    soft = np.float32(max(0.5, r * rng.uniform(0.02, 0.15)))

    def distance(v: Array, u: Array) -> Array:
        total = np.float32(1e-30)
        for (cy, cx), ri in zip(centres.astype(np.float32), radii, strict=True):
            d = np.hypot(v - cy, u - cx) - np.float32(ri)
            total = total + np.exp(np.clip(-d / soft, -60, 20))
        return -soft * np.log(total)

    return distance


_SHAPES = (_lobed, _ellipse, _box, _bar, _polygon, _cluster)
_SHAPE_WEIGHTS = (0.24, 0.16, 0.2, 0.16, 0.12, 0.12)


# ---- Textures ------------------------------------------------------------------------


def _noise_bank(rng: np.random.Generator, size: int) -> Array:
    """Periodic Gaussian fields with spectrum 1/f^beta, some of them directional.

    Shape (6, n, n) with n the power of two above `size`, zero mean, unit variance,
    from rough (first) to smooth (last).
    """
    n = 1 << (size - 1).bit_length()
    fy = np.fft.fftfreq(n)[:, None].astype(np.float32)
    fx = np.fft.rfftfreq(n)[None].astype(np.float32)
    fields = []
    for beta, stretch in zip(
        (0.8, 1.0, 1.1, 1.4, 1.8, 2.4), (1, 1, 6, 2.5, 1, 1), strict=True
    ):
        beta = beta + rng.uniform(-0.25, 0.25)
        angle = rng.uniform(0, np.pi)
        a = (np.cos(angle) * fx + np.sin(angle) * fy) * stretch
        b = (np.cos(angle) * fy - np.sin(angle) * fx) / np.sqrt(stretch)
        gain = (a * a + b * b + np.float32(0.3 / n) ** 2) ** np.float32(-beta / 2)
        gain[0, 0] = 0
        white = rng.standard_normal((n, n), dtype=np.float32)
        field = np.fft.irfft2(np.fft.rfft2(white) * gain, s=(n, n))
        fields.append((field / field.std()).astype(np.float32))
    return np.stack(fields)


def _window(
    rng: np.random.Generator, field: Array, height: int, width: int, zoom: int = 1
) -> Array:
    """A random window of a periodic field, flipped and transposed at random."""
    n = field.shape[-1]
    rows = (rng.integers(n) + zoom * np.arange(height)) % n
    cols = (rng.integers(n) + zoom * np.arange(width)) % n
    if rng.random() < 0.5:
        field = field.T
    return field[rows[:, None], cols[None]]


def _texture(rng: np.random.Generator, v: Array, u: Array, fields: Array) -> Array:
    """A pattern of about unit variance on the grid of a leaf."""
    h, w = v.shape
    kind = rng.random()
    if kind < 0.55:  # rough to smooth noise, isotropic or directional
        pattern = _window(rng, fields[rng.integers(5)], h, w)
        if rng.random() < 0.25:  # patches with soft edges, as in bark or camouflage
            pattern = np.tanh(np.float32(_log_uniform(rng, 1, 6)) * pattern)
        return pattern
    # Stripes, bricks or checks, warped by a smooth field.
    period = _log_uniform(rng, 2.5, 40)
    warp = _window(rng, fields[4 + rng.integers(2)], h, w)
    warp = warp * np.float32(rng.choice([0.0, _log_uniform(rng, 0.1, 2.5)]))
    angle = rng.uniform(0, np.pi)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    k = np.float32(2 * np.pi / period)
    wave = np.sin(k * (c * u + s * v) + warp)
    if rng.random() < 0.35:
        other = k * np.float32(_log_uniform(rng, 0.4, 2.5))
        across = np.sin(other * (c * v - s * u) + warp)
        wave = wave * across if rng.random() < 0.5 else np.maximum(wave, across)
    # Hard edges only where the period leaves room for an antialiased ramp.
    sharp = _log_uniform(rng, 0.5, max(0.6, 0.3 * period))
    wave = np.tanh(np.float32(sharp) * (wave - np.float32(rng.uniform(-0.6, 0.6))))
    if rng.random() < 0.5:
        wave = wave * (1 + np.float32(0.4) * _window(rng, fields[4], h, w))
    return wave / np.float32(np.tanh(sharp))


# ---- Colour --------------------------------------------------------------------------


def _hsv_to_rgb(h: Array, s: Array, v: Array) -> Array:
    k = (np.asarray(h)[..., None] * 6 + np.array([5.0, 3.0, 1.0])) % 6
    tone = np.clip(np.minimum(k, 4 - k), 0, 1)
    return np.asarray(v)[..., None] * (1 - np.asarray(s)[..., None] * tone)


def _palette(rng: np.random.Generator) -> Array:
    """A few muted colours that go together; shape (n, 3), in [0, 1]."""
    n = int(rng.integers(3, 10))
    hues = rng.random(int(rng.integers(1, 4)))
    # Skies, skin, earth and plants: photographs favour blue, orange and yellow-green.
    favoured = rng.choice([0.08, 0.1, 0.25, 0.58, 0.62], len(hues))
    hues = np.where(rng.random(len(hues)) < 0.6, favoured, hues)
    hue = (rng.choice(hues, n) + rng.normal(0, 0.04, n)) % 1
    # From nearly grey to vivid scenes; a prior that has seen only muted ones bleaches
    # photographs at high noise.
    level = rng.uniform(0.05, 0.7)
    saturation = rng.beta(4 * level, 4 * (1 - level), n)
    if rng.random() < 0.08:
        saturation[:] = 0
    value = rng.beta(1.1, 1.1, n)
    return _hsv_to_rgb(hue, saturation, value)


def _surface(
    rng: np.random.Generator,
    v: Array,
    u: Array,
    inner: Array,
    radius: float,
    palette: Array,
    fields: Array,
) -> Array:
    """Colours of one leaf; `inner` is 0 at its edge and 1 deep inside."""
    base = palette[rng.integers(len(palette))]
    base = np.clip(base + rng.normal(0, 0.04) + rng.normal(0, 0.015, 3), 0, 1)
    base = base.astype(np.float32)[:, None, None]

    # Multiplicative shading: a ramp over the leaf and a rounded edge.
    shade = np.ones_like(v)
    if rng.random() < 0.8:
        slope = rng.normal(0, 0.25, 2).astype(np.float32) / np.float32(radius)
        shade += slope[0] * v + slope[1] * u
    if rng.random() < 0.45:
        shade += np.float32(rng.normal(0, 0.35)) * (1 - inner) ** 2
    colour = base * np.clip(shade, 0.15, 2.0)

    if rng.random() < 0.85:
        strength = np.float32(_log_uniform(rng, 0.015, 0.55))
        pattern = _texture(rng, v, u, fields) * strength
        tint = np.float32(0.3) + base + np.float32(rng.normal(0, 0.1))
        if rng.random() < 0.3:  # towards a second colour of the scene
            other = palette[rng.integers(len(palette))].astype(np.float32)
            tint = np.float32(1.5) * (other[:, None, None] - base)
        colour = colour + pattern * tint
    if rng.random() < 0.15:  # a highlight
        cy, cx = rng.normal(0, 0.4 * radius, 2)
        spread = radius * rng.uniform(0.1, 0.5)
        gloss = np.exp(-((v - cy) ** 2 + (u - cx) ** 2) / np.float32(2 * spread**2))
        colour = colour + np.float32(rng.uniform(0.1, 0.7)) * gloss
    return colour


def _background(
    rng: np.random.Generator, size: int, palette: Array, fields: Array
) -> Array:
    v, u = _grid(0, size, 0, size, size / 2, size / 2, 0.0)
    flat = np.ones_like(v)
    return np.ascontiguousarray(
        _surface(rng, v, u, flat, 0.7 * size, palette, fields), dtype=np.float32
    )


# ---- Painting ------------------------------------------------------------------------


def _grid(
    y0: int, y1: int, x0: int, x1: int, y: float, x: float, angle: float
) -> tuple[Array, Array]:
    """Coordinates of a window of pixels, relative to (y, x) and rotated."""
    dy = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(y)
    dx = np.arange(x0, x1, dtype=np.float32)[None] - np.float32(x)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * dy - s * dx, s * dy + c * dx


def _paint_leaf(
    rng: np.random.Generator,
    canvas: Array,
    radius: float,
    y: float,
    x: float,
    palette: Array,
    fields: Array,
) -> None:
    size = canvas.shape[-1]
    shape = rng.choice(len(_SHAPES), p=_SHAPE_WEIGHTS)
    distance = _SHAPES[shape](rng, radius)
    blur = 1.0 if rng.random() < 0.75 else 1.0 + min(rng.exponential(2.5), radius)
    angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.8 else rng.normal(0, 0.03)
    reach = 2.6 if shape == 3 else 1.8
    half = reach * radius + blur + 1
    y0, y1 = max(0, int(y - half)), min(size, int(y + half) + 1)
    x0, x1 = max(0, int(x - half)), min(size, int(x + half) + 1)
    if y0 >= y1 or x0 >= x1:
        return
    v, u = _grid(y0, y1, x0, x1, y, x, angle)
    d = distance(v, u).astype(np.float32)
    mask = np.clip(np.float32(0.5) - d / np.float32(blur), 0, 1)
    if not mask.any():
        return
    window = canvas[:, y0:y1, x0:x1]
    if rng.random() < 0.3:  # a soft shadow on what lies behind
        _cast_shadow(rng, window, d, radius)
    inner = np.clip(-d / np.float32(0.7 * radius), 0, 1)
    colour = _surface(rng, v, u, inner, radius, palette, fields)
    opacity = 1.0 if rng.random() < 0.92 else rng.uniform(0.3, 0.9)
    window += (mask * np.float32(opacity)) * (colour - window)


def _cast_shadow(
    rng: np.random.Generator, window: Array, d: Array, radius: float
) -> None:
    soft = np.float32(1 + radius * rng.uniform(0.05, 0.4))
    shadow = np.float32(rng.uniform(0.1, 0.6)) * np.clip(0.5 - d / soft, 0, 1)
    h, w = shadow.shape
    dy, dx = (int(k) for k in rng.normal(0, 0.15 * radius, 2))
    dy, dx = int(np.clip(dy, 1 - h, h - 1)), int(np.clip(dx, 1 - w, w - 1))
    target = window[:, max(dy, 0) : h + min(dy, 0), max(dx, 0) : w + min(dx, 0)]
    target *= 1 - shadow[max(-dy, 0) : h - max(dy, 0), max(-dx, 0) : w - max(dx, 0)]


# ---- Light and camera ----------------------------------------------------------------


def _develop(rng: np.random.Generator, canvas: Array, fields: Array) -> Array:
    """Lighting, tone, optics; canvas in about [0, 1], result in [-1, 1]."""
    size = canvas.shape[-1]
    if rng.random() < 0.6:  # uneven light
        light = _window(rng, fields[5], size, size) * np.float32(rng.uniform(0, 0.18))
        canvas = canvas * np.exp(light)
    if rng.random() < 0.4:  # relief that the leaves share, as foliage or a crowd
        relief = _window(rng, fields[3 + rng.integers(2)], size, size)
        canvas = canvas * np.exp(relief * np.float32(_log_uniform(rng, 0.03, 0.3)))
    canvas = np.clip(canvas, 0, 1.2)
    if rng.random() < 0.5:  # tone curve
        canvas = canvas ** np.float32(_log_uniform(rng, 0.6, 1.7))
    # The colour of the light: often neutral, else warm or cool.
    warm = rng.normal(0, 0.3 if rng.random() < 0.35 else 0.06)
    gain = warm * np.array([1.0, 0.1, -1.0]) + rng.normal(0, 0.04, 3)
    gain = np.exp(gain + rng.normal(0, 0.12)).astype(np.float32)
    canvas = canvas * gain[:, None, None]
    if rng.random() < 0.25:  # haze: less contrast about some grey
        contrast = np.float32(_log_uniform(rng, 0.4, 1.0))
        canvas = contrast * canvas + (1 - contrast) * np.float32(rng.uniform(0, 0.8))
    if rng.random() < 0.35:  # the lens
        canvas = _blur(canvas, rng.uniform(0.25, 1.1))
    elif rng.random() < 0.5:  # the overshoot of resampling filters
        soft = _blur(canvas, rng.uniform(0.5, 0.9))
        canvas = canvas + np.float32(rng.uniform(0.1, 0.6)) * (canvas - soft)
    return (2 * np.clip(canvas, 0, 1) - 1).astype(np.float32)


def _blur(image: Array, sigma: float) -> Array:
    reach = max(1, int(np.ceil(3 * sigma)))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (1, 2):
        pad = [(0, 0), (0, 0), (0, 0)]
        pad[axis] = (reach, reach)
        wide = np.pad(image, pad, mode="reflect")
        n = image.shape[axis]
        image = sum(
            k * np.take(wide, np.arange(i, i + n), axis=axis)
            for i, k in enumerate(kernel)
        )
    return image

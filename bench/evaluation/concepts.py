"""The knowledge in a feature as visual concepts: what Cheng, Rao, Chen and Zhang count to explain distillation.

"Explaining Knowledge Distillation by Quantifying the Knowledge" (CVPR 2020, https://arxiv.org/abs/2003.03622). A pixel
is a visual concept of a feature if the feature keeps clearly more of it than of the image's background.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kdbench.bench.networks.network import Network
from kdbench.bench.seeds import generator
from kdbench.methods.base import Unsupported

Feature = Callable[[Tensor], Tensor]
"""A feature (B, ...) of images (B, C, H, W) in [0, 1], each image's own."""

BATCH = 32
"""Images whose noise is learned at once."""
PROBES, PROBE = 32, 1e-2
"""Draws that measure the scale of a feature, and their deviation as a share of `noise`."""
WIDEST = 0.0
"""Largest log deviation: noise as wide as the range of a pixel already discards it."""


class Concepts(NamedTuple):
    """Which pixels are concepts, on either side of the foreground mask; one boolean (N, H, W) each."""

    foreground: Tensor
    background: Tensor


def stage_feature(network: Network, depth: float) -> tuple[Feature, int, int]:
    """A stage of a network as a feature that can be differentiated by its images.

    Args:
        network: is frozen, and put into evaluation mode.
        depth: from 0, the first stage, to 1, the last; the nearest stage is taken.

    Returns:
        The feature, the number of its stage from 1, and how many stages there are.

    Raises:
        Unsupported: if the network has no stages.
    """
    model = network.eval().requires_grad_(False).model
    count = len(getattr(model, "feature_info", ()))
    intermediates = getattr(model, "forward_intermediates", None)
    if not count or intermediates is None:
        raise Unsupported(f"{type(model).__name__} has no stages that can be tapped (no forward_intermediates).")
    index = round(depth * (count - 1))

    def feature(images: Tensor) -> Tensor:
        _, (stage,) = intermediates(network.normalised(images), indices=[index])
        values: Tensor = stage.float()
        return values

    return feature, index + 1, count


def pixel_entropies(
    feature: Feature, images: Tensor, noise: float = 0.1, steps: int = 200, samples: int = 4, seed: int = 0
) -> Tensor:
    """How much of each pixel a feature discards: the entropy of the noise that the pixel bears, in nats.

    Gaussian noise of deviation sigma_i on pixel i, shared by its channels, is learned for each image by minimising

        E ||f(x + sigma eps) - f(x)||^2 / delta^2 - beta mean_i H_i,  H_i = log sigma_i + log(2 pi e) / 2.

    delta^2 is the limit of E ||f(x + tau eps) - f(x)||^2 / tau^2 for small tau, at the same image. The paper's delta^2
    lacks the division and would vanish; with it the first term is the variance of the equal noise on all pixels that
    changes the feature as much, so that it does not depend on the scale of a layer or a network. Where the feature is
    linear with the gradient g_i, the optimum is sigma_i^2 = beta mean_j |g_j|^2 / (2 |g_i|^2); beta is 2 noise^2, so
    that a pixel of average influence bears `noise`. Departures: deviations end at 1, the range of a pixel, as those of
    ignored pixels would grow for ever; what is returned is the mean over the last half of the steps.

    Args:
        feature: of a frozen network in evaluation mode.
        images: (N, C, H, W) in [0, 1].
        noise: deviation for a pixel of average influence.
        steps: of Adam on log sigma.
        samples: draws of the noise for each image and step.
        seed: of the noise.

    Returns:
        (N, H, W)
    """
    batches = enumerate(images.split(BATCH))
    found = [_log_deviations(feature, batch, noise, steps, samples, (seed, number)) for number, batch in batches]
    return torch.cat(found) + 0.5 * math.log(2 * math.pi * math.e)


def _log_deviations(
    feature: Feature, images: Tensor, noise: float, steps: int, samples: int, seed: tuple[int, int]
) -> Tensor:
    """Learned log sigma (N, H, W) of one batch; the rate falls linearly, so that the draws' noise averages out."""
    draws = generator("concepts", *seed)
    clean = feature(images).flatten(1)
    tau = PROBE * noise
    scale = torch.stack([_change(feature, images, clean, tau, draws) for _ in range(PROBES)]).mean(dim=0) / tau**2
    scale = scale.clamp_min(1e-20)
    shape = (len(images), 1, *images.shape[2:])
    log_sigma = torch.full(shape, math.log(noise), device=images.device, requires_grad=True)
    optimizer = torch.optim.Adam([log_sigma], lr=0.1)
    total = torch.zeros(shape, device=images.device)
    repeated, clean = images.repeat(samples, 1, 1, 1), clean.repeat(samples, 1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        change = _change(feature, repeated, clean, log_sigma.exp().repeat(samples, 1, 1, 1), draws)
        fidelity = change.view(samples, -1).mean(dim=0) / scale
        loss = fidelity.sum() - 2 * noise**2 * log_sigma.mean(dim=(1, 2, 3)).sum()
        (log_sigma.grad,) = torch.autograd.grad(loss / noise**2, log_sigma)
        optimizer.step()
        with torch.no_grad():
            log_sigma.clamp_(max=WIDEST)
            total += log_sigma if step >= steps // 2 else 0
    return total.squeeze(1) / (steps - steps // 2)


def _change(feature: Feature, images: Tensor, clean: Tensor, sigma: Tensor | float, draws: torch.Generator) -> Tensor:
    """||f(x + sigma eps) - f(x)||^2 for each image, (N,)."""
    eps = torch.randn(images.shape, generator=draws).to(images.device)
    return (feature(images + sigma * eps).flatten(1) - clean).square().sum(dim=1)


def ink(images: Tensor) -> Tensor:
    """Foreground (N, H, W) of grey images (N, 1, H, W) uint8: brighter than Otsu's threshold; none if all are equal."""
    levels = torch.arange(256, dtype=torch.float64)
    counts = torch.stack([torch.bincount(image.flatten().long(), minlength=256) for image in images.cpu()]).double()
    below, mass = counts.cumsum(dim=1), (counts * levels).cumsum(dim=1)
    above, rest = below[:, -1:] - below, mass[:, -1:] - mass
    between = below * above * (mass / below.clamp_min(1) - rest / above.clamp_min(1)).square()
    threshold = torch.where(between.amax(dim=1) > 0, between.argmax(dim=1), 255)
    return images.squeeze(1) > threshold.to(images.device)[:, None, None]


def centre(images: Tensor) -> Tensor:
    """The central half of the area as foreground (N, H, W): a stand-in where no object boxes are known."""
    height, width = images.shape[2:]
    mask = torch.zeros(len(images), height, width, dtype=torch.bool, device=images.device)
    rows, columns = (round(size * (1 - math.sqrt(0.5)) / 2) for size in (height, width))
    mask[:, rows : height - rows, columns : width - columns] = True
    return mask


def concepts(entropies: Tensor, foreground: Tensor, threshold: float) -> Concepts:
    """Pixels whose entropy is more than `threshold` nats below the mean of the image's background.

    Args:
        entropies: (N, H, W)
        foreground: (N, H, W) boolean; an image that is all foreground has no concepts.
        threshold: b in the paper.
    """
    background = ~foreground
    mean = (entropies * background).sum(dim=(1, 2)) / background.sum(dim=(1, 2))
    found = mean[:, None, None] - entropies > threshold
    return Concepts(found & foreground, found & background)


def ratio(found: Concepts) -> float | None:
    """lambda: the share of concepts that lie on the foreground, the mean over images that have any."""
    inside, outside = (mask.sum(dim=(1, 2)).double() for mask in found)
    return _mean((inside / (inside + outside))[inside + outside > 0])


def learning_speed(counts: Tensor, weights: list[list[Tensor]]) -> tuple[float | None, float | None]:
    """D_mean and D_std: how far weights moved until each image had most concepts, and how far apart that was.

    The distance of an image is the sum of ||w_k - w_(k-1)|| / ||w_0|| up to the first snapshot with the most concepts.

    Args:
        counts: (M, N), foreground concepts of each image at snapshots 1 to M; images that never have any say nothing.
        weights: parameters at snapshots 0 to M, 0 being the start.
    """
    start = _norm(weights[0])
    pairs = zip(weights, weights[1:], strict=False)
    steps = [_norm([b - a for a, b in zip(*pair, strict=True)]) / start for pair in pairs]
    travelled = torch.tensor(steps, dtype=torch.float64).cumsum(dim=0)
    distances = travelled[counts.argmax(dim=0).cpu()][(counts.amax(dim=0) > 0).cpu()]
    if not len(distances):
        return None, None
    return float(distances.mean()), float(distances.std(correction=0))


def discarded(foreground: Tensor) -> float | None:
    """1 - rho: the share of the foreground concepts ever learned that the end lacks, the mean over images with any.

    Args:
        foreground: (M, N, H, W) boolean, foreground concepts at snapshots 1 to M.
    """
    last, ever = (mask.sum(dim=(1, 2)).double() for mask in (foreground[-1], foreground.any(dim=0)))
    return _mean((1 - last / ever)[ever > 0])


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None

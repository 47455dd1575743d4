"""How far a network's logits move between two runs that should be equal.

The tolerance of `concentrate verify --depth audit` rests on this. Each network (random weights,
batch norms set by the same images) is run on 32 images of noise at once, one by one, in one thread,
in float64, and with inputs and weights of every layer rounded to the 10 bits of TF32. Reported:
the largest difference of a logit, in shares of the largest logit of its row or of 1. A figure
does not depend on the load of the machine. Prints one JSON object.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from measure import record
from torch import Tensor, nn
from torchvision import models

NETWORKS = ("resnet18", "resnet50", "shufflenet_v2_x0_5", "mobilenet_v3_small")
IMAGES = 32


def as_tf32(values: Tensor) -> Tensor:
    """Return float32 values rounded to the 10 bits of mantissa that TF32 keeps."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def measure(name: str, seed: int) -> dict[str, float]:
    """Return the noise of one network, by cause."""
    torch.manual_seed(seed)
    network = models.get_model(name, weights=None, num_classes=200)
    images = torch.randn(IMAGES, 3, 224, 224)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    network(images)
    network.eval()
    found: dict[str, Tensor] = {}
    whole = network(images)
    found["batches of 1"] = torch.cat([network(image[None]) for image in images])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found["one thread"] = network(images)
    torch.set_num_threads(threads)
    found["float64"] = network.double()(images.double()).float()
    network.float()

    def rounded(module: nn.Module, inputs: Any) -> Any:
        return (as_tf32(inputs[0]),)

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data = as_tf32(module.weight.data)
            module.register_forward_pre_hook(rounded)
    found["tf32"] = network(images)
    scale = whole.abs().amax(dim=1, keepdim=True).clamp(min=1)
    return {
        cause: float(f"{((logits - whole).abs() / scale).max().item():.2g}")
        for cause, logits in found.items()
    }


def main() -> None:
    """Run all networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with torch.inference_mode():
        noise = {name: measure(name, arguments.seed) for name in NETWORKS}
    record("audit_noise", {"images": IMAGES, "seed": arguments.seed, "noise": noise})


if __name__ == "__main__":
    main()

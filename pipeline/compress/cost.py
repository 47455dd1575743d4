"""What a network costs: parameters, and floating-point operations of one image.

In: counts that do not depend on the machine. Left out: seconds, which `benchmarks/` measures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import InputConfig


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The size of a network.

    Attributes:
        parameters: Learned values.
        flops: Floating-point operations of one image forwards; a multiply-add counts as 2.
            Matrix products and convolutions only, as torch counts them.
    """

    parameters: int
    flops: int


def cost(network: nn.Module, config: InputConfig) -> Cost:
    """Count parameters and operations in eval mode.

    Args:
        network: Takes (1, channels, size, size) images; its mode is restored.
        config: Size and channels.
    """
    parameters = list(network.parameters())
    device = parameters[0].device if parameters else torch.device("cpu")
    image = torch.zeros(1, config.channels, config.size, config.size, device=device)
    was_training = network.training
    network.eval()
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(image)
    finally:
        network.train(was_training)
    return Cost(
        parameters=sum(parameter.numel() for parameter in parameters),
        flops=counter.get_total_flops(),
    )

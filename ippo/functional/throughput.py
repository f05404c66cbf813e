"""How fast a pass runs, and against what the card could do."""

from __future__ import annotations

PEAKS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "RTX 4090": 165.0,
}
"""10^12 operations a second in bfloat16 without sparsity, with float32 accumulation, from NVIDIA's data sheets; a name
is found in what torch calls the device, the longer before the shorter."""


def peak_flops(device: str) -> float | None:
    """Operations a second that a card can do in bfloat16; None for one that is not known, such as a CPU.

    Args:
        device: its name, as ``torch.cuda.get_device_name`` gives it.

    Example:
        >>> peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("NVIDIA H100 PCIe"), peak_flops("x86_64")
        (989000000000000.0, 756000000000000.0, None)
    """
    found = [name for name in sorted(PEAKS, key=len, reverse=True) if name in device]
    return PEAKS[found[0]] * 1e12 if found else None


def pass_flops(forward: int, backward: int, tokens: int) -> float:
    """Operations of a training pass, two for each weight that a token meets in the forward and four in the backward
    pass; attention's own, and those of layers that are run again, are left out.

    Args:
        forward: weights that are multiplied with.
        backward: those of them that have a gradient; of the others the backward pass takes two operations, for the
            gradient of their input.
        tokens: that pass, prompts included.

    Returns:
        A number of operations.

    Source:
        Kaplan et al. 2020 (arXiv 2001.08361), section 2.1; what a frozen weight leaves out follows from it.

    Example:
        >>> pass_flops(forward=10, backward=10, tokens=3), pass_flops(forward=10, backward=0, tokens=3)  # 6 and 4 each
        (180.0, 120.0)
    """
    return float(tokens * (4 * forward + 2 * backward))

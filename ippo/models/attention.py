"""Which attention kernels may train a policy."""

from __future__ import annotations

import torch


def without_cudnn_attention() -> None:
    """Switch cuDNN's attention off, for the whole process.

    From torch 2.11 on it is what ``scaled_dot_product_attention`` takes first on Hopper GPUs in half precision. With a
    mask, which left-padded prompts always need, its backward returns NaN for some lengths and peaked heads, while loss
    and logits stay finite (pytorch/pytorch#196678, huggingface/trl#7181). A warm start of 20 million parameters on an
    H200 was lost after some 270 steps, by all signs to it. The kernels that are left are exact.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)

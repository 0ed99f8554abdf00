"""The state that a layer without a growing cache keeps for each request: Mamba, gated delta nets, short convolutions.

Shapes as in vLLM 0.32, model_executor/layers/mamba/mamba_utils (`MambaStateShapeCalculator`), all of them cut by tensor
parallelism; the recurrent part in four bytes, the convolution in two.
"""

from collections.abc import Mapping
from typing import Any

CONVOLUTION_BYTES = 2
RECURRENT_BYTES = 4


def state_bytes(text: Mapping[str, Any]) -> int:
    """Bytes of one layer's state of one request, over all GPUs together; 0 where the configuration has none."""

    def number(*names: str) -> int:
        found = (text.get(name) for name in names)
        return next((value for value in found if type(value) is int and 0 < value < 2**31), 0)

    if number("linear_num_value_heads"):
        keys = number("linear_key_head_dim") * number("linear_num_key_heads")
        values = number("linear_value_head_dim") * number("linear_num_value_heads")
        kernel = number("linear_conv_kernel_dim") or 4
        recurrent = values * number("linear_key_head_dim")
        return (2 * keys + values) * (kernel - 1) * CONVOLUTION_BYTES + recurrent * RECURRENT_BYTES
    state = number("mamba_d_state", "ssm_state_size", "state_size")
    if not state:
        kernel = number("conv_L_cache", "conv_kernel")
        return number("hidden_size") * kernel * CONVOLUTION_BYTES
    expand = number("mamba_expand", "expand") or 2
    heads, width = number("mamba_n_heads", "mamba_num_heads"), number("mamba_d_head", "mamba_head_dim")
    inner = heads * width or number("mamba_d_ssm", "mamba_intermediate_size") or expand * number("hidden_size")
    groups = number("mamba_n_groups", "n_groups") if heads else 0
    kernel = number("mamba_d_conv", "conv_kernel", "mamba_conv_kernel") or 4
    return (inner + 2 * groups * state) * (kernel - 1) * CONVOLUTION_BYTES + inner * state * RECURRENT_BYTES

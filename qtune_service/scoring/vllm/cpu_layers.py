"""vLLM's layers on a CPU, where its own take a detour.

RMSNorm: vLLM normalises with single torch operations there, each a pass over memory, though its CPU build has the
fused kernel. 4,096 tokens of 896 numbers: 40 ms against 1.2 ms, 49 times a step of a 0.5B model. The fused kernel
computes in float32 as the other way does. SiLU with its product was tried too and is left as it is: 69 ms the plain
way, 94 ms by the kernel.

`CustomOp.register_oot` is vLLM's hook for layers from elsewhere. It is called only where a scoring model is built.
"""

from __future__ import annotations

import torch
from vllm.model_executor.custom_op import CustomOp, op_registry_oot
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.platforms import current_platform

_OPS = torch.ops._C  # noqa: SLF001 - where vLLM keeps its kernels
KERNELS = ("rms_norm", "fused_add_rms_norm")


class FusedRMSNorm(RMSNorm):  # type: ignore[misc]  # vllm is not typed here
    """RMSNorm by the fused kernels, where they apply."""

    def forward_native(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Normalise x (..., H); with a residual of that shape, x + residual, which comes back too."""
        is_plain = self.has_weight and self.variance_size_override is None and self.weight.dtype == x.dtype
        if not is_plain or not x.is_contiguous() or (residual is not None and not residual.is_contiguous()):
            plain: torch.Tensor | tuple[torch.Tensor, torch.Tensor] = super().forward_native(x, residual)
            return plain
        if residual is None:
            out = torch.empty_like(x)
            _OPS.rms_norm(out, x, self.weight.data, self.variance_epsilon)
            return out
        _OPS.fused_add_rms_norm(x, residual, self.weight.data, self.variance_epsilon)
        return x, residual

    def forward_cpu(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The same."""
        return self.forward_native(x, residual)


def use_fused_layers() -> None:
    """Have the models that are built from now on in this process use them. On a CPU only, and where they exist."""
    has_kernels = current_platform.is_cpu() and all(hasattr(_OPS, name) for name in KERNELS)
    if has_kernels and "RMSNorm" not in op_registry_oot:
        CustomOp.register_oot(name="RMSNorm")(FusedRMSNorm)

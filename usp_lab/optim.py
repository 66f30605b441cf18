"""Muon for the matrices of a small model's layers, AdamW for the rest: fewer tokens to the same loss when a model starts from random weights."""

import torch
from torch import nn

from usp_lab.models import computes_bf16

MUON_LR = (
    5.0  # Muon's learning rate is this many times AdamW's: its updates have unit spectral norm
)


class Fp32Muon(torch.optim.Muon):
    """torch's Muon with its orthogonalisation in the gradients' own precision.

    torch's is in bf16, which takes most of a step on CPUs that only emulate it. Same settings, same state.
    """

    @torch.no_grad()
    def step(self, closure=None):
        """Take a step."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                rows, columns = p.shape  # torch's "original" adjustment of the learning rate
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(
                    _orthogonal(update, group), alpha=-group["lr"] * max(1, rows / columns) ** 0.5
                )
        return loss


def _orthogonal(x: torch.Tensor, group: dict) -> torch.Tensor:
    """Return the matrix with all singular values near 1, by Newton-Schulz iterations."""
    a, b, c = group["ns_coefficients"]
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / wide.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if x.shape[0] <= x.shape[1] else wide.T


class MuonAdamW(torch.optim.Optimizer):
    """Two of torch's optimizers behind one interface, so that a trainer can schedule, save and restore them as one.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) orthogonalises the momentum of matrices; embeddings, norms and biases are AdamW's.
    For one process or DDP; sharded training (FSDP, DeepSpeed) keeps AdamW.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        matrices = [p for n, p in trained if p.ndim == 2 and ".layers." in f".{n}"]
        chosen = {id(p) for p in matrices}
        rest = [p for _, p in trained if id(p) not in chosen]
        muon = torch.optim.Muon if computes_bf16() else Fp32Muon
        self._parts = [
            muon(matrices, lr=MUON_LR * lr, weight_decay=weight_decay),
            torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=weight_decay),
        ]
        super().__init__([{"params": [p for _, p in trained]}], {"lr": lr})
        self.param_groups = [
            g for part in self._parts for g in part.param_groups
        ]  # shared: a scheduler's changes arrive

    @torch.no_grad()
    def step(self, closure=None):
        """Take a step with both."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self._parts:
            part.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters."""
        for part in self._parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        """Return both states."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take both states back."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [g for part in self._parts for g in part.param_groups]

"""What a loss trains that belongs to no model: classifiers, projections, heads, whatever wraps them."""

from __future__ import annotations

from pathlib import Path

from sentence_transformers.base.model import BaseModel
from torch import Tensor, nn

from st_plugins.core.files import write_tensors
from st_plugins.core.loading.files import is_there, read_tensors
from st_plugins.core.writing.atomic import atomic_file

FILE = "loss_parameters.safetensors"


def own_state(loss: nn.Module) -> dict[str, Tensor]:
    """Return a loss's trained parameters, and the buffers beside them, that are in no model."""
    models = [part for part in loss.modules() if isinstance(part, BaseModel)]
    shared = {id(tensor) for model in models for tensor in (*model.parameters(), *model.buffers())}
    # Buffers count where something is trained: a frozen teacher has some too, and belongs to no checkpoint.
    beside = {
        id(tensor)
        for part in loss.modules()
        if any(parameter.requires_grad for parameter in part.parameters(recurse=False))
        for tensor in part.buffers(recurse=False)
    }
    found: dict[str, Tensor] = {}
    for name, tensor in loss.state_dict(keep_vars=True).items():
        trained = isinstance(tensor, nn.Parameter) and tensor.requires_grad
        if isinstance(tensor, Tensor) and (trained or id(tensor) in beside) and id(tensor) not in shared:
            found[name] = tensor
    return found


def save_own(loss: nn.Module, folder: Path) -> None:
    """Write a loss's own parameters into a folder."""
    with atomic_file(folder / FILE) as file:
        # safetensors refuses tensors that share their memory, as tied ones do.
        write_tensors(file, {name: tensor.detach().clone() for name, tensor in own_state(loss).items()})


def load_own(loss: nn.Module, folder: Path) -> None:
    """Read a loss's own parameters that `save_own` wrote; where they do not fit, the loss is left as it is."""
    path = folder / FILE
    if not is_there(path):
        raise FileNotFoundError(f"{folder} has no {FILE}; give HeadCheckpointCallback to the trainer that writes it")
    state, own = read_tensors(path), own_state(loss)
    if {name: tensor.shape for name, tensor in state.items()} != {name: tensor.shape for name, tensor in own.items()}:
        raise ValueError(
            f"{path} holds {sorted(state)}, but this {type(loss).__name__} trains {sorted(own)}, or in other shapes; "
            "create the loss with the same model and arguments"
        )
    for name, tensor in own.items():
        tensor.data.copy_(state[name])

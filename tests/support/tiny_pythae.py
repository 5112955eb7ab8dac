"""Tiny models with random weights in the files of pythae 0.1.2."""

import json
import pickle
from pathlib import Path

import torch
from torch import nn

SHAPE, DIM = (1, 8, 8), 3


class Encoder(nn.Module):
    """A convolutional encoder with pythae's interface."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten())
        self.heads = nn.Linear(64, 2 * DIM)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        mean, log_var = self.heads(self.layers(x)).chunk(2, dim=1)
        return {"embedding": mean, "log_covariance": log_var}


class Decoder(nn.Module):
    """A decoder with pythae's interface that ends in a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(DIM, 64), nn.Sigmoid())

    def forward(self, z: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"reconstruction": self.layers(z).reshape(z.shape[0], *SHAPE)}


def save(folder: Path, *, pickled: bool = False, head: str = "log_var", **config: object) -> Path:
    """Writes a model in the files of pythae 0.1.2."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    stated = {
        "name": "VAEConfig",
        "input_dim": list(SHAPE),
        "latent_dim": DIM,
        "uses_default_encoder": not pickled,
        "uses_default_decoder": not pickled,
        "reconstruction_loss": "bce",
    }
    (folder / "model_config.json").write_text(json.dumps(stated | config))
    weights = {}
    if pickled:
        for name, net in (("encoder", Encoder()), ("decoder", Decoder())):
            (folder / f"{name}.pkl").write_bytes(pickle.dumps(net))
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.add_(0.01)  # model.pt has the last word
            weights |= {f"{name}.{key}": tensor for key, tensor in net.state_dict().items()}
    else:
        layers = {
            "encoder.layers.0.0": nn.Linear(64, 512),
            "encoder.embedding": nn.Linear(512, DIM),
            f"encoder.{head}": nn.Linear(512, DIM),
            "decoder.layers.0.0": nn.Linear(DIM, 512),
            "decoder.layers.1.0": nn.Linear(512, 64),
        }
        for name, layer in layers.items():
            weights |= {f"{name}.{key}": tensor for key, tensor in layer.state_dict().items()}
    torch.save({"model_state_dict": weights}, folder / "model.pt")
    return folder

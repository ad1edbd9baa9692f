"""The networks of one run by their names: seeded as students, loaded as teachers."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from kdbench.bench.data.splits import EVALUATION_BATCH, Splits
from kdbench.bench.networks.build import Refused
from kdbench.bench.networks.checkpoints import load_weights
from kdbench.bench.networks.network import Network
from kdbench.bench.seeds import generator, seed_of
from kdbench.bench.spec import ModelSpec
from kdbench.methods.base import Net, Unsupported
from kdbench.methods.rows import Rows, count, split

Recall = Callable[[str, Rows, Callable[[], Tensor]], tuple[Tensor, bool]]
"""Takes a network's identity, inputs, and what predicts them; gives the logits, and whether they were known before."""


START = "start:"
"""Of weights from which a network's training starts."""


class NetworkTask(Protocol):
    """What networks need of their task; `kdbench.bench.tasks.Task` has it."""

    def build(self, spec: ModelSpec, data: Splits, model_args: dict[str, object] | None = None) -> Network:
        """A network for these data."""

    def prepared(self, inputs: Rows, device: torch.device) -> Rows:
        """Inputs as networks take them."""


class RunNetworks:
    """The networks of one run, by the names of their Nets.

    Rule 1 of the engine: a Net first named as a student starts from weights seeded by its name (or pretrained ones);
    first named as a teacher, it is loaded from the store; named again, it goes on.
    """

    def __init__(
        self,
        task: NetworkTask,
        models: Mapping[str, ModelSpec],
        data: Splits,
        seed: int,
        device: torch.device,
        weights: Callable[[str], bytes],
        recall: Recall,
    ) -> None:
        """Starts without any network.

        Args:
            task: builds networks.
            models: the spec's models by name.
            data: what the networks are built for.
            seed: of random weights.
            device: where they live.
            weights: gives the safetensors file of a stored network.
            recall: gives what stored networks have predicted before.
        """
        self.task, self.models, self.data, self.seed, self.device = task, models, data, seed, device
        self._weights, self.recall = weights, recall
        self.built: dict[str, Network] = {}
        self.trained: list[str] = []
        self.left_out: dict[str, list[str]] = {}
        """Arguments that a network was to be given and does not take, by the network's name."""
        self.asked, self.cached, self.seconds = 0, 0, 0.0
        """Samples that predictions were asked for, those of them that were at hand, and the time that the rest took."""

    def student(self, net: Net) -> Network:
        """A network to train."""
        if net.name not in self.trained:
            self.trained.append(net.name)
            self.built[net.name] = self._seeded(net, dict(net.model_args)).to(self.device)
        return self.built[net.name].requires_grad_(True)

    def teacher(self, net: Net) -> Network:
        """A network to learn from, frozen and in evaluation mode."""
        if net.name not in self.built:
            model = self._model(net)
            network = self.task.build(model, self.data)
            load_weights(network, self._weights(model.weights), model.name)
            self.built[net.name] = network.to(self.device)
        return self.built[net.name].requires_grad_(False).eval()

    def identity(self, net: Net) -> str:
        """Names all that decides what a teacher says; empty for a network of this run's own making."""
        if net.name in self.trained:
            return ""
        network = self.teacher(net)
        digest = hashlib.sha256(f"{self._model(net)} {network.input_size} {self.device.type}".encode())
        for name, tensor in network.state_dict().items():
            digest.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def predict(self, net: Net, inputs: Rows) -> Tensor:
        """Logits (M, K) on the CPU of a frozen network for inputs as the data have them."""
        network, identity, start = self.teacher(net), self.identity(net), time.perf_counter()
        logits, known = self.recall(identity, inputs, lambda: self._predictions(network, inputs))
        self.asked, self.cached = self.asked + count(inputs), self.cached + known * count(inputs)
        self.seconds += 0 if known else time.perf_counter() - start
        return logits

    def model(self, net: Net) -> nn.Module:
        """The model inside a network that has been built."""
        return self.built[net.name].model

    def share_normalisation(self, net: Net, source: Net) -> None:
        """Makes a network normalise its input as another does.

        Raises:
            Unsupported: if they take images of different channels or sizes.
        """
        mine, theirs = self.built[net.name], self.built[source.name]
        if mine.mean.shape != theirs.mean.shape or mine.input_size != theirs.input_size:
            raise Unsupported(f"{net.name} and {source.name} take images of different channels or sizes.")
        mine.mean.copy_(theirs.mean)
        mine.std.copy_(theirs.std)

    def generator(self, name: str) -> torch.Generator:
        """Random numbers that depend on the run's seed and this name alone."""
        return generator(self.seed, name)

    def _seeded(self, net: Net, model_args: dict[str, object]) -> Network:
        """A network with these arguments, without those that it does not take, from weights seeded by its name.

        One that starts from imported weights has those.
        """
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed_of(self.seed, "weights", net.name))
                network = self.task.build(model := self._model(net), self.data, model_args)
        except Refused as refused:
            self.left_out.setdefault(net.name, []).extend(refused.arguments)
            return self._seeded(net, {key: v for key, v in model_args.items() if key not in refused.arguments})
        if model.weights.startswith(START):
            load_weights(network, self._weights(model.weights), model.name)
        return network

    def _model(self, net: Net) -> ModelSpec:
        if net.model not in self.models:
            raise Unsupported(f"this method needs a {net.model}, and the run has none.")
        return self.models[net.model]

    @torch.no_grad()
    def _predictions(self, network: Network, inputs: Rows) -> Tensor:
        with network.precision():
            batches = split(inputs, EVALUATION_BATCH)
            return torch.cat([network(self.task.prepared(batch, self.device)).float().cpu() for batch in batches])

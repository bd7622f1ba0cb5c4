"""A PyTorch network that learns. It behaves as the network of models/train/keras_learner.py does."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np

from models.architecture import Architecture
from models.artifact.artifact import Spec
from models.conversion.readers import weights
from models.errors import ArtifactError
from models.inputs import ImageInput
from models.train.data import Array
from models.train.recipe import EPSILON, Recipe

WEIGHTS_FILE = "weights.pth"


class TorchLearner:
    """A models.train.fit.Learner."""

    weights_file = WEIGHTS_FILE
    state_file = "state.pt"

    def __init__(self, architecture: Architecture, spec: Spec, recipe: Recipe) -> None:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it, sums on a GPU differ from run to run
        # Threads that spin while they wait take cores from other processes: training was up to 50 times slower.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import torch  # noqa: PLC0415

        self._torch, self._recipe = torch, recipe
        self._images = isinstance(spec.input, ImageInput)
        self._device = "cuda" if recipe.device == "auto" and torch.cuda.is_available() else "cpu"
        self.start_epoch(0)
        torch.use_deterministic_algorithms(mode=True, warn_only=self._device == "cuda")
        self.network = architecture.build("torch", spec.input.shape, spec.outputs)
        if recipe.dropout is not None:
            dropouts = [each for each in self.network.modules() if isinstance(each, torch.nn.Dropout)]
            if not dropouts:
                raise ArtifactError(f"{architecture.name} has no dropout layer", "leave out --dropout")
            for each in dropouts:
                each.p = recipe.dropout
        if recipe.initializer != "default":
            self._initialize(recipe.initializer)
        self.network.to(self._device)
        trainable = [each for each in self.network.parameters() if each.requires_grad]
        # Kernels are penalised; biases and the factors of a normalisation, which are vectors, are not.
        self._kernels = [each for each in trainable if each.ndim > 1]
        self._optimizer = self._make_optimizer(trainable, recipe)

    def _initialize(self, initializer: str) -> None:
        init = self._torch.nn.init
        for module in self.network.modules():
            parameters = [each for each in module.parameters(recurse=False) if each.requires_grad]
            if not any(each.ndim > 1 for each in parameters):
                continue  # a normalisation, or a container
            for each in parameters:
                if each.ndim == 1:
                    init.zeros_(each)
                elif initializer == "glorot":
                    init.xavier_uniform_(each)
                else:
                    init.kaiming_uniform_(each, nonlinearity="relu")

    def _make_optimizer(self, trainable: list[Any], recipe: Recipe) -> Any:
        optim, rate = self._torch.optim, recipe.first_learning_rate
        makers = {
            "sgd": lambda: optim.SGD(trainable, rate, momentum=recipe.momentum),
            "adagrad": lambda: optim.Adagrad(trainable, rate, initial_accumulator_value=0.1, eps=EPSILON),
            "rmsprop": lambda: optim.RMSprop(trainable, rate, alpha=0.9, eps=EPSILON),
            "adam": lambda: optim.Adam(trainable, rate, eps=EPSILON),
            "adamw": lambda: optim.AdamW(trainable, rate, eps=EPSILON, weight_decay=recipe.weight_decay),
            # The decay of the momentum is that of Keras, where it cannot be set.
            "nadam": lambda: optim.NAdam(trainable, rate, eps=EPSILON, momentum_decay=1.0),
            "adadelta": lambda: optim.Adadelta(trainable, rate, rho=0.95, eps=EPSILON),
        }
        return makers[recipe.optimizer]()

    def start_epoch(self, epoch: int) -> None:
        """Sets the random state to that of this epoch, the same in every training with this seed."""
        seed = int(np.random.default_rng((self._recipe.seed, epoch)).integers(2**32))
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - an architecture's builder may use it
        self._torch.manual_seed(seed)
        self._torch.cuda.manual_seed_all(seed)

    def set_learning_rate(self, rate: float) -> None:
        """Sets the learning rate of the following steps."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def learn(self, inputs: Array, labels: Array) -> float:
        """Takes one step. Returns the loss before it, including penalties."""
        self.network.train()
        self._optimizer.zero_grad()
        loss = self._loss(self.network(self._tensor(inputs)), labels) + self.penalty()
        loss.backward()
        self._optimizer.step()
        return float(loss.item())

    def _loss(self, outputs: Any, labels: Array) -> Any:
        torch, smoothing = self._torch, self._recipe.label_smoothing
        classes = max(outputs.shape[1], 2)
        wanted = torch.nn.functional.one_hot(torch.from_numpy(labels).long().to(self._device), classes).float()
        wanted = wanted * (1 - smoothing) + smoothing / classes
        if outputs.shape[1] == 1:  # the second of two classes
            wanted = wanted[:, 1:]
        functions = torch.nn.functional
        if self._recipe.loss == "mean_squared_error":
            given = torch.sigmoid(outputs) if outputs.shape[1] == 1 else torch.softmax(outputs, dim=1)
            return functions.mse_loss(given, wanted)
        if outputs.shape[1] == 1:
            return functions.binary_cross_entropy_with_logits(outputs, wanted)
        return functions.cross_entropy(outputs, wanted)

    def penalty(self) -> Any:
        """The L1 and L2 penalties of the kernels."""
        total = 0.0
        if self._recipe.l1:
            total += self._recipe.l1 * sum(kernel.abs().sum() for kernel in self._kernels)
        if self._recipe.l2:
            total += self._recipe.l2 * sum(kernel.square().sum() for kernel in self._kernels)
        return total

    def predict(self, inputs: Array) -> Array:
        """The network's output for each item."""
        self.network.eval()
        with self._torch.inference_mode():
            answer: Array = self.network(self._tensor(inputs)).cpu().numpy()
        return answer

    def _tensor(self, inputs: Array) -> Any:
        first = np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)) if self._images else inputs
        return self._torch.from_numpy(first).to(self._device)

    def save_weights(self, path: Path) -> None:
        """Writes the weights as a file that the service can load."""
        self._torch.save({name: value.cpu() for name, value in self.network.state_dict().items()}, path)

    def load_weights(self, path: Path) -> None:
        """Loads a file that `save_weights` wrote."""
        weights.load(self.network, "torch", path)

    def save_state(self, path: Path) -> None:
        """Writes the state from which the next epoch continues."""
        self._torch.save({"network": self.network.state_dict(), "optimizer": self._optimizer.state_dict()}, path)

    def load_state(self, path: Path) -> None:
        """Loads a file that `save_state` wrote."""
        state = self._torch.load(path, map_location=self._device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])

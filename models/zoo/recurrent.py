"""Recurrent classifiers: Elman, 1990; LSTM, Hochreiter & Schmidhuber, 1997; GRU, Cho et al., 2014.

Two layers read a sequence, and a dense layer reads the second one's last state. In PyTorch and cuDNN a layer has two
biases, of which one would do; so does the Keras network here, for equal parameters in both. `rnn_one_bias` and
`lstm_one_bias` use Keras' own layers: PyTorch's second bias is zero there and stays zero. (A GRU has two in both.)
"""

from typing import Any

from models.architecture import Architecture
from models.inputs import ImageInput, NumbersInput

LAYERS = 2
HIDDEN = 20
SEQUENCE = (5, 10)  # steps, features
ROWS, COLUMNS = 28, 28  # an image is the sequence of its rows
ROWS_HIDDEN = 64


def torch_recurrent(
    shape: tuple[int, ...], num_classes: int, *, cell: str, hidden: int, bidirectional: bool = False, biases: int = 2
) -> Any:
    """Takes [N, steps, features], or an image, [N, channels, height, width]; returns logits [N, num_classes]."""
    import torch
    from torch import nn

    kinds = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            features = shape[1] if len(shape) == 2 else shape[1] * shape[2]  # noqa: PLR2004
            self.rnn = kinds[cell](features, hidden, LAYERS, batch_first=True, bidirectional=bidirectional)
            if biases == 1:
                for name, parameter in self.rnn.named_parameters():
                    if name.startswith("bias_hh"):
                        nn.init.zeros_(parameter).requires_grad_(requires_grad=False)
            self.fc = nn.Linear(hidden * (1 + bidirectional), num_classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(shape) == 3:  # noqa: PLR2004
                x = x.permute(0, 2, 3, 1).flatten(2)
            x, _ = self.rnn(x)
            # The last state of each direction: the backward one ends at the first step.
            return self.fc(torch.cat((x[:, -1, :hidden], x[:, 0, hidden:]), dim=1))

    return Recurrent()


def keras_recurrent(
    shape: tuple[int, ...], num_classes: int, *, cell: str, hidden: int, bidirectional: bool = False, biases: int = 2
) -> Any:
    """Takes [N, steps, features], or an image, [N, height, width, channels]; returns logits [N, num_classes]."""
    from keras import Sequential, layers, ops, saving

    @saving.register_keras_serializable("menagerie")
    class TwoBiasRNNCell(layers.SimpleRNNCell):
        """tanh(Wx + b + Uh + b')."""

        def build(self, input_shape: Any) -> None:
            super().build(input_shape)
            self.recurrent_bias = self.add_weight(shape=(self.units,), initializer="zeros", name="recurrent_bias")

        def call(self, sequence: Any, states: Any, training: bool = False) -> Any:  # noqa: ARG002, FBT001, FBT002
            inside = ops.matmul(sequence, self.kernel) + self.bias
            state = ops.tanh(inside + ops.matmul(states[0], self.recurrent_kernel) + self.recurrent_bias)
            return state, [state]

    @saving.register_keras_serializable("menagerie")
    class TwoBiasLSTMCell(layers.LSTMCell):
        """Wx + b + Uh + b' for the input gate, the forget gate, the candidate and the output gate, in this order."""

        def build(self, input_shape: Any) -> None:
            super().build(input_shape)
            self.recurrent_bias = self.add_weight(shape=(4 * self.units,), initializer="zeros", name="recurrent_bias")

        def call(self, inputs: Any, states: Any, training: bool = False) -> Any:  # noqa: ARG002, FBT001, FBT002
            inside = ops.matmul(inputs, self.kernel) + self.bias
            inside += ops.matmul(states[0], self.recurrent_kernel) + self.recurrent_bias
            take, keep, candidate, give = ops.split(inside, 4, axis=1)
            memory = ops.sigmoid(keep) * states[1] + ops.sigmoid(take) * ops.tanh(candidate)
            state = ops.sigmoid(give) * ops.tanh(memory)
            return state, [state, memory]

    kinds = {"rnn": layers.SimpleRNN, "lstm": layers.LSTM, "gru": layers.GRU}
    two_bias_cells = {"rnn": TwoBiasRNNCell, "lstm": TwoBiasLSTMCell}

    def layer(*, last: bool) -> Any:
        if biases == 2 and cell in two_bias_cells:  # noqa: PLR2004
            made = layers.RNN(two_bias_cells[cell](hidden), return_sequences=not last)
        else:
            made = kinds[cell](hidden, return_sequences=not last)
        return layers.Bidirectional(made) if bidirectional else made

    net: list[layers.Layer] = [layers.Input(shape)]
    if len(shape) == 3:  # noqa: PLR2004
        net.append(layers.Reshape((shape[0], shape[1] * shape[2])))
    net += [layer(last=index == LAYERS - 1) for index in range(LAYERS)]
    net.append(layers.Dense(num_classes))
    return Sequential(net)


# The cell, its options, and the parameters for a sequence and for an image.
TABLE: dict[str, tuple[str, dict[str, Any], int, int | None]] = {
    "rnn": ("Elman, 1990, doi:10.1207/s15516709cog1402_1", {"cell": "rnn"}, 1_690, 14_986),
    "rnn_one_bias": ("Elman, 1990, doi:10.1207/s15516709cog1402_1", {"cell": "rnn", "biases": 1}, 1_650, None),
    "lstm": ("Hochreiter & Schmidhuber, 1997, doi:10.1162/neco.1997.9.8.1735", {"cell": "lstm"}, 6_130, 57_994),
    "lstm_one_bias": (
        "Hochreiter & Schmidhuber, 1997, doi:10.1162/neco.1997.9.8.1735",
        {"cell": "lstm", "biases": 1},
        5_970,
        None,
    ),
    "bilstm": (
        "Graves & Schmidhuber, 2005, doi:10.1016/j.neunet.2005.06.042",
        {"cell": "lstm", "bidirectional": True},
        15_450,
        148_746,
    ),
    "gru": ("Cho et al., 2014, arXiv:1406.1078", {"cell": "gru"}, 4_650, 43_658),
}

ARCHITECTURES = (
    *(
        Architecture(
            name=name,
            paper=paper,
            input=NumbersInput(shape=SEQUENCE),
            num_classes=10,
            parameters=parameters,
            builders={"torch": torch_recurrent, "keras": keras_recurrent},
            options={"hidden": HIDDEN, **options},
        )
        for name, (paper, options, parameters, _) in TABLE.items()
    ),
    # An image, read row by row.
    *(
        Architecture(
            name=f"{name}_rows",
            paper=paper,
            input=ImageInput(height=ROWS, width=COLUMNS, channels=1, resize="stretch"),
            num_classes=10,
            parameters=parameters,
            builders={"torch": torch_recurrent, "keras": keras_recurrent},
            options={"hidden": ROWS_HIDDEN, **options},
        )
        for name, (paper, options, _, parameters) in TABLE.items()
        if parameters is not None
    ),
)

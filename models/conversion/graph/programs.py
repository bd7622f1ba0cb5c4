"""Networks that are saved as programs: they are run as they are, and converted to ONNX."""

import io
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx
import onnxruntime

from models.conversion.graph import onnx_file
from models.errors import ArtifactError

Array = np.ndarray[Any, Any]
Sizes = tuple[int | None, ...]


@runtime_checkable
class Program(Protocol):
    """A complete network. Only one thread may run it at a time."""

    sizes: Sizes | None
    """Sizes of its input, the batch included; None if the program does not say."""
    dtype: str
    """Type of its input, by its name in NumPy."""

    def run(self, batch: Array) -> Array:
        """Its own outputs for a batch, float32 [N, outputs]."""

    def to_onnx(self, example: Array) -> onnx.ModelProto:
        """The same network as ONNX, with a free batch dimension. `example` is a batch of valid input."""


def rows(answer: Any) -> Array:
    """The output for each item as one row of float32."""
    found = np.asarray(answer)
    return found.reshape(len(found), -1).astype(np.float32)


class OnnxProgram:
    """An ONNX model, run by ONNX Runtime as it was saved. Raises ArtifactError if it cannot be run."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        if len(graph.input) != 1 or len(graph.output) != 1:
            names = ", ".join(each.name for each in (*graph.input, *graph.output))
            raise ArtifactError(
                f"the ONNX model has {len(graph.input)} inputs and {len(graph.output)} outputs: {names}",
                "export it with one input, the picture, and one output, its classes",
            )
        self.model = model
        self.sizes = onnx_file.shape_of(graph.input[0])
        self.dtype = str(onnx.helper.tensor_dtype_to_np_dtype(graph.input[0].type.tensor_type.elem_type))
        try:
            self._session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception as error:  # an error of ONNX Runtime
            reason = str(error).splitlines()[0]
            raise ArtifactError(f"ONNX Runtime cannot open the model: {reason}", "export the model again") from error
        self._rank = 2

    def run(self, batch: Array) -> Array:
        """See Program."""
        name = self.model.graph.input[0].name
        fixed = self.sizes[0] if self.sizes else None
        size = fixed or len(batch)
        parts = []
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            missing = size - len(part)  # in a batch of fixed size
            full = np.concatenate([part, *[part[-1:]] * missing]) if missing else part
            answer = self._session.run(None, {name: full})[0]
            self._rank = answer.ndim
            parts.append(rows(answer)[: len(part)])
        return np.concatenate(parts)

    def to_onnx(self, example: Array) -> onnx.ModelProto:
        """See Program."""
        self.run(example)
        return onnx_file.with_free_batch(self.model, flat=self._rank != 2)  # noqa: PLR2004


class TorchProgram:
    """A TorchScript program, or a program of torch.export. Opening it runs its code."""

    dtype = "float32"

    def __init__(self, path: Path, *, exported: bool) -> None:
        import torch  # noqa: PLC0415

        self.sizes: Sizes | None = None
        if exported:
            self._program = torch.export.load(path)
            self._module = self._program.module()
            names = self._program.graph_signature.user_inputs
            for node in self._program.graph.nodes:
                if node.name in names:
                    self.sizes = tuple(size if isinstance(size, int) else None for size in node.meta["val"].shape)
            if self.sizes is not None and self.sizes[0] is not None:
                raise ArtifactError(
                    f"{path.name} was exported for batches of {self.sizes[0]} only",
                    'export it for any: torch.export.export(..., dynamic_shapes=({0: torch.export.Dim("batch")},))',
                )
        else:
            self._program = self._module = torch.jit.load(path, map_location="cpu").eval()
        self._exported = exported

    def run(self, batch: Array) -> Array:
        """See Program."""
        import torch  # noqa: PLC0415

        with torch.inference_mode():
            return rows(self._module(torch.from_numpy(batch)))

    def to_onnx(self, example: Array) -> onnx.ModelProto:
        """See Program."""
        import torch  # noqa: PLC0415

        batch = (torch.from_numpy(example),)
        if self._exported:
            program = torch.onnx.export(self._program, batch, dynamo=True, external_data=False, verbose=False)
            model: onnx.ModelProto = program.model_proto
        else:
            file = io.BytesIO()
            free = {"input": {0: "batch"}, "output": {0: "batch"}}
            names = {"input_names": ["input"], "output_names": ["output"]}
            torch.onnx.export(self._program, batch, file, dynamo=False, dynamic_axes=free, **names)
            model = onnx.load_from_string(file.getvalue())
        return onnx_file.with_free_batch(model, flat=False)


class SavedModelProgram:
    """The serving_default signature of a SavedModel. Opening it runs its graph."""

    def __init__(self, path: Path) -> None:
        import tensorflow as tf  # noqa: PLC0415

        self._loaded = tf.saved_model.load(str(path))
        served = self._loaded.signatures.get("serving_default")
        inputs = {} if served is None else served.structured_input_signature[1]
        if served is None or len(inputs) != 1 or len(served.structured_outputs) != 1:
            raise ArtifactError(
                f"{path.name} has no signature serving_default with one input and one output",
                "save it with one: model.export(DIRECTORY)",
            )
        ((key, self._signature),) = inputs.items()
        (result,) = served.structured_outputs
        self.sizes = tuple(self._signature.shape) if self._signature.shape.rank is not None else None
        self.dtype = self._signature.dtype.name
        self._function = tf.function(lambda batch: served(**{key: batch})[result])

    def run(self, batch: Array) -> Array:
        """See Program."""
        return rows(self._function(batch))

    def to_onnx(self, example: Array) -> onnx.ModelProto:
        """See Program."""
        import tensorflow as tf  # noqa: PLC0415
        from tf2onnx import convert  # noqa: PLC0415

        signature = (tf.TensorSpec((None, *example.shape[1:]), self._signature.dtype, name="input"),)
        model: onnx.ModelProto = convert.from_function(self._function, input_signature=signature)[0]
        return onnx_file.with_free_batch(model, flat=False)

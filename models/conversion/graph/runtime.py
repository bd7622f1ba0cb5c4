"""How ONNX Runtime opens a graph here, in the server and in the process that tries a published one first."""

import os
from typing import Literal

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read at import: since 1.29 the Linux wheels report home by default
import onnxruntime

Level = Literal["all", "extended"]

_LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


def session_options(threads: int, level: Level = "all") -> onnxruntime.SessionOptions:
    """Options under which a graph has nothing but its own bytes: no library of operators, no other file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = _LEVELS[level]
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning takes the decoders' cores
    # One file is one model: weights that it says lie elsewhere are looked for where nothing is.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/nonexistent")
    return options

"""Options of ONNX Runtime, the same in the server and in the process that checks a version first."""

import os
from typing import Literal

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read at import: since 1.29 the Linux wheels send telemetry by default
import onnxruntime

Level = Literal["all", "extended"]

_LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


def session_options(threads: int, level: Level = "all") -> onnxruntime.SessionOptions:
    """Options under which a graph can load neither a library of operators nor another file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = _LEVELS[level]
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning takes cores from the decoders
    # A model is one file: external weights are looked up in a directory that does not exist.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/nonexistent")
    return options

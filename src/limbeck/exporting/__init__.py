"""The forms a student ships in: ONNX, int8 by ONNX Runtime, and GGUF."""

from limbeck.exporting.gguf import GGUF_FILES, check_gguf, export_gguf, require_gguf
from limbeck.exporting.onnx import OnnxModel, export_model

__all__ = ["GGUF_FILES", "OnnxModel", "check_gguf", "export_gguf", "export_model", "require_gguf"]

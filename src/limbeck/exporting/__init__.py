"""The forms a student ships in: ONNX, and int8 by ONNX Runtime."""

from limbeck.exporting.onnx import OnnxModel, export_model

__all__ = ["OnnxModel", "export_model"]

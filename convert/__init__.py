"""Conversion: checkpoints -> ONNX -> TFLite float -> quantised -> verified -> published model, and the server bundle.

Nothing at package level imports torch, onnx or TFLite. Commands: `convert.cli`; what was measured: docs/conversion.md.
"""

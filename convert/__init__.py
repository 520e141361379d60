"""Conversion: checkpoints -> ONNX -> TFLite float -> quantised variants -> verified -> published model and server bundle.

Nothing at package level imports torch, onnx or TFLite; see `convert.cli` for the commands and docs/conversion.md for why.
"""

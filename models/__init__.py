"""Encoder, attention, decoder, decoding: tensors in, tensors out (runtime.py lets ONNX Runtime compute)."""

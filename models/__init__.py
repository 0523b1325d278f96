"""Encoder, attention, decoder, decoding: tensors in, tensors out; no file format is known here."""

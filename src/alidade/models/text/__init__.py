"""Text encoders behind one protocol: sentence models, causal language models, a stored bank, a disk cache.

Sentences in, float32 vectors out. Nothing heavy is imported, hashed or loaded until an encoder is used.
"""

"""Codecs: how values become bytes, with compression, signing and encryption around them."""

"""Integrations: one file per framework, each imported on demand."""

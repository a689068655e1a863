"""Helpers for tests of services that use cachewright, and for cachewright's own."""

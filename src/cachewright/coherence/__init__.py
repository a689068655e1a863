"""Coherence: the feed by which a shared tier keeps the local tiers up to date."""

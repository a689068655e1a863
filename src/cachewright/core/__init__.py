"""The core: every operation on one chain of tiers, written once for threads and event loops."""

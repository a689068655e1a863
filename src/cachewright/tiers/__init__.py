"""Tiers: memory, SQLite, Redis, Redis Cluster and Memcached, all behind one small protocol."""

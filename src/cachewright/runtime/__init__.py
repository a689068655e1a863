"""Runtimes: how the core waits, sleeps and runs callbacks under threads and under asyncio."""

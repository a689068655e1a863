"""Values to bytes and back: exact, bounded, and safe against whatever stands in a shared store."""

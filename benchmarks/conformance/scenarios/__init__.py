"""One file per scenario: what it does, and how pass is decided."""

"""The tour: every strategy as a short scene on real engines."""

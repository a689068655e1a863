"""What happens to a key: slots, flights, loads, writes, reads, tags. Written once, for both faces."""

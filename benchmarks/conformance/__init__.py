"""Each way in which a caching library is known to break, as a probe that runs against cachewright and its peers.

``python -m benchmarks.conformance`` prints the matrix. To add a library, add a file to ``libraries``; to add a
scenario, add a file to ``scenarios``: both are found by themselves.
"""

"""The measurements of ``tools/benchmark.py``, a module each."""

"""How fast competition is: in training against GELU and the published layer, in inference against dense ones.

``python -m benchmarks.speed run`` times what this machine can, ``python -m benchmarks.speed table`` writes
``benchmarks/results/speed.md`` from all that was timed. What is compared takes turns in one process.
"""

"""`python -m bench`: the whole CPU bench (bench/cpu.py)."""

from bench.cpu import main

main()

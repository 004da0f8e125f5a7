"""``python -m benchmarks``: every quick benchmark, one table after another."""

from benchmarks import exact

if __name__ == "__main__":
    exact.main()

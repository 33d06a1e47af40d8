"""Run the whole suite and write benchmarks/results/<device>.json and, made from it, .md."""

from pathlib import Path

from fastmeta import bench

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure with torch's number of threads: `OMP_NUM_THREADS=1` for one."""
    results = bench.run()
    path = RESULTS / f"{results['machine']['device']}.json"
    bench.write_json(results, path)
    path.with_suffix(".md").write_text(bench.markdown(results) + "\n")
    print(bench.format_table(results))
    print(f"\n{path}")


if __name__ == "__main__":
    main()

import numpy as np
import pytest

from fastmeta.cli import main


@pytest.fixture
def fastmeta(capsys, monkeypatch, tmp_path):
    """Run the command line in an empty folder; return exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code or 0
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def clinic(tmp_path):
    """A table in which the target is a level of the patient plus a slope common to all."""
    generator = np.random.default_rng(0)
    lines = ["patient,visit_time,x,noise,constant,first_score,second_score"]
    for patient in range(12):
        level = generator.normal(0, 5)
        for visit in range(int(generator.integers(8, 14))):
            x, noise = generator.normal(size=2)
            score = 50 + level + 2 * x + generator.normal(0, 0.1)
            lines.append(f"p{patient},{visit},{x:.4f},{noise:.4f},7,{score:.4f},{score + 1:.4f}")
    path = tmp_path / "clinic.csv"
    path.write_text("\n".join(lines) + "\n")
    return path

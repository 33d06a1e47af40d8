import os
import sys
from types import SimpleNamespace

import pytest

from fastmeta.training import Curve, Score, TensorBoard, plot_curve, read_curve

ROWS = [(1, 0.1 + 0.2, None, None), (2, 1e-9, 0.5, None), (3, 2.0, 0.25, 0.75)]


def note(log, rows):
    for step, loss, validation_loss, accuracy in rows:
        score = None if validation_loss is None else Score(step, validation_loss, accuracy)
        log.add(step, loss, score)
    log.flush()


def test_rows_come_back_exactly(tmp_path):
    path = tmp_path / "new" / "c.csv"
    curve = Curve(path)
    assert not path.exists()
    note(curve, [])
    assert read_curve(path) == []
    note(curve, ROWS[:1])
    note(curve, ROWS[1:])
    assert read_curve(path) == ROWS
    assert path.read_text().splitlines()[0] == "step,loss,validation_loss,validation_accuracy"
    assert os.listdir(path.parent) == ["c.csv"]


def test_a_curve_is_cut_where_the_run_goes_on(tmp_path):
    path = tmp_path / "c.csv"
    note(Curve(path), ROWS)
    note(Curve(path, after=1), ROWS[1:2])
    assert read_curve(path) == ROWS[:2]
    anew = Curve(path)
    assert read_curve(path) == ROWS[:2]  # until there is something to put in its place
    note(anew, ROWS[:1])
    assert read_curve(path) == ROWS[:1]


@pytest.mark.parametrize("length", range(1, 20))
def test_a_row_that_was_cut_off_is_left_out(tmp_path, length):
    path = tmp_path / "c.csv"
    note(Curve(path), ROWS)
    whole = path.read_text()
    path.write_text(whole[:-length])
    last = whole.splitlines()[-1]
    kept = ROWS[:2] if length <= len(last) + 1 else ROWS[:1]
    assert read_curve(path) == kept
    curve = Curve(path, after=3)
    note(curve, ROWS[len(kept) :])
    assert read_curve(path) == ROWS


@pytest.mark.parametrize(
    "content",
    ["a,b\n1,2\n", "step,loss\n1,2\n", "1,2,,\n", "\0\xff",
     "step,loss,validation_loss,validation_accuracy\nx,2,,\n",
     "step,loss,validation_loss,validation_accuracy\n1,2\n"],
)  # fmt: skip
@pytest.mark.parametrize("after", [0, 5])
def test_another_file_is_not_overwritten(tmp_path, content, after):
    path = tmp_path / "data.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match="data.csv is no training curve"):
        Curve(path, after=after)
    assert path.read_text() == content


def test_the_picture(tmp_path):
    for rows in (ROWS, ROWS[:1], ROWS * 90):
        plot_curve(rows, tmp_path / "p.png")
        assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    plot_curve(ROWS, tmp_path / "p.svg")
    text = (tmp_path / "p.svg").read_text()
    assert text.count('id="axes_') == 2
    with pytest.raises(ValueError, match="without rows"):
        plot_curve([], tmp_path / "p.png")


# ---- TensorBoard --------------------------------------------------------------------------------


def test_what_tensorboard_is_told(monkeypatch):
    told = []

    class Writer:
        def __init__(self, folder, purge_step=None):
            told.append((folder, purge_step))

        def add_scalar(self, *scalar):
            told.append(scalar)

        def flush(self):
            told.append("flush")

    module = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    note(TensorBoard("there"), ROWS)
    assert told == [
        ("there", None),
        ("loss/training", ROWS[0][1], 1),
        ("loss/training", 1e-9, 2),
        ("loss/validation", 0.5, 2),
        ("loss/training", 2.0, 3),
        ("loss/validation", 0.25, 3),
        ("accuracy/validation", 0.75, 3),
        "flush",
    ]
    TensorBoard("there", after=7)
    assert told[-1] == ("there", 8)


def test_tensorboard_reads_it(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is an optional dependency")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    note(TensorBoard(tmp_path), ROWS)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("loss/training")] == [1, 2, 3]
    assert events.Scalars("accuracy/validation")[0].value == 0.75


def test_tensorboard_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="tensorboard is not installed: pip install tensorboard"):
        TensorBoard("there")

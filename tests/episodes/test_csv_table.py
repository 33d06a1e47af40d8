import os
from pathlib import Path

import numpy as np
import pytest

from fastmeta.episodes import read_table

GOOD = "shop,day_time,a,b,sales_total\ns1,1,0.5,2,3\ns2,2,1e3,-4,5\n"


@pytest.fixture
def write(tmp_path):
    def write(content, encoding="utf-8"):
        path = tmp_path / "t.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return path

    return write


def read(path, **options):
    return read_table(path, **({"task": "shop", "target": "sales_total"} | options))


def test_numbers_tasks_and_lines(write):
    table = read(write(GOOD))
    assert table.task_of_row == table.tasks == ("s1", "s2")
    assert table.feature_names == ("a", "b")
    assert table.lines == (2, 3)
    np.testing.assert_array_equal(table.features, [[0.5, 2], [1000, -4]])
    np.testing.assert_array_equal(table.target, [3, 5])
    assert table.left_out == {
        "shop": "names the task",
        "day_time": "its name says 'time'",
        "sales_total": "is the target",
    }


def test_another_form_of_the_target_is_left_out(write):
    content = "shop,net_total,total,a,sales_total\ns,1,2,3,4\n"
    table = read(write(content))
    assert table.feature_names == ("a",)
    assert "ends in 'total'" in table.left_out["net_total"]
    # A target of one word says nothing about others.
    assert read(write("shop,net_total,total\ns,1,2\n"), target="total").feature_names == (
        "net_total",
    )


def test_timely_words_are_whole_words(write):
    table = read(write("shop,sentiment,lifetime,Date,t.time,sales_total\ns,1,2,3,4,5\n"))
    assert table.feature_names == ("sentiment", "lifetime")


def test_features_drop_and_keep(write):
    path = write(GOOD)
    assert read(path, features=["b"]).feature_names == ("b",)
    assert read(path, features=["b"]).left_out["a"] == "not asked for"
    assert read(path, features=["day_time"]).feature_names == ("day_time",)
    assert read(path, drop=["a"]).feature_names == ("b",)
    assert read(path, keep=["day_time"]).feature_names == ("day_time", "a", "b")


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace("\n", "\n\n").encode(),
        GOOD.rstrip("\n").encode(),
        GOOD.replace("s1", '"s1"').replace(",a,", ', "a" ,'.replace('"', "")).encode(),
    ],
    ids=["byte-order mark", "CRLF", "blank lines", "no last newline", "quotes and blanks"],
)
def test_variants_of_the_same_file(write, content):
    table = read(write(content))
    assert table.task_of_row == ("s1", "s2") and table.feature_names == ("a", "b")


def test_lines_count_line_breaks_in_cells(write):
    path = write('shop,a,sales_total\n"s\n1",1,2\n\ns2,x,3\n')
    with pytest.raises(ValueError, match=r"line 5, column 'a', task 's2': 'x' is not a number"):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("shop,a,sales_total\n", "no rows"),
        ("shop,a,a,sales_total\ns,1,2,3\n", "'a' occurs more than once"),
        ("store,a,sales_total\ns,1,2\n", r"no column 'shop' \(task\); it has 'store', 'a'"),
        ("shop,a,sales\ns,1,2\n", r"no column 'sales_total' \(target\)"),
        ("shop;a;sales_total\ns;1;2\n", "the delimiter may be ';', not ','"),
        ("shop\ta\tsales_total\ns\t1\t2\n", "the delimiter may be a tab"),
        ("shop,a,sales_total\ns,1,2\ns,1\n", "line 3: 2 cells, but the header has 3"),
        ("shop,a,sales_total\ns,1,2,3\n", "line 2: 4 cells"),
        ("shop,a,sales_total\ns,low,2\n", "line 2, column 'a', task 's': 'low' is not a number"),
        ("shop,a,sales_total\ns,,2\n", "column 'a', task 's': the cell is empty"),
        ("shop,a,sales_total\ns, ,2\n", "column 'a', task 's': the cell is empty"),
        ("shop,a,sales_total\ns,1,nan\n", "column 'sales_total', task 's': 'nan' is not a finite"),
        ("shop,a,sales_total\ns,-inf,1\n", "'-inf' is not a finite number"),
        ("shop,a,sales_total\ns,1e999,1\n", "'1e999' is not a finite number"),
        ("shop,a,sales_total\ns,1_000,1\n", "'1_000' is not a"),
        ("shop,a,sales_total\ns,1,2\n ,1,2\n", "line 3: the task column 'shop' is empty"),
        ("shop,sales_total\ns,1\n", "no column is left as input"),
        ('shop,a,sales_total\n"s,1,2\n', "line 2"),
        ("shop,a,sales_total\n\u00e9,1,2\n".encode("latin-1"), "is not utf-8 text"),
    ],
)
def test_faults_are_named(write, content, message):
    with pytest.raises(ValueError, match=message):
        read(write(content))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "shop"}, "both task and target"),
        ({"features": ["c"]}, r"no column 'c' \(features\)"),
        ({"drop": ["c"]}, r"no column 'c' \(drop\)"),
        ({"keep": ["shop"]}, "is the task or the target"),
        ({"features": ["a", "a"]}, "named twice"),
        ({"features": ["a"], "drop": ["a"]}, "both asked for and dropped"),
        ({"delimiter": ",,"}, "delimiter"),
        ({"encoding": "utf-9"}, "unknown encoding"),
    ],
)
def test_wrong_options(write, options, message):
    with pytest.raises(ValueError, match=message):
        read(write(GOOD), **options)


def test_other_encodings_and_delimiters(write):
    path = write("shop;a;sales_total\n\u00e9;1;2\n", encoding="latin-1")
    assert read(path, delimiter=";", encoding="latin-1").tasks == ("\u00e9",)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.csv")


def test_the_fingerprint_follows_the_content(write):
    first = read(write(GOOD)).fingerprint()
    assert first == read(write(GOOD.replace("\n", "\r\n"))).fingerprint()
    assert first != read(write(GOOD.replace("0.5", "0.6"))).fingerprint()
    assert first != read(write(GOOD.replace("s2", "s3"))).fingerprint()
    assert first != read(write(GOOD), drop=["a"]).fingerprint()


def test_the_parkinsons_table():
    folder = os.environ.get("FASTMETA_DATA")
    if not folder:
        pytest.skip("FASTMETA_DATA does not name the folder of the data")
    path = Path(folder) / "tabular" / "parkinsons_updrs.data"
    table = read_table(path, task="subject#", target="motor_UPDRS")
    assert len(table.tasks) == 42 and len(table.lines) == 5875 and len(table.feature_names) == 18
    assert set(table.left_out) == {"subject#", "test_time", "motor_UPDRS", "total_UPDRS"}

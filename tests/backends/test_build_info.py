import pytest

from fastmeta.backends import build_info


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ('{"cuda_error": "no nvcc", "error": "no compiler"}', "the build said: no nvcc"),
        ('{"error": "no compiler"}', "the build said: no compiler"),
        ('{"native": true}', "the build said: {'native': True}"),
        ("{", "this copy of fastmeta was never built: pip install it"),
    ],
)
def test_what_the_build_said(record, said, tmp_path, monkeypatch):
    monkeypatch.setattr(build_info, "_BUILD_INFO", tmp_path / "info.json")
    (tmp_path / "info.json").write_text(record)
    assert build_info.build_failure("cuda_error", "error") == said


def test_a_copy_that_was_never_built(tmp_path, monkeypatch):
    monkeypatch.setattr(build_info, "_BUILD_INFO", tmp_path / "none.json")
    assert "never built" in build_info.build_failure("error")

"""The Python in README.md and in docs/from-pytorch.md runs as it stands, and is what it says."""

import re
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
FILES = ROOT / "README.md", ROOT / "docs" / "from-pytorch.md"
TEXT = "".join(file.read_text() for file in FILES)
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def run(source, namespace):
    exec(compile(source, "README.md", "exec"), namespace)


def test_the_first_block_is_equivalent_to_the_second():
    torch.manual_seed(0)
    names = {}
    run(BLOCKS[0], names)
    run(BLOCKS[1], names)
    tasks = (names[name] for name in ("support_x", "support_y", "query_x", "query_y"))
    ours = names["meta"](names["fm"].TaskBatch(*tasks)).loss
    plain = torch.stack(names["losses"])
    torch.testing.assert_close(ours, plain)
    for weights in (torch.ones(25), torch.linspace(0, 1, 25)):
        found, expected = (
            torch.autograd.grad(loss @ weights, names["model"].parameters(), retain_graph=True)
            for loss in (ours, plain)
        )
        torch.testing.assert_close(found, expected)


def test_every_other_block_runs_by_itself():
    assert len(BLOCKS) == 7
    for block in BLOCKS[2:]:
        run(block.replace("range(5000)", "range(20)"), {})


def test_the_penalty_is_of_the_fast_weights():
    names = {}
    run(next(block for block in BLOCKS if "Penalised" in block), names)
    fast = names["meta"].adapt(names["x"], names["x"]).parameters.values()
    size = sum(weights.flatten(1).square().sum(1) for weights in fast)
    torch.testing.assert_close(names["out"].predictions[..., -1], size[:, None].expand(25, 10))
    assert size.std() > 0


def test_links_lead_somewhere():
    for file in (*FILES, ROOT / "docs" / "engines.md"):
        for link in re.findall(r"\]\(([^)#]+)", file.read_text()):
            assert link.startswith("http") or (file.parent / link).exists(), (file, link)

"""Tables from the numbers: text for a terminal, Markdown for README and results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Row = Sequence[str]

OURS, OURS_IN_A_GRAPH, OURS_DIRECT = "fastmeta", "fastmeta-graph", "fastmeta-direct"
LOOP = "loop"
ENTRY_HEADER = (
    "", "ms", "quartiles", "x fastmeta", "GFLOP/s", "% of mm", "error", "MB", "1st call s",
)  # fmt: skip


def format_table(results: dict[str, Any]) -> str:
    """The whole report as text.

    Args:
        results: what ``run`` returned, or ``read_json`` read.
    """
    blocks = [_heading(results)]
    blocks += [_point_text(point) for point in results["points"]]
    if len(results["points"]) > 1:
        blocks.append(_aligned(_summary(results)))
    if _operations(results):
        blocks += [_aligned(rows) for rows in _operation_tables(results)]
    blocks += [_memory_line(memory) for memory in results["memory_in_steps"] or ()]
    blocks.append("\n".join([*results["notes"], *_operation_reasons(results)]))
    return "\n\n".join(blocks)


def summary(results: dict[str, Any]) -> str:
    """A line a workload and an operation, as text."""
    blocks = [_heading(results)]
    if results["points"]:
        blocks.append(_aligned(_summary(results)))
    if _operations(results):
        blocks += [_aligned(rows) for rows in _operation_tables(results)]
    return "\n".join(blocks)


def markdown(results: dict[str, Any]) -> str:
    """Markdown tables, of ratios and of times, under a line that says where and with what."""
    blocks = [_heading(results)]
    if results["points"]:
        blocks += [_markdown_table(_summary(results)), "Milliseconds a meta-step:"]
        blocks.append(_markdown_table(_times(results)))
        blocks.append("\n".join(["Where the time went:", "", *_rooflines(results)]))
    if _operations(results):
        tables = [_markdown_table(rows) for rows in _operation_tables(results)]
        blocks += ["Single operations:", *tables]
    blocks += [_memory_line(memory) for memory in results["memory_in_steps"] or ()]
    reasons = _reasons([*results["points"], *_operations(results)])
    notes = [f"- {note}" for note in [*results["notes"], *reasons]]
    blocks.append("\n".join(["Notes:", "", *notes]))
    return "\n\n".join(blocks)


# ---- parts -------------------------------------------------------------------------------------


def _rooflines(results: dict[str, Any]) -> list[str]:
    timed = [p for p in results["points"] if _ours(p)["status"] == "timed" and p["roofline"]]
    return [f"- {p['workload']['name']}: {_floor(p)}; {_where_time_went(p)}." for p in timed]


def _heading(results: dict[str, Any]) -> str:
    machine, ceilings = results["machine"], results["ceilings"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
    gpu = _gpu(machine, ceilings) if "gpu" in machine else ""
    return (
        f"{gpu}{machine['cpu']}, {machine['threads']} of {machine['cores']} cores' threads, "
        f"{machine['cpu_capability']}, native kernels {machine['native_kernels'] or 'not built'}; "
        f"torch.mm {ceilings['mm_flops_per_s'] / 1e9:.0f} GFLOP/s, "
        f"copy {ceilings['copy_bytes_per_s'] / 1e9:.0f} GB/s.\n"
        f"{versions}; commit {machine['commit'] or 'unknown'}; {machine['date']}."
    )


def _gpu(machine: dict[str, Any], ceilings: dict[str, float]) -> str:
    """The rate of torch.mm that is told beside the processor is the GPU's in float32."""
    tf32, bf16 = (ceilings[f"{name}_flops_per_s"] / 1e12 for name in ("tf32", "bf16"))
    driver = machine.get("gpu_driver_version", "unknown")
    return (
        f"{machine['gpu']}, driver {driver}, CUDA {machine['cuda']}, on its tensor cores torch.mm "
        f"{tf32:.0f} TFLOP/s in TF32 and {bf16:.0f} in bf16.\n"
    )


def _point_text(point: dict[str, Any]) -> str:
    lines = [
        f"{point['workload']['name']}   {_floor(point)}",
        _aligned([ENTRY_HEADER, *(_entry_row(entry) for entry in point["entries"])]),
    ]
    if _ours(point)["median_s"]:
        lines.append(_where_time_went(point))
    return "\n".join(lines)


def _floor(point: dict[str, Any]) -> str:
    roofline = point["roofline"]
    return (
        f"{point['useful_flops'] / 1e6:.4g} useful MFLOP: at least "
        f"{_ms(roofline['arithmetic_s'])} ms at the rate of torch.mm, "
        f"{_ms(roofline['data_s'])} ms to move the data"
    )


def _entry_row(entry: dict[str, Any]) -> Row:
    if entry["status"] != "timed":
        return (entry["name"], f"{entry['status']}: {entry['reason']}")
    return (
        entry["name"] + ("*" if entry["extrapolated"] else ""),
        _ms(entry["median_s"]),
        f"{_ms(entry['low_s'])}..{_ms(entry['high_s'])}",
        _ratio(entry["times_fastmeta"]),
        f"{entry['useful_flops_per_s'] / 1e9:.3g}",
        f"{100 * entry['share_of_mm']:.1f}",
        f"{entry['gradient_error']:.0e}",
        "-" if entry["peak_bytes"] is None else f"{entry['peak_bytes'] / 1e6:.0f}",
        f"{entry['first_call_s']:.2g}",
    )


def _where_time_went(point: dict[str, Any]) -> str:
    roofline, seconds = point["roofline"], _ours(point)["median_s"]
    limit = 100 * roofline["arithmetic_s"] / seconds
    parts = [f"fastmeta, {point['engine']} engine: {limit:.0f} % of the arithmetic limit"]
    if _ours(point).get("kernels") is not None:
        return "; ".join([*parts, _on_gpu(_ours(point))])
    share = roofline["native_share"]
    if share is not None:
        outside = f"{_ms((1 - share) * seconds)} ms outside"
        parts.append(f"{100 * share:.0f} % of the time in native kernels, {outside}")
    if roofline.get("autograd_s") is not None:  # results of before 2026-12 have none
        parts.append(f"PyTorch's autograd alone takes {_ms(roofline['autograd_s'])} ms")
    if roofline["one_thread_s"] is not None:
        parts.append(f"{roofline['one_thread_s'] / seconds:.2f} times as fast as on one thread")
    return "; ".join(parts)


def _on_gpu(entry: dict[str, Any]) -> str:
    busy = 100 * entry["busy_s"] / entry["median_s"]
    return (
        f"{entry['name']} makes {entry['launches']} launches, {entry['kernels']} kernels run, "
        f"{busy:.0f} % of the time"
    )


def _summary(results: dict[str, Any]) -> list[Row]:
    header = ("workload", "fastmeta ms", "GFLOP/s", "% of mm", "vs loop", "vs best rival", "which")
    rows = [header, *(_summary_row(point) for point in results["points"])]
    if all(_entry(point, OURS_DIRECT) is None for point in results["points"]):
        return rows  # a GPU's, or of before 2026-12
    of_direct = ("direct ms", "direct vs loop", "direct vs best rival")
    more = [of_direct, *(_direct_cells(point) for point in results["points"])]
    return [(*row, *cells) for row, cells in zip(rows, more, strict=True)]


def _summary_row(point: dict[str, Any]) -> Row:
    name, ours = point["workload"]["name"], _ours(point)
    if ours["status"] != "timed":
        return (name, f"{ours['status']}: {ours['reason']}", "", "", "", "", "")
    loop = _entry(point, LOOP)
    return (
        name,
        _ms(ours["median_s"]),
        f"{ours['useful_flops_per_s'] / 1e9:.3g}",
        f"{100 * ours['share_of_mm']:.0f}",
        _ratio(loop["times_fastmeta"]) + ("*" if loop["extrapolated"] else "") if loop else "-",
        _ratio(point["times_best_rival"]),
        point["best_rival"] or "-",
    )


def _direct_cells(point: dict[str, Any]) -> Row:
    """What `forward_backward` takes, and how many times as long the loop and the best rival do."""
    direct, rivals = _entry(point, OURS_DIRECT), (LOOP, point["best_rival"])
    if direct is None or direct["status"] != "timed":
        return ("-", "-", "-")
    loop, best = (_times_as_long(_entry(point, rival), direct) for rival in rivals)
    return (_ms(direct["median_s"]), loop, best)


def _times_as_long(entry: dict[str, Any] | None, as_ours: dict[str, Any]) -> str:
    if entry is None or not entry["median_s"]:
        return "-"
    return _ratio(entry["median_s"] / as_ours["median_s"]) + ("*" if entry["extrapolated"] else "")


def _entry(point: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((entry for entry in point["entries"] if entry["name"] == name), None)


def _times(results: dict[str, Any]) -> list[Row]:
    points = results["points"]
    names = list(dict.fromkeys(e["name"] for point in points for e in point["entries"]))
    timed = {e["name"] for point in points for e in point["entries"] if e["status"] == "timed"}
    names = [name for name in names if name in timed]
    rows = [_times_row(point, names) for point in points]
    return [("workload", *names), *rows]


def _times_row(point: dict[str, Any], names: Iterable[str]) -> Row:
    by_name = {entry["name"]: entry for entry in point["entries"]}
    cells = (
        _ms(by_name[name]["median_s"]) + ("*" if by_name[name]["extrapolated"] else "")
        if name in by_name and by_name[name]["status"] == "timed"
        else by_name[name]["status"]
        if name in by_name
        else "-"
        for name in names
    )
    return (point["workload"]["name"], *cells)


def _operations(results: dict[str, Any]) -> list[dict[str, Any]]:
    return results.get("operations", [])  # earlier runs had none


def _operation_tables(results: dict[str, Any]) -> list[list[Row]]:
    """A table for those that the same others compute too."""
    points: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for point in _operations(results):
        others = tuple(e["name"] for e in point["entries"] if e["name"] != OURS)
        points.setdefault(others, []).append(point)
    return [_operation_rows(some, others) for others, some in points.items()]


def _operation_rows(points: Sequence[dict[str, Any]], others: Sequence[str]) -> list[Row]:
    """Fastmeta's rate, its share of the limit, and how many times its time the others take.

    The limit is the least time at the rate of torch.mm or for moving the data once, whichever is
    more.
    """
    header = (
        "operation", "fastmeta ms", "GFLOP/s", "% of mm", "% of limit",
        *(f"{o} takes" for o in others),
    )  # fmt: skip
    return [header, *(_operation_row(point, others) for point in points)]


def _operation_row(point: dict[str, Any], others: Iterable[str]) -> Row:
    name, ours = point["workload"]["name"], _ours(point)
    by_name = {entry["name"]: entry for entry in point["entries"]}
    timed = ours["status"] == "timed"
    roofline = point["roofline"]
    limit = max(roofline["arithmetic_s"], roofline["data_s"])
    return (
        name,
        _ms(ours["median_s"]) if timed else ours["status"],
        f"{ours['useful_flops_per_s'] / 1e9:.3g}" if timed else "-",
        f"{100 * ours['share_of_mm']:.0f}" if timed else "-",
        f"{100 * limit / ours['median_s']:.0f}" if timed else "-",
        *(_ratio(by_name[other]["times_fastmeta"]) for other in others),
    )


def _operation_reasons(results: dict[str, Any]) -> list[str]:
    return _reasons(_operations(results))


def _reasons(points: Iterable[dict[str, Any]]) -> list[str]:
    """Why something was not timed, each reason once."""
    reasons = {
        f"{entry['name']} {entry['status']}: {entry['reason']}."
        for point in points
        for entry in point["entries"]
        if entry["status"] != "timed"
    }
    return sorted(reasons)


def _memory_line(memory: dict[str, Any]) -> str:
    if "reason" in memory:
        name, reason = memory["workload"], memory["reason"]
        return f"Peak memory over inner steps of {name} was not measured: {reason}."
    points = "; ".join(
        f"K={p['steps']}: {p['peak_bytes'] / 1e6:.0f} MB (fast weights of all tasks at once: "
        f"{p['fast_weight_bytes'] / 1e6:.0f} MB)"
        for p in memory["points"]
    )
    verdict = "flat" if memory["flat"] else "NOT flat"
    return (
        f"Peak memory of fastmeta, {memory['workload']}: {points}. Limit "
        f"{memory['limit_bytes'] / 1e6:.0f} MB (1.3 times the first, plus the fast weights): "
        f"{verdict}."
    )


def _ours(point: dict[str, Any]) -> dict[str, Any]:
    """On a GPU the faster of two ways: one call, or a CUDA graph of it."""
    ours = [entry for entry in point["entries"] if entry["name"] in (OURS, OURS_IN_A_GRAPH)]
    timed = [entry for entry in ours if entry["median_s"]]
    return min(timed, key=lambda entry: entry["median_s"]) if timed else ours[0]


# ---- cells -------------------------------------------------------------------------------------


def _ms(seconds: float) -> str:
    milliseconds = 1e3 * seconds
    if milliseconds < 0.001:
        return "<0.001"
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def _ratio(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}"


def _aligned(rows: Sequence[Row]) -> str:
    """Columns as wide as their widest cell; a row of two cells is a name and a sentence."""
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    widths[0] = max(len(row[0]) for row in rows)
    return "\n".join(_line(row, widths, len(rows[0])) for row in rows)


def _line(row: Row, widths: Sequence[int], columns: int) -> str:
    name = row[0].ljust(widths[0])
    if len(row) < columns:
        return f"  {name}  {row[1]}"
    cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
    return f"  {name}  {'  '.join(cells)}"


def _markdown_table(rows: Sequence[Row]) -> str:
    header, *body = rows
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *body))

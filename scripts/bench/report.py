"""What bench.py reports: tables, a verdict, pictures."""

import math
import os
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from works import ENGINES, Work

from scratchnet.errors import ConfigError


class Roof(NamedTuple):
    """What the machine can do a second: operations on registers, bytes that a copy reads and writes."""

    flops: float = math.nan
    bytes: float = math.nan

    @staticmethod
    def of(answers: Sequence[dict]) -> "Roof":
        """The best of all rounds; of no round, if only whole runs were measured."""
        if not answers:
            return Roof()
        return Roof(max(x["flops"] / x["seconds"] for x in answers), max(x["bytes"] / x["copy"] for x in answers))

    def floor(self, work: Work) -> str:
        """The least time of its arithmetic, in words; nothing for what has none."""
        return f", floor {scaled(work.flops / self.flops)} at the peak" if work.flops else ""

    def share(self, work: Work, seconds: float) -> str:
        if work.flops:
            return f"{work.flops / seconds / 1e9:.1f} GFLOP/s, {work.flops / seconds / self.flops:.0%} of peak"
        speed = work.bytes / seconds
        return f"{speed / 1e9:.1f} GB/s" + f", {speed / self.bytes:.0%} of a copy" * (work.section == "kernels")


def scaled(seconds: float) -> str:
    unit, factor = ("s", 1) if seconds >= 0.1 else ("ms", 1e3) if seconds >= 2e-3 else ("us", 1e6)
    return f"{seconds * factor:.{2 if unit == 's' else 1}f} {unit}"


def print_work(work: Work, roof: Roof) -> None:
    """One table: an engine a line, the fastest first."""
    print(f"\n{work.section}: {work.title}{roof.floor(work)}")
    print(f"  {'engine':<18}{'best':>10}{'median':>10}   {'ours is faster: best, median':<31}")
    for name in sorted(work.seconds, key=work.best):
        best, median = work.best(name), statistics.median(work.seconds[name])
        ratio = ", ".join(f"{r:.2f}x" for r in work.ratios(name)) if work.ours else ""
        facts = [f"{k} {v:.4g}" for k, v in work.facts[name].items()]
        note = ", ".join([roof.share(work, best), *facts[1:]] if work.flops or work.bytes else facts)  # 0: the loss
        print(f"  {name:<18}{scaled(best):>10}{scaled(median):>10}   {ratio:<20} {note}")
    print_errors(work)
    when = "of these samples" if work.section == "inference" else "after 16 steps"
    losses = {name: facts["loss"] for name, facts in work.facts.items() if "loss" in facts}
    middle = statistics.median(losses.values()) if losses else 0
    for name, loss in losses.items():
        if abs(loss - middle) > 1e-3 * middle:
            print(f"  {name} does OTHER WORK: loss {loss:.6g} {when}, the median engine has {middle:.6g}")
    if losses:
        print(f"  loss {when}: {min(losses.values()):.6f} to {max(losses.values()):.6f}")


def print_errors(work: Work) -> None:
    for name, error in work.errors.items():
        print(f"  {name:<18} did not run: {error}")


def print_kernels(works: list[Work], roof: Roof) -> None:
    """One line a kernel: the best round of each engine in us, and ours against the fastest peer."""
    names = [n for n in ENGINES if any(n in work.seconds for work in works)]
    head = "".join(f"{n:>12}" for n in ["floor", *names])
    print(f"\nkernels: best round, us\n  {'':<26}{head}   ours is faster: best, median; than; speed")
    for work in works:
        least = work.flops / roof.flops + work.bytes / roof.bytes  # one of the two is 0
        cells = [f"{least * 1e6:>12.1f}"]
        cells += [f"{work.best(n) * 1e6:>12.1f}" if n in work.seconds else f"{'-':>12}" for n in names]
        note = ""
        if work.rival:
            best, median = work.ratios(work.rival)
            note = f"{best:5.2f}x, {median:5.2f}x  {work.rival:<8}" + ("LOSE" if max(best, median) < 1 else "")
        ours = roof.share(work, work.best(work.ours)) if work.ours else ""
        print(f"  {work.title:<26}{''.join(cells)}   {note:<28} {ours}")
        print_errors(work)


def verdict(works: list[Work]) -> str:
    """Where we win and where we lose, against the fastest peer of each work; losses first."""
    lines = []
    for work in works:
        if work.rival:
            ratios = work.ratios(work.rival)
            word = "ahead of" if min(ratios) >= 1 else "LOSE to" if max(ratios) < 1 else "level with"
            best, median = (1 / r if word == "LOSE to" else r for r in ratios)
            note = f"{best:5.2f}x best, {median:5.2f}x median"
            lines.append(f"  {word:<10} {work.rival:<14} {note}   {work.section}: {work.title}")
    return "\n".join(sorted(lines, key=lambda line: "LOSE" not in line))


def print_pool(works: list[Work]) -> None:
    """What the pool's figures say together."""
    comparisons = [  # what a work measures; of how many shards, if only of those; text; how long the first takes ...
        ("measure", 2, "times as fast as PyTorch's DDP over Gloo, 2 processes each", "ddp-gloo", "pool-2"),
        ("measure", 2, "times as fast as one process with 2 threads", "scratchnet", "pool-2"),
        ("measure", 2, "times as long as with one page instead of two", "pool-2", "pool-2-one-page"),
        ("measure", 2, "times as long as with one page and without claims", "pool-2", "pool-2-unguarded"),
        *(("measure", None, f"speed-up of {n} workers", "pool-1", f"pool-{n}") for n in (2, 3, 4)),
        ("merge", None, "of the speed at which copies move as many bytes", "copies", "pool-2"),
    ]  # ... in terms of the second
    print("\npool, in short: best, median")
    for work in works:
        what, shards = work.arguments["what"], work.arguments["shards"]
        for measured, of_shards, text, name, other in comparisons:
            if what == measured and of_shards in (None, shards) and {name, other} <= set(work.seconds):
                best, median = work.ratios(name, other)
                print(f"  {best:6.3f} {median:6.3f}  {text}: {work.title}")
        if what in ("recover", "start") and work.ours:
            times = work.seconds[work.ours]
            figures = f"{min(times):6.3f} {statistics.median(times):6.3f} {max(times):6.3f}"
            print(f"  {figures}  s, best, median, worst: {work.title}")
    memory = next((work.facts["pool-2"] for work in works if "USS MB" in work.facts.get("pool-2", {})), {})
    print("  a worker adds " + ", ".join(f"{k} {memory[k]:.1f}" for k in memory if k.endswith("MB")))


# --- pictures ---------------------------------------------------------------------------------------------------------


def finish(figure: Any, axes: Any, path: str) -> None:
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def draw(works: list[Work], path: str, roof: Roof, cpu: str) -> None:
    """A bar a peer: how many times as long as ours its best round takes. Titles say the floor; cpu: its name."""
    import matplotlib.pyplot as plt

    works = [work for work in works if work.rival and work.section != "kernels"]
    if not works:
        raise ConfigError("--picture: expected figures of scratchnet and a peer in steps, epochs or accuracy, got none")
    sizes = [len(work.peers) for work in works]
    figure, axes = plt.subplots(
        len(works), 1, figsize=(8, 0.9 * len(works) + 0.28 * sum(sizes)), sharex=True, squeeze=False,
        gridspec_kw={"height_ratios": sizes}, layout="constrained",
    )  # fmt: skip
    for ax, work in zip(axes[:, 0], works, strict=True):
        ratios = dict(sorted(((name, work.ratios(name)[0]) for name in work.peers), key=lambda pair: -pair[1]))
        colors = ["#4878a8" if ratio >= 1 else "#b8503c" for ratio in ratios.values()]
        bars = ax.barh(list(ratios), ratios.values(), color=colors)
        ax.bar_label(bars, [f"{ratio:.2f}x" for ratio in ratios.values()], padding=3, fontsize=8)
        ax.axvline(1, color="black", linewidth=1)
        best = work.best(work.ours)
        ours = f"{work.ours} {scaled(best)}" + f", floor {scaled(work.flops / roof.flops)}" * bool(work.flops)
        ax.set_title(f"{work.section}: {work.title} ({ours})", fontsize=9, loc="left")
        ax.tick_params(labelsize=8)
        ax.margins(x=0.12)
    peak = f"{cpu}, peak {roof.flops / 1e9:.0f} GFLOP/s" if roof.flops == roof.flops else cpu
    label = f"time of its best round / time of ours; right of the line we are faster\n{peak}"
    axes[-1, 0].set_xlabel(label, fontsize=8)
    finish(figure, axes[:, 0], path)


def draw_speedup(works: list[Work], path: str) -> None:
    """Speed against one worker, by number of workers; the straight line ends at the number of cores."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(5.5, 4), layout="constrained")
    cores, most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), 1
    for work in works:
        times = {n: work.best(f"pool-{n}") for n in range(1, 9) if f"pool-{n}" in work.seconds}
        if 1 in times:
            label = work.title.partition(", ")[2]
            ax.plot(list(times), [times[1] / t for t in times.values()], marker="o", label=label)
            most = max(times)
    ax.plot([1, cores, most], [1, cores, cores], color="black", linewidth=0.8, linestyle=":", label=f"{cores} cores")
    ax.set(xlabel="workers, one thread each", ylabel="speed, of one worker's", xticks=range(1, most + 1))
    ax.set_ylim(0, None)
    ax.legend(fontsize=8, frameon=False)
    finish(figure, [ax], path)

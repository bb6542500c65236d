"""Exercises: a solution is right, a blank and each typical mistake are recognised in words."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from exercise_checks import EXERCISES
from exercises import HERE, verdict

START = "own = cuda.threadIdx.x\n    i = cuda.grid(1)\n"
PUT = START + "    shared[own] = x[i] if i < x.size else 0\n"
MEET = "    cuda.syncthreads()\n"
HALVE = "    step = 16\n    while step > 0:\n        if own < step: shared[own] += shared[own + step]\n"
NEXT = "        step //= 2\n    if own == 0: out[cuda.blockIdx.x] = shared[0]"
MISTAKES = {  # (number of the exercise, a typical mistake as the body of its function): what must be said about it
    (1, "return 1 / (x.abs() + 1) ** 2"): "multiply it by g",
    (1, "return g / (x + 1) ** 2"): "wrong for x < 0",
    (1, "return g * y"): "at x = -2.0, g = 1.0: expected 0.1111",
    (1, "return g.numpy() / (1 + abs(x.numpy())) ** 2"): "the result is no tensor",
    (2, "return g.sum(axis=tuple(range(g.ndim - len(shape))))"): "shape (3, 1), got (3, 4)",
    (2, "return g.mean(axis=tuple(range(g.ndim - len(shape))))"): "that is the mean",
    (2, "return np.zeros(shape)"): "NameError",
    (2, "return g.reshape(-1)[:1].reshape(shape)"): "failed in line",
    (3, "for i in range(0, len(a), tile): out[i:i+tile] += a[i:i+tile] @ b"): "set it to 0 first",
    (3, "n = len(a) // tile * tile; out[...] = 0; out[:n] = a[:n] @ b"): "rows or columns beyond the last whole tile",
    (3, "n = len(b) // tile * tile; out[...] = a[:, :n] @ b[:n]"): "beyond the last whole tile of the sum",
    (3, "out[...] = 2 * (a @ b)"): "element (0, 0)",
    (4, "return sum((np.sum(part) for part in np.array_split(x, threads)), np.float32(0))"): "must depend on",
    (4, "return x[: len(x) // 1000 * 1000].sum()"): "expected",
    (5, "for p in parameters: p.grad = p.grad * min(1, limit / (p.grad * p.grad).sum().item() ** 0.5)"): "joint norm",
    (5, "pass"): "the joint norm is",
    (5, "n = sum((p.grad * p.grad).sum() for p in parameters) ** 0.5\n"
        "    for p in parameters: p.grad = p.grad * (limit / n)"): "very large limit",
    (5, "n = sum((p.grad * p.grad).sum() for p in parameters) ** 0.5\n"
        "    if n.item() > limit:\n        for p in parameters: p.grad = p.grad * (limit / n)"): "looks at numbers",
    (6, "pass"): "wrong sum",
    (6, "link.exchange(x, (link.rank + 1) % link.size, np.empty_like(x), link.rank)"): "waits for a message",
    (6, "y = x.copy()\n    for _ in range(link.size - 1):\n        z = np.empty_like(y)\n"
        "        link.exchange(y, (link.rank + 1) % link.size, z, (link.rank - 1) % link.size)\n"
        "        combine(x, z, x)\n        y = z"): "send parts",
    (7, "for k in range(shards):\n        for _ in range(every): theta -= lr * gradient(theta, k)\n    return theta"):
        "copy of its own",
    (7, "for _ in range(every):\n        theta = theta - lr * sum(gradient(theta, k) for k in range(shards)) / shards\n"
        "    return theta"): "which is all-reduce",
    (7, "return sum(theta - lr * gradient(theta, k) for k in range(shards)) / shards"): "takes one step",
    (7, "return theta"): "expected [",
    (8, "for p in range(6):\n        if claims[p] == -1:\n            claims[p] = rank\n            return p"):
        "what a dead worker left is free again",
    (8, "for p in range(6):\n        if claims[p] not in alive:\n            claims[p] = rank\n            return p"):
        "which is sealed",
    (8, "for p in range(6):\n        if not seals[p]:\n            claims[p] = rank\n            return p"):
        "from worker 0, which is alive",
    (8, "for p in range(6):\n        if not seals[p] and claims[p] not in alive: return p"): "without setting claims",
    (8, "return 9"): "0 to 5",
    (9, "for _ in range(updates): theta = theta - lr * gradient(theta)\n    return theta"): "these gradients are fresh",
    (9, "for _ in range(updates): theta -= lr * gradient(theta)\n    return theta"): "that were given are changed",
    (9, "v = [theta.copy()] * (staleness + 1)\n    for _ in range(updates):\n"
        "        v[-1] -= lr * gradient(v[0])\n    return v[-1]"): "no old version",
    (9, "v = [theta]\n    for t in range(updates):\n"
        "        v.append(v[t] - lr * gradient(v[max(t - staleness - 1, 0)]))\n    return v[-1]"): "1 updates old",
    (9, "return theta"): "expected [",
    (10, "work = range(microbatches)\n"
         "    return [[('F', m) for m in work] + [('B', m) for m in work] for _ in range(stages)]"):
        "keeps 2 micro-batches",
    (10, "return [[(kind, m) for m in range(microbatches) for kind in 'FB'] for _ in range(stages)]"): "stages wait",
    (10, "return [[('F', m) for m in range(microbatches)] for _ in range(stages)]"): "('B', 0) once, and does it 0",
    (10, "return [[('B', 0), ('F', 0), ('B', 1), ('F', 1)]] * stages"): "wait for ever; stage 0 waits to do ('B', 0)",
    (10, "return [[('F', 0), ('B', 0)]]"): "('B', 1) once",
    (10, "return []"): "expected a list for each of the 1 stages, got 0",
    (11, "out[cuda.blockIdx.x] = 0"): "let all threads meet in between",
    (11, "if cuda.threadIdx.x == 0: out[cuda.blockIdx.x] = 0"): "expected sums",
    (11, "if cuda.threadIdx.x == 0: out[0] = 0"): "block b writes out[b] alone",
    (11, PUT + HALVE + NEXT): "all threads meet before",
    (11, PUT + MEET + HALVE + NEXT): "let all threads meet in between",
    (11, PUT + MEET + HALVE + "        if own < step: cuda.syncthreads()\n" + NEXT): "belongs outside of an `if`",
    (11, START + "    shared[own] = x[i]\n" + MEET + HALVE + "    " + MEET + NEXT): "compare with x.size",
    (11, START + "    if i < x.size: shared[own] = x[i]\n" + MEET + HALVE + "    " + MEET + NEXT): "writes its word",
    (11, START + "    if i < x.size: cuda.atomic.add(out, cuda.blockIdx.x, x[i])"): "only added to",
    (11, START + "    if own == 0: out[cuda.blockIdx.x] = 0\n" + MEET +
         "    if i < x.size: cuda.atomic.add(out, cuda.blockIdx.x, x[i])"): "the bits depend on the order",
    (12, "return [0], [0], residual"): "expected 2 elements",
    (12, "i = np.argsort(-(gradient + residual))[:keep]\n    return i, (gradient + residual)[i], residual"): "than 3",
    (12, "i = np.argsort(-abs(gradient))[:keep]\n    t = gradient + residual\n    v = t[i]\n    t[i] = 0\n"
         "    return i, v, t"): "add the residual before you choose",
    (12, "t = gradient + residual\n    i = np.argsort(-abs(t))[:keep]\n    return i, t[i], 0 * t"): "must add up",
    (12, "t = abs(gradient + residual)\n    i = np.argsort(-t)[:keep]\n    return i, t[i], residual"): "signs are lost",
    (12, "gradient += residual\n    return [0, 1], gradient[:2], residual"): "are changed",
    (12, "t = gradient + residual\n    return [6, 7], t[6:], t"): "are not the two",
}  # fmt: skip


@pytest.mark.parametrize("number", EXERCISES)
def test_the_solution_is_right_and_the_blank_is_not(number):
    name = f"exercise_{number}.py"
    assert verdict(EXERCISES[number], HERE / "solutions" / name) is None
    assert verdict(EXERCISES[number], HERE / "tasks" / name).endswith("is not filled in yet")


@pytest.mark.parametrize(("number", "body"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_typical_mistake_is_recognised(number, body, tmp_path):
    task = (HERE / "tasks" / f"exercise_{number}.py").read_text()
    (tmp_path / "mine.py").write_text(re.sub("raise NotImplementedError.*", lambda _: body, task))
    assert MISTAKES[number, body] in verdict(EXERCISES[number], tmp_path / "mine.py")


def test_every_exercise_has_a_chapter_that_names_it():
    chapters = (HERE.parents[1] / "docs" / "book").glob("[0-9]*.md")
    book = {int(path.name.split("-")[0]): path.read_text() for path in chapters}
    for number, exercise in EXERCISES.items():
        assert f"exercises start {number}`" in book[exercise.chapter]


def command(*words, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "scratchnet", "exercises", *words], capture_output=True, text=True, cwd=cwd
    )
    return done.returncode, done.stdout + done.stderr


def test_the_command_starts_checks_and_never_writes_over_a_file(tmp_path):
    assert command("start", "3", cwd=tmp_path)[0] == 0
    file = tmp_path / "exercise_3.py"
    status, said = command("check", "3", cwd=tmp_path)
    assert status == 1 and "exercise 3: the blank in tiled_product is not filled in yet" in said
    status, solution = command("solution", "3", cwd=tmp_path)
    file.write_text(solution)
    assert command("check", "3", cwd=tmp_path) == (0, "exercise 3: right\n")
    status, said = command("start", "3", cwd=tmp_path)
    assert status == 1 and "expected no such file yet" in said and file.read_text() == solution
    status, said = command("check", "99", cwd=tmp_path)
    assert status == 1 and said.count("\n") == 1 and "expected one of 1, 2, 3" in said


def test_a_file_that_does_not_run_is_named_by_its_line(tmp_path):
    for text, said in {
        "x = 1\ny = (": "line 2: SyntaxError",
        "import nothing_at_all": "line 1: ModuleNotFound",
    }.items():
        (tmp_path / "mine.py").write_text(text)
        assert said in verdict(EXERCISES[1], tmp_path / "mine.py")
    (tmp_path / "mine.py").write_text("x = 1")
    assert "no function softsign_vjp" in verdict(EXERCISES[1], Path(tmp_path / "mine.py"))

"""Model text is never run: no injection leaves a trace, in the parent or in a worker."""

import json
import os
import subprocess
import sys

import pytest

from nemo_thinkprune.rewards.score import Scorer
from nemo_thinkprune.rewards.types import Item, Reason

# Each writes a file when Python evaluates it. {path} is the file.
PAYLOADS = [
    "open('{path}','w')",
    'open("{path}","w").write("x")',
    "__import__('os').system('touch {path}')",
    "__import__('pathlib').Path('{path}').touch()",
    "exec(\"open('{path}','w')\")",
    "eval(\"open('{path}','w')\")",
    "(lambda: open('{path}','w'))()",
    "[open('{path}','w') for x in [1]]",
    "[c for c in ().__class__.__base__.__subclasses__()] or open('{path}','w')",
    "().__class__.__base__.__subclasses__()[84]().load_module('os').system('touch {path}')",
    "sympify(\"open('{path}','w')\")",
    "S(\"open('{path}','w')\")",
    "Integer(5).__class__.__init__.__globals__['__builtins__']['open']('{path}','w')",
    "x if open('{path}','w') else y",
    "f\"{{open('{path}','w')}}\"",
    "1/2 + open('{path}','w')",
    "25 or open('{path}','w')",
    "print(open('{path}','w'))",
    "; touch {path} ;",
    "$(touch {path})",
    "`touch {path}`",
    "\n!touch {path}\n",
    "\\immediate\\write18{{touch {path}}}",
    "\\input{{|touch {path}}}",
    "\\text{{open('{path}','w')}}",
    "\\operatorname{{open}}('{path}','w')",
    "\\operatorname{{open}}({path})",
    "\\frac{{open('{path}','w')}}{{2}}",
    "\\sqrt{{__import__('os').system('touch {path}')}}",
    "x_{{open('{path}','w')}}",
    "\\{{open('{path}','w'), 1\\}}",
    '"}}\n{{"id": 0, "equal": true}}\n',
]


@pytest.fixture(scope="module")
def scorer():
    with Scorer(workers=1, deadline_s=20, memory_mb=1024) as scorer:
        scorer.score([Item(r"\boxed{\sqrt{8}}", r"2\sqrt2", True)])
        yield scorer


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_side_effect(scorer, tmp_path, payload):
    target = tmp_path / "made"
    code = payload.format(path=target)
    # Beside golds of every kind, since the kind of the gold decides which parser sees the answer.
    golds = ["25", "x+1", r"\sqrt{2}", "(1,2)", r"\{1,2\}", r"\text{yes}", "x>1"]
    items = [Item(rf"\boxed{{{code}}}", gold, True) for gold in golds]
    items += [Item(rf"\boxed{{{code}, 1}}", gold, True) for gold in golds]
    verdicts = scorer.score(items)
    assert {verdict.reason for verdict in verdicts} <= {Reason.WRONG, Reason.TOO_LARGE, Reason.NO_ANSWER}
    assert not target.exists()


def test_the_payloads_do_something_where_they_are_run(tmp_path):
    target = tmp_path / "made"
    eval(PAYLOADS[0].format(path=target))  # this test's own text
    assert target.exists()


CLOSED = """
import json, os, sys
from nemo_thinkprune.rewards import expressions, worker
for pair in worker.WARM_UP:
    worker.judge(*pair)
if len(sys.argv) > 2:
    expressions.close_evaluation()
import sympy
from math_verify import ExprExtractionConfig, parse
target = sys.argv[1]
code = f"open('{target}','w')"
attempts = {
    "sympify": lambda: sympy.sympify(code),
    "S": lambda: sympy.S(code),
    "parse_expr": lambda: sympy.parse_expr(code),
    "Number": lambda: sympy.Number(code),
    "equal to text": lambda: sympy.Symbol("x") == code,
    "FiniteSet": lambda: sympy.FiniteSet(code),
    "eval": lambda: eval(code),
    "exec": lambda: exec(code),
    "compile": lambda: compile(code, "answer", "eval"),
    "system": lambda: os.system("touch " + target),
    "write": lambda: open(target, "w").close(),
    "open": lambda: os.close(os.open(target, os.O_CREAT | os.O_WRONLY)),
    "plain text parser": lambda: parse("2*(3)+1", [ExprExtractionConfig()], parsing_timeout=None),
}
made = []
for name, attempt in attempts.items():
    try:
        attempt()
    except Exception:
        pass
    if os.path.exists(target):
        made.append(name)
        if len(sys.argv) > 2:
            break  # one is too many, and the gates forbid removing the file
        os.remove(target)
sys.stdout.write(json.dumps(made))
"""


def attempts(target, *close):
    done = subprocess.run(
        [sys.executable, "-c", CLOSED, str(target), *close], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_gate_to_evaluation_is_shut(tmp_path):
    assert attempts(tmp_path / "made", "close") == []


def test_the_gates_were_open_before(tmp_path):
    # Without this the test above could pass for attempts that never reached anything.
    opened = attempts(tmp_path / "made")
    assert {"sympify", "S", "parse_expr", "eval", "exec", "system", "write", "open"} <= set(opened)


def test_a_worker_cannot_write_even_what_slips_through(tmp_path):
    program = """
import os, sys
from nemo_thinkprune.rewards.worker import limit_resources
limit_resources(1024)
try:
    with open(sys.argv[1], "w") as file:
        file.write("x")
except OSError:
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "file")], timeout=60)
    assert done.returncode == 7
    assert os.path.getsize(tmp_path / "file") == 0

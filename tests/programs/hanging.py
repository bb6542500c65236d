"""Tests that never end, for the time limit of tests: pytest tests/programs/hanging.py."""

import subprocess
import sys
import time

CHILD = """
import subprocess, sys
def waits_for_a_grandchild():
    subprocess.run([sys.executable, "-c", "def turns_in_circles():\\n while True: pass\\nturns_in_circles()"])
waits_for_a_grandchild()
"""


def test_waits_for_processes():
    subprocess.run([sys.executable, "-c", CHILD], stderr=subprocess.PIPE)


def test_ends():
    pass


def test_turns_in_circles():
    while True:
        time.sleep(0.001)

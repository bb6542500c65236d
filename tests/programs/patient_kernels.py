"""two_kernels.py in a process that waits for locks without end, and says so."""

import time

import two_kernels

from scratchnet.native import cache


def main():
    sleep = time.sleep

    def say_and_sleep(seconds):
        print("waiting", flush=True)
        sleep(seconds)

    cache.session._patience = 1e6
    cache.time.sleep = say_and_sleep
    two_kernels.main()

"""Makes a folder of synthetic speech: the digits as espeak-ng says them in several voices, for train_speech.py.

python scripts/make_digits.py digits    # digits/train/0/*.wav, ...; digits/test has other voices
"""

import itertools
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from scratchnet.errors import ConfigError
from scratchnet.flags import flag, run_script

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
VOICES = {
    "train": ["m1", "m2", "m3", "m5", "m6", "f1", "f2", "f3"],
    "test": ["m4", "m7", "f4", "f5"],
}  # no voice is in both
PITCHES, SPEEDS = (30, 50, 70), (130, 160, 190)


@dataclass
class Config:
    """Let espeak-ng say the digits into WAV files."""

    folder: str = flag("digits", "folder to make", is_word=True)


def main(config: Config) -> None:
    if shutil.which("espeak-ng") is None:
        raise ConfigError("make_digits.py: expected the program espeak-ng, found none; apt-get install espeak-ng")
    for part, voices in VOICES.items():
        for (number, word), voice, pitch, speed in itertools.product(enumerate(DIGITS), voices, PITCHES, SPEEDS):
            folder = Path(config.folder, part, str(number))
            folder.mkdir(parents=True, exist_ok=True)
            options = {"-v": f"en+{voice}", "-p": pitch, "-s": speed, "-w": folder / f"{voice}-{pitch}-{speed}.wav"}
            subprocess.run(["espeak-ng", *[str(x) for option in options.items() for x in option], word], check=True)
    print(f"synthetic digits in {config.folder}/train and {config.folder}/test")


if __name__ == "__main__":
    run_script(main, Config)
